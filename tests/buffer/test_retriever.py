"""The nearest step trace of each state: picks, exclusions, misses and counts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from rapo_jax.buffer.buffer import StepTraceBuffer
from rapo_jax.buffer.retriever import _FETCH, Retriever
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting, split_all
from rapo_jax.search.ngram import NgramEncoder

NAMES = r"\b[A-Z][a-z]+\b"
TRAJECTORIES = [
    AgentTrajectory(
        f"{word}{copy}",
        f"who is the {word} of {name} ?",
        [f"<think>{step} {copy}</think><search>{name} {step}</search>" for step in steps],
        1.0,
        f"agent{copy}",
    )
    for word, steps in (("zemlo", ("mentor", "rival")), ("trapi", ("cousin", "patron")))
    for copy, name in enumerate(("Dura", "Kilno", "Vasha"))
]


STEPWISE = Splitting("step", include_answers=True, mask=NAMES, max_chars=400)
ENCODER = NgramEncoder.fit(
    [step_trace.key for step_trace in split_all(TRAJECTORIES, STEPWISE)], width=128, orders=(1, 2)
)


def make(trajectories=TRAJECTORIES, *, unit="step", kind="exact") -> Retriever:
    how = STEPWISE._replace(unit=unit)
    buffer = StepTraceBuffer.build(
        split_all(trajectories, how),
        how,
        encode=ENCODER,
        encoder_identity=ENCODER.identity,
        tokenizer_fingerprint="tok",
        count_tokens=len,
        info={},
    )
    return Retriever(buffer, kind=kind)


def keys(retriever: Retriever, questions, histories) -> np.ndarray:
    return ENCODER(retriever.key_texts(questions, histories))


RETRIEVER = make()
SIZE = len(RETRIEVER.buffer.step_traces)
AFTER_MENTOR = "<think>mentor 9</think><search>Fresh mentor</search>"


def keys_of(word: str, history: str, *, rows: int = 1) -> np.ndarray:
    return keys(RETRIEVER, [f"who is the {word} of Fresh ?"] * rows, [history] * rows)


@pytest.mark.parametrize("kind", ["exact", "brute", "tree", "auto"])
def test_the_nearest_trace_is_the_next_step_of_the_same_kind_of_question(kind):
    (hit,) = make(kind=kind).nearest(keys_of("zemlo", AFTER_MENTOR))
    assert "rival" in hit.value
    stored = RETRIEVER.buffer.step_traces[hit.row]
    assert (hit.value, hit.origin) == (stored.value, stored.origin)


def test_a_state_of_the_buffer_finds_itself_at_similarity_1():
    trajectory = TRAJECTORIES[4]
    (hit,) = RETRIEVER.nearest(keys(RETRIEVER, [trajectory.question], [trajectory.steps[0]]))
    assert (hit.value, hit.origin) == (trajectory.steps[1], "agent1")
    assert abs(hit.similarity - 1) < 1e-6


def test_a_buffer_of_whole_trajectories_is_searched_by_the_question_alone():
    retriever = make(unit="trajectory")
    (hit,) = retriever.nearest(keys(retriever, ["who is the trapi of Fresh ?"], [AFTER_MENTOR]))
    assert "cousin" in hit.value and "patron" in hit.value and abs(hit.similarity - 1) < 1e-6


def test_a_pick_replaces_the_nearest_by_the_trace_at_that_share_of_the_buffer():
    pick_B = np.array([0.0, 0.5, (SIZE - 0.5) / SIZE, np.float32(1.0), -1.0])
    hits = RETRIEVER.nearest(keys_of("zemlo", AFTER_MENTOR, rows=5), pick_B=pick_B)
    assert [hit.row for hit in hits[:4]] == [0, SIZE // 2, SIZE - 1, SIZE - 1]
    assert hits[4] == RETRIEVER.nearest(keys_of("zemlo", AFTER_MENTOR))[0]
    assert hits[0].similarity < hits[4].similarity


def test_evenly_spread_picks_reach_every_trace_equally_often():
    pick_B = (np.arange(3 * SIZE) + 0.5) / (3 * SIZE)
    hits = RETRIEVER.nearest(keys_of("zemlo", "", rows=3 * SIZE), pick_B=pick_B)
    assert np.bincount([hit.row for hit in hits]).tolist() == [3] * SIZE


@pytest.mark.parametrize("pick", [-1.0, 0.0, 0.3, 0.99])
def test_an_excluded_question_is_never_retrieved(pick):
    excluded = [trajectory.question_id for trajectory in TRAJECTORIES]
    key_BE = keys_of("zemlo", AFTER_MENTOR, rows=len(excluded))
    hits = RETRIEVER.nearest(
        key_BE,
        question_ids=excluded,
        exclude_same_question=True,
        pick_B=np.full(len(excluded), pick),
    )
    for hit, question_id in zip(hits, excluded, strict=True):
        assert RETRIEVER.buffer.step_traces[hit.row].question_id != question_id
        assert not hit.same_question
        assert pick >= 0 or "rival" in hit.value


def test_a_question_with_all_the_nearest_traces_still_gets_the_next_best_of_others():
    crowd = [TRAJECTORIES[0]._replace(steps=[f"<think>{i}</think>"]) for i in range(5)]
    crowd = [t._replace(question_id="crowd", steps=t.steps * 40) for t in crowd]
    retriever = make([*crowd, TRAJECTORIES[1]])
    key_BE = keys(retriever, [TRAJECTORIES[0].question], [""])
    (hit,) = retriever.nearest(key_BE, question_ids=["crowd"], exclude_same_question=True)
    others = [i for i, row in enumerate(retriever.buffer.step_traces) if row.question_id != "crowd"]
    score_M = retriever.buffer.key_ME @ key_BE[0]
    assert hit.row == max(others, key=lambda i: score_M[i])


def test_a_question_with_more_traces_than_are_fetched_still_gets_one_of_others():
    first = TRAJECTORIES[0]
    crowd = [first._replace(steps=[f"<think>{i}</think>"]) for i in range(_FETCH + 1)]
    retriever = make([*crowd, TRAJECTORIES[3]])
    key_BE = keys(retriever, [first.question], [""])
    (hit,) = retriever.nearest(key_BE, question_ids=[first.question_id], exclude_same_question=True)
    assert hit.row == len(crowd)


def test_a_state_for_which_an_index_finds_nothing_gets_the_next_of_its_neighbours():
    retriever = make()
    found = retriever.index.search(keys_of("zemlo", AFTER_MENTOR))[0].tolist()

    class FindsNothing(NamedTuple):
        size: int = retriever.index.size
        search_many: Callable = retriever.index.search_many

        def search(self, key_BE):
            return np.full(len(key_BE), -1), np.zeros(len(key_BE))

    retriever.index = FindsNothing()
    assert [hit.row for hit in retriever.nearest(keys_of("zemlo", AFTER_MENTOR))] == found


def test_a_row_misses_when_the_buffer_has_only_its_question():
    retriever = make([TRAJECTORIES[0]])
    key_BE = keys(retriever, [TRAJECTORIES[0].question] * 2, [""] * 2)
    hits = retriever.nearest(
        key_BE,
        question_ids=["zemlo0"] * 2,
        exclude_same_question=True,
        pick_B=np.array([-1.0, 0.5]),
    )
    assert [(hit.row, hit.value) for hit in hits] == [(-1, "")] * 2
    assert retriever.take_counts()["excluded"] == 2


def test_unknown_question_ids_exclude_nothing_and_are_never_the_same():
    retriever = make([each._replace(question_id="") for each in TRAJECTORIES])
    (hit,) = retriever.nearest(keys_of("zemlo", ""), question_ids=[""], exclude_same_question=True)
    assert hit.row >= 0 and not hit.same_question


def test_a_hit_says_whether_it_is_of_the_same_question():
    key_BE = keys_of("zemlo", AFTER_MENTOR, rows=2)
    nearest = RETRIEVER.buffer.step_traces[RETRIEVER.nearest(key_BE)[0].row].question_id
    hits = RETRIEVER.nearest(key_BE, question_ids=[nearest, "another"])
    assert [hit.same_question for hit in hits] == [True, False]


def test_a_state_that_is_not_finite_misses():
    key_BE = keys_of("zemlo", "", rows=2).copy()
    key_BE[0, 0] = np.nan
    bad, good = RETRIEVER.nearest(key_BE)
    assert (bad.row, bad.value) == (-1, "") and good.row >= 0


def test_an_empty_batch_gives_no_hits():
    assert RETRIEVER.nearest(keys(RETRIEVER, [], [])) == []


def test_counts_are_those_since_the_last_call_and_survive_threads():
    retriever = make()
    key_BE = keys_of("zemlo", AFTER_MENTOR, rows=4).copy()
    key_BE[3] = np.nan

    def ask():
        for _ in range(5):
            hits = retriever.nearest(key_BE, pick_B=np.array([-1, 0.5, -1, -1]))
            retriever.count([hit for hit in hits if hit.value])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = retriever.take_counts()
    assert (counts["queries"], counts["hits"], counts["random"]) == (80, 60, 20)
    assert (counts["not_finite"], counts["excluded"]) == (20, 0)
    assert 0 < counts["similarity_sum"] <= counts["hits"]
    assert set(retriever.take_counts().values()) == {0}


def test_the_sum_of_similarities_does_not_depend_on_the_order_of_the_calls():
    rng = np.random.default_rng(0)
    key_BE = rng.normal(size=(400, RETRIEVER.buffer.key_ME.shape[1])).astype(np.float32)

    def total(order):
        retriever = make()
        for b in order:
            retriever.count(retriever.nearest(key_BE[b : b + 1]))
        return retriever.take_counts()["similarity_sum"]

    similarities = [hit.similarity for hit in RETRIEVER.nearest(key_BE)]
    assert sum(similarities) != sum(similarities[::-1])  # in float64 the order matters
    assert total(range(400)) == total(range(399, -1, -1)) == math.fsum(similarities)
