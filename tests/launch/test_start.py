"""gpu.sh, slurm.sh, prepare.sh: the folder, modules and process of the program they start."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.launch.slices import FLAGS

ROOT = Path(__file__).resolve().parents[2]
# A Python that notes its folder, its path of modules, its process and its arguments.
PYTHON = """#!/bin/bash
case "$1" in
  -c) echo ok ;;
  *) printf '%s\\n' "$PWD" "$PYTHONPATH" "$$" "$@" >"$CALLS" ;;
esac
"""
SRUN = '#!/bin/bash\nwhile [[ $1 = --* ]]; do shift; done\nexec "$@"\n'
CALLS = {
    "gpu": (("--", *FLAGS), {}),
    "slurm": (("--", *FLAGS), {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}),
    "prepare": (("configs/qwen7b.py", "--config.seed=1"), {}),
}


@pytest.mark.parametrize("script", CALLS)
def test_the_program_replaces_the_script_in_the_callers_folder_with_this_code_first(place, script):
    python = place.repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    place.add("srun", SRUN)
    place.add("uv", "#!/bin/sh\n")
    arguments, environment = CALLS[script]
    caller = place.tmp_path / "my data"
    caller.mkdir()
    environment = place.environment | environment | {"PYTHONPATH": "/mine"}
    started = subprocess.Popen(place.line(script, *arguments), env=environment, cwd=caller)
    assert started.wait(60) == 0
    folder, modules, process, *words = place.calls()
    assert folder == str(caller) and modules == f"{place.repository}:/mine"
    assert int(process) == started.pid  # so that signals reach it, and its status is the script's
    assert words[-1] == arguments[-1]


@pytest.mark.parametrize("script", ["gpu", "slurm"])
def test_flags_with_a_space_before_their_value_and_empty_words_are_passed_on(place, script):
    flags = ("--config", "configs/qwen7b.py", "--workdir", "runs/x", "--config.prompt.system", "")
    *_, last = place.dry(script, "--", *flags)
    assert tuple(last[-len(flags) :]) == flags


def test_a_job_that_slurm_ends_or_moves_is_warned_put_back_and_keeps_its_log():
    text = (ROOT / "launch" / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    minutes = {"Five": 5}[re.search(r"(\w+) minutes before the time limit", text)[1]]
    assert options["signal"] == f"TERM@{60 * minutes}"
    assert options["ntasks-per-node"] == "1"
    assert options["requeue"] == "" and options["open-mode"] == "append"


def test_an_image_gets_no_config_that_it_does_not_hold(place):
    done = place.run("docker", "--", "--config=mine.py", FLAGS[1])
    assert (done.returncode, place.calls()) == (2, [])
    assert "--config=mine.py: only configs/" in done.stderr


@pytest.mark.parametrize("workdir", ["runs/.", "runs/./x", "runsx/x"])
def test_a_workdir_that_is_the_folder_of_all_runs_or_none_of_them_is_refused(place, workdir):
    done = place.run("docker", "--", FLAGS[0], f"--workdir={workdir}")
    assert done.returncode == 2 and f"--workdir={workdir}: only runs/" in done.stderr


def test_the_last_of_two_workdirs_counts_as_in_the_program(place):
    done = place.run("docker", "--dry-run", "--", *FLAGS, "--workdir=/elsewhere")
    assert done.returncode == 2 and "--workdir=/elsewhere: only runs/" in done.stderr


def test_every_requirements_file_is_copied_to_a_slice(place):
    flags = ("--name=rapo", "--zone=us-west4-a", "--type=v5litepod-16", "--", *FLAGS)
    pack = next(words for words in place.dry("tpu_pod", *flags) if words[0] == "tar")
    assert {path.name for path in ROOT.glob("requirements*")} <= set(pack)
