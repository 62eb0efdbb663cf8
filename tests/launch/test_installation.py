"""Installation: setup.sh, the pinned packages, the image, and shellcheck of all scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU = ["XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true", "XLA_CLIENT_MEM_FRACTION=0.9"]


def test_packages_are_installed_again_only_for_a_new_extra_or_changed_pins(place):
    place.add("python3", place.python)
    env = place.environment | {"PYTHON": "python3"}

    def set_up(extras):
        place.calls_file.unlink(missing_ok=True)
        line = ["bash", "-c", f'set -euo pipefail; extras="{extras}"; source launch/setup.sh']
        done = subprocess.run(line, env=env, cwd=place.repository, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [re.findall(r"-r (\S+)", call) for call in place.calls()]

    program_set, tests_set = "requirements.txt", "requirements-tests.txt"
    assert set_up("") == [[program_set]]
    assert set_up("") == []
    assert set_up("tests") == [[program_set, tests_set]]
    assert set_up("tests") == set_up("") == []
    with (place.repository / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert set_up("") == [[program_set, tests_set]]  # what is there stays of one set of pins


def pins(path):
    """Name -> version of the pinned packages of a file; names are normalised."""
    versions = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.match(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line).groups()
            name = re.sub(r"[-_.]+", "-", name).lower()
            assert name not in versions, name
            versions[name] = version
    return versions


def test_every_pin_is_in_the_lock_with_the_same_version():
    lock = pins(ROOT / "requirements.lock")
    for file in sorted(ROOT.glob("requirements*.txt")):
        assert pins(file).items() <= lock.items(), file.name


def test_the_extras_are_the_pinned_requirements_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    extras = dynamic["optional-dependencies"]
    assert extras == {
        e: {"file": [f"requirements-{e}.txt"]} for e in ("cuda", "mcp", "tpu", "tests", "wandb")
    }
    assert all((ROOT / extra["file"][0]).is_file() for extra in extras.values())


def test_the_image_has_a_pinned_base_and_copies_only_existing_files():
    lines = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    kept = [
        name.removeprefix("!")
        for name in (ROOT / ".dockerignore").read_text().splitlines()
        if name.startswith("!")
    ]
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert all(any(Path(source).match(name) for name in kept) for source in sources)
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-\S+", base)
    installed = next(line for line in lines if line.startswith("RUN pip install")).split()
    assert {word for word in installed if word.startswith("requirements")} <= set(sources)
    text = " ".join(lines)
    assert all(setting in text for setting in GPU)
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "rapo_jax.main"]'


def test_the_flags_set_for_gpus_are_known_to_this_version_of_xla():
    flags = GPU[0].partition("=")[2]
    compile_one = "import jax; jax.jit(lambda: 1).lower().compile()"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", compile_one], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr[-300:]


def test_shellcheck_finds_nothing_in_any_shell_script():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    line = [shellcheck, "-x", "-P", "launch", *(path.relative_to(ROOT) for path in scripts)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
