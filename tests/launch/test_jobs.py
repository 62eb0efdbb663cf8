"""launch/jobs.py: the progress of a run, and the lock of its workdir."""

from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path

import pytest

from tests.launch.sweeps import load

jobs = load("jobs")


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
