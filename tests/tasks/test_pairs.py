"""The pairs task: its world, its questions, its agents and its texts."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from rapo_jax.buffer.agents import run_agents
from rapo_jax.config.schema.task import PairsSettings
from rapo_jax.tasks import (
    SPLITS,
    TASKS,
    chains,
    failure_kind,
    is_correct,
    pairs,
    pairs_agents,
    pairs_words,
)
from rapo_jax.tasks.synthetic import decision
from rapo_jax.text.protocol import render_result, render_retrieved
from rapo_jax.tools.observation import Observation
from rapo_jax.types import Source

TASK = TASKS["pairs"]
PARAMETERS = dataclasses.asdict(PairsSettings()) | {"train_questions": 300}


@pytest.fixture(scope="module")
def world():
    return TASK.make_world(**PARAMETERS)


@pytest.fixture(scope="module")
def tools(world):
    documents = {tuple(line.split()[:2]): line for line in TASK.documents(world)}
    printed = {
        f"print({expression.format(n)})": str(chains.apply_operation(operation, n))
        for operation, expression in chains.OPERATIONS.items()
        for n in pairs.NUMBERS
    }
    return {
        "search": lambda calls: [Observation(documents[tuple(c.split())], "ok") for c in calls],
        "python": lambda calls: [Observation(printed[c], "ok") for c in calls],
    }


def words_of(question):
    return pairs_agents.read_situation(question.question, "").pair


def accuracies(world, tools, agent, *, splits=SPLITS, samples=2):
    """Kind -> whether each trajectory is right; every trajectory is well formed."""
    questions = [q for split in splits for q in TASK.questions(world, split)]
    groups = run_agents(agent, questions, tools, max_calls=TASK.calls, samples=samples, rng_seed=0)
    right = defaultdict(list)
    for question, group in zip(questions, groups, strict=True):
        for segments in group:
            text = "".join(segment.text for segment in segments)
            assert failure_kind(text) == ""
            right[question.kind].append(is_correct(text, question.answers))
    return right


def weak(world, **changes):
    given = {"follow": 1.0, "weak_first": 0.0, "weak_habit": 0.85, "weak_stop": 0.0}
    return TASK.demonstrator(world, **given | changes)


def test_the_same_parameters_give_the_same_world_and_questions_and_another_seed_others(world):
    again = TASK.make_world(**PARAMETERS)
    assert again == world and TASK.questions(again, "eval") == TASK.questions(world, "eval")
    assert TASK.make_world(**PARAMETERS | {"seed": 2}) != world


def test_no_held_out_composition_is_in_training_or_in_the_buffer(world):
    asked = {split: {words_of(q) for q in TASK.questions(world, split)} for split in SPLITS}
    assert not asked["eval"] & (asked["train"] | asked["expert"])
    assert {word for pair in asked["eval"] for word in pair} <= {
        word for pair in asked["train"] & asked["expert"] for word in pair
    }
    starts = [set(world.starts[split]) for split in SPLITS]
    assert not starts[0] & starts[1] and not starts[2] & (starts[0] | starts[1])


def test_a_mastered_word_is_shown_beside_blind_words_alone(world):
    for split in ("train", "expert"):
        for question in TASK.questions(world, split):
            outer, inner = words_of(question)
            if "mastered" in (world.groups[outer], world.groups[inner]):
                assert (world.groups[outer], world.groups[inner]) == ("mastered", "blind")
                assert question.kind == "mixed"


def test_each_kind_has_the_same_number_of_questions(world):
    for split, kinds in (("train", pairs.TRAINED_KINDS), ("eval", pairs.KINDS)):
        got = [q.kind for q in TASK.questions(world, split)]
        assert {kind: got.count(kind) for kind in got} == dict.fromkeys(
            kinds, PARAMETERS[f"{split}_questions"]
        )


def test_answers_follow_the_documents_alone(world):
    fact = {tuple(line.split()[:2]): line.split()[2] for line in TASK.documents(world)}
    for split in SPLITS:
        for question in TASK.questions(world, split):
            outer, inner = words_of(question)
            value = question.question.split()[-2]
            for step in (*world.procedures[inner], *world.procedures[outer]):
                value = fact[value, step]
            assert question.answers == (value,)


def test_the_relations_that_commute_lead_to_the_same_entity_in_either_order(world):
    first, second = pairs_words.COMMUTING
    for entity in world.entities:
        there = world.facts[world.facts[entity, first], second]
        assert world.facts[world.facts[entity, second], first] == there != entity


def test_no_error_of_the_teacher_is_the_right_decision_for_a_blind_word(world):
    act, rng = TASK.expert(world, error=1.0), np.random.default_rng(0)
    inner = {pair.inner: pair for kind in world.pairs["expert"].values() for pair in kind}
    blind = [word for word in inner if world.groups[word] == "blind"]
    assert blind
    for word in blind:
        question = f"who is the {inner[word].outer} of the {word} of {world.starts['expert'][0]} ?"
        taken = {TASK.decision(act(question, "", rng)) for _ in range(100)}
        assert len(taken) == 3  # two errors and the wasted check
        assert not taken & {world.procedures[word][0], world.habits[word][0]}


def test_a_teacher_without_noise_is_never_right_where_a_word_is_blind_and_always_elsewhere(
    world, tools
):
    right = accuracies(world, tools, TASK.expert(world, error=0.0), samples=1)
    for kind in ("blind", "mixed"):
        assert len(right[kind]) >= 600 and not any(right[kind])
    for kind in ("known", "mastered"):
        assert len(right[kind]) >= 100 and all(right[kind])


def test_a_noisy_teacher_is_right_by_accident_in_less_than_one_of_a_hundred(world, tools):
    right = accuracies(world, tools, TASK.expert(world, error=0.1))
    assert np.mean(right["blind"] + right["mixed"]) < 0.01
    assert 0.55 < np.mean(right["known"]) < 0.8


def test_wrong_procedures_seldom_have_the_right_answer(world):
    rng = np.random.default_rng(0)
    hits = []
    for question in TASK.questions(world, "eval"):
        pair, start = words_of(question), question.question.split()[-2]
        right = (*world.procedures[pair.inner], *world.procedures[pair.outer])
        for place, good in enumerate(right):
            wrong = [x for x in pairs_words.alternatives(good) if x != good]
            taken = (*right[:place], wrong[rng.integers(len(wrong))], *right[place + 1 :])
            value = start
            for step in taken:
                value = world.outcome(step, value)
            hits.append((value,) == question.answers)
    assert np.mean(hits) < 0.04


def test_the_teacher_is_right_on_every_step_of_a_mastered_word_that_it_fails_with(world):
    for word, group in world.groups.items():
        if group == "mastered":
            assert pairs_agents.teacher_procedure(world, word) == world.procedures[word]
        if group == "blind":
            habit = pairs_agents.teacher_procedure(world, word)
            assert all(a != b for a, b in zip(habit, world.procedures[word], strict=True))


def test_the_teacher_wastes_calls_computes_in_python_and_takes_the_other_order(world, tools):
    questions = [q for q in TASK.questions(world, "expert") if q.kind == "known"]
    groups = run_agents(
        TASK.expert(world, error=0.0), questions, tools, max_calls=6, samples=4, rng_seed=0
    )
    steps = [
        (question, [decision(s.text) for s in segments if s.source == Source.POLICY])
        for question, group in zip(questions, groups, strict=True)
        for segments in group
    ]
    wasted = np.mean([taken.count(pairs.CHECK) for _, taken in steps])
    assert 0.7 < wasted < 1.2 and max(taken.count(pairs.CHECK) for _, taken in steps) == 2
    free = next(w for w, its in world.procedures.items() if its == pairs_words.COMMUTING)
    for question, taken in steps:
        if words_of(question).inner == free:
            useful = [step for step in taken if step != pairs.CHECK]
            assert tuple(useful[:2]) == pairs_words.COMMUTING[::-1]
    texts = "".join(s.text for group in groups for segments in group for s in segments)
    assert "<python>print(" in texts
    assert "<python>" not in pairs_agents.step_text("double", "12")


def test_the_demonstrator_is_right_on_known_words_and_seldom_elsewhere(world, tools):
    right = accuracies(world, tools, weak(world), splits=("train", "eval"))
    assert all(right["known"])
    assert 0.03 < np.mean(right["blind"]) < 0.12  # most pairs have one blind word, 1 in 16
    assert np.mean(right["mixed"]) < 0.02 and np.mean(right["mastered"]) < 0.05


def test_a_retrieved_decision_is_applied_to_the_present_value_where_it_can_be(world):
    outer, inner = world.pairs["train"]["known"][0]
    question = f"who is the {outer} of the {inner} of Dorim ?"
    shown = render_result("Dorim rival Kavel")
    for hint in (*pairs_words.RELATIONS, *pairs_words.ATTRIBUTES, pairs.CHECK, pairs.DONE):
        history = shown + render_retrieved(f"<think> {hint}</think>x")
        assert TASK.can_follow(hint, history)
        step = weak(world)(question, history, np.random.default_rng(0))
        assert decision(step) == hint and "Kavel" in step
    assert not TASK.can_follow("double", shown) and TASK.can_follow(
        "double", render_result("Dorim age 37")
    )
    assert not TASK.can_follow("double", render_result("37 double 74"))


def test_a_check_takes_no_place_in_a_procedure():
    history = render_result("Dorim rival Kavel") + render_result("Kavel check Kavel")
    now = pairs_agents.read_situation("who is the a of the b of Dorim ?", history)
    assert (now.value, now.steps, now.checks, now.lost) == ("Kavel", 1, 1, False)


def test_an_injected_step_fits_the_present_value(world):
    inject = TASK.injector(world, probability=1.0)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        for shown in ("Dorim rival Lapi", "Dorim age 37", "37 double 74", "74"):
            history = render_result(shown)
            assert TASK.can_follow(decision(inject(history, rng)), history)
    assert inject(render_result("Dorim rival Lapi") * pairs.NEEDED_CALLS, rng) is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"n_train": 140}, "task.pairs.n_entities=150"),
        ({"blind": 1}, "task.pairs.blind: 1 words"),
        ({"known": 14}, "task.pairs.known=14"),
        ({"eval_questions": 10_000}, "task.pairs.eval_questions=10000"),
    ],
)
def test_a_world_that_cannot_be_made_is_refused_by_its_key(change, key):
    with pytest.raises(ValueError, match=key):
        TASK.questions(TASK.make_world(**PARAMETERS | change), "eval")
