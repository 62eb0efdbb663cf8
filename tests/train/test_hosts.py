"""Several processes on this machine do what one does, stop together, and do not wait for ever."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.rl import open_rl
from tests.compiling import QUICK

ROOT = Path(__file__).parents[2]
PATIENCE_S, DEVICES, STEPS = 900, 4, 2
ASKED = 6  # to evaluate, of 8 rows: the last process has nothing to judge


def start(command, *, devices, **environment):
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(processes, *, status=0):
    """What each process printed; all are stopped when one takes too long."""
    try:
        found = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    ends = [process.returncode for process in processes]
    assert ends == [status] * len(processes), "\n".join(text[-2000:] for text in found)
    return found


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def changes(trunk, tmp_path_factory):
    """Of the small config: the trunk's buffer and cold start, whose gates were passed."""
    cold_start = tmp_path_factory.mktemp("hosts") / "coldstart"
    shutil.copytree(trunk.cold_start, cold_start)
    (cold_start / "gates.json").write_text(json.dumps({"one_hop": 1.0, "follow": 1.0}))
    suite = cold_start.parent / "own.jsonl"
    for q in load_questions(trunk.questions["eval"])[:ASKED]:
        with open(suite, "a") as file:
            file.write(json.dumps({"question": q.question, "answers": list(q.answers)}) + "\n")
    return {
        "sft.folder": str(cold_start),
        "buffer.folder": str(trunk.buffer),
        "task.data_dir": trunk.settings.task.data_dir,
        "task.reward": "tests.user_code:of_tuples",
        "rollout.questions": DEVICES,
        "rl.steps": STEPS,
        "rl.retrieved_traces": "removed",
        "evaluate.limit": ASKED,
        "evaluate.suites": (str(suite),),
        "checkpoint.keep": 1000,
        "checkpoint.export_every": STEPS,
        "stages": ("rl", "evaluate"),
    }


