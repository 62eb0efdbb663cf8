"""The synthetic world: words, chains, facts and questions."""

from __future__ import annotations

from collections import Counter

import pytest

from rapo_jax.tasks import SPLITS, TASKS, chains

TASK = TASKS["chains"]


def test_the_same_parameters_give_the_same_world_and_another_seed_another(world, parameters):
    assert TASK.make_world(**parameters) == world
    assert TASK.make_world(**{**parameters, "seed": 4}) != world


def test_no_start_entity_is_in_two_splits(world, parameters):
    starts = [world.starts[split] for split in SPLITS]
    assert [len(s) for s in starts] == [20, 10, 40 - 20 - 10]
    assert sum(starts, ()) == world.entities
    assert len(set(world.entities)) == 40


def test_every_word_has_a_chain_of_the_length_of_its_group(world, parameters):
    assert len(set(world.chains.values())) == len(world.chains)
    sizes = Counter(world.kinds.values())
    assert sizes["one_hop"] == len(chains.RELATIONS)
    assert all(sizes[kind] == parameters[kind] for kind in chains.KINDS[1:])
    hops = {kind: set() for kind in chains.KINDS}
    for word, chain in world.chains.items():
        hops[world.kinds[word]].add(sum(step in chains.RELATIONS for step in chain))
    assert hops == {
        "one_hop": {1},
        "two_hop": {2},
        "number": {0, 1},
        "hidden": {4},
        "hidden_number": {2},
    }
    assert max(map(len, world.chains.values())) == chains.LONGEST_CHAIN


def test_no_two_hidden_words_begin_alike_before_every_beginning_is_taken(parameters):
    def beginnings(**change):
        world = TASK.make_world(**{**parameters, **change})
        hidden = [c for w, c in world.chains.items() if world.kinds[w] in chains.HIDDEN_KINDS]
        return Counter(chain[:2] for chain in hidden)

    pairs = len(chains.RELATIONS) ** 2
    assert set(beginnings(hidden=12, hidden_number=pairs - 12).values()) == {1}
    assert len(beginnings(hidden=12, hidden_number=pairs - 12)) == pairs
    assert set(beginnings(hidden=2 * pairs, hidden_number=0).values()) == {2}


def test_number_words_together_use_every_operation(world):
    used = {chain[-1] for word, chain in world.chains.items() if world.kinds[word] == "number"}
    assert used == set(chains.OPERATIONS)


def test_all_chains_with_a_number_can_be_asked_for(parameters):
    most = {**parameters, "number": 4 * 5, "hidden_number": 4 * 16}
    full = TASK.make_world(**most)
    assert len(set(full.chains.values())) == len(full.chains) == 4 + 6 + 20 + 12 + 64


def test_a_fact_never_names_its_entity_and_relations_of_one_entity_differ(world):
    for entity in world.entities:
        others = {world.facts[entity, relation] for relation in chains.RELATIONS}
        assert entity not in others
        assert len(others) == len(chains.RELATIONS)


def test_names_and_words_are_short_distinct_and_no_beginning_of_another(world):
    names = [*(entity.lower() for entity in world.entities), *world.chains]
    assert all(4 <= len(name) <= 6 and name.isalpha() for name in names)
    every = sorted([*names, *chains.RELATIONS, *chains.OPERATIONS, *chains.SENTENCE_WORDS])
    assert not any(b.startswith(a) for a, b in zip(every, every[1:], strict=False))
    assert all(entity.istitle() for entity in world.entities)


def test_results_of_operations_have_at_most_two_digits_and_match_their_expression():
    for operation, expression in chains.OPERATIONS.items():
        for age in chains.AGES:
            assert chains.apply_operation(operation, age) == eval(expression.format(age))
            assert 1 <= chains.apply_operation(operation, age) <= 98


def test_answers_follow_the_documents_alone(world):
    fact = {tuple(line.split()[:2]): line.split()[2] for line in TASK.documents(world)}
    for split in SPLITS:
        for question in TASK.questions(world, split):
            _, _, _, word, _, value, _ = question.question.split()
            for step in world.chains[word]:
                if step in chains.OPERATIONS:
                    value = str(eval(chains.OPERATIONS[step].format(value)))
                else:
                    value = fact[value, step]
            assert question.answers == (value,)


def test_a_split_asks_every_word_of_every_start_entity_once(world):
    for split in SPLITS:
        questions = TASK.questions(world, split)
        asked = [tuple(question.question.split()[3:6:2]) for question in questions]
        assert set(asked) == {(w, start) for w in world.chains for start in world.starts[split]}
        assert len(set(asked)) == len(asked) == len({question.id for question in questions})
        assert all(question.kind in TASK.kinds for question in questions)


def test_the_question_of_a_word_asks_what_where_the_answer_is_a_number(world):
    for question in TASK.questions(world, "eval"):
        asks = "what" if question.answers[0].isdigit() else "who"
        assert question.question.startswith(f"{asks} is the ")


def test_every_fact_is_one_document(world):
    documents = TASK.documents(world)
    assert len(documents) == len(set(documents)) == 40 * (len(chains.RELATIONS) + 1)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"n_train": 30}, "task.chains.n_entities=40"),
        ({"n_eval": 0}, "task.chains.n_entities=40"),
        ({"two_hop": 17}, "task.chains.two_hop=17"),
        ({"hidden_number": 65}, "task.chains.hidden_number=65"),
        ({"number": -1}, "task.chains.number=-1"),
    ],
)
def test_a_world_that_cannot_be_made_is_refused_by_its_key(parameters, change, key):
    with pytest.raises(ValueError, match=key):
        TASK.make_world(**{**parameters, **change})


def test_an_unknown_split_is_refused(world):
    with pytest.raises(ValueError, match="test"):
        TASK.questions(world, "test")
