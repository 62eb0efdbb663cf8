"""Curves of the report: means, bands, smoothing and times."""

from __future__ import annotations

import functools
import json

import numpy as np

from rapo_jax.report import curves
from rapo_jax.report.compare import group_runs
from rapo_jax.report.runs import load_run, series


def test_a_mean_curve_covers_the_range_of_all_curves_and_interpolates_in_it():
    a = np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0])
    b = np.array([1.0, 3.0]), np.array([10.0, 30.0])
    x, y = curves.mean_curve([a, b])
    assert x.tolist() == [1.0, 2.0, 3.0]
    assert y.tolist() == [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]


def test_curves_that_never_meet_and_no_curves_give_an_empty_one():
    a = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    b = np.array([2.0, 3.0]), np.array([0.0, 1.0])
    assert curves.mean_curve([a, b])[0].size == curves.mean_curve([])[0].size == 0


def test_smoothing_keeps_a_straight_line_and_short_curves():
    x = np.arange(100.0)
    _, y = curves.smooth(x, 3.0 * x)
    np.testing.assert_allclose(y, 3.0 * x, atol=3.0)  # the ends lean inwards by one step
    np.testing.assert_allclose(y[5:-5], 3.0 * x[5:-5])
    np.testing.assert_array_equal(curves.smooth(x[:10], x[:10])[1], x[:10])


def test_a_band_is_one_sample_std_around_the_mean_over_seeds(make_run):
    groups = group_runs([load_run(make_run("a", seed=0)), load_run(make_run("b", seed=1))])
    values = iter([1.0, 3.0])
    (line,) = curves.mean_lines(groups, lambda run: (np.ones(1), np.full(1, next(values))))
    assert line.y.tolist() == [2.0]
    np.testing.assert_allclose(line.high - line.y, np.std([1.0, 3.0], ddof=1))


def test_a_run_without_a_final_evaluation_does_not_cut_the_curve_of_the_others(make_run):
    workdirs = [make_run("a", seed=0), make_run("b", seed=1), make_run("c", seed=2)]
    (workdirs[2] / "result.json").unlink()  # killed after two of four steps
    lines = (workdirs[2] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdirs[2] / "metrics.jsonl").write_text("".join(lines[:3]))
    points = functools.partial(series, key="reward/mean")
    (line,) = curves.mean_lines(group_runs(list(map(load_run, workdirs))), points)
    assert line.x.tolist() == [1, 2, 3, 4]
    (line,) = curves.mean_lines(group_runs([load_run(workdirs[2])]), points)
    assert line.x.tolist() == [1, 2]  # a run that is still going is drawn


def test_every_metric_is_shown_also_one_without_a_section(make_run):
    charts = curves.curve_charts(group_runs([load_run(make_run("a"))]))
    assert [chart.title for chart in charts["Other metrics"]] == ["other/metric"]
    assert list(charts) == ["Reward and accuracy", "Exploration", "Other metrics"]


def test_several_held_out_sets_have_a_chart_each(make_run):
    run = make_run("a")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    more = [row | {"heldout/accuracy/gsm8k": 0.5} for row in rows if row["stage"] == "rl"]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in more))
    titles = [chart.title for chart in curves.heldout_charts(group_runs([load_run(run)]))]
    assert titles[-2:] == ["gsm8k, against step", "gsm8k, against CPU time"] and len(titles) == 6


def test_held_out_accuracy_is_drawn_against_sampled_tokens_where_they_are_counted(make_run):
    groups = group_runs([load_run(make_run("a", rollouts={"sampled_tokens": 7.0}))])
    titles = [chart.title for chart in curves.heldout_charts(groups)]
    assert titles[2] == "All questions, against sampled tokens"


def test_times_of_a_step_add_up(make_run):
    step, phases = curves._phases([load_run(make_run("a"))])
    np.testing.assert_allclose(phases.sum(0), np.ones(step.size))  # time/step
    np.testing.assert_allclose(phases[:, 0], [0.5, 0.2, 0.2, 0.1])


def test_long_curves_are_thinned():
    x = np.arange(10_000.0)
    assert curves.mean_curve([(x, x)])[0].size <= 2 * curves.MAX_POINTS
