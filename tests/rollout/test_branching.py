"""Rows that begin as forks: their tapes, the rules by which they fork, and what is refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.config.methods import METHODS as PUBLISHED
from rapo_jax.method.tape import hybrid_mask
from rapo_jax.rollout.branching import OPENING_TOKENS, is_to_fork
from rapo_jax.train.measures import branching_metrics
from rapo_jax.types import Forks, Source, Status
from tests.rollout.reference import Row, reference_row
from tests.rollout.test_schedule import GROUP, HOW, HYBRID, Late, check, same

POLICY = int(Source.POLICY)
RULES = {"entropy": {"branch_probability": 0.7, "branch_penalty": 0.3}, "random": {}}


def play(playing, house, *, seed=0, tree_rows=GROUP, **changes):
    how = {"group_size": GROUP, "n_hybrid": HYBRID, "tree_rows": tree_rows} | HOW | changes
    return playing.sampler.sample(playing.params, jax.random.key(seed), house.asked, **how)


@pytest.fixture(scope="module", params=["entropy", "random"])
def branching(request):
    return {"branching": request.param, "tree_rows": GROUP, **RULES[request.param]}


@pytest.fixture(scope="module")
def whole(make_sampler, branching):
    """A sampler with a slot for each row."""
    return make_sampler(devices=1, driver="host", **branching)


@pytest.fixture(scope="module")
def forked(whole, house):
    return [play(whole, house, seed=seed) for seed in range(2)]


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_forks_tape_is_what_one_row_with_its_prefix_and_its_own_key_writes(whole, house, seed):
    found = play(whole, house, seed=seed)
    groups = {"group_size": GROUP, "n_hybrid": HYBRID}
    row_of = reference_row(house, jax.random.key(seed), **groups, **HOW)
    rows = []
    for b, tokens in enumerate(found.forks.tokens_B):
        parent = b // GROUP * GROUP + found.forks.parent_B[b]
        names = ("token_BT", "source_BT", "step_BT", "logp_BT", "entropy_BT")
        parts = [getattr(found, name)[parent, :tokens].tolist() for name in names]
        prefix = Row(*parts, Status.RUNNING) if tokens else None
        rows.append(row_of(b, prefix, int(found.forks.calls_B[b])))
    check(found, rows)


def test_both_strategies_fork_restart_and_retrieve(forked):
    number_B = np.arange(len(forked[0].length_B)) % GROUP
    for found in forked:
        forked_B = found.forks.tokens_B > 0
        assert forked_B.sum() >= 5 and not forked_B[number_B == 0].any()
        assert (~forked_B & (number_B > 0)).sum() >= 2
        np.testing.assert_array_equal(found.forks.calls_B > 0, forked_B)
        np.testing.assert_array_equal(found.forks.parent_B != number_B, forked_B)
        retrieves_B = (found.source_BT == Source.RETRIEVED).any(axis=1)
        assert retrieves_B[forked_B].any()
        assert not retrieves_B[~hybrid_mask(8, group_size=GROUP, n_hybrid=HYBRID)].any()


@pytest.mark.parametrize(
    "how",
    [
        {"devices": 1, "driver": "host", "slots": GROUP},
        {"devices": 1, "driver": "host", "slots": 7, "absorb_chunk": 7},
        {"devices": 1, "driver": "jit", "slots": 16},
        {"devices": 4, "driver": "jit", "slots": 20},
        {"devices": 8, "driver": "jit", "slots": 16, "tensor": 2},
    ],
    ids=str,
)
def test_tapes_do_not_depend_on_slots_devices_or_the_driver(
    make_sampler, forked, house, branching, how
):
    found = play(make_sampler(**how, **branching), house)
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(forked[0]), strict=True)
    for left, right in leaves:
        np.testing.assert_allclose(left, right, atol=1e-5 if left.dtype.kind == "f" else 0)


@pytest.fixture(scope="module")
def late(make_sampler, house, branching):
    tools = {name: Late(tool) for name, tool in house.tools.items()}
    playing = make_sampler(devices=2, driver="jit", slots=12, tools=tools, **branching)
    return playing, tools, play(playing, house)


@settings(max_examples=4, deadline=None)
@given(search=st.floats(0, 0.05), python=st.floats(0, 0.05))
def test_late_answers_change_no_bit_of_a_fork(late, house, search, python):
    playing, tools, prompt_tapes = late
    tools["search"].seconds, tools["python"].seconds = search, python
    same(play(playing, house), prompt_tapes)


def starts_of(tape, b):
    """Positions at which the policy's steps begin."""
    policy_T = tape.source_BT[b] == POLICY
    return np.flatnonzero(policy_T & ~np.roll(policy_T, 1)).tolist()


