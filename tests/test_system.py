"""The whole job in processes of their own: five stages, the same again, a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rapo_jax.run.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
STEPS = 4
PATIENCE_S = 300


def start(workdir, *flags):
    command = [
        *(sys.executable, "-m", "rapo_jax.main", "--config=tests/small.py"),
        *(f"--workdir={workdir}", f"--config.rl.steps={STEPS}", *flags),
    ]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device, as on a laptop
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(workdir, *flags):
    process = start(workdir, *flags)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, output) of an uninterrupted run of all stages."""
    workdir = tmp_path_factory.mktemp("system") / "run"
    return workdir, run(workdir)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_it_promises(finished):
    workdir, output = finished
    for name in ("config.json", "metrics.jsonl", "trajectories.jsonl", "result.json",
                 "report.html", "coldstart", "buffer", "checkpoints"):  # fmt: skip
        assert (workdir / name).exists(), name
    assert json.loads((workdir / "done.json").read_text())["stages"] == [
        "sft", "buffer", "rl", "evaluate", "report",
    ]  # fmt: skip
    *_, accuracy, last = output.splitlines()
    assert accuracy.startswith("held-out accuracy, greedy, without retrieval: 0.")
    assert str(workdir / "report.html") in last
    assert "ETA" in output and "Traceback" not in output


def test_metrics_cover_every_stage_that_trains_or_evaluates(finished):
    rows = lines(finished[0] / "metrics.jsonl")
    assert {row["stage"] for row in rows} == {"sft", "rl", "evaluate"}
    rl = [row for row in rows if row["stage"] == "rl"]
    assert [row["step"] for row in rl] == list(range(STEPS))
    assert all(row["loss/logp_gap_max"] < 1e-4 for row in rl)
    assert sum(row["buffer/count"] for row in rl) > 0
    assert all(row["tools/timeouts"] == 0 for row in rl)


def test_the_result_holds_accuracies_by_kind_counts_and_seconds_by_phase(finished):
    found = json.loads((finished[0] / "result.json").read_text())
    assert (found["method"], found["seed"], found["questions"]) == ("rapo", 0, 32)
    for when in ("before", "after"):
        assert set(found[f"accuracy_by_kind_{when}"]) == {"one_hop", "number"}
        assert 0 <= found[f"accuracy_{when}"] <= 1
        assert sum(found[f"endings_{when}"].values()) == 32
    assert found["counts"]["rl_steps"] == STEPS
    assert found["counts"]["traces"] > 20
    # one program that can retrieve, one for evaluation
    assert found["counts"]["compiled_rollouts"] == 2
    assert {"sft", "buffer", "rl", "rollout", "host", "update", "evaluate"} <= set(found["seconds"])
    assert {"one_hop", "follow"} == set(found["cold_start"])


def test_trajectories_hold_real_tool_calls_and_retrieved_traces(finished):
    rows = lines(finished[0] / "trajectories.jsonl")
    assert len(rows) == STEPS * 2 * 4
    sources = {segment["source"] for row in rows for segment in row["segments"]}
    assert sources == {"PROMPT", "POLICY", "TOOL", "RETRIEVED"}
    computed = [
        (before["text"], after["text"])
        for row in rows
        for before, after in zip(row["segments"], row["segments"][1:], strict=False)
        if after["source"] == "TOOL" and before["text"].endswith("</python>")
    ]
    assert computed  # the sandbox answered the policy itself
    kept = lines(finished[0] / "buffer" / "trajectories.jsonl")
    steps = [step for row in kept for step in row["steps"] if "</python>" in step]
    assert steps
    for step in steps:
        program = step.split("<python>")[1].split("</python>")[0]
        left, sign, right = (
            program.removeprefix("print(")
            .removesuffix(")")
            .partition(next(sign for sign in ("//", "*", "+", "-") if sign in program))
        )
        by_hand = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__, "//": int.__floordiv__}
        assert f"<result> {by_hand[sign](int(left), int(right))}</result>" in step


def test_the_report_is_one_page_about_this_run(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "rapo" in page and "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_command_again_skips_what_is_finished(finished):
    workdir, _ = finished
    before = (workdir / "result.json").read_bytes()
    output = run(workdir)
    for stage in ("sft", "buffer", "rl", "evaluate"):
        assert f"[{stage}] finished before; skipped" in output
    assert (workdir / "result.json").read_bytes() == before


def timeless(rows):
    return [
        {key: x for key, x in row.items() if key.split("/")[0] not in ("time", "cpu")}
        for row in rows
    ]


@pytest.mark.parametrize(("number", "every"), [(signal.SIGKILL, 1), (signal.SIGTERM, 1000)])
def test_a_run_ended_by_a_signal_and_started_again_ends_as_if_nothing_had_happened(
    finished, tmp_path, number, every
):
    whole, _ = finished
    flags = (
        f"--config.sft.folder={whole / 'coldstart'}",
        f"--config.buffer.folder={whole / 'buffer'}",
        f"--config.task.data_dir={whole / 'data'}",
        "--config.stages=('rl','evaluate')",
        f"--config.checkpoint.every={every}",
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = start(tmp_path / "run", *flags)
    deadline = time.monotonic() + PATIENCE_S
    enough = 2 if every == 1 else 1  # a step's line is written with its checkpoint, or a step later
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") >= enough:
            break
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    if number == signal.SIGKILL:
        assert process.returncode == -number, output[-3000:]
    else:
        assert process.returncode == 0, output[-3000:]
        saved, _, total = output.splitlines()[-1].partition(f" of {STEPS}; ")
        assert saved.startswith("[stop] checkpoint saved at step ")
        assert total == "run the same command to resume"
    assert not (tmp_path / "run" / "done.json").exists()

    output = run(tmp_path / "run", *flags)
    assert "[rl] resumed at step" in output
    ends = []
    for workdir in (whole, tmp_path / "run"):
        store = Checkpoints(workdir / "checkpoints", keep=2)
        assert store.latest() == STEPS
        ends.append(store.restore_params())
        store.close()
    for left, right in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(left, right)
    results = [
        json.loads((workdir / "result.json").read_text()) for workdir in (whole, tmp_path / "run")
    ]
    for key in ("accuracy_after", "accuracy_by_kind_after", "reward_after", "tokens_after"):
        assert results[0][key] == results[1][key]
    last = {}
    for row in lines(metrics):
        last[row["stage"], row["step"]] = row
    wanted = [row for row in lines(whole / "metrics.jsonl") if row["stage"] == "rl"]
    assert timeless(last["rl", step] for step in range(STEPS)) == timeless(wanted)
