"""The benchmark of start-up runs each checkout's own program, with a cache of its own."""

from __future__ import annotations

import os

import pytest

from benchmarks.start_up import start


def checkout(folder, program):
    (folder / "rapo_jax").mkdir(parents=True)
    (folder / "rapo_jax" / "__init__.py").touch()
    (folder / "rapo_jax" / "main.py").write_text(program)
    return folder


def test_a_run_is_the_checkout_s_own_and_its_cpu_time_is_counted(tmp_path):
    program = """
import os, sys, time
started = time.process_time()
while time.process_time() < started + 0.5: pass
print("\\n".join([os.environ["JAX_COMPILATION_CACHE_DIR"], *sys.argv[1:]]),
      file=open(os.path.join(os.path.dirname(__file__), "seen"), "w"))
"""
    made = checkout(tmp_path / "here", program)
    taken = start(made, tmp_path / "cache", ["--config=mine.py"])
    cache, workdir, config = (made / "rapo_jax" / "seen").read_text().split()
    assert (cache, config) == (str(tmp_path / "cache"), "--config=mine.py")
    assert workdir.startswith("--workdir=") and not os.path.exists(
        workdir.removeprefix("--workdir=")
    )
    assert taken["cpu_s"] >= 0.5


def test_a_run_that_fails_is_no_number(tmp_path):
    made = checkout(tmp_path, "raise SystemExit('no such key')")
    with pytest.raises(RuntimeError, match=r"status 1: no such key"):
        start(made, tmp_path / "cache", [])
