"""launch/jobs.py: how runs share cores and logs, and how each is ended with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.sweeps import LAUNCH, ROOT, load
from tests.launch.test_jobs import started

jobs = load("jobs")
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def jobs_of(folder, names):
    return [jobs.Job(name, folder / name, {}, ("rl",)) for name in names]


def test_a_job_takes_the_cores_of_the_one_that_has_ended_and_not_of_one_that_runs(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    # the first job runs until the third, which begins when the second has ended, has noted its own
    code = (
        "import os, pathlib, sys, time; folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "part = folder / (name + '.part')\n"
        "part.write_text(repr(sorted(os.sched_getaffinity(0))))\n"
        "part.rename(folder / (name + '.cores'))\n"
        "while name == 'a' and not (folder / 'c.cores').exists(): time.sleep(.02)\n"
    )
    three = jobs_of(tmp_path, "abc")
    jobs.run_jobs(three, lambda job: [sys.executable, "-c", code, str(tmp_path), job.name], 2)
    a, b, c = ((tmp_path / f"{name}.cores").read_text() for name in "abc")
    assert a != b and c == b


def test_a_log_keeps_what_earlier_runs_of_the_workdir_have_written(tmp_path):
    for word in ("one", "two"):
        jobs.run_jobs(jobs_of(tmp_path, ["x"]), lambda job, word=word: ["/bin/echo", word], 1)
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert lines == ["$ /bin/echo one", "one", "$ /bin/echo two", "two"]


def test_runs_import_this_checkout_before_what_the_caller_has(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert jobs.environment()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no signal tells of a parent's death")
def test_a_run_whose_sweep_has_died_already_does_not_start():
    def printed(parent):
        line = [sys.executable, str(LAUNCH / "jobs.py"), str(parent), "/bin/echo", "started"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert printed(os.getpid()) == (0, "started\n")
    assert printed(os.getppid()) == (1, "")


def test_what_a_run_leaves_behind_is_killed_when_the_run_has_ended(tmp_path):
    leaves = (
        f"import subprocess; {DEAF}; left = subprocess.Popen(['/bin/sleep', '300'])\n"
        f"open({str(tmp_path / 'left')!r}, 'w').write(str(left.pid))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    )
    run = started(leaves)
    left = int((tmp_path / "left").read_text())
    jobs._end([run], 60.0)
    assert run.returncode == 0
    deadline = time.monotonic() + 30
    while is_alive(left) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(left)


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_runs_have_one_time_to_save_and_not_one_after_another(capsys):
    stuck, grace_s, granted = [started(DEAF) for _ in range(4)], 0.5, []

    def recorded(child):
        wait = child.wait  # the instance's own `wait` notes what it is granted

        def wait_noted(timeout=None):
            granted.append(timeout or 0.0)
            return wait(timeout)

        child.wait = wait_noted

    for child in stuck:
        recorded(child)
    jobs._end(stuck, grace_s)
    assert [child.returncode for child in stuck] == [-signal.SIGKILL] * 4
    assert sum(granted) <= grace_s


def test_a_second_interrupt_kills_the_runs_at_once(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    stuck = started(DEAF)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            jobs._end([stuck], 600.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stuck.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("nohup", [False, True])
def test_a_signal_ends_a_sweep_as_an_interrupt_does_and_nohup_keeps_it(number, nohup):
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if nohup else 'SIG_DFL'})\n"
        f"sys.path[:0] = [{str(LAUNCH)!r}]; import sweep\n"
        "sweep.main_of(lambda _: print('ready', flush=True) or time.sleep(2) or 5)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    kept = nohup and number == signal.SIGHUP
    assert process.returncode == (5 if kept else 130)
    assert err == ("" if kept else "interrupted: the same command continues\n")
