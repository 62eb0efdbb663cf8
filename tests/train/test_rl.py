"""RL: resuming is exact, methods differ where they should, and what a step leaves behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest

from rapo_jax import distributed
from rapo_jax.config.methods import METHODS as PUBLISHED
from rapo_jax.main import main
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.metrics import Metrics
from rapo_jax.run.run import Run
from rapo_jax.sampling import programs
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.stages import table
from rapo_jax.stages.job import prepare_workdir
from rapo_jax.train import groups, rl
from rapo_jax.train.buffer import load_buffer
from rapo_jax.train.calibration import guards
from rapo_jax.train.imitation import train_imitation
from rapo_jax.train.loop import PolicyTraining
from rapo_jax.train.rl import probability_at, train_rl

METRICS = {
    *("reward/mean", "reward/on_policy", "reward/hybrid", "reward/accuracy", "reward/format_bad"),
    *("reward/retrieval", "reward/nonzero_groups", "entropy/policy"),
    *("rollout/tokens", "rollout/policy_tokens", "rollout/retrieved_share", "rollout/tool_calls"),
    *("tools/search", "tools/python", "tools/errors", "tools/timeouts"),
    *("buffer/count", "buffer/hit_rate", "buffer/similarity", "buffer/same_question"),
    "buffer/origin/scripted",
    *("rollout/retrieval_probability", "floor/entropy_active", "floor/std_active"),
    *("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/kl", "loss/grad_norm"),
    *("loss/logp_gap", "loss/logp_gap_max", "loss/learning_rate", "loss/skipped"),
    *("update/padding", "update/zero_advantage_rows"),
    *("time/reshard", "time/rollout", "time/host", "time/update", "time/step", "cpu/total"),
    *("time/waiting", "time/slots_used", "time/slots_waiting", "time/host_calls"),
    *("rollout/absorbed_tokens", "rollout/sampled_tokens", "rollout/sampled_rows"),
}


def train(run):
    return jax.device_get(train_rl(run).state)


def identical(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def uninterrupted():
    """Filled by the first test that trains four steps without a break."""
    return {}


@pytest.fixture
def four_steps(branch, metrics_of, uninterrupted):
    """(state, metric lines, trajectory lines) after four steps in one go."""
    if not uninterrupted:
        run = branch(name="whole")
        state = train(run)
        lines = (run.workdir / "trajectories.jsonl").read_text().splitlines()
        uninterrupted.update(state=state, metrics=metrics_of(run.workdir), lines=lines)
    return uninterrupted


def timeless(rows):
    return [
        {key: x for key, x in row.items() if key.split("/")[0] not in ("time", "cpu")}
        for row in rows
    ]


def test_two_steps_and_two_after_a_resume_are_four(branch, four_steps, metrics_of):
    train(branch({"rl.steps": 2}))
    run = branch()
    identical(train(run), four_steps["state"])
    assert timeless(metrics_of(run.workdir)) == timeless(four_steps["metrics"])
    assert (run.workdir / "trajectories.jsonl").read_text().splitlines() == four_steps["lines"]


class Killed(Exception):
    pass


class Dying:
    """Metrics of a run that is killed before its fourth step is written down."""

    def write(self, stage, step, values):
        if step == 3:
            raise Killed

    def cut_back(self, stage, step):
        pass

    def close(self):
        pass


def test_a_run_killed_between_checkpoints_takes_the_lost_steps_again(
    branch, four_steps, metrics_of, capsys
):
    killed = branch()
    object.__setattr__(killed, "metrics", Dying())
    with pytest.raises(Killed):
        train(killed)
    run = branch()
    identical(train(run), four_steps["state"])
    assert "[rl] resumed at step 2" in capsys.readouterr().out
    assert timeless(metrics_of(run.workdir)) == timeless(four_steps["metrics"])[2:]


def test_a_steps_metrics_are_fetched_after_the_next_rollout_was_sampled(branch, monkeypatch):
    run = branch({"rl.steps": 3, "checkpoint.every": 3})
    events = []

    def noting(name, function):
        def noted(*arguments, **others):
            events.append(name)
            return function(*arguments, **others)

        return noted

    monkeypatch.setattr(rl, "update_metrics", noting("fetched", rl.update_metrics))
    monkeypatch.setattr(Sampler, "sample", noting("sampled", Sampler.sample))
    monkeypatch.setattr(Checkpoints, "save", noting("saved", Checkpoints.save))
    train(run)
    steps = ["sampled", "sampled", "fetched", "sampled", "fetched", "fetched", "saved"]
    assert events == steps


def test_a_run_that_fails_writes_the_metrics_of_every_step_that_it_took(
    branch, metrics_of, monkeypatch
):
    run = branch({"checkpoint.every": 4})
    scored = groups.score_rows

    def fails_in_its_third_step(*arguments):
        if run.metrics.written == 1:
            raise Killed
        return scored(*arguments)

    class Counting(Metrics):
        written = 0

        def write(self, stage, step, values):
            super().write(stage, step, values)
            self.written += 1

    object.__setattr__(run, "metrics", Counting(run.workdir, tensorboard=False))
    monkeypatch.setattr(groups, "score_rows", fails_in_its_third_step)
    with pytest.raises(Killed):
        train(run)
    run.metrics.close()
    assert [row["step"] for row in metrics_of(run.workdir)] == [0, 1]


def test_a_finished_training_is_left_as_it_is(branch, four_steps, metrics_of):
    run = branch({"rl.steps": 2})
    train(run)
    before = metrics_of(run.workdir)
    train(branch({"rl.steps": 2}))
    assert metrics_of(run.workdir) == before


def test_every_step_writes_every_metric_and_they_make_sense(four_steps):
    assert [row["step"] for row in four_steps["metrics"]] == [0, 1, 2, 3]
    for row in four_steps["metrics"]:
        assert set(row) == METRICS | {"step", "stage"}
        assert row["stage"] == "rl"
        assert -1 <= row["reward/mean"] <= 1.1
        assert row["rollout/tool_calls"] == row["tools/search"] + row["tools/python"] > 0
        # the policy that wrote the tapes is the one that is updated
        assert row["loss/logp_gap_max"] < 1e-4
    for row in four_steps["metrics"]:  # without an advantage there is no gradient
        assert (row["loss/grad_norm"] > 0) == (row["reward/nonzero_groups"] > 0)
    assert len({row["reward/mean"] for row in four_steps["metrics"]}) > 1
    assert sum(row["buffer/count"] for row in four_steps["metrics"]) > 3


def test_trajectories_show_the_hybrid_rows_and_their_retrievals(four_steps):
    rows = [json.loads(line) for line in four_steps["lines"]]
    assert len(rows) == 4 * 2 * 4
    retrieved = [any(s["source"] == "RETRIEVED" for s in row["segments"]) for row in rows]
    assert any(retrieved)
    assert all(row["hybrid"] is (row["row"] % 4 >= 2) for row in rows)
    assert all(row["hybrid"] for row, found in zip(rows, retrieved, strict=True) if found)


def test_eight_frames_lead_from_main_to_a_rollout(branch, trunk, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def rollout(*_, **__):
        raise Reached

    without_gates = shutil.ignore_patterns("gates.json")
    shutil.copytree(trunk.cold_start, tmp_path / "coldstart", ignore=without_gates)
    run = branch({"stages": ("rl",), "sft.folder": str(tmp_path / "coldstart")})
    prepare_workdir(run.workdir, dataclasses.asdict(run.settings))
    monkeypatch.setattr(distributed, "start", lambda settings: None)  # it takes the signals
    monkeypatch.setattr(Run, "close", lambda self: None)
    monkeypatch.setattr(programs, "on_mesh", rollout)  # which its driver enters for the rollout
    monkeypatch.setattr(table, "open_run", lambda settings, workdir: run)
    package = Path(table.__file__).parents[1]

    def frames():
        with pytest.raises(Reached) as reached:
            main([f"--workdir={run.workdir}"])
        return [x.name for x in reached.traceback if x.path.is_relative_to(package)]

    gate = ["check_cold_start", "follow_rate", "sample", "from_python"]
    assert frames() == ["main", "run_stages", "_rl", *gate]
    monkeypatch.setattr(table, "check_cold_start", lambda run: {})
    step = ["train_rl", "rl_step", "sample_batch", "sample", "from_python"]
    assert frames() == ["main", "run_stages", "_rl", *step]


def test_grpo_never_asks_the_buffer_and_needs_none(branch, metrics_of, tmp_path):
    run = branch({"method": "grpo", "rl.steps": 2, "buffer.folder": str(tmp_path / "none")})
    train(run)
    rows = metrics_of(run.workdir)
    assert len(rows) == 2
    for row in rows:
        assert row["buffer/count"] == row["rollout/retrieved_share"] == 0
        assert row["rollout/retrieval_probability"] == 0


def test_rapo_without_hybrid_rollouts_and_with_m_and_a_zero_takes_the_steps_of_grpo(branch):
    same = {"rl.steps": 2, "rollout.n_hybrid": 0, "rl.m": 0.0, "rl.a": 0.0}
    rapo = train(branch(same, name="rapo"))
    identical(rapo, train(branch({"rl.steps": 2, "method": "grpo"}, name="grpo")))
    default_m_and_a = {"rl.steps": 2, "rollout.n_hybrid": 0}
    identical(rapo, train(branch(default_m_and_a, name="default")))


def test_the_sft_baseline_imitates_the_buffer_and_samples_nothing(branch, metrics_of):
    run = branch({"method": "sft", "rl.steps": 16, "optimizer.learning_rate": 0.01})
    train_imitation(run)
    losses = [row["loss/sft"] for row in metrics_of(run.workdir)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert not (run.workdir / "trajectories.jsonl").exists()


def test_a_run_that_began_with_another_buffer_is_refused(branch):
    run = branch({"rl.steps": 2})
    state = train_rl(run).state
    with closing(Checkpoints(run.workdir / "checkpoints")) as store:
        assert store.metadata()["buffer"] == load_buffer(run).identity
    with pytest.raises(ValueError, match="buffer.folder=.*began with another buffer"):
        PolicyTraining(branch({"rl.steps": 4}), state, buffer="f" * 64)


def test_imitation_resumes_where_it_was_cut_off_and_ends_the_same(branch):
    changes = {"method": "sft", "optimizer.learning_rate": 0.01}
    whole = train_imitation(branch(changes | {"rl.steps": 4}, name="whole"))
    train_imitation(branch(changes | {"rl.steps": 2}))
    resumed = train_imitation(branch(changes | {"rl.steps": 4}))
    identical(resumed.state.params, whole.state.params)


def test_probability_decays_as_its_schedule_says(small_settings):
    def at(schedule, step):
        changes = {"retrieval.schedule": schedule, "rl.steps": 8, "retrieval.probability": 0.5}
        return probability_at(small_settings(changes), step)

    assert [at("constant", step) for step in (0, 4, 8)] == [0.5, 0.5, 0.5]
    assert [at("linear", step) for step in (0, 4, 8)] == [0.5, 0.25, 0.0]
    assert [at("cosine", step) for step in (0, 4, 8)] == pytest.approx([0.5, 0.25, 0.0])


def test_values_that_silence_or_flip_the_gradient_are_warned_about(small_settings):
    # G = 4, ddof 1: a flips from sqrt(4 / 9) on; m F > 0.28 for F = 1 from m = 0.28 on
    assert guards(small_settings({"rl.a": 0.66, "rl.m": 0.27})) == []
    (biased,) = guards(small_settings({"rollout.temperature": 0.7}))
    assert "rollout.temperature=0.7" in biased
    flips, silences = guards(small_settings({"rl.a": 0.67, "rl.m": 0.56}))
    assert flips.startswith("rl.a=0.67: from 0.667 on, at rollout.group_size=4")
    assert silences.startswith("rl.m=0.56: a rollout with a share of retrieved tokens above 0.50")
    both = {"rl.a": 0.67, "rl.m": 0.56}
    assert guards(small_settings(both | {"method": "grpo"})) == []
    # a clip that keeps the gradient, an advantage without Z, losses without the shaped ratio
    always = both | {"retrieval.always": True}
    for method, found in (("gppo", ["rl.a"]), ("gigpo", ["rl.m"]), ("luffy", [])):
        lines = guards(small_settings(always | {"method": method, **PUBLISHED[method].settings}))
        assert [line.split("=")[0] for line in lines] == found
