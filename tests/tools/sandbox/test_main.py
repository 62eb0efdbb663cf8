"""The command `python -m rapo_jax.tools.sandbox`: a program in, its observation out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def command(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rapo_jax.tools.sandbox", *flags],
        input=program,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_a_program_on_standard_input_becomes_an_observation():
    done = command("x = 37\nprint('so')\nx * 2")
    assert (done.stdout, done.returncode) == ("so\n74\n", 0)
    assert "[python] ok" in done.stderr


def test_the_exit_status_is_0_whatever_the_program_does():
    done = command("while True: pass", "--timeout_s=0.5")
    assert (done.stdout, done.returncode) == ("timeout: the program ran longer than 0.5 s\n", 0)
    assert (done := command("import sys; sys.exit(3)")).returncode == 0
    assert done.stdout == "SystemExit: 3\n"
    assert command("").stdout == "error: empty program\n"


def test_flags_are_checked_and_explained():
    done = command("1", "--workers=3")
    assert done.returncode == 2 and "unrecognized arguments: --workers=3" in done.stderr
    done = command("1", "--memory_mb=0")
    assert done.returncode == 2 and "error: tools.memory_mb=0: it must be above 0" in done.stderr
    done = command("", "--help")
    assert done.returncode == 0
    for flag in ("--timeout_s", "--memory_mb", "--output_chars", "--require", "seccomp"):
        assert flag in done.stdout
