"""launch/plan.sh: the program accepts the printed flags in their order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.config.read import read_settings
from rapo_jax.main import read_flags, resolve_flags

ROOT = Path(__file__).resolve().parents[2]


def parsed(words):
    """(config, workdir) that the program parses from a printed line."""
    line = read_flags(words[words.index("rapo_jax.main") + 1 :])
    return read_settings(resolve_flags(line).config), str(line.workdir)


@pytest.mark.parametrize("config", [["--config=C"], ["--config", "C"]])
def test_the_config_comes_before_what_overrides_it(place, config):
    named = [word.replace("C", str(ROOT / "configs" / "qwen7b.py")) for word in config]
    install, *_, line = place.dry("plan", "--config.plan.topology=v5e:8x8", *named)
    assert install == [sys.executable, "-m", "venv", f"{place.repository}/.venv-plan"]
    found, workdir = parsed(line)
    assert found.stages == ("plan",) and found.plan.compile
    assert found.plan.topology == "v5e:8x8" and found.model.dtype == "bfloat16"
    assert workdir == f"{place.tmp_path}/rapo-plan"


@pytest.mark.parametrize(
    ("topology", "compilers"),
    [
        ("v5e:8x8", ["tpu"]),
        ("h100x8", ["cuda"]),
        ("gpu", ["cuda"]),
        ("gpu,v5e", ["tpu", "cuda"]),
        ("v6e:2x2,h200", ["tpu", "cuda"]),
        ("h100x8 --config.plan.compile=False", []),
    ],
)
def test_the_compilers_of_the_named_chips_are_installed(place, topology, compilers):
    config = f"--config={ROOT / 'configs' / 'default.py'}"
    *lines, _ = place.dry("plan", config, *f"--config.plan.topology={topology}".split())
    made, *installed = lines
    assert made[-1] == f"{place.repository}/.venv-plan"
    files = [f"requirements{name}.txt" for name in ("", *(f"-{each}" for each in compilers))]
    assert [line[line.index("-r") + 1] for line in installed] == [
        f"{place.repository}/{name}" for name in files
    ]


def test_a_check_uses_a_tiny_model_and_other_flags_still_apply(place):
    *_, line = place.dry(
        "plan", "--check", f"--config={ROOT / 'configs' / 'default.py'}", "--workdir=x",
        "--config.model.layers=1", PLAN_VENV="/venv",
    )  # fmt: skip
    assert "/venv/bin/python" in line
    found, workdir = parsed(line)
    assert (found.model.width, found.model.layers, workdir) == (256, 1, "x")
    assert found.rollout.observation_tokens > found.rollout.absorb_chunk  # both ways to read


@pytest.mark.parametrize("flags", [[], ["--config"], ["--config.plan.topology=v5e:2x2"]])
def test_a_plan_without_a_config_is_refused(place, flags):
    done = place.run("plan", "--dry-run", *flags)
    assert done.returncode == 2 and "--config is missing" in done.stderr


# A Python that makes environments of itself, and notes what it runs, where, and on what.
PYTHON = """#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
echo "$PWD:$JAX_PLATFORMS: $*" >>"$CALLS"
"""


def test_packages_of_a_plan_are_installed_once_and_again_for_other_pins(place):
    place.add("python3", PYTHON)
    folder = place.repository
    pins = ("-c", str(folder / "requirements.lock"))

    def installed():
        place.calls_file.unlink(missing_ok=True)
        done = place.run("plan", "--config=configs/tiny.py", PYTHON="python3")
        assert done.returncode == 0, done.stderr
        words = [line.split(": ")[1] for line in place.calls() if " -m pip install " in line]
        assert all(line.endswith(" ".join(pins)) for line in words)
        return [line.partition("-r ")[2].partition(" -c")[0] for line in words]

    files = [str(folder / f"requirements{name}.txt") for name in ("", "-tpu")]
    assert installed() == files
    assert installed() == []
    for changed, again in (("requirements-tpu.txt", files[1:]), ("requirements.lock", files)):
        with (folder / changed).open("a") as file:
            file.write("# changed\n")
        assert installed() == again


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_plan_looks_for_no_chips_and_reads_the_paths_of_its_caller(place, check):
    place.add("python3", PYTHON)
    caller = place.tmp_path / "elsewhere"
    caller.mkdir()
    line = place.line("plan", *check, "--config=mine.py")
    environment = place.environment | {"PYTHON": "python3"}
    subprocess.run(line, env=environment, cwd=caller, check=True, capture_output=True)
    where, platforms, words = place.calls()[-1].split(":", 2)
    assert words.startswith(" -m rapo_jax.main --config=mine.py") and platforms == "cpu"
    assert where == str(place.repository if check else caller)  # a check has a config of its own


def test_a_plan_without_compilation_is_one_without(place):
    config = f"--config={ROOT / 'configs' / 'tiny.py'}"
    *_, line = place.dry("plan", config, "--config.plan.compile=False")
    assert not parsed(line)[0].plan.compile
