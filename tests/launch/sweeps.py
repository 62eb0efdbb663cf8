"""The sweep as a module, and a fake program for it to start."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# A fake of rapo_jax.main that writes the same files: `seed=7` fails, `seed=8` ends early with
# status 0, `seed=9` starts a grandchild and never ends.
PROGRAM = """
import json, os, pathlib, subprocess, sys, time
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"]); workdir.mkdir(parents=True, exist_ok=True)
seed = int(flags.get("config.seed", 0)); method = flags.get("config.method", "rapo")
with (workdir.parent / "order").open("a") as file: file.write(workdir.name + "\\n")
if seed == 7: sys.exit("seed 7 brings bad luck")
if seed == 8: sys.exit(0)
if seed == 9:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (workdir / "pids").write_text(f"{os.getpid()} {child.pid}"); child.wait()
accuracy = .5 + .01 * seed + .1 * (method == "rapo")
(workdir / "config.json").write_text(json.dumps({"method": method, "seed": seed}))
(workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": "rl"}) + "\\n")
(workdir / "result.json").write_text(json.dumps({"accuracy_after": accuracy}))
(workdir / "done.json").write_text(json.dumps({"stages": list(eval(flags["config.stages"]))}))
"""


def load(name):
    """A script of launch/ as a module; its neighbours are importable as when it is run."""
    sys.path.insert(0, str(LAUNCH))
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sweep = load("sweep")


ROOT = LAUNCH.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"


def flags_of(folder, *more):
    return [TINY, f"--workdir={folder}", *more]


def dry_run(capsys, *flags):
    """The flags of each run's command, by the last part of its workdir."""
    assert sweep.main([*flags, "--workdir=/w", "--dry-run"], ["-m", "main"]) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    read = [dict(flag.removeprefix("--config.").split("=", 1) for flag in line) for line in lines]
    return {Path(flags["--workdir"]).name: flags for flags in read}


def refusal(call, capsys):
    """What a call that ends with status 2 prints to standard error."""
    with pytest.raises(SystemExit, match="^2$"):
        call()
    return capsys.readouterr().err
