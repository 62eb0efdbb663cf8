"""Sessions take the steps of a training, and docs/notebook.ipynb runs from top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pytest

from rapo_jax.notebook import Session
from rapo_jax.tasks import Question
from rapo_jax.train.rl import train_rl
from tests.compiling import QUICK
from tests.model.checkpoints import make_model, save_model

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def open_session(trunk, tmp_path):
    """Opens a session on the cold start and the buffer of the trunk."""
    given = {
        "sft.folder": trunk.cold_start,
        "buffer.folder": trunk.buffer,
        "task.data_dir": trunk.settings.task.data_dir,
        "rollout.driver": "host",
        "rl.steps": 2,
    }
    with ExitStack() as opened:

        def open_session(changes=None, config=ROOT / "tests" / "small.py"):
            workdir, changes = tmp_path / "session", given | (changes or {})
            made = Session(str(config), workdir, changes, devices=jax.devices()[:1])
            opened.callback(made.close)
            return made

        yield open_session


@pytest.fixture
def session(open_session):
    return open_session()


def timeless(metrics):
    return {name: x for name, x in metrics.items() if name.split("/")[0] not in ("time", "cpu")}


def test_a_session_takes_the_steps_of_a_training_whatever_it_rolls_out_between(
    session, branch, metrics_of
):
    run = branch({"rl.steps": 2})
    state = jax.device_get(train_rl(run).state)
    wanted = metrics_of(run.workdir, timeless=True)
    questions = [session.run.questions["train"][i] for i in (0, 1)]
    found = []
    for _ in range(2):
        found.append(timeless(session.train_step()))
        session.rollout(questions)
    assert [{**row, "stage": "rl", "step": t} for t, row in enumerate(found)] == wanted
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(session.training.state), state)
    assert (session.run.workdir / "checkpoints" / "2").is_dir()
    with pytest.raises(ValueError, match="rl.steps=2: all steps are taken"):
        session.train_step()


def test_rollouts_of_any_questions_are_scored_shown_and_have_advantages(session):
    first = session.run.questions["train"][0]
    questions = [first, Question("mine", first.question, ("no such town",), "mine", "mine")]
    groups = session.rollout(questions)
    again, other = session.rollout(questions), session.rollout(questions, seed=1)
    np.testing.assert_array_equal(groups.trajectory.token_BT, again.trajectory.token_BT)
    assert not np.array_equal(groups.trajectory.token_BT, other.trajectory.token_BT)
    learned = session.advantages(groups)
    np.testing.assert_array_equal(learned.reward_B, np.float32(groups.scores.reward_B))
    reward_QG, advantage_QG = (x.reshape(2, 4) for x in (learned.reward_B, learned.advantage))
    for reward_G, advantage_G in zip(reward_QG, advantage_QG, strict=True):
        assert np.ptp(reward_G) > 0 or not advantage_G.any()
    for nothing in ([], [("who?", "her")]):
        with pytest.raises(ValueError, match="one or more rapo_jax.tasks.Question"):
            session.rollout(nothing)
    text = session.text(groups, row=0)
    assert text.splitlines()[0].startswith("   POLICY 0: <think>")


def test_a_session_whose_method_imitates_first_takes_its_steps_from_the_imitation(
    open_session, branch, metrics_of
):
    changes = {"method": "sft_grpo", "rl.imitation_steps": 1, "rl.steps": 1}
    run = branch(changes)
    train_rl(run)
    opened = open_session(changes)
    opened.train_step()
    wanted, found = (metrics_of(each.workdir, timeless=True) for each in (run, opened.run))
    assert [row["stage"] for row in found] == ["imitation", "rl"] and found == wanted


def test_a_session_of_a_method_that_samples_nothing_is_refused_before_anything_is_made(
    open_session, tmp_path
):
    with pytest.raises(ValueError, match="method='sft': it samples no rollouts"):
        open_session({"method": "sft"})
    assert not (tmp_path / "session").exists()


def test_a_session_records_more_steps_and_a_failed_one_leaves_its_folder_free(
    open_session, tmp_path
):
    with pytest.raises(ValueError, match=r"rollout\.prompt_tokens=3"):
        open_session({"rollout.prompt_tokens": 3})
    open_session({"rl.steps": 1}).close()
    open_session({"rl.steps": 3})
    stored = json.loads((tmp_path / "session" / "config.json").read_text())
    assert stored["rl"]["steps"] == 3


def test_a_session_finds_user_code_beside_its_config_and_records_the_file(
    open_session, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = tmp_path / "mine.py"
    config.write_text("from tests.small import get_config\n")
    (tmp_path / "beside_it.py").write_text("def score(text, gold_answers):\n    return 0.25\n")
    session = open_session({"task.reward": "beside_it:score"}, config=config)
    groups = session.rollout([session.run.questions["train"][0]])
    assert set(groups.scores.reward_B) == {0.25}
    stored = json.loads((tmp_path / "session" / "config.json").read_text())
    assert stored["config_file"] == str(config)


def test_a_session_refuses_a_setting_that_contradicts_the_models_folder(open_session, tmp_path):
    save_model(make_model("qwen2"), tmp_path / "model")
    changes = {"model.folder": tmp_path / "model", "model.width": 48}
    with pytest.raises(ValueError, match=r"model\.width=48"):
        open_session(changes)


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(len(cell.splitlines()) for cell in code) <= 40
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loss/grad_norm" in done.stdout and "POLICY 0: <think>" in done.stdout
    rows = map(json.loads, (tmp_path / "runs" / "notebook" / "metrics.jsonl").open())
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [0]
