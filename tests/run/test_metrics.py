"""What is written about a run while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rapo_jax.run.metrics import Metrics, Progress, clock


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_one_json_object_with_its_step_and_stage(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 3, {"reward/mean": 0.5, "time/step": 1})
    assert lines(tmp_path) == [  # readable before the run ends
        {"step": 3, "stage": "rl", "reward/mean": 0.5, "time/step": 1.0}
    ]
    metrics.close()
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 4, {})
    metrics.close()
    assert [line["step"] for line in lines(tmp_path)] == [3, 4]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 0, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    metrics.close()
    assert lines(tmp_path) == [{"step": 0, "stage": "rl", "a": None, "b": None, "c": 1.0}]


def test_half_a_line_of_a_killed_run_spoils_no_later_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "stage": "rl"}\n{"step": 1, "sta')
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 1, {"x": 1.0})
    metrics.close()
    whole, half, after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(whole)["step"] == 0 and half == '{"step": 1, "sta'
    assert json.loads(after) == {"step": 1, "stage": "rl", "x": 1.0}


def shown_by_tensorboard(folder):
    """Tag -> [(step, value)] of a folder: a start at a step hides what came before it from there.

    A record is its length (8 bytes), a checksum (4), an event, and a checksum (4).
    """
    shown = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = {tag: [x for x in of if x[0] < event.step] for tag, of in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def test_tensorboard_gets_the_same_numbers_by_stage(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=True)
    metrics.write("rl", 2, {"reward/mean": 0.25})
    metrics.close()
    assert shown_by_tensorboard(tmp_path / "tensorboard" / "rl") == {"rl/reward/mean": [(2, 0.25)]}


def test_tensorboard_shows_a_step_that_a_resumed_run_takes_again_once(tmp_path):
    for first in (0, 2):
        metrics = Metrics(tmp_path, tensorboard=True)
        metrics.write("sft", 5, {"loss/sft": 1.0})
        metrics.cut_back("rl", first)
        for step in range(first, 4):
            metrics.write("rl", step, {"reward/mean": 10 * first + step})
        metrics.close()
    shown = shown_by_tensorboard(tmp_path / "tensorboard" / "rl")
    assert shown == {"rl/reward/mean": [(0, 0), (1, 1), (2, 22), (3, 23)]}
    # another stage keeps its later steps
    assert len(shown_by_tensorboard(tmp_path / "tensorboard" / "sft")["sft/loss/sft"]) == 2


SAMPLE = {
    "question_id": "q1", "question": "Where?", "answers": ["E2"], "row": 0, "status": "ANSWERED",
    "reward": 0.5, "segments": [{"source": "POLICY", "step": 0, "text": "<think>so</think>"}],
}  # fmt: skip


def test_samples_are_lines_of_their_file_and_texts_of_tensorboard(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=True)
    metrics.write_samples(4, [SAMPLE])
    metrics.write_samples(6, [SAMPLE])
    metrics.cut_back("rl", 5)
    metrics.close()
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 4, "stage": "heldout"} | SAMPLE
    events = min((tmp_path / "tensorboard" / "rl").iterdir())
    assert b"heldout/0" in events.read_bytes() and b"<think>so</think>" in events.read_bytes()


class FakeRun:
    def __init__(self):
        self.rows, self.axes, self.finished = [], {}, False

    def define_metric(self, name, *, step_metric):
        self.axes[name] = step_metric

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module wandb that keeps what `init` got and what runs logged."""
    module = types.ModuleType("wandb")
    module.begun, module.runs = [], []

    def init(**arguments):
        module.begun.append(arguments)
        module.runs.append(FakeRun())
        return module.runs[-1]

    module.init, module.Error = init, RuntimeError
    module.Table = lambda *, columns, data: [dict(zip(columns, row, strict=True)) for row in data]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_the_numbers_by_stage_and_a_resumed_run_continues_its_run(
    fake_wandb, tmp_path
):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    for step in (1, 2):
        metrics = Metrics(tmp_path, tensorboard=False, wandb="agents")
        metrics.write("rl", step, {"reward/mean": 0.25})
        metrics.write_samples(step, [SAMPLE])
        metrics.close()
    first, second = fake_wandb.begun
    assert first == second and first["resume"] == "allow" and first["config"] == {"seed": 3}
    assert (first["project"], first["name"], first["dir"]) == (
        "agents", tmp_path.name, str(tmp_path),
    )  # fmt: skip
    run = fake_wandb.runs[0]
    assert run.finished and run.axes["rl/*"] == "rl/step"
    assert run.rows[0] == {"rl/step": 1, "rl/reward/mean": 0.25}
    (row,) = run.rows[1]["rl/samples"]
    assert row["question"] == "Where?" and row["response"] == "<think>so</think>"