def opening(tape, b, start):
    """Total entropy of the first tokens of the policy's step that begins there."""
    end = start
    while end < min(start + OPENING_TOKENS, tape.length_B[b]) and tape.source_BT[b, end] == POLICY:
        end += 1
    return np.sum(tape.entropy_BT[b, start:end], dtype=np.float64)


def uniform(key, stream, *numbers):
    key = jax.random.fold_in(key, stream)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return float(jax.random.uniform(key))


@pytest.mark.parametrize("tree_rows", [2, 4])
@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_rows_fork_by_the_entropy_rule_and_each_begins_once(
    make_sampler, house, tree_rows, penalty
):
    """The whole tree follows from the tapes: the rule at each boundary, and the rows' ranges."""
    p, w = 0.6, 3.0
    rule = {"branch_probability": p, "branch_entropy": w, "branch_penalty": penalty}
    playing = make_sampler(devices=1, driver="host", tree_rows=tree_rows, **rule)
    key, vocab = jax.random.key(3), house.model.vocab
    tape = play(playing, house, seed=3, tree_rows=tree_rows)
    begun = {}

    def run(row, end, parent, tokens, calls, streak):
        assert row not in begun
        begun[row] = (parent % GROUP, tokens, calls)
        starts = starts_of(tape, row)
        first = opening(tape, row, starts[0])
        for call in range(calls + 1, len(starts)):
            rise = (opening(tape, row, starts[call - 1]) - first) / math.log(vocab)
            forks = (uniform(key, 2, call, row) + w * rise) * max(0, 1 - penalty * streak) >= 1 - p
            streak = streak + 1 if forks else 0
            if forks and row + 1 < end:
                child = row + math.ceil((end - row) / 2)
                run(child, end, row, starts[call], call, streak)
                end = child
        if row + 1 < end:
            run(row + 1, end, row + 1, 0, 0, 0)

    for root in range(0, len(tape.length_B), tree_rows):
        run(root, root + tree_rows, root, 0, 0, 0)
    forks = tape.forks
    found = zip(forks.parent_B, forks.tokens_B, forks.calls_B, strict=True)
    assert [begun[row] for row in range(len(tape.length_B))] == [tuple(map(int, x)) for x in found]
    assert sum(tokens > 0 for _, tokens, _ in begun.values()) > 5


def test_the_other_rows_of_a_tree_begin_at_drawn_boundaries_of_its_first(make_sampler, house):
    how = {"branching": "random", "tree_rows": GROUP}
    playing = make_sampler(devices=1, driver="host", **how)
    tape, key = play(playing, house, seed=4), jax.random.key(4)
    drawn = set()
    for root in range(0, len(tape.length_B), GROUP):
        starts = starts_of(tape, root)
        for row in range(root + 1, root + GROUP):
            call = int(uniform(key, 3, row) * len(starts))  # 0 is the prompt
            found = [x[row] for x in (tape.forks.parent_B, tape.forks.tokens_B, tape.forks.calls_B)]
            assert found == ([0, starts[call], call] if call else [row - root, 0, 0])
            drawn.add((len(starts), call))
    assert len(drawn) > 6


def test_the_rule_is_that_of_the_authors():
    """They fork where a draw less 0.2 of the rise is at most 0.5; AEPO as here, with a penalty."""
    rng = np.random.default_rng(0)
    draw_N, rise_N, streak_N = rng.random(500), rng.normal(size=500), rng.integers(0, 30, 500)
    how = {"probability": 0.5, "weight": 0.2}
    found_N = is_to_fork(1 - draw_N, rise_N, streak_N, penalty=0.0, **how)
    np.testing.assert_array_equal(found_N, draw_N - 0.2 * rise_N <= 0.5)
    found_N = is_to_fork(draw_N, rise_N, streak_N, penalty=0.05, **how)
    wanted_N = (draw_N + 0.2 * rise_N) * np.maximum(0, 1 - 0.05 * streak_N) >= 0.5
    np.testing.assert_array_equal(found_N, wanted_N)
    assert 0 < found_N.sum() < 500


