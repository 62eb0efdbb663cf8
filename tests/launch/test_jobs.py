"""launch/jobs.py: a run's progress, the lock of its workdir, its environment and its end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.sweeps import LAUNCH, flags_of, load, sweep

jobs = load("jobs")
GPUS = "GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"


def job_of(workdir: Path):
    workdir.mkdir()
    return jobs.Job(workdir.name, workdir, {}, ("sft", "rl", "evaluate"))


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        ([{"step": 190, "stage": "sft"}], 0.0),
        ([{"step": 190, "stage": "sft"}, {"step": 40, "stage": "rl", "reward/mean": 0.5}], 0.25),
        ([{"step": 160, "stage": "rl"}, {"step": 0, "stage": "evaluate"}], 1.0),
    ],
)
def test_the_progress_of_a_run_is_that_of_its_rl_steps(tmp_path, rows, progress):
    job = job_of(tmp_path / "run")
    (job.workdir / "config.json").write_text(json.dumps({"rl": {"steps": 160}}))
    (job.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert job.progress() == progress


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_record_locks_delays_no_run(tmp_path, monkeypatch, number):
    job = job_of(tmp_path / "run")
    (job.workdir / ".lock").touch()

    def no_locks(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    jobs.wait_for_lock(job)


def test_a_run_whose_workdir_another_one_holds_is_said_to_be_waited_for(
    tmp_path, monkeypatch, capsys
):
    job = job_of(tmp_path / "run")
    (job.workdir / ".lock").touch()

    def held(*_):
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", held)
    monkeypatch.setattr(jobs, "LOCK_S", 0.3)
    jobs.wait_for_lock(job)
    assert capsys.readouterr().out == (
        "run: another process is at work there; waiting 0 s for its end\n"
    )


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets what this machine's nvidia-smi prints, and environment variables."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS", *jobs.MEMORY_FRACTIONS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def make(printed, **variables):
        path = tmp_path / "bin" / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
        path.chmod(0o755)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XLA_FLAGS": "--xla_gpu_autotune_level=2"},
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"},
        {"XLA_CLIENT_MEM_FRACTION": ".7"},
        {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "1"},
    ],
)
def test_a_run_of_a_sweep_takes_gpus_as_launch_gpu_sh_does(machine, variables):
    machine(GPUS, **variables)
    show = f'source {LAUNCH}/commands.sh; set_gpu_environment; env "${{gpu_environment[@]}}"'
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    wanted = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    made = jobs.environment()
    for name in ("XLA_FLAGS", *jobs.MEMORY_FRACTIONS):
        assert made.get(name) == wanted.get(name)
    assert "latency_hiding" in made["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("printed", "variables"),
    [
        ("No devices found.\n", {}),
        (GPUS, {"JAX_PLATFORMS": "cpu"}),
        (GPUS, {"CUDA_VISIBLE_DEVICES": ""}),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_where_runs_take_no_gpu_their_environment_stays_and_several_may_run(
    machine, printed, variables, tmp_path, program
):
    machine(printed, **variables)
    assert not {"XLA_FLAGS", *jobs.MEMORY_FRACTIONS} & jobs.environment().keys()
    assert sweep.main(flags_of(tmp_path / "w", "--jobs=2", "--dry-run"), program) == 0


def test_several_runs_at_a_time_are_refused_where_each_takes_all_gpus(
    machine, tmp_path, program, capfd
):
    machine(GPUS)
    with pytest.raises(SystemExit, match="^2$"):
        sweep.main(flags_of(tmp_path / "w", "--jobs=2"), program)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: --jobs=2: every run takes all GPUs of this machine (2)")
    assert not (tmp_path / "w").exists()
    assert sweep.main(flags_of(tmp_path / "w", "--dry-run"), program) == 0


def started(on_sigterm):
    """A process that has set what it does on SIGTERM."""
    code = f"import signal, sys, time\n{on_sigterm}\nprint('ready', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout.readline() == b"ready\n"
    return child


def test_a_run_is_killed_only_when_its_time_to_save_is_over(capsys):
    saves = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(0)))"
    hangs = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    slow = started(saves)
    jobs._end([slow], 50.0)
    assert slow.returncode == 0 and "after 50 s (--grace)" in capsys.readouterr().out
    stuck, begun = started(hangs), time.monotonic()
    jobs._end([stuck], 0.5)
    assert stuck.returncode == -signal.SIGKILL and time.monotonic() - begun < 30


@pytest.mark.parametrize(("flags", "seconds"), [((), 120.0), (("--grace=1800",), 1800.0)])
def test_the_time_to_save_is_a_flag_of_sweeps_and_studies(tmp_path, monkeypatch, flags, seconds):
    studies, seen = load("studies"), []
    for module in (sweep, studies.sweep):
        monkeypatch.setattr(module, "run_jobs", lambda *given: seen.append(given[3]) or [])
    sweep.main(flags_of(tmp_path / "w", *flags))
    studies.main(["noise", *flags_of(tmp_path / "s", "--seeds=0", *flags)])
    assert set(seen) == {seconds} and len(seen) >= 4


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_time_to_save_that_is_none_is_refused(tmp_path, program, value):
    with pytest.raises(SystemExit, match="^2$"):
        sweep.main(flags_of(tmp_path / "w", f"--grace={value}"), program)