def run_main(workdir, changes, *, devices, **distributed):
    settings = changes | {f"distributed.{key}": value for key, value in distributed.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = ["-m", "rapo_jax.main", "--config=tests/small.py", f"--workdir={workdir}", *flags]
    return start(command, devices=devices)


@pytest.fixture(scope="module")
def alone(changes, tmp_path_factory):
    """Workdir of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    outputs([run_main(workdir, changes, devices=DEVICES)])
    return workdir


@pytest.fixture(scope="module")
def two(changes, small_config, tmp_path_factory):
    """(workdir, reports) of two processes that find each other as tasks of a SLURM job."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "run").mkdir()
    (folder / "config.json").write_text(
        json.dumps(small_config(changes | {"distributed.mode": "auto"}))
    )
    processes = [
        start(
            [
                ROOT / "tests/train/host_job.py",
                *(folder / "run", folder / "config.json", folder / f"report-{number}.json"),
            ],
            devices=DEVICES // 2,
            SLURM_JOB_ID=str(os.getpid()),
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(number),
            SLURM_LOCALID=str(number),
        )
        for number in range(2)
    ]
    outputs(processes)
    return folder / "run", [
        json.loads((folder / f"report-{number}.json").read_text()) for number in range(2)
    ]


@pytest.fixture(scope="module")
def four(changes, tmp_path_factory):
    """(workdir, outputs) of four processes of a long run, the third of which got SIGTERM."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    endless = changes | {"rl.steps": 1000, "checkpoint.every": STEPS}
    together = {"mode": "explicit", "coordinator": f"localhost:{free_port()}", "processes": 4}
    processes = [
        run_main(workdir, endless, devices=1, process=number, **together) for number in range(4)
    ]
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + PATIENCE_S
    while not (metrics.is_file() and metrics.read_text().count("\n") > STEPS):
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            break
        time.sleep(0.1)
    processes[2].send_signal(signal.SIGTERM)
    return workdir, outputs(processes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def params_at(workdir, step):
    store = Checkpoints(workdir / "checkpoints")
    try:
        return store.restore_params(step)
    finally:
        store.close()


assert_close = functools.partial(np.testing.assert_allclose, atol=2e-6)


def assert_like(found, wanted, where=""):
    """Equal, numbers that are not whole up to float32 rounding."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_like(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for number, (left, right) in enumerate(zip(found, wanted, strict=True)):
            assert_like(left, right, f"{where}/{number}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-3, abs=2e-4), where
    else:
        assert found == wanted, where


def timeless(rows):
    return [
        {
            key: x
            for key, x in row.items()
            if key.split("/")[0] not in ("time", "cpu") and not key.startswith("loss/logp_gap")
        }
        for row in rows
        if row["stage"] == "rl" and row["step"] < STEPS
    ]


@pytest.mark.parametrize("processes", ["two", "four"])
def test_processes_write_the_tapes_of_one_and_learn_the_same(processes, alone, request):
    workdir, _ = request.getfixturevalue(processes)
    rows = [row for row in lines(workdir / "trajectories.jsonl") if row["step"] < STEPS]
    wanted = lines(alone / "trajectories.jsonl")
    first = len(wanted) // STEPS
    assert len(rows) == len(wanted) == STEPS * DEVICES * 4
    assert rows[:first] == wanted[:first]  # before the first update, bit for bit
    assert_like(rows, wanted)
    assert {s["source"] for row in rows for s in row["segments"]} >= {"TOOL", "RETRIEVED"}
    found, wanted = (timeless(lines(w / "metrics.jsonl")) for w in (workdir, alone))
    assert_like(found, wanted)
    assert any(row["update/rows_without_traces"] > 0 for row in wanted)
    jax.tree.map(assert_close, params_at(workdir, STEPS), params_at(alone, STEPS))


def test_two_processes_evaluate_and_export_like_one(alone, two):
    results = [json.loads((w / "result.json").read_text()) for w in (two[0], alone)]
    for result in results:
        assert result["questions"] == result["suites"]["own"]["questions"] == ASKED
        del result["seconds"], result["cpu_seconds"]
    assert_like(*results)
    files = [w / "exports" / str(STEPS) / "model.safetensors" for w in (two[0], alone)]
    jax.tree.map(assert_close, *map(load_file, files))


def test_two_processes_write_the_predictions_of_one(alone, two):
    found, wanted = (lines(w / "suites" / "own.jsonl") for w in (two[0], alone))
    assert len(wanted) == ASKED
    assert_like(found, wanted)


def test_the_first_process_alone_writes_and_the_others_keep_a_log(alone, two):
    names = [{path.name for path in workdir.iterdir()} for workdir in (two[0], alone)]
    assert names[0] - names[1] == {"turns.txt", "log-host-1.txt"}
    # main.py alone notes which stages are done and locks the folder
    assert names[1] - names[0] == {"done.json", ".lock"}
    assert "[rl] 2/2" in (two[0] / "log-host-1.txt").read_text()
    stages = [row["stage"] for row in lines(two[0] / "metrics.jsonl")]
    assert stages == 2 * ["rl"] + 2 * ["evaluate"]


def test_processes_gather_each_others_values_and_take_turns(two):
    _, reports = two
    for report in reports:
        assert report["shared"] == [{"from": 0, "text": ""}, {"from": 1, "text": 300 * "x"}]
        assert report["refused"] == "this folder belongs to another run"
        assert report["stopped"] == "3 trajectories are kept"
        assert report["other_config"].startswith("rl.m: process ")
    assert [report["turns"] for report in reports] == [["0"], ["0", "1"]]


def test_a_tool_that_fails_on_one_process_is_an_observation_of_its_rows_alone(two):
    _, (first, second) = two
    assert first["observations"] == second["observations"]
    half = len(first["observations"]) // 2
    mine, others = first["observations"][half:], first["observations"][:half]
    assert any(mine) and any(others)
    assert all(text.startswith("<result> no such ") for row in mine for text in row)  # cut to fit
    assert not any("no such" in text for row in others for text in row)


def test_a_tool_that_breaks_its_promise_on_one_process_ends_all_with_its_error(two):
    for report in two[1]:
        assert report["failure"].startswith("the callbacks failed during a rollout: OSError('the")


def test_sigterm_to_one_process_saves_a_checkpoint_on_all_and_ends_them_well(four):
    workdir, (printed, *others) = four
    store = Checkpoints(workdir / "checkpoints")
    newest = store.latest()
    store.close()
    assert newest > STEPS
    trained = [row["step"] for row in lines(workdir / "metrics.jsonl")]
    assert trained == list(range(newest))
    ending = f"[stop] checkpoint saved at step {newest} of 1000; run the same command to resume"
    assert printed.splitlines()[-1] == ending
    for number, output in enumerate(others, 1):
        assert "[stop]" not in output
        assert ending in (workdir / f"log-host-{number}.txt").read_text()
    assert not (workdir / "done.json").exists()


def test_one_process_goes_on_where_four_were_stopped(four, branch):
    workdir, _ = four
    parts, training = open_rl(branch({"rollout.questions": DEVICES}))
    store = Checkpoints(workdir / "checkpoints")
    newest = store.latest()
    state, metadata = store.restore(training.state)
    store.close()
    for left, right in zip(
        *map(jax.tree.leaves, (state.params, params_at(workdir, newest))), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    parts.stream.set_state(metadata["stream"])
    assert metadata["stream"]["next_index"] == newest
    fresh, _ = open_rl(branch({"rollout.questions": DEVICES}, name="fresh"))
    order = [[question.id for question in next(fresh.stream)] for _ in range(newest + 1)]
    assert asked(workdir) == order[:newest]
    assert [question.id for question in next(parts.stream)] == order[newest]


def asked(workdir):
    """Ids of the questions of each step, in the order of rows."""
    steps = {}
    for row in lines(workdir / "trajectories.jsonl"):
        steps.setdefault(row["step"], {})[row["question_id"]] = None
    return [list(steps[step]) for step in sorted(steps)]
