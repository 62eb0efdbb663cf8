"""What the keys of the suites ask of each other; the names are known to `host/suites`."""

from __future__ import annotations

from rapo_jax.config import Settings
from rapo_jax.config.require import require

SUITE_KEYS = ("suites", "manual_dir", "scoring", "samples", "temperature", "judge")
"""Keys of `evaluate` that may differ between calls on one workdir: each suite's files say of what
they are."""


def check_suites(s: Settings) -> None:
    e, judge = s.evaluate, s.evaluate.judge
    for name in e.suites:
        # The flag --config.evaluate.suites=gsm8k,math arrives as one name.
        working = "(" + ",".join(repr(part.strip(" '\"()")) for part in name.split(",")) + ")"
        remedy = f'write a tuple: --config.evaluate.suites="{working}"'
        require("," not in name and bool(name.strip()), "evaluate.suites", name, remedy)
    require(e.samples >= 1, "evaluate.samples", e.samples, "must be at least 1")
    require(e.temperature >= 0, "evaluate.temperature", e.temperature, "must be at least 0")
    require(
        e.samples == 1 or e.temperature > 0,
        "evaluate.samples",
        e.samples,
        "greedy samples of a question are all the same: set evaluate.temperature, such as 0.7",
    )
    if not judge.url:
        return
    require(
        judge.url.startswith(("http://", "https://")),
        "evaluate.judge.url",
        judge.url,
        "the base of an endpoint, http://… or https://…",
    )
    require(bool(judge.model), "evaluate.judge.model", judge.model, "name the model of the judge")
    d, c = judge.deadline_s, judge.concurrency
    require(d > 0, "evaluate.judge.deadline_s", d, "must be more than 0")
    require(c >= 1, "evaluate.judge.concurrency", c, "must be at least 1")
