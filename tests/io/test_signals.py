"""Signals to processes that wait for them as a run does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = f"""
import hashlib, os, pathlib, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from rapo_jax.io import signals
signals.REPEAT_S = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup this
"""
WAIT = """
signals.install()
print("ready", flush=True)
while not signals.stop_requested(): time.sleep(0.01)
"""


@pytest.fixture
def start():
    """Starts programs that print a line once they can be sent signals."""
    processes = []

    def run(program):
        process = subprocess.Popen(
            [sys.executable, "-c", START + program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_for_a_stop_and_the_program_ends_as_it_likes(start, number):
    process = start(WAIT + "sys.stdin.read(); print('saved')")
    process.send_signal(number)
    notice = f"[stop] {number.name}: the run saves what it has after the running step or batch; "
    assert process.stdout.readline().startswith(notice)
    assert process.communicate(timeout=30) == ("saved\n", "")  # communicate closes its input
    assert process.returncode == 0


BUSY = """
signals.install()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 27)  # minutes in C, as a rollout
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_that_is_busy_outside_python(start, number):
    process = start(BUSY)
    for pause in (0.05, 0.4):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
    assert process.poll() is None  # so soon after the first, it was a repeat
    process.send_signal(number)
    assert process.wait(5) == 128 + number


def test_a_signal_that_the_caller_ignores_stays_ignored(start):
    process = start("signal.signal(signal.SIGHUP, signal.SIG_IGN)" + WAIT)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None


def test_output_to_a_terminal_that_is_gone_is_an_error_only_before_the_signal(start, tmp_path):
    loss = f"""
signals.install()
print("ready", flush=True)
while True:
    try: print("lost", flush=True)
    except OSError: break
pathlib.Path({str(tmp_path / "failed")!r}).touch()
while not signals.stop_requested(): time.sleep(0.01)
print("lost too", flush=True)
pathlib.Path({str(tmp_path / "saved")!r}).touch()
"""
    process = start(loss)
    process.stdout.close()
    deadline = time.monotonic() + 30
    while not (tmp_path / "failed").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").exists()


def test_no_thread_is_left_when_the_interpreter_is_taken_down(start):
    """One that had just announced a signal aborted a process in fifty at its end."""
    left = "import atexit, threading\n"
    left += "atexit.register(lambda: print(sorted(t.name for t in threading.enumerate())))\n"
    process = start(left + WAIT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    # Not the whole output: a main thread that ends at once can overtake the announcement.
    assert (out.splitlines()[-1], err) == ("['MainThread']", "")
    assert process.returncode == 0
