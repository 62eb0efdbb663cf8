"""Costs of runs whose steps differ, and of runs that did not record some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rapo_jax.report.costs import cpu_curve, cpu_seconds, step_cost, token_curve
from rapo_jax.report.runs import RunFiles


def run_of(steps, *, after=(), rollout=(2, 3)):
    """A run of these rows, numbered from 0 as a run numbers them, and rows after its last step."""
    rows = [{"step": t} | row for t, row in enumerate([*steps, *after])]
    sizes = dict(zip(("questions", "group_size"), rollout, strict=False))
    return RunFiles(Path("run"), {"method": "grpo", "rollout": sizes}, {"rl": rows})


def step(**values):
    return {name.replace("__", "/"): x for name, x in values.items()}


def test_costs_of_a_step_are_shares_of_the_whole_run_whose_last_row_is_an_evaluation_alone():
    """A run of n steps has the numbers 0 to n - 1, and its last evaluation is the row n."""
    seconds, tokens, cpu = [9.0, 1.0, 2.0], [100.0, 300.0, 500.0], [20.0, 23.0, 29.0]
    steps = [
        step(time__step=s, rollout__sampled_tokens=n, cpu__total=c)
        for s, n, c in zip(seconds, tokens, cpu, strict=True)
    ]
    found = step_cost(run_of(steps, after=[step(heldout__accuracy=0.5, cpu__total=cpu[-1])]))
    assert found.seconds == np.mean(seconds) and found.tokens == np.mean(tokens)
    assert found.cpu == pytest.approx(cpu[-1] / 3)


def test_calls_are_counted_step_by_step_where_a_step_samples_more_rows_than_another():
    calls, rows = [1.0, 3.0], [6.0, 2.0]
    steps = [
        step(time__step=1.0, rollout__tool_calls=c, rollout__sampled_rows=r)
        for c, r in zip(calls, rows, strict=True)
    ]
    assert step_cost(run_of(steps)).calls == (1.0 * 6 + 3.0 * 2) / 2


def test_calls_are_those_of_all_rows_where_only_some_steps_count_the_sampled_ones():
    """A run of an older version, continued with one that counts them."""
    steps = [
        step(time__step=1.0, rollout__tool_calls=1.0),
        step(time__step=1.0, rollout__tool_calls=3.0, rollout__sampled_rows=2.0),
    ]
    assert step_cost(run_of(steps)).calls == (1.0 + 3.0) / 2 * 2 * 3
    assert step_cost(run_of(steps, rollout=(2,))).calls is None


def test_a_run_without_a_step_has_no_costs_of_a_step():
    assert step_cost(RunFiles(Path("run"))) == (None, None, None, None)


@pytest.mark.parametrize("curve", [cpu_curve, token_curve])
def test_each_measurement_has_a_curve_of_its_own(curve):
    steps = [
        step(
            time__step=1.0, cpu__total=2.0 * (t + 1), rollout__sampled_tokens=2.0,
            heldout__accuracy=0.1 * t, heldout__hidden=0.9 - 0.1 * t,
        )
        for t in range(3)
    ]  # fmt: skip
    cost, hidden = curve(run_of(steps), "heldout/hidden")
    assert cost.tolist() == [0.0, 2.0, 4.0]
    assert hidden.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert curve(run_of(steps))[1].tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_a_run_that_did_not_record_its_cpu_time_has_no_curve_against_it():
    run = run_of([step(time__step=1.0, heldout__accuracy=0.1 * t) for t in range(3)])
    assert cpu_curve(run)[0].size == 0 and cpu_seconds(run) is None
    assert step_cost(run).cpu is None
