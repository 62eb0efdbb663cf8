"""The session of docs/usage.md runs as printed, on a smaller config."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_session_runs_as_printed(tmp_path):
    (session,) = re.findall(r"```bash\n(rapo-jax.*?)```", PAGE, re.DOTALL)
    small, program = tmp_path / "small.yaml", tmp_path / "bin" / "rapo-jax"
    small.write_text(as_yaml(resolve(str(ROOT / "tests" / "small.py"))))
    program.parent.mkdir()
    program.write_text(SHRINK.replace("PYTHON", sys.executable).replace("SMALL", str(small)))
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", session],
        cwd=tmp_path,
        env=os.environ
        | {
            "XLA_FLAGS": QUICK,
            "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *_ = done.stdout.splitlines()
    assert first.split() == ["rl.steps:", "160", "#", "tiny"]
    assert "[config] rl.steps grows from 2 to 3" in done.stdout
    assert "[sft] finished before; skipped" in done.stdout
    rows = map(json.loads, (tmp_path / "runs" / "first" / "metrics.jsonl").open())
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [0, 1, 2]
    config = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    assert (config["rl"]["steps"], config["evaluate"]["rows"]) == (3, 8)
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert (tmp_path / "first.html").is_file()
    assert json.loads((tmp_path / "runs" / "mine" / "config.json").read_text())["rl"]["m"] == 0.1
