"""A process that no longer advances is ended, with what each of its threads does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import re, sys, threading, time
from rapo_jax.io.watchdog import beat, paused, watched

def a_slow_tool():
    time.sleep(60)

def a_reward_without_end():
    re.match(r"(a+)+$", "a" * 40 + "b")  # keeps the interpreter's lock

"""


def start(program: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_callback_that_does_not_return_ends_the_run_with_all_stacks():
    process = start(
        "for _ in range(3):\n"
        "    threading.Thread(target=a_slow_tool, daemon=True).start()\n"
        "with watched(1.0):\n    time.sleep(60)"
    )
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "[watchdog] no step or batch ended for 1 s (watchdog.after_s)" in text
    assert "Thread MainThread" in text and text.count("in a_slow_tool") == 1  # equal ones once


def test_code_that_keeps_the_interpreters_lock_is_ended_too():
    process = start("with watched(1.0):\n    time.sleep(0.5)\n    a_reward_without_end()")
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1 and "in a_reward_without_end" in text


@pytest.mark.parametrize("after_s", [0.5, 0])
def test_a_run_that_advances_and_one_without_a_watchdog_end_by_themselves(after_s):
    process = start(
        f"with watched({after_s}):\n    for _ in range(6):\n        time.sleep(0.2)\n"
        f"        {'beat()' if after_s else 'pass'}\ntime.sleep(0.8)"
    )
    _, text = process.communicate(timeout=30)
    assert (process.returncode, text) == (0, "")


def test_time_in_which_the_process_is_stopped_does_not_count():
    process = start(
        "with watched(4.0):\n    print('on', flush=True)\n"
        "    for _ in range(20):\n        time.sleep(0.1)"
    )
    assert process.stdout.readline() == "on\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(process.pid, signal.SIGCONT)
    _, text = process.communicate(timeout=30)
    assert (process.returncode, text) == (0, "")


def test_time_in_which_another_process_works_does_not_count_and_later_time_does():
    process = start(
        "with watched(0.8):\n    with paused():\n        time.sleep(2)\n"
        "    print('on', flush=True)\n    time.sleep(60)"
    )
    text, errors = process.communicate(timeout=30)
    assert (process.returncode, text) == (1, "on\n")
    assert "[watchdog] no step or batch ended for 0.8 s" in errors
