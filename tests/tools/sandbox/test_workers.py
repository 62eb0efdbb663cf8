"""Workers of the Python tool that die, and folders that are gone."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax.tools.observation import Observation
from rapo_jax.tools.sandbox.pool import python_tool


def run(tool, program):
    return tool([program])[0]


def kill_worker(tool):
    (process_id,) = tool.process_ids()
    os.kill(process_id, signal.SIGKILL)
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def one_worker(tmp_path, monkeypatch):
    """A tool with one worker, and the folder that holds what it writes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tool = python_tool(workers=1, timeout_s=30.0, memory_mb=256, output_chars=100)
    yield tool, next(tmp_path.iterdir())
    tool.close()


def test_a_worker_that_died_between_two_programs_costs_no_program_and_leaves_no_folder(one_worker):
    tool, folder = one_worker
    kill_worker(tool)
    assert run(tool, "1") == Observation("1", "ok")
    assert len(list(folder.iterdir())) == 1


def test_a_worker_that_dies_with_its_program_is_a_crash_and_the_next_call_starts_a_new_one(
    one_worker,
):
    tool, _ = one_worker
    with ThreadPoolExecutor() as pool:
        result = pool.submit(run, tool, "while True: pass")
        time.sleep(0.5)
        kill_worker(tool)
        assert result.result() == Observation("error: the interpreter died", "crashed")
    assert run(tool, "1") == Observation("1", "ok")
    tool.close()
    assert run(tool, "1") == Observation("error: the interpreter is closed", "crashed")


def test_the_folder_of_the_workers_is_made_again_where_a_cleaner_has_removed_it(one_worker):
    tool, folder = one_worker
    shutil.rmtree(folder)
    kill_worker(tool)
    assert run(tool, "print(8)") == Observation("8", "ok")
    assert run(tool, "import numpy\nprint(9)") == Observation("9", "ok")


def test_an_interpreter_that_does_not_start_again_and_again_ends_the_run(one_worker):
    tool, folder = one_worker
    shutil.rmtree(folder)
    folder.write_text("no folder can be made here")
    kill_worker(tool)
    for _ in range(2):
        assert run(tool, "1") == Observation("error: the interpreter died", "crashed")
    for number in (3, 4):  # whoever catches the first error does not go on without a word
        with pytest.raises(RuntimeError, match=rf"interpreter failed to start {number} times in a"):
            run(tool, "1")
    folder.unlink()
