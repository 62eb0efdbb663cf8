"""Rows that begin as forks: their histories, and the calls that are counted."""

from __future__ import annotations

from rapo_jax.text.protocol import render_result
from tests.environment.stand_ins import Immediate, echo

STEPS = [f"<search>{name}</search>" for name in "abcd"]
DONE = [step + render_result(f"heard {name}") for step, name in zip(STEPS, "abcd", strict=True)]


def test_a_forks_history_is_that_of_its_parent_up_to_the_calls_that_they_share(make, act_once):
    environment = make({"search": Immediate(echo)})
    for step in STEPS[:2]:
        act_once(environment, [step], rows=[0])
    late = {"parents": [0], "shared": [1]}
    act_once(environment, [STEPS[3]], rows=[2], **late)  # the parent is a call further
    assert environment._history[2] == DONE[0] + DONE[3]
    both = {"rows": [0, 1], "parents": [0, 0], "shared": [0, 2]}
    act_once(environment, [STEPS[2], STEPS[3]], **both)  # it calls in the same turn
    assert environment._history[0] == "".join(DONE[:3])
    assert environment._history[1] == DONE[0] + DONE[1] + DONE[3]
    act_once(environment, [STEPS[0]], rows=[1], parents=[0], shared=[2])  # its second call
    assert environment._history[1] == DONE[0] + DONE[1] + DONE[3] + DONE[0]
    act_once(environment, [STEPS[0]], rows=[3], parents=[1], shared=[3])  # a fork of a fork
    assert environment._history[3] == DONE[0] + DONE[1] + DONE[3] + DONE[0]
    assert [len(calls) for calls in environment.calls[:4]] == [3, 2, 1, 1]  # that were made
    assert environment.take_counts()["search"] == 7


def test_the_key_of_a_fork_is_made_of_the_history_that_it_shares(make, act_once, house):
    queries = []

    def query(texts):
        queries.extend(texts)
        return house.encode(texts)

    environment = make({"search": Immediate(echo)}, query=query)
    act_once(environment, [STEPS[0]], rows=[0])
    act_once(environment, [STEPS[1]], rows=[1], parents=[0], shared=[1], wants=[True])
    (wanted,) = house.retriever.key_texts([house.asked[1].question], [DONE[0] + DONE[1]])
    assert queries == [wanted]


def test_a_fork_has_made_the_calls_that_it_shares(make, act_once):
    """Two calls are allowed: a fork after the first one makes one more, and then no other."""
    environment = make({"search": Immediate(echo)}, max_calls=2)
    act_once(environment, [STEPS[0]], rows=[0])
    act_once(environment, [STEPS[1]], rows=[1], parents=[0], shared=[1])
    assert environment._history[1] == DONE[0] + DONE[1]
    act_once(environment, [STEPS[2]], rows=[1], parents=[0], shared=[1])
    assert render_result("heard c") not in environment._history[1]
    act_once(environment, [STEPS[2]], rows=[0])  # the parent's second one
    assert environment._history[0] == DONE[0] + DONE[2]
