"""The session of docs/usage.md runs as printed, on a smaller config."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rapo_jax.config.sources import as_yaml, resolve
from tests.compiling import QUICK

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
PATIENCE_S = 900
"""Compiles without optimisations, as conftest.py; one device, as on a laptop."""
SHRINK = """#!/usr/bin/env bash
case " $* " in
  *" --print_config "*) exec PYTHON -m rapo_jax.main "$@" ;;
  *" --config="*) exec PYTHON -m rapo_jax.main --override=SMALL "$@" --config.sft.steps=20 ;;
  *) exec PYTHON -m rapo_jax.main "${@/320/3}" ;;
esac
"""
"""`rapo-jax` as the session calls it: a run that it starts is small."""
WATCHED = """#!/usr/bin/env bash
set -- "${@/every=20/every=1}"
set -- "${@/every=[48]0/every=2}"
exec PYTHON -m rapo_jax.main --config=tiny --override=SMALL "$@" --config.sft.steps=20 \\
    --config.log.tensorboard=True --config.log.wandb=project
"""
"""`launch/local.sh` of a run of 2 steps: what is due every 20th or 80th is due more often."""
NOTED = """#!/usr/bin/env bash
echo "called: $(basename "$0") $*"
"""


def run_session(session: str, folder: Path, programs: Mapping[str, str]) -> str:
    """The output of a page's commands in `folder`, where `programs` stand in for those there."""
    small = folder / "small.yaml"
    small.write_text(as_yaml(resolve(str(ROOT / "tests" / "small.py"))))
    for name, text in programs.items():
        program = folder / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.replace("PYTHON", sys.executable).replace("SMALL", str(small)))
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", session],
        cwd=folder,
        env=os.environ
        | {
            "XLA_FLAGS": QUICK,
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_session_runs_as_printed(tmp_path):
    (session,) = re.findall(r"```bash\n(rapo-jax.*?)```", PAGE, re.DOTALL)
    output = run_session(session, tmp_path, {"bin/rapo-jax": SHRINK})
    first, *_ = output.splitlines()
    assert first.split() == ["rl.steps:", "160", "#", "tiny"]
    assert "[config] rl.steps grows from 2 to 3" in output
    assert "[sft] finished before; skipped" in output
    rows = map(json.loads, (tmp_path / "runs" / "first" / "metrics.jsonl").open())
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [0, 1, 2]
    config = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    assert (config["rl"]["steps"], config["evaluate"]["rows"]) == (3, 8)
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert (tmp_path / "first.html").is_file()
    assert json.loads((tmp_path / "runs" / "mine" / "config.json").read_text())["rl"]["m"] == 0.1


def test_a_run_is_watched_as_printed(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install .[wandb]")
    (section,) = re.findall(r"### Watching a run\n\n```\n(.*?)```", PAGE, re.DOTALL)
    programs = {"launch/local.sh": WATCHED, "bin/pip": NOTED, "bin/tensorboard": NOTED}
    output = run_session(section, tmp_path, programs)
    watched = tmp_path / "runs" / "watched"
    logged = output.split("called: tensorboard --logdir=")[1].split()[0]
    (events,) = (tmp_path / logged / "rl").iterdir()
    for name in (b"rl/heldout/accuracy", b"heldout/0", b"heldout/3", b"rl/reward/mean"):
        assert name in events.read_bytes()
    rows = [json.loads(line) for line in (watched / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "heldout/accuracy" in row] == [0, 1, 2]
    samples = [json.loads(line) for line in (watched / "samples.jsonl").open()]
    assert [sample["step"] for sample in samples] == [0] * 4 + [2] * 4
    assert (watched / "exports" / "2" / "model.safetensors").is_file()
    assert "held-out samples" in (watched / "report.html").read_text()
    (recorded,) = (watched / "wandb").glob("offline-run-*/*.wandb")
    assert b"rl/heldout/accuracy" in recorded.read_bytes()
    assert json.loads((watched / "wandb.json").read_text())["last_steps"]["rl/samples"] == 2
