"""Each number of a comparison is that of its own measure, of its own runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.report.compare import (
    Summary,
    group_runs,
    paired_difference,
    repeated_seeds,
    summarise,
)
from rapo_jax.report.costs import StepCost
from rapo_jax.report.runs import RunFiles
from rapo_jax.report.summary import cells, columns

BEFORE, AFTER, HIDDEN = "accuracy_before", "accuracy_after", "hidden_after"
RUNS = {
    ("grpo", 0): {BEFORE: 0.30, AFTER: 0.50, HIDDEN: 0.2},
    ("grpo", 1): {BEFORE: 0.35, AFTER: 0.56, HIDDEN: 0.4},
    ("rapo", 0): {BEFORE: 0.30, AFTER: 0.62, HIDDEN: 0.1},
    ("rapo", 1): {BEFORE: 0.35, AFTER: 0.60, HIDDEN: 0.6},
}
"""Hidden words move otherwise than all questions."""


def run_of(method, seed, result):
    return RunFiles(Path(f"{method}{seed}"), {"method": method, "seed": seed}, result=result)


def of(method, key):
    return [result[key] for (name, _), result in RUNS.items() if name == method]


def test_accuracies_before_after_and_on_hidden_words_are_summarised_apart():
    grpo, rapo = summarise(group_runs([run_of(*at, result) for at, result in RUNS.items()]))
    for found in (grpo, rapo):
        for mean, key in (
            (found.accuracy_before, BEFORE), (found.accuracy, AFTER), (found.hidden, HIDDEN)
        ):  # fmt: skip
            assert mean == pytest.approx(np.mean(of(found.label, key)))
        for std, key in ((found.accuracy_std, AFTER), (found.hidden_std, HIDDEN)):
            assert std == pytest.approx(np.std(of(found.label, key), ddof=1))
    for difference, key in ((rapo.difference, AFTER), (rapo.hidden_difference, HIDDEN)):
        wanted = paired_difference(of("rapo", key), of("grpo", key))
        assert difference == pytest.approx(wanted)


def test_each_cell_of_the_table_has_the_number_that_its_column_names():
    summary = Summary(
        label="rapo",
        seeds=(0, 1, 2),
        accuracy_before=0.1,
        accuracy=0.2,
        accuracy_std=0.03,
        hidden=0.4,
        hidden_std=0.05,
        difference=(0.06, 0.05, 0.07),
        difference_95=(0.06, 0.04, 0.08),
        hidden_difference=(-0.02, -0.03, -0.01),
        pairs=2,
        equal_cpu=0.5,
        equal_cpu_difference=(0.11, 0.10, 0.12),
        equal_tokens=0.6,
        equal_tokens_difference=(0.14, 0.13, 0.15),
        step=StepCost(tokens=1200.0, calls=3.25, cpu=41.0, seconds=52.0),
        cpu_seconds=730.0,
    )
    wanted = {
        "Variant": "rapo",
        "Seeds": "3",
        "Before": "10.0 %",
        "After, mean ± std": "20.0 % ± 3.0",
        "Hidden, mean ± std": "40.0 % ± 5.0",
        "Difference to grpo [90 %]": "+6.0 [+5.0, +7.0]",
        "[95 %]": "[+4.0, +8.0]",
        "Hidden difference [90 %]": "−2.0 [−3.0, −1.0]",
        "At equal CPU": "50.0 %, +11.0 [+10.0, +12.0]",
        "At equal sampled tokens": "60.0 %, +14.0 [+13.0, +15.0]",
        "Tokens a step": "1200",
        "Calls a step": "3.2",
        "CPU-s a step": "41",
        "Seconds a step": "52",
        "CPU-seconds": "730",
    }
    assert dict(zip(columns("grpo"), cells(summary, "grpo"), strict=True)) == wanted
    alone = dataclasses.replace(summary, label="grpo")
    assert cells(alone, "grpo")[5:8] == ["baseline", "", ""]


def test_runs_that_are_not_finished_or_have_no_seed_repeat_none():
    ended = {AFTER: 0.5}
    results = [(0, ended), (0, {}), (1, ended), (None, ended), (None, ended)]
    assert repeated_seeds({"rapo": [run_of("rapo", *each) for each in results]}) == []
    twice = [run_of("rapo", 1, ended)] * 2
    assert repeated_seeds({"rapo": twice}) == [
        "rapo: 2 runs of seed 1 count as one, with their mean"
    ]
