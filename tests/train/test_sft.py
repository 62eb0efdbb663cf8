"""Imitation: tapes as the rollout writes them, batches that depend on the step alone, resuming."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from rapo_jax.buffer.trajectories import AgentTrajectory
from rapo_jax.config import RolloutSettings
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.policy import load_policy
from rapo_jax.sampling.tapes import segments, steps_without_retrieved
from rapo_jax.text.observations import observation_ids
from rapo_jax.text.protocol import Segment
from rapo_jax.train.groups import read_agent_tapes
from rapo_jax.train.imitation import train_imitation
from rapo_jax.train.sft import (
    Examples,
    as_segments,
    batch_of,
    demonstrations,
    draw_batch,
    encode_examples,
    train_cold_start,
)
from rapo_jax.types import Source

LIMITS = RolloutSettings(observation_tokens=12, retrieved_tokens=20, max_tokens=96)


@pytest.fixture(scope="module")
def written(house, tapes):
    """(row, its examples) for every row of the shared rollout that is clean UTF-8."""
    rows = [segments(house.tokens, tapes, b) for b in range(len(tapes.length_B))]
    clean = [b for b, row in enumerate(rows) if not any("\ufffd" in s.text for s in row)]
    shown = [(house.asked[b // 4].question, rows[b]) for b in clean]
    return clean, encode_examples(house.tokens, shown, LIMITS, system=house.system)


def test_world_segments_become_the_tokens_that_the_rollout_wrote(house, tapes, written):
    clean, examples = written
    seen = set()
    for row, b in enumerate(clean):
        length = examples.length_B[row]
        assert set(examples.source_BT[row, length:]) <= {Source.PAD}
        for source in (Source.PROMPT, Source.TOOL, Source.RETRIEVED):
            found = examples.token_BT[row][examples.source_BT[row] == source]
            wanted = tapes.token_BT[b][tapes.source_BT[b] == source]
            np.testing.assert_array_equal(found, wanted)
            seen |= {source} if len(wanted) else set()
    assert seen == {Source.PROMPT, Source.TOOL, Source.RETRIEVED}


def test_a_demonstration_is_encoded_token_for_token(house):
    one, other = house.world.entities[:2]
    row = [
        Segment(Source.POLICY, 0, f"<think> mentor</think><search> {one} mentor</search>"),
        Segment(Source.TOOL, 0, f"<result> {one} mentor {other}</result>"),
        Segment(Source.POLICY, 1, f"<answer>\\boxed{{ {other}}}</answer>"),
    ]
    shown = [("who ?", row)]
    found = encode_examples(house.tokens, shown, LIMITS, system="s")
    prompt = house.tokens.prompt_ids("s", "who ?")
    ids = [house.tokens.encode_protocol(text) for *_, text in row]
    length = found.length_B[0]
    assert found.token_BT[0, :length].tolist() == prompt + sum(ids, [])
    sources = [Source.PROMPT] * len(prompt)
    sources += [s for (s, *_), part in zip(row, ids, strict=True) for _ in part]
    assert found.source_BT[0, :length].tolist() == sources


def test_trajectories_longer_than_a_row_are_left_out(house, tapes, written):
    clean, examples = written
    shown = [(house.asked[b // 4].question, segments(house.tokens, tapes, b)) for b in clean]
    shortest = int(examples.length_B.min())
    limits = dataclasses.replace(LIMITS, max_tokens=shortest)
    kept = encode_examples(house.tokens, shown, limits, system=house.system)
    assert len(kept.length_B) == (examples.length_B == shortest).sum() < len(clean)


def lengths(*values):
    blank = np.zeros((len(values), 1), np.int32)
    return Examples(blank, blank, blank, np.array(values), np.arange(len(values)))


def test_an_epoch_shows_every_example_once_in_batches_of_similar_length():
    rng = np.random.default_rng(0)
    examples = lengths(*rng.integers(10, 90, 64))
    index = [draw_batch(examples, seed=3, step=step, batch=4) for step in range(16)]
    assert sorted(np.concatenate(index)) == list(range(64))
    spreads = [np.ptp(examples.length_B[batch]) for batch in index]
    assert np.mean(spreads) < 25 < np.ptp(examples.length_B)
    again = [draw_batch(examples, seed=3, step=step, batch=4) for step in range(16, 32)]
    assert not np.array_equal(np.sort(index[0]), np.sort(again[0]))
    np.testing.assert_array_equal(draw_batch(examples, seed=3, step=5, batch=4), index[5])


@pytest.mark.parametrize("rows", [4, 5, 31])
def test_few_examples_still_make_full_batches(rows):
    examples = lengths(*range(rows))
    seen = set()
    for step in range(40):
        index = draw_batch(examples, seed=0, step=step, batch=4).tolist()
        assert len(set(index)) == 4
        seen.update(index)
    assert seen == set(range(rows))


def test_a_batch_to_imitate_has_nothing_to_shape_or_clip(written):
    _, examples = written
    batch, length_B = batch_of(examples, np.array([2, 0]))
    np.testing.assert_array_equal(batch.token_BT, examples.token_BT[[2, 0]])
    np.testing.assert_array_equal(length_B, examples.length_B[[2, 0]])
    assert not batch.advantage.any() and not batch.retrieved_share_B.any()


def test_a_buffer_trajectory_becomes_calls_and_observations_again(house, tapes):
    for b in range(len(tapes.length_B)):
        row = [s for s in segments(house.tokens, tapes, b) if s.source != Source.RETRIEVED]
        trace = AgentTrajectory("id", "who ?", steps_without_retrieved(row), 1.0, "test")
        found = as_segments(trace)
        assert [(s.source, s.text) for s in found] == [(s.source, s.text) for s in row]


@pytest.mark.parametrize(
    "result",
    [
        "<result>Ann</result>",
        "<result> Ann</result>",
        "<result>\nAnn\n</result>",
        "<result>Ann</result>\n\n",
        "<result> Ann</result>\n",
    ],
)
def test_an_observation_of_another_agent_is_encoded_as_a_rollout_writes_it(house, result):
    steps = [f"<think>a</think><search>q</search>{result}", "<answer>\\boxed{Ann}</answer>"]
    row = as_segments(AgentTrajectory("id", "who ?", steps, 1.0, "test"))
    found = encode_examples(house.tokens, [("who ?", row)], LIMITS, system="s")
    ids = found.token_BT[0][found.source_BT[0] == Source.TOOL].tolist()
    assert ids == observation_ids(house.tokens, "Ann", room=LIMITS.observation_tokens)


def test_white_space_between_a_call_and_its_result_is_not_imitated(house):
    steps = [
        "<think>a</think><search>q</search>\n\n<result> Ann</result>",
        "<answer>Ann</answer>\n",
    ]
    row = as_segments(AgentTrajectory("id", "who ?", steps, 1.0, "test"))
    wanted = [
        "<think>a</think><search>q</search>",
        "<result> Ann</result>",
        "<answer>Ann</answer>\n",
    ]
    assert [segment.text for segment in row] == wanted


def test_white_space_of_our_own_observations_is_kept(house):
    row = [Segment(Source.POLICY, 0, "<search>q</search>"),
           Segment(Source.TOOL, 0, "<result>  Ann \n</result>")]  # fmt: skip
    found = encode_examples(house.tokens, [("who ?", row)], LIMITS, system="s")
    ids = found.token_BT[0][found.source_BT[0] == Source.TOOL].tolist()
    assert ids == observation_ids(house.tokens, " Ann \n", room=LIMITS.observation_tokens)


def test_demonstrations_never_start_from_a_held_out_entity(branch):
    run = branch({"sft.examples": 64})
    shown = demonstrations(run)
    held_out = set(run.world.starts["eval"])
    assert len(shown) == 64
    assert not [question for question, _ in shown if held_out & set(question.split())]
    retrieved = [any(s.source == Source.RETRIEVED for s in row) for _, row in shown]
    assert not any(retrieved[:32]) and sum(retrieved[32:]) > 5


def test_a_cold_start_that_was_killed_goes_on_and_ends_the_same(branch, tmp_path):
    def settings(name, steps):
        return {
            "sft.folder": str(tmp_path / name),
            "sft.steps": steps,
            "sft.checkpoint_every": 2,
            "sft.examples": 32,
            "sft.warmup": 1,
            "tokenizer.folder": str(branch().cold_start / "tokenizer"),
        }

    class Killed(Exception):
        pass

    class Dying:
        """Metrics of a run that is killed when it has something to say at step 5."""

        def write(self, stage, step, values):
            if step >= 5:
                raise Killed

        def cut_back(self, stage, step):
            pass

        def close(self):
            pass

    whole = branch(settings("whole", 6), name="whole")
    train_cold_start(whole)
    killed = branch(settings("killed", 6), name="killed")
    object.__setattr__(killed, "metrics", Dying())
    with pytest.raises(Killed):
        train_cold_start(killed)
    assert not (killed.cold_start / "done.json").exists()
    store = Checkpoints(killed.cold_start / "checkpoints", keep=1)
    assert store.latest() == 4
    store.close()
    again = branch(settings("killed", 6), name="killed")
    train_cold_start(again)
    left, right = (load_policy(run, run.cold_start) for run in (whole, again))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((again.cold_start / "done.json").read_text())["examples"] > 24


def test_a_finished_cold_start_is_kept(branch, capsys):
    run = branch()
    before = sorted(run.cold_start.rglob("*"))
    train_cold_start(run)
    assert sorted(run.cold_start.rglob("*")) == before
    assert capsys.readouterr().out == ""


def test_rows_too_short_for_the_demonstrations_are_named(branch, tmp_path):
    changes = {"sft.folder": str(tmp_path / "c"), "rollout.max_tokens": 22, "sft.examples": 16}
    with pytest.raises(ValueError, match="rollout.max_tokens=22: only 0 of 16.*raise it"):
        train_cold_start(branch(changes))


@pytest.mark.parametrize("read", [read_agent_tapes, train_imitation])
def test_a_buffer_whose_trajectories_are_all_too_long_names_the_key(branch, read):
    run = branch(
        {"method": "luffy" if read is read_agent_tapes else "sft", "rollout.max_tokens": 22}
    )
    with pytest.raises(ValueError, match="rollout.max_tokens=22: none of the 20 .*raise it"):
        read(run)


def test_trajectories_of_the_buffer_that_do_not_fit_are_counted(branch, capsys):
    examples = read_agent_tapes(branch({"method": "luffy"})).examples
    assert "[imitation] 20 of 20 trajectories of the buffer fit into" in capsys.readouterr().out
    most = int(np.sort(examples.length_B)[9])
    fit = int((examples.length_B <= most).sum())
    kept = read_agent_tapes(branch({"method": "luffy", "rollout.max_tokens": most}, name="short"))
    assert len(kept.examples.length_B) == fit < 20
    line = f"[imitation] {fit} of 20 trajectories of the buffer fit into rollout.max_tokens={most}"
    assert line in capsys.readouterr().out
