"""setup.sh: what is installed again, one at a time, and an installation that fails."""

from __future__ import annotations

import shutil
import subprocess

import pytest

SCRIPT = "set -euo pipefail; extras=tests; source launch/setup.sh"
# A Python that makes an environment of itself; with $TOO_OLD it is one of before 3.11.
PYTHON = """#!/bin/bash
case "$*" in
  --version) echo Python 3 ;;
  *"sys.exit(sys.version_info < (3, 11))"*) [ -z "$TOO_OLD" ] ;;
  -c*"print("*">= (3, 11)"*) if [ -z "$TOO_OLD" ]; then echo ok; fi ;;
  -c*"print("*) echo ok ;;
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && [ -z "$NO_VENV" ] ;;
  "-m pip install"*) echo "pip $*" >>"$CALLS" ;;
esac
"""


@pytest.fixture
def checkout(place):
    """A copy of the repository without .venv, beside a fake Python and a fake uv."""
    place.add("python3", PYTHON)
    place.environment |= {"PYTHON": "python3", "TOO_OLD": "", "NO_VENV": ""}
    return place


def start(checkout, script=SCRIPT, **environment):
    return subprocess.Popen(
        ["bash", "-c", script], env=checkout.environment | environment, cwd=checkout.repository,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def set_up(checkout, script=SCRIPT, **environment):
    """(exit status, the last line of standard error)."""
    process = start(checkout, script, **environment)
    _, err = process.communicate(timeout=60)
    return process.returncode, (err.splitlines() or [""])[-1]


def installed(checkout):
    calls, _ = checkout.calls(), checkout.calls_file.unlink(missing_ok=True)
    return [call for call in calls if " install " in call]


def test_set_ups_that_begin_at_once_install_once(checkout):
    checkout.add("uv", "sleep 1\n")
    both = [start(checkout), start(checkout)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(installed(checkout)) == 1


def test_what_starts_after_the_set_up_does_not_hold_its_lock(checkout):
    script = f"{SCRIPT}; exec flock --nonblock .setup.lock true"
    assert set_up(checkout, script)[0] == 0


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements-tests.txt"])
def test_packages_are_installed_again_for_a_changed_requirements_file(checkout, changed):
    assert set_up(checkout)[0] == 0 and len(installed(checkout)) == 1
    with (checkout.repository / changed).open("a") as file:
        file.write("# changed\n")
    assert set_up(checkout)[0] == 0 and len(installed(checkout)) == 1


def test_an_installation_that_fails_ends_the_script_and_is_tried_again(checkout):
    checkout.add("uv", "exit 3\n")
    assert set_up(checkout, f"{SCRIPT}; echo >went-on")[0] == 3
    assert not (checkout.repository / "went-on").exists()
    checkout.add("uv")
    installed(checkout)
    assert set_up(checkout)[0] == 0 and len(installed(checkout)) == 1


def test_an_environment_that_cannot_be_made_whole_is_removed(checkout):
    status, line = set_up(checkout, NO_VENV="yes")
    assert status == 1 and line.endswith("apt-get install python3-venv")
    assert not (checkout.repository / ".venv").exists()
    assert set_up(checkout)[0] == 0


def test_an_environment_of_a_python_that_is_too_old_is_not_used(checkout):
    assert set_up(checkout)[0] == 0 and installed(checkout)
    status, line = set_up(checkout, TOO_OLD="yes")
    assert status == 1 and line.endswith("remove .venv and start again")
    shutil.rmtree(checkout.repository / ".venv")
    status, _ = set_up(checkout, TOO_OLD="yes", PATH=str(tools_of(checkout)))
    assert status == 1 and not (checkout.repository / ".venv").exists()


def test_without_uv_pip_installs_the_same_pins(checkout):
    assert set_up(checkout, PATH=str(tools_of(checkout)))[0] == 0
    (line,) = installed(checkout)
    assert line.split()[-6:] == [
        "-r", "requirements.txt", "-r", "requirements-tests.txt", "-c", "requirements.lock",
    ]  # fmt: skip


def tools_of(checkout):
    """A folder of the programs that setup.sh needs, the one fake Python and no uv."""
    folder = checkout.tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "cat", "cksum", "cp", "dirname", "flock", "mkdir", "rm", "sed"):
        (folder / name).symlink_to(shutil.which(name))
    shutil.copy(checkout.bin_dir / "python3", folder)
    return folder
