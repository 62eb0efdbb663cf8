"""The origins of retrieved traces, by variant."""

from __future__ import annotations

from pathlib import Path

from rapo_jax.report.origins import origin_table
from rapo_jax.report.runs import RunFiles


def run_of(*steps):
    rows = [
        {"step": t, "stage": "rl"} | {f"buffer/origin/{name}": n for name, n in hits.items()}
        for t, hits in enumerate(steps, start=1)
    ]
    return RunFiles(Path("run"), metrics={"rl": rows})


def test_hits_are_summed_over_steps_and_seeds_and_shown_as_shares():
    groups = {
        "rapo": [
            run_of({"scripted": 3, "endpoint:m": 1}, {"scripted": 2}),
            run_of({"scripted": 4}),
        ],
        "other": [run_of({"endpoint:m": 5})],
        "grpo": [run_of({}, {})],
    }
    table = origin_table(groups)
    assert table.names == ["endpoint:m", "scripted"]
    assert table.rows == [("rapo", 10, [0.1, 0.9]), ("other", 5, [1.0, 0.0])]
    assert table.chart.svg.startswith("<svg")


def test_a_run_without_any_hit_has_no_shares_and_runs_without_a_buffer_have_no_table():
    assert origin_table({"rapo": [run_of({"scripted": 0})]}).rows == [("rapo", 0, [None])]
    assert origin_table({"grpo": [run_of({})]}) is None
    assert origin_table({}) is None
