"""The command `python -m rapo_jax.tools.sandbox`: a program in, its observation out."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.tools.sandbox.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process; returns (standard output, standard error, exit status)."""

    def run(program, *flags):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(program.encode())))
        status = 0
        try:
            main(flags)
        except SystemExit as end:
            status = end.code
        return *capsys.readouterr(), status

    return run


def test_a_program_on_standard_input_becomes_an_observation():
    done = subprocess.run(
        [sys.executable, "-m", "rapo_jax.tools.sandbox"],
        input="x = 37\nprint('so')\nx * 2",
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.returncode) == ("so\n74\n", 0)
    assert "[python] ok" in done.stderr


def test_the_exit_status_is_0_whatever_the_program_does(command):
    out, _, status = command("while True: pass", "--timeout_s=0.5")
    assert (out, status) == ("timeout: the program ran longer than 0.5 s\n", 0)
    out, _, status = command("import sys; sys.exit(3)")
    assert (out, status) == ("SystemExit: 3\n", 0)
    assert command("")[0] == "error: empty program\n"


def test_flags_are_checked_and_explained(command):
    _, err, status = command("1", "--workers=3")
    assert status == 2 and "unrecognized arguments: --workers=3" in err
    _, err, status = command("1", "--memory_mb=0")
    assert status == 2 and "error: tools.memory_mb=0: it must be above 0" in err
    out, _, status = command("", "--help")
    assert status == 0
    for flag in ("--timeout_s", "--memory_mb", "--output_chars", "--require", "seccomp"):
        assert flag in out
