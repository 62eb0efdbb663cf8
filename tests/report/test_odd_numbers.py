"""Files of a workdir that hold numbers no run writes: the report leaves them out."""

from __future__ import annotations

import json
import math

import pytest

from rapo_jax.io.jsonl import as_number
from rapo_jax.report.figure import write_figure
from rapo_jax.report.page import write_report
from rapo_jax.report.summary import write_summary

ODD = {
    "the largest float": 1e308,
    "the least float": -1e308,
    "both": [1e308, -1e308],
    "a long integer": 10**400,
    "a small one": 1e-320,
    "infinity": float("inf"),
    "a list": [[1]],
    "an object": {"a": 1},
    "a text": "1",
    "nothing": None,
    "true": True,
}
FILES = ("config.json", "result.json", "metrics.jsonl", "trajectories.jsonl")


def spoilt(value, odd):
    """The same value with every number replaced, in turn if there are several odd ones."""
    if isinstance(value, dict):
        return {key: spoilt(child, odd) for key, child in value.items()}
    if isinstance(value, list):
        return [spoilt(child, odd) for child in value]
    if not isinstance(value, int | float):
        return value
    if isinstance(odd, list) and len(odd) == 2:
        odd.reverse()
        return odd[0]
    return odd


@pytest.mark.parametrize("keep", [(), ("step", "row", "seed")], ids=["all", "all but names"])
def test_no_number_of_the_files_ends_the_reports(make_run, tmp_path, keep):
    whole = [make_run("whole"), make_run("grpo", method="grpo")]
    runs = [make_run(name, seed=n, method=name) for n, name in enumerate(ODD)]
    suites = {"bamboogle": {"score": 0.5, "questions": 3, "samples": 2, "unjudged": 1, "calls": 1}}
    for workdir, odd in zip(runs, ODD.values(), strict=True):
        result = json.loads((workdir / "result.json").read_text())
        (workdir / "result.json").write_text(json.dumps(result | {"suites": suites}))
        for name in FILES:
            rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
            rows = [{k: x if k in keep else spoilt(x, odd) for k, x in row.items()} for row in rows]
            (workdir / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(whole + runs, tmp_path / "report.html")
    write_summary(whole + runs, tmp_path, baseline="grpo")
    write_figure(whole + runs, tmp_path / "figure.svg")


@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, math.inf, math.nan, True, "1", [1]])
def test_what_is_no_measurement_is_no_number(value):
    assert as_number(value) is None and as_number(1e30) == 1e30