def test_trees_of_one_row_are_independent_rows_bit_for_bit(make_sampler, house):
    playing = make_sampler(devices=1, driver="host")
    plain = playing.sampler.sample(
        playing.params, jax.random.key(0), house.asked, group_size=GROUP, n_hybrid=HYBRID, **HOW
    )
    trees = make_sampler(devices=1, driver="host", tree_rows=4, branch_probability=1.0)
    same(play(trees, house, tree_rows=1), plain)
    assert plain.forks is None


def test_what_shared_prefixes_saved_is_counted(tapes):
    """Trees of two rows: row 1 copied 5 tokens, of which the policy wrote 2; row 3 restarted."""
    source_BT = np.full((4, 8), POLICY)
    source_BT[:, :2], source_BT[:, 4] = int(Source.PROMPT), int(Source.TOOL)
    forks = Forks(np.array([0, 0, 2, 3]), np.array([0, 5, 0, 0]), np.array([0, 1, 0, 0]), 2)
    trajectory = jax.tree.map(lambda x: x[:4], tapes).replace(source_BT=source_BT, forks=forks)
    assert branching_metrics(trajectory) == {
        "rollout/saved_tokens": 2 / 4,
        "rollout/saved_calls": 1 / 4,
        "rollout/forks": 1.0,
        "rollout/restarts": 1.0,
    }
    assert branching_metrics(tapes) == {}


def test_calls_that_were_made_and_saved_calls_are_those_on_the_tapes(make_sampler, house):
    playing = make_sampler(devices=1, driver="host", tree_rows=4, branch_probability=0.9)
    playing.environment.take_counts()
    tape = play(playing, house, tree_rows=4)
    on_tapes = sum(len(starts_of(tape, b)) - 1 for b in range(len(tape.length_B)))
    made = [len(calls) for calls in playing.environment.calls]
    ended = np.isin(tape.status_B, [Status.OUT_OF_TOKENS])  # its last call may have no step after
    counts = playing.environment.take_counts()
    assert counts["search"] + counts["python"] == sum(made)
    assert 0 <= sum(made) + tape.forks.calls_B.sum() - on_tapes <= ended.sum()
    assert tape.forks.calls_B.sum() > 5


def test_fewer_slots_than_a_tree_has_rows_are_refused(make_sampler, small_settings):
    with pytest.raises(ValueError, match="rollout.slots=6: leaves 3 to each of 2 devices"):
        make_sampler(devices=2, driver="jit", slots=6, tree_rows=4)
    with pytest.raises(ValueError, match="rollout.slots=3: .*tree_rows=4 needs a slot for each"):
        small_settings({"rollout.slots": 3, "rollout.tree_rows": 4})


def test_trees_that_do_not_divide_a_group_are_refused(small_settings):
    with pytest.raises(ValueError, match="rollout.tree_rows=3: trees divide .*=4: 2, 4, or 1"):
        small_settings({"rollout.tree_rows": 3})


def test_the_published_penalty_of_forks_in_a_row_changes_rollouts(make_sampler, house):
    """In trees of two, no row forks twice, so that no penalty could change anything."""
    settings = PUBLISHED["aepo"].settings
    rows = settings["rollout.tree_rows"]

    def tapes(penalty):
        rule = {"branch_probability": 0.7, "branch_penalty": penalty}
        playing = make_sampler(devices=1, driver="host", tree_rows=rows, **rule)
        return [play(playing, house, seed=seed, tree_rows=rows).token_BT for seed in range(3)]

    assert settings["rollout.branch_penalty"] > 0
    pairs = zip(tapes(0.0), tapes(1.0), strict=True)
    assert any((without != with_BT).any() for without, with_BT in pairs)


def test_however_long_a_streak_its_penalty_leaves_a_fork_as_likely_as_none():
    how = {"weight": 0.2, "penalty": 0.05}
    assert bool(is_to_fork(0.0, 0.0, 30, probability=1.0, **how))  # 0 >= 1 - 1
    assert not bool(is_to_fork(0.9, -20.0, 30, probability=0.5, **how))  # two negatives
