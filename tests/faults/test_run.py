"""A whole training whose tools fail at a rate of 0.3 by its config."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from rapo_jax.run.run import open_run
from rapo_jax.train.rl import train_rl
from tests.faults.tools import FAULTS
from tests.runs import flat

STEPS = 3
TOOLS = (("search", "tests.faults.tools:look_up"), ("python", "tests.faults.tools:calculate"))


def test_training_with_failing_tools_ends_and_counts_each_failure(
    trunk, small_settings, tmp_path, metrics_of
):
    config = dict(flat(json.loads(json.dumps(dataclasses.asdict(trunk.settings)))))
    config |= {"tools.user_tools": TOOLS, "tools.timeout_s": 0.3, "rl.steps": STEPS}
    run = open_run(small_settings(config), tmp_path, devices=jax.devices()[:1])
    try:
        training = train_rl(run)
    finally:
        run.close()
    rows = [row for row in metrics_of(tmp_path) if row["stage"] == "rl"]
    injected = FAULTS.counts
    assert [row["step"] for row in rows] == list(range(STEPS)) and training.step == STEPS
    assert sum(row["tools/errors"] for row in rows) == injected["error"] + injected["flood"]
    assert sum(row["tools/timeouts"] for row in rows) == injected["hang"]
    batch = run.settings.rollout.questions * run.settings.rollout.group_size
    assert sum(row["rollout/tool_calls"] for row in rows) * batch == injected.total()
    assert min(injected[kind] for kind in ("error", "hang", "flood", "late")) > 0
    assert all(row["loss/skipped"] == 0 for row in rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(training.state.params))