def test_steps_that_a_resumed_run_takes_again_are_sent_to_weights_and_biases_once(
    fake_wandb, tmp_path
):
    # killed after step 2; resumed at the checkpoint of step 1 and killed again; resumed once more
    for steps in ([0, 1, 2], [1], [1, 2, 3]):
        metrics = Metrics(tmp_path, tensorboard=False, wandb="agents")
        metrics.cut_back("rl", steps[0])
        for step in steps:
            metrics.write_samples(step, [SAMPLE])
            metrics.write("rl", step, {"reward/mean": 0.25})
        metrics.close()
    rows = [row for run in fake_wandb.runs for row in run.rows]
    for name in ("rl/reward/mean", "rl/samples"):
        assert [row["rl/step"] for row in rows if name in row] == [0, 1, 2, 3]
    assert len({begun["id"] for begun in fake_wandb.begun}) == 1


def test_a_training_that_grows_sends_its_metrics_of_the_step_whose_evaluation_was_sent(
    fake_wandb, tmp_path
):
    metrics = Metrics(tmp_path, tensorboard=False, wandb="agents")
    metrics.write("sft", 7, {"loss/sft": 1.0})  # another stage's steps do not count
    metrics.write("rl", 4, {"heldout/accuracy": 0.5})
    metrics.write("rl", 4, {"heldout/accuracy": 0.5, "reward/mean": 0.25})
    (run,) = fake_wandb.runs
    assert run.rows[1:] == [
        {"rl/step": 4, "rl/heldout/accuracy": 0.5},
        {"rl/step": 4, "rl/reward/mean": 0.25},
    ]


def test_weights_and_biases_is_imported_only_when_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Metrics(tmp_path, tensorboard=False).close()
    with pytest.raises(ValueError, match=r"log\.wandb='agents': the package wandb is missing; pip"):
        Metrics(tmp_path, tensorboard=False, wandb="agents")


def test_a_run_that_weights_and_biases_refuses_ends_with_the_remedy(fake_wandb, tmp_path):
    def refuse(**_):
        raise fake_wandb.Error("api_key not configured")

    fake_wandb.init = refuse
    with pytest.raises(ValueError, match="log.wandb='agents': api_key not configured; log in with"):
        Metrics(tmp_path, tensorboard=False, wandb="agents")


def test_offline_weights_and_biases_writes_into_the_workdir_without_a_network(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install .[wandb]")
    code = (
        "import sys, pathlib; from rapo_jax.run.metrics import Metrics\n"
        "m = Metrics(pathlib.Path(sys.argv[1]), tensorboard=False, wandb='agents')\n"
        "m.write('rl', 1, {'reward/mean': 0.25})\n"
        f"m.write_samples(1, [{SAMPLE!r}])\n"
        "m.close()\n"
    )
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    assert b"rl/reward/mean" in file.read_bytes()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_a_clock_shows_minutes_and_hours_only_when_there_are_some(seconds, shown):
    assert clock(seconds) == shown


def test_progress_shows_how_far_and_how_long_still_at_first_and_at_the_end(capsys):
    progress = Progress("rl", total=3, done=0, every_s=1e6)
    for done in (1, 2, 3):
        progress.show(done, reward=0.5, kind="x")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("[rl] 1/3  reward 0.500  kind x  ETA ")
    assert last.startswith("[rl] 3/3") and last.endswith("ETA 0:00")


def test_a_resumed_stage_loses_the_lines_of_the_steps_it_takes_again_and_of_nothing_else(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    for stage, step in (("sft", 9), ("rl", 0), ("rl", 1), ("rl", 2), ("evaluate", 3)):
        metrics.write(stage, step, {"a": 1.0})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sta')
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.cut_back("rl", 1)
    metrics.write("rl", 1, {"a": 2.0})
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"], row["a"]) for row in rows] == [
        ("sft", 9, 1.0),
        ("rl", 0, 1.0),
        ("evaluate", 3, 1.0),
        ("rl", 1, 2.0),
    ]
