"""A copy of the launch scripts, and fake programs for them to start."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import qwen7b
from tests.launch.paper import search_server, write_data
from tests.launch.slices import PROGRAMS, end
from tests.launch.sweeps import PROGRAM

ROOT = Path(__file__).resolve().parents[2]

RECORDER = '#!/bin/bash\necho "$(basename "$0") $*" >>"$CALLS"\n'
"""A program that only records its calls."""

# A fake Python: its program adds a line to a file in its workdir, and ends when a file exists.
PYTHON = """#!/bin/bash
case "$*" in
  --version) echo Python 3.11 ;;
  -c*) echo ok ;;
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m rapo_jax.main "*)
    printf '%s\\n' "${@:3}" >"runs/x/flags-$WORKER"
    echo "a step" | tee -a "runs/x/steps-$WORKER"
    while [ ! -e "$CLOUD/end-$WORKER" ]; do sleep .05; done
    exit "$(cat "$CLOUD/end-$WORKER")" ;;
esac
"""


class Place:
    """A copy of the repository to run scripts in, and a folder of fake programs for them."""

    python = PYTHON

    def __init__(self, repository, bin_dir, tmp_path):
        self.repository, self.bin_dir, self.tmp_path = repository, bin_dir, tmp_path
        self.calls_file = tmp_path / "calls"
        self.environment = {
            "PATH": f"{bin_dir}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "PYTHON": sys.executable,
            "CALLS": str(self.calls_file),
        }

    def add(self, name, text=""):
        """Adds a program, found before others of its name; it records its calls.

        A text with a first line `#!` does not record them.
        """
        path = self.bin_dir / name
        path.write_text(text if text.startswith("#!") else RECORDER + text)
        path.chmod(0o755)

    def line(self, script, *args):
        return ["bash", str(self.repository / "launch" / f"{script}.sh"), *args]

    def run(self, script, *args, **environment):
        return subprocess.run(
            self.line(script, *args), env=self.environment | environment, cwd=self.repository,
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def dry(self, script, *args, **environment):
        """The commands of a dry run, as words."""
        done = self.run(script, "--dry-run", *args, **environment)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        return [shlex.split(line) for line in lines]

    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def place(tmp_path):
    """A copy of the scripts in a folder with a space in its name; programs that only record."""
    repository, bin_dir = tmp_path / "my code", tmp_path / "bin"
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, repository / name)
    (repository / "rapo_jax").mkdir()
    others = (ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))
    for file in (*ROOT.glob("requirements*"), *others):
        shutil.copy(file, repository)
    bin_dir.mkdir()
    place = Place(repository, bin_dir, tmp_path)
    for name in ("gcloud", "docker", "srun", "sbatch", "sudo", "curl", "uv", "hf"):
        place.add(name)
    return place


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    """Sweeps run several jobs at a time here, whatever the machine has."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [str(path)]


@pytest.fixture
def cloud(place):
    """A simulated TPU slice of two workers."""
    for name, text in (PROGRAMS | {"python3": place.python}).items():
        place.add(name, text)
    place.cloud = place.tmp_path / "cloud"
    place.cloud.mkdir()
    place.environment |= {"CLOUD": str(place.cloud), "PYTHON": "python3"}
    place.environment |= {"NO_WAY_BACK": "", "SHUFFLED": ""}
    yield place
    for k in (0, 1):  # ends what a test leaves running
        end(place, k, 0)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Everything that configs/qwen7b.py needs, and its search server."""
    folder = tmp_path_factory.mktemp("complete")
    with search_server(folder) as url:
        yield write_data(folder / "data"), url


@pytest.fixture
def paper(complete, tmp_path, monkeypatch):
    """A copy of it to break, and the config."""
    monkeypatch.setattr(qwen7b, "DATA_DIR", str(tmp_path / "data"))
    shutil.copytree(complete[0], tmp_path / "data")
    config = qwen7b.get_config().to_dict()
    config["tools"]["search"] |= {"url": complete[1], "cache": ""}
    return tmp_path / "data", config
