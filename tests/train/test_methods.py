"""The training methods: each is one config key, learns, and resumes exactly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rapo_jax.config.methods import METHODS as PUBLISHED
from rapo_jax.config.sources import resolve
from rapo_jax.method.calibrate import Calibration
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.run import open_run
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train import methods
from rapo_jax.train.imitation import imitation_folder, train_imitation
from rapo_jax.train.methods import METHODS
from rapo_jax.train.rl import train_rl
from rapo_jax.types import Source

OF_EVERY_RUN = {"rl.steps": 2, "checkpoint.every": 2}


def changes_of(method, **others):
    settings = {"method": method, **PUBLISHED[method].settings, **OF_EVERY_RUN}
    return settings | {"rl.resample": min(settings.get("rl.resample", 0), 1)} | others


def train(run):
    return jax.device_get(train_rl(run).state)


def identical(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_every_method_but_pure_imitation_has_its_functions():
    assert METHODS.keys() == PUBLISHED.keys() - {"sft"}


def test_a_new_method_is_rows_of_tables_for_no_code_asks_which_one_it_is():
    package = Path(methods.__file__).parents[1]
    asks = re.compile(r"\bmethod (==|!=|in|not in) [\"'({]")
    assert [path for path in package.rglob("*.py") if asks.search(path.read_text("utf-8"))] == []


@pytest.fixture
def buffer_of_training_questions(trunk, tmp_path):
    """The trunk's buffer, with its trajectories as if they answered the training questions."""
    folder = tmp_path / "buffer_of_training_questions"
    shutil.copytree(trunk.buffer, folder)
    path = folder / "trajectories.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions = load_questions(trunk.questions["train"])
    rows = [rows[i % len(rows)] | {"question_id": q.id} for i, q in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("method", ["dapo", "gppo", "gigpo", "luffy", "rollout_replay"])
def test_a_method_learns_and_two_steps_and_two_after_a_resume_are_four(
    branch, metrics_of, buffer_of_training_questions, method
):
    changes = changes_of(method, **{"buffer.folder": buffer_of_training_questions})
    whole = train(branch(changes | {"rl.steps": 4}, name="whole"))
    train(branch(changes, name="parts"))
    parts = branch(changes | {"rl.steps": 4}, name="parts")
    identical(whole, train(parts))
    rows = metrics_of(parts.workdir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(np.isfinite(row["loss/policy"]) for row in rows)
    assert any(row["loss/grad_norm"] > 0 for row in rows)
    rollout = parts.settings.rollout
    rows_each = rollout.questions * (rollout.group_size - (method == "luffy"))
    for row in rows:  # what was sampled is in the rows of the step, unless rows were replaced
        kept, more = row["rollout/policy_tokens"] * rows_each, row.get("rollout/further_batches")
        if more or method == "luffy":
            assert row["rollout/sampled_tokens"] > kept
        else:
            assert row["rollout/sampled_tokens"] == pytest.approx(kept)
    if method == "dapo":
        assert {row["rollout/further_batches"] for row in rows} <= {0.0, 1.0}
        assert all(0 <= row["rollout/equal_groups"] <= 1 for row in rows)
    if method == "rollout_replay":
        # one fresh and one past group; 8 questions are an epoch: four steps of two, then eight
        assert [row["rollout/past_groups"] for row in rows] == [0.0] * 4
        assert sorted(path.name for path in (parts.workdir / "replay").iterdir()) == [
            "2.npz",
            "4.npz",
        ]
    if method == "luffy":
        assert [row["rollout/groups_with_trajectory"] for row in rows] == [1.0] * 4
        assert all(row["loss/off_policy"] > 0 and 0 < row["loss/off_weight"] < 1 for row in rows)
        for line in (parts.workdir / "trajectories.jsonl").read_text().splitlines():
            row = json.loads(line)
            last = row["row"] % rollout.group_size == rollout.group_size - 1
            steps = [part for part in row["segments"] if part["source"] == "POLICY"]
            assert row["off_policy"] is last and not row["hybrid"]
            assert all((part["entropy"] is None) is last for part in steps)


@pytest.fixture
def open_anew(branch):
    """A run of the trunk with a sampler of its own, as settings of rollouts need it."""
    opened = []

    def make(changes, *, name):
        run = branch(changes, name=name)
        opened.append(open_run(run.settings, run.workdir, devices=jax.devices()[:1]))
        return opened[-1]

    yield make
    for run in opened:
        run.close()


@pytest.mark.parametrize("method", ["tree_grpo", "arpo", "aepo"])
def test_a_method_whose_rollouts_branch_learns_and_resumes_exactly(open_anew, metrics_of, method):
    tree_rows = 4 if method == "aepo" else 2
    changes = changes_of(method, **{"rollout.tree_rows": tree_rows})
    whole = train(open_anew(changes | {"rl.steps": 4}, name="whole"))
    train(open_anew(changes, name="parts"))
    parts = open_anew(changes | {"rl.steps": 4}, name="parts")
    identical(whole, train(parts))
    rows = metrics_of(parts.workdir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert any(row["loss/grad_norm"] > 0 for row in rows)
    roots = 8 // tree_rows
    assert all(row["rollout/forks"] + row["rollout/restarts"] == 8 - roots for row in rows)
    assert sum(row["rollout/forks"] for row in rows) > 2
    assert all(row["rollout/saved_tokens"] < row["rollout/policy_tokens"] for row in rows)
    assert sum(row["rollout/saved_calls"] for row in rows) > 0


def test_retrieval_on_top_of_branches_runs_and_resampled_groups_keep_their_trees(
    open_anew, metrics_of
):
    changes = changes_of("arpo", **{"retrieval.always": True, "rl.resample": 1})
    run = open_anew(changes, name="arpo")
    train(run)
    rows = metrics_of(run.workdir)
    assert sum(row["buffer/count"] for row in rows) > 0
    assert all(row["rollout/forks"] + row["rollout/restarts"] == 4 for row in rows)


def test_methods_with_rows_of_others_do_not_branch(small_settings):
    for method in ("luffy", "rollout_replay"):
        with pytest.raises(ValueError, match="rollout.tree_rows=2: .* no rollouts branch: 1"):
            small_settings({"method": method, "rollout.tree_rows": 2})


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("rollout_replay", {"rl.replay_groups": 1}, "rl.replay_groups=1: .* at least 2"),
        ("rollout_replay", {"rl.replay_share": 0.1}, "rl.replay_share=0.1: rounds to no past"),
        ("rollout_replay", {"rl.clip_high": 5.0}, "rl.clip_high=5.0: .* rl.clip_low: 0.2"),
        ("rollout_replay", {"rl.clipping": "gppo"}, "rl.clipping='gppo': .* 'ppo'"),
        ("luffy", {"rl.dual_clip": 3.0}, "rl.dual_clip=3.0: .* 0"),
        (
            "aepo",
            {"rollout.tree_rows": 2},
            "rollout.branch_penalty=0.05: has no effect: .* 3 or more",
        ),
    ],
)
def test_settings_that_a_method_would_ignore_are_refused(small_settings, method, changes, message):
    small_settings(changes_of(method))
    with pytest.raises(ValueError, match=message):
        small_settings(changes_of(method) | changes)


def test_the_advantages_of_trees_and_of_uncertain_tokens_are_those_of_their_functions(
    small_settings, tapes
):
    s, G = small_settings({"rollout.tree_rows": 2}), 4
    rng = np.random.default_rng(0)
    reward_B = rng.random(len(tapes.length_B)).astype(np.float32)
    calibration = Calibration(reward_B - 0.5, *[None] * 5)
    found_B = METHODS["tree_grpo"].advantage(s, tapes, reward_B, calibration)
    for b, reward in enumerate(reward_B):
        group, tree = (reward_B[b // n * n :][:n].astype(np.float64) for n in (G, 2))
        wanted = sum((reward - x.mean()) / (x.std(ddof=1) + s.rl.std_floor) for x in (group, tree))
        np.testing.assert_allclose(found_B[b], wanted, rtol=1e-4)
    found_BT = METHODS["aepo"].advantage(s, tapes, reward_B, calibration)
    policy_BT = tapes.source_BT == Source.POLICY
    entropy = tapes.entropy_BT[policy_BT].astype(np.float64)
    z_BT = (tapes.entropy_BT - entropy.mean()) / entropy.std(ddof=1) * policy_BT
    wanted_BT = calibration.advantage_B[:, None] * (1 + 0.2 * z_BT)
    np.testing.assert_allclose(found_BT, wanted_BT, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_past_rows_are_replayed_from_the_second_epoch_with_ratios_to_their_own_policy(
    branch, metrics_of, trunk
):
    epoch = len(load_questions(trunk.questions["train"])) // 2  # steps of two fresh groups each
    fast = {"optimizer.learning_rate": 0.01, "rl.mini_batches": 1}
    changes = changes_of("rollout_replay") | fast | {"rl.steps": epoch + 4}
    whole = train(branch(changes | {"checkpoint.every": 1000}, name="whole"))
    at = epoch + 2
    train(branch(changes | {"rl.steps": at, "checkpoint.every": at}, name="parts"))
    parts = branch(changes, name="parts")
    identical(whole, train(parts))
    rows = metrics_of(parts.workdir)
    shares = [row["rollout/past_groups"] for row in rows]
    assert [row["rollout/sampled_rows"] for row in rows] == [8 * (1 - share) for share in shares]
    assert shares[: epoch - 1] == [0.0] * (epoch - 1) and shares[-4:] == [0.5] * 4
    # In the only update of a step fresh rows have ratio 1, past ones pi_old to their own policy.
    assert max(abs(row["loss/ratio"] - 1) for row in rows[: epoch - 1]) < 1e-4
    assert min(abs(row["loss/ratio"] - 1) for row in rows[-4:]) > 1e-3
    assert max(row["loss/logp_gap"] for row in rows) < 1e-4  # of all rows, to the present policy


def test_luffy_without_trajectories_of_its_questions_stays_on_policy_and_says_so(
    branch, metrics_of
):
    run = branch(changes_of("luffy"), name="luffy")
    train(run)
    for row in metrics_of(run.workdir):
        assert row["rollout/groups_with_trajectory"] == row["loss/off_policy"] == 0


def test_dapo_without_its_extras_takes_the_steps_of_grpo(branch):
    plain = {"rl.steps": 2, "rl.resample": 0, "rl.overlong": 0.0}
    dapo = train(branch(plain | {"method": "dapo"}, name="dapo"))
    identical(dapo, train(branch(plain | {"method": "grpo"}, name="grpo")))


def test_a_long_response_loses_reward_where_the_penalty_is_on(branch, metrics_of):
    found = {}
    for share in (0.0, 1.0):
        run = branch(OF_EVERY_RUN | {"method": "grpo", "rl.overlong": share}, name=f"at-{share}")
        found[share] = train(run), metrics_of(run.workdir)[0]
    assert found[0.0][1]["reward/mean"] == found[1.0][1]["reward/mean"]  # it shows the outcome
    leaves = zip(*(jax.tree.leaves(state.params) for state, _ in found.values()), strict=True)
    assert any((a != b).any() for a, b in leaves)


def test_imitation_then_grpo_starts_rl_from_the_imitating_policy(branch, metrics_of):
    changes = changes_of("sft_grpo", **{"rl.imitation_steps": 3})
    run = branch(changes, name="both")
    train(run)
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").open()]
    assert [(row["stage"], row["step"]) for row in lines] == [
        *(("imitation", step) for step in range(3)),
        *(("rl", step) for step in range(2)),
    ]
    alone = branch({"method": "sft", "rl.steps": 3}, name="alone")
    expected = jax.device_get(train_imitation(alone).state.params)
    store = Checkpoints(imitation_folder(run) / "checkpoints")
    identical(store.restore_params(), expected)
    store.close()


def test_an_imitation_before_grpo_finds_the_cold_start_and_the_buffer_that_the_run_has_made(branch):
    changes = {"rl.steps": 1, "rl.imitation_steps": 1, "method": "sft_grpo"}
    named = branch(changes, name="named")
    own = branch(changes | {"sft.folder": "", "buffer.folder": ""}, name="own")
    for folder in (named.cold_start, named.buffer):
        shutil.copytree(folder, own.workdir / folder.name)
    identical(train(named), train(own))


def test_retrieval_on_top_of_another_method_is_a_config_value(branch, metrics_of):
    run = branch(changes_of("gppo", **{"retrieval.always": True}), name="gppo")
    train(run)
    assert sum(row["buffer/count"] for row in metrics_of(run.workdir)) > 0


def resolved(*flags, config="tests/small.py"):
    return resolve(config, flags=[tuple(flag.split("=", 1)) for flag in flags])


def test_a_methods_published_settings_apply_to_keys_that_nobody_sets():
    found = resolved("method=dapo", "rl.clip_low=0.1")
    rl, origins = found.config["rl"], found.origins
    assert (rl["clip_low"], rl["clip_high"], rl["aggregation"]) == (0.1, 0.28, "token_mean")
    assert origins["rl.aggregation"] == "method=dapo"
    assert origins["rl.clip_low"] == "--config.rl.clip_low"
    assert resolved().config["rl"]["aggregation"] == "sequence_mean"


def test_a_value_set_to_the_default_is_kept_also_when_the_stored_config_is_taken_again(tmp_path):
    found = resolved("method=dapo", "rl.aggregation=sequence_mean")
    assert found.config["rl"]["aggregation"] == "sequence_mean"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(found.config))
    assert resolved(config=str(path)).config == json.loads(path.read_text())
