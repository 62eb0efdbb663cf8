"""The scripted agents of the chains task."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rapo_jax.buffer.agents import run_agents
from rapo_jax.tasks import TASKS, chains, failure_kind, is_correct
from rapo_jax.text.protocol import render_result, render_retrieved
from rapo_jax.tools.observation import Observation
from rapo_jax.types import Source

TASK = TASKS["chains"]


@pytest.fixture(scope="module")
def tools(world):
    fact = {tuple(line.split()[:2]): line for line in TASK.documents(world)}
    sums = {
        f"print({expression.format(age)})": str(chains.apply_operation(operation, age))
        for operation, expression in chains.OPERATIONS.items()
        for age in chains.AGES
    }
    return {
        "search": lambda calls: [
            Observation(fact[tuple(c.split())] + " ; Dorim age 12", "ok") for c in calls
        ],
        "python": lambda calls: [Observation(sums[c], "ok") for c in calls],
    }


def rollouts(world, tools, agent, split, *, samples=4, inject=None):
    questions = TASK.questions(world, split)
    groups = run_agents(
        agent,
        questions,
        tools,
        max_calls=chains.LONGEST_CHAIN,
        samples=samples,
        rng_seed=0,
        inject=inject,
    )
    return [(q, segments) for q, group in zip(questions, groups, strict=True) for segments in group]


def text_of(segments):
    return "".join(segment.text for segment in segments)


def accuracy(pairs, kinds):
    return np.mean([is_correct(text_of(s), q.answers) for q, s in pairs if q.kind in kinds])


def demonstrator(world, *, follow=1.0, weak_first=0.5, weak_habit=0.0, weak_stop=0.3):
    return TASK.demonstrator(
        world,
        follow=follow,
        weak_first=weak_first,
        weak_habit=weak_habit,
        weak_stop=weak_stop,
    )


def test_an_expert_without_error_is_always_right(world, tools):
    assert (
        accuracy(rollouts(world, tools, TASK.expert(world, error=0.0), "expert"), TASK.kinds) == 1
    )


def test_an_expert_with_one_error_in_ten_is_right_as_often_as_its_chains_allow(world, tools):
    pairs = rollouts(world, tools, TASK.expert(world, error=0.1), "expert", samples=16)
    assert 0.6 < accuracy(pairs, TASK.kinds) < 0.85
    assert accuracy(pairs, ["one_hop"]) == pytest.approx(0.9, abs=0.04)
    assert all(failure_kind(text_of(segments)) == "" for _, segments in pairs)


def test_the_demonstrator_is_right_on_demonstrated_words_and_weak_on_hidden_ones(world, tools):
    pairs = rollouts(world, tools, demonstrator(world), "train")
    assert accuracy(pairs, ["one_hop", "two_hop", "number"]) == 1
    assert accuracy(pairs, chains.HIDDEN_KINDS) < 0.15
    assert all(failure_kind(text_of(segments)) == "" for _, segments in pairs)


def test_the_first_relation_of_a_hidden_word_is_right_half_of_the_time_and_by_chance(world, tools):
    pairs = rollouts(world, tools, demonstrator(world), "train", samples=16)
    hidden = [(q, s) for q, s in pairs if q.kind in chains.HIDDEN_KINDS]
    right = [TASK.decision(s[0].text) == world.chains[q.question.split()[3]][0] for q, s in hidden]
    by_chance = 1 / len(chains.RELATIONS)
    assert np.mean(right) == pytest.approx(0.5 + 0.5 * by_chance, abs=0.03)


def test_later_decisions_on_a_hidden_word_are_its_wrong_habit_and_by_chance(world, tools):
    pairs = rollouts(world, tools, demonstrator(world, weak_habit=0.4, weak_stop=0), "train")
    second = [
        (q.question.split()[3], TASK.decision(s[2].text)) for q, s in pairs if q.kind == "hidden"
    ]
    habitual = np.mean([decision == world.habits[word][1] for word, decision in second])
    right = np.mean([decision == world.chains[word][1] for word, decision in second])
    by_chance = 0.6 / len(chains.RELATIONS)
    assert habitual == pytest.approx(0.4 + by_chance, abs=0.05)
    assert right == pytest.approx(by_chance, abs=0.04)


def test_no_relation_is_the_habit_of_most_words_at_a_place(world):
    relations = [[h[place] for h in world.habits.values()] for place in (1, 2)]
    for place in relations:
        assert max(place.count(relation) for relation in chains.RELATIONS) <= 0.4 * len(place)


def test_a_habit_is_wrong_at_every_place_and_fits_the_kind_of_step(world):
    for word, habit in world.habits.items():
        chain = world.chains[word] + (chains.DONE,) * (
            chains.LONGEST_CHAIN - len(world.chains[word])
        )
        for wrong, right in zip(habit, chain, strict=True):
            assert wrong != right
            assert (wrong in chains.OPERATIONS) == (right in chains.OPERATIONS)
    hidden = {word for word, kind in world.kinds.items() if kind in chains.HIDDEN_KINDS}
    assert set(world.habits) == hidden


def test_a_demonstrator_that_follows_takes_every_retrieved_decision(world, tools):
    inject = TASK.injector(world, probability=0.5)
    pairs = rollouts(world, tools, demonstrator(world), "train", inject=inject)
    followed = 0
    for _, segments in pairs:
        for retrieved, step in zip(segments, segments[1:], strict=False):
            if retrieved.source == Source.RETRIEVED:
                decision = TASK.retrieved_decision(retrieved.text)
                assert decision == TASK.decision(step.text)
                followed += 1
    assert followed > len(pairs) / 2
    assert all(failure_kind(text_of(segments)) == "" for _, segments in pairs)


def test_a_followed_decision_is_applied_to_the_present_entity(world):
    history = (
        "<think> rival</think><search> Dorim rival</search><result> Dorim rival Kavel</result>"
        "<retrieve><think> heir</think><search> Zumo heir</search>"
        "<result> Zumo heir Lapi</result></retrieve>"
    )
    step = demonstrator(world)("who is the x of Dorim ?", history, np.random.default_rng(0))
    assert step == "<think> heir</think><search> Kavel heir</search>"


@pytest.mark.parametrize(
    ("shown", "hint", "expected"),
    [
        ("Dorim rival Kavel", "double", "<think> done</think><answer>\\boxed{ Kavel}</answer>"),
        ("Dorim age 37", "heir", "<think> done</think><answer>\\boxed{ 37}</answer>"),
        ("Dorim age 37", "double", "<think> double</think><python>print(37*2)</python>"),
        ("74", "double", "<think> done</think><answer>\\boxed{ 74}</answer>"),
        ("Dorim rival Kavel", "done", "<think> done</think><answer>\\boxed{ Kavel}</answer>"),
        ("Dorim rival Kavel", "age", "<think> age</think><search> Kavel age</search>"),
        ("error: no such thing", "heir", "<think> done</think><answer>\\boxed{ Dorim}</answer>"),
    ],
)
def test_only_a_decision_that_fits_the_present_value_is_followed(world, shown, hint, expected):
    word = next(iter(world.chains))
    history = render_result(shown) + render_retrieved(f"<think> {hint}</think>x")
    question = f"who is the {word} of Dorim ?"
    assert demonstrator(world)(question, history, np.random.default_rng(0)) == expected


@pytest.mark.parametrize(
    ("shown", "possible"),
    [
        ("Dorim rival Kavel ; Dorim age 37", {*chains.RELATIONS, "age", "done"}),
        ("Dorim age 37 ; Dorim rival Kavel", {*chains.OPERATIONS, "done"}),
        ("74", {"done"}),
        ("error: no such thing", set()),
    ],
)
def test_a_decision_can_be_followed_where_it_fits_the_present_value(world, shown, possible):
    every = {*chains.RELATIONS, "age", *chains.OPERATIONS, "done"}
    history = render_result(shown)
    assert {choice for choice in every if TASK.can_follow(choice, history)} == possible
    assert not TASK.can_follow("sing", history)
    word = next(iter(world.chains))
    for choice in possible:
        given = history + render_retrieved(f"<think> {choice}</think>")
        step = demonstrator(world)(f"who is the {word} of Dorim ?", given, np.random.default_rng(0))
        assert TASK.decision(step) == choice


def test_a_retrieved_result_does_not_change_what_can_be_followed():
    result = render_result("Dorim age 37")
    trace = render_retrieved("<think> rival</think>" + render_result("Zumo rival Lapi"))
    for history in (result, result + trace, trace + result, result + trace * chains.LONGEST_CHAIN):
        assert TASK.can_follow("double", history)
        assert not TASK.can_follow("heir", history)


def test_nothing_can_be_followed_before_a_result_or_after_the_longest_chain():
    result = render_result("Dorim rival Kavel")
    assert TASK.can_follow("heir", result * (chains.LONGEST_CHAIN - 1))
    assert not TASK.can_follow("heir", result * chains.LONGEST_CHAIN)
    assert not TASK.can_follow("done", result * chains.LONGEST_CHAIN)
    assert not TASK.can_follow("heir", "<think> rival</think>")


def test_a_trace_that_does_not_end_the_history_is_not_followed(world):
    history = "<retrieve><think> heir</think></retrieve><think> x</think>"
    assert TASK.retrieved_decision(history) is None
    assert TASK.retrieved_decision("") is None


def test_agents_answer_any_text_without_an_error(world):
    texts = ["", "<result>", "<result></result>", "</retrieve><think>", "<retrieve></retrieve>"]
    for agent in (TASK.expert(world, error=0.5), demonstrator(world)):
        for question in ("", "who is the unknown of Dorim ?"):
            for history in texts:
                step = agent(question, history, np.random.default_rng(0))
                assert re.fullmatch(r"<think> \w+</think><answer>\\boxed\{ \w*\}</answer>", step)


def test_agents_read_the_world_only_through_results(world):
    word = next(w for w, chain in world.chains.items() if len(chain) == 2)
    start = world.entities[0]
    history = render_result(f"{start} {world.chains[word][0]} Xyzzy ; {start} age 12")
    step = TASK.expert(world, error=0.0)(
        f"who is the {word} of {start} ?", history, np.random.default_rng(0)
    )
    assert f"<search> Xyzzy {world.chains[word][1]}</search>" in step
