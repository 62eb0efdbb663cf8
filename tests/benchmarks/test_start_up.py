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


def test_a_run_is_the_checkout_s_own_and_its_time_ends_with_the_first_step(tmp_path):
    program = """
import os, sys, time
started = time.process_time()
while time.process_time() < started + 0.5: pass
with open(os.path.join(os.path.dirname(__file__), "seen"), "w") as seen:
    print("\\n".join([os.environ["JAX_COMPILATION_CACHE_DIR"], *sys.argv[1:]]), file=seen)
print("[gates] passed\\n[rl] 1/160  accuracy 0.4", flush=True)
time.sleep(600)
"""
    made = checkout(tmp_path / "here", program)
    taken = start(made, tmp_path / "cache", ["--config=mine.py"])
    workdir, config = (made / "rapo_jax" / "seen").read_text().split()[1:]
    assert (made / "rapo_jax" / "seen").read_text().startswith(f"{tmp_path / 'cache'}\n")
    assert config == "--config=mine.py"
    assert not os.path.exists(workdir.removeprefix("--workdir="))
    assert 0.5 <= taken["cpu_s"] < 600 and taken["s"] < 600


@pytest.mark.parametrize("program", ["raise SystemExit('no such key')", "print('[sft] 1/2')"])
def test_a_run_without_a_step_is_no_number(tmp_path, program):
    made = checkout(tmp_path, program)
    with pytest.raises(RuntimeError, match=r"status 1: no such key|status 0: $"):
        start(made, tmp_path / "cache", [])
