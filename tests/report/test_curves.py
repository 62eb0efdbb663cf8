"""Curves of the report: means, bands, smoothing and times."""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.report import curves
from rapo_jax.report.compare import group_runs
from rapo_jax.report.runs import RunFiles, load_run, series

FINISHED = {"accuracy_after": 0.5}


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


def run_of(seed, values, *, stage="rl", name="run", result=FINISHED, first=0):
    """A run whose rows, from step `first` on, have these values of metrics."""
    rows = [{"step": first + t} | row for t, row in enumerate(values)]
    config = {"method": "rapo", "seed": seed}
    return RunFiles(Path(f"{name}{seed}"), config, {stage: rows}, result)


def rewards(*values):
    return [{"reward/mean": x} for x in values]


def test_runs_of_one_seed_count_as_one_in_a_curve_and_its_band():
    runs = [run_of(0, rewards(0.0, 0.0)), run_of(0, rewards(2.0, 2.0)), run_of(1, rewards(3.0, 5))]
    (line,) = curves.mean_lines({"rapo": runs}, functools.partial(series, key="reward/mean"))
    assert line.y.tolist() == [(1.0 + 3) / 2, (1.0 + 5) / 2]
    np.testing.assert_allclose(line.y - line.low, [np.std([1, y], ddof=1) for y in (3, 5)])
    unnamed = [run_of(None, rewards(0.0), name="a"), run_of(None, rewards(2.0), name="b")]
    (line,) = curves.mean_lines({"rapo": unnamed}, functools.partial(series, key="reward/mean"))
    assert line.y.tolist() == [1.0] and line.high > line.y  # which seeds they have is not known


def test_a_variant_without_a_curve_leaves_the_others_their_colours():
    groups = {"sft": [run_of(0, [{}])], "rapo": [run_of(0, rewards(1.0))]}
    (line,) = curves.mean_lines(groups, functools.partial(series, key="reward/mean"))
    assert line.colour == 1


def words_of(svg):
    """The texts of a chart, its ticks as numbers: one axis in percent, the other not."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    percent = [float(x.removesuffix(" %")) for x in texts if x.endswith(" %")]
    return percent, [float(x) for x in texts if re.fullmatch(r"[\d.]+", x)]


def test_a_chart_of_held_out_accuracy_has_the_curve_and_the_costs_of_its_title():
    """All questions are near 80 %, hidden words near 30 %; costs are of different magnitudes."""
    steps = [
        {"heldout/accuracy": 0.8 + 0.01 * t, "heldout/hidden": 0.3 + 0.01 * t, "time/step": 1.0,
         "cpu/total": 100.0 * (t + 1), "rollout/sampled_tokens": 5000.0} for t in range(4)
    ]  # fmt: skip
    found = {each.title: each.svg for each in curves.heldout_charts({"x": [run_of(0, steps)]})}
    for name, near in (("All questions", 80), ("Hidden words", 30)):
        for cost, most in (("step", 3), ("CPU time", 300), ("sampled tokens", 15_000)):
            percent, costs = words_of(found[f"{name}, against {cost}"])
            assert near - 1 < min(percent) and max(percent) < near + 4
            assert most / 2 < max(costs) < 1.1 * most


def test_shares_are_shown_in_percent_and_other_metrics_as_they_are():
    groups = {"x": [run_of(0, [{"buffer/hit_rate": x, "reward/mean": x} for x in (0.2, 0.4)])]}
    found = {
        each.title: each.svg for drawn in curves.curve_charts(groups).values() for each in drawn
    }
    assert max(words_of(found["Hit rate"])[0]) == 40
    percent, numbers = words_of(found["Outcome reward, all rollouts"])
    assert percent == [] and 0.4 in numbers


def test_no_two_metrics_have_one_title():
    titles = [title for section in curves.CURVES.values() for title in section.values()]
    assert len(titles) == len(set(titles))


def test_a_chart_of_the_cold_start_is_of_its_own_stage():
    groups = {"x": [run_of(0, [{"loss/sft": 2.0}], stage="sft")]}
    drawn = functools.partial(curves.charts_of, groups, curves.COLD_START)
    assert [each.title for each in drawn(stage="sft")] == ["Loss"] and drawn(stage="rl") == []


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


def times(*seconds, host=0.2, update=0.3):
    """Of steps: each one's whole time; the rest of it is that of the rollout."""
    return [
        {
            "time/step": x,
            "time/rollout": x - host - update,
            "time/host": host,
            "time/update": update,
        }
        for x in seconds
    ]


def test_each_phase_of_a_step_is_the_mean_over_runs_of_its_own_times():
    first, second = run_of(0, times(1.0, 2.0)), run_of(1, times(3.0, 6.0, host=0.6, update=0.7))
    _, phases = curves._phases([first, second])
    wanted = {
        "Rollout on the device": [(0.5 + 1.7) / 2, (1.5 + 4.7) / 2],
        "Host: tools and rewards": [(0.2 + 0.6) / 2] * 2,
        "Update": [(0.3 + 0.7) / 2] * 2,
        "Rest": [0, 0],
    }
    for name, phase in zip(curves.PHASES, phases, strict=True):
        np.testing.assert_allclose(phase, wanted[name], atol=1e-12)


def test_a_phase_that_only_some_steps_name_is_interpolated_between_them():
    rows = [{"time/step": 9.0} | row for row in
            ({"time/update": 1.0}, {}, {"time/update": 3.0})]  # fmt: skip
    _, phases = curves._phases([run_of(0, rows)])
    assert phases[curves.PHASES.index("Update")].tolist() == [1.0, 2.0, 3.0]


def test_a_run_killed_in_its_first_steps_does_not_make_the_steps_of_its_variant_slow():
    """The first step compiles: alone, it is not the mean time of a step."""
    whole = run_of(0, times(100.0, *[1.0] * 98))
    killed = run_of(1, times(100.0), result={})
    _, phases = curves._phases([whole, killed])
    assert phases.sum(0).mean() == pytest.approx((100 + 98) / 99)
    assert curves._phases([killed])[1].sum() == pytest.approx(100)


def test_the_bar_of_a_variant_is_the_mean_over_its_steps():
    bars, _ = curves.time_charts({"x": [run_of(0, times(1.0, 1.0, 10.0))]})
    assert 3 <= max(words_of(bars.svg)[1]) < 4.5  # the mean is 4


def test_runs_without_a_step_in_common_have_no_mean_time_of_a_step():
    apart = [run_of(0, times(1.0, 1.0)), run_of(1, times(1.0, 1.0), first=5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curves.time_charts({"x": apart}) == []


def test_long_curves_are_thinned_from_their_first_to_their_last_point():
    for size in (3 * curves.MAX_POINTS - 1, 10_000):
        x = np.arange(float(size))
        found, _ = curves.mean_curve([(x, x)])
        assert found.size <= curves.MAX_POINTS and (found[0], found[-1]) == (0, size - 1)
