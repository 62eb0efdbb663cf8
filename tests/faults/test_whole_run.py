"""A whole run whose teacher, tools, judge and files fail at a rate of 0.3: it ends, and counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.buffer.chats import ANSWER, SEARCH, chat
from tests.faults.injected import Faults
from tests.faults.test_services import Unreliable, spoil

ROOT = Path(__file__).parents[2]
ASKED = 30


def test_a_run_whose_services_tools_and_files_fail_ends_with_all_its_counts(serve, tmp_path):
    teacher = Unreliable(lambda _, body: chat(SEARCH if len(body["messages"]) == 2 else ANSWER))
    judge = Unreliable(lambda _, body: chat("Incorrect"))
    faults, lines, whole = Faults("torn", "array", "lacks"), [], 0
    for number in range(ASKED):
        row = json.dumps({"question": f"Where is E{number}?", "answers": ["nobody"]}).encode()
        kind = faults.draw(str(number))
        lines.append(spoil(row, kind))
        whole += not kind
    (tmp_path / "asked.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    tools = (("search", "tests.faults.tools:look_up"), ("python", "tests.faults.tools:calculate"))
    keys = {
        "sft.steps": 80, "rl.steps": 3, "rollout.driver": "host", "log.trajectories": True,
        "tools.user_tools": tools, "tools.timeout_s": 0.3,
        "buffer.agent": "endpoint", "buffer.endpoint.url": serve(teacher),
        "buffer.endpoint.model": "teacher", "buffer.samples": 1,
        "evaluate.suites": (str(tmp_path / "asked.jsonl"),), "evaluate.judge.url": serve(judge),
        "evaluate.judge.model": "judge", "task.dataset.malformed": "skip",
    }  # fmt: skip
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "rapo_jax.main", f"--config={ROOT}/tests/small.py",
         f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in keys.items())],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "rl"]
    assert len(rows) == 3 and all(row["loss/skipped"] == 0 for row in rows)
    assert sum(row["tools/errors"] + row["tools/timeouts"] for row in rows) > 0
    assert min(teacher.faults.counts[kind] for kind in teacher.KINDS) > 0
    (account,) = (workdir / "buffer").rglob("spent.jsonl")
    spent = [json.loads(line) for line in account.read_text().splitlines()]
    assert sum(calls for calls, _ in spent) == teacher.good
    result = json.loads((workdir / "result.json").read_text())
    (suite,) = result["suites"].values()
    assert suite["questions"] == whole < ASKED
