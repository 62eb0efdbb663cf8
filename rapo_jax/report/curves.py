"""The curves of the report: which metrics, and the mean over the runs of a variant."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax.report import charts
from rapo_jax.report.compare import seed_groups
from rapo_jax.report.costs import ACCURACY, Points, cpu_curve, token_curve
from rapo_jax.report.runs import RunFiles, accuracy, series

SMOOTHING = 25
"""A curve of n steps is averaged over a window of n / SMOOTHING steps."""
MAX_POINTS = 400

Groups = Mapping[str, Sequence[RunFiles]]


class Chart(NamedTuple):
    title: str
    svg: str


CURVES: dict[str, dict[str, str]] = {
    "Reward and accuracy": {
        "reward/mean": "Outcome reward, all rollouts",
        "reward/on_policy": "Outcome reward, on-policy rollouts",
        "reward/hybrid": "Outcome reward, hybrid rollouts",
        "reward/accuracy": "Accuracy of the rollouts",
        "reward/nonzero_groups": "Groups with a non-zero advantage",
        "reward/format_bad": "Rollouts with a bad format",
    },
    "Exploration": {
        "entropy/policy": "Entropy of the policy, nats per token",
        "rollout/tokens": "Tokens per rollout",
        "rollout/policy_tokens": "Policy tokens per rollout",
        "rollout/sampled_tokens": "Tokens sampled in a step",
        "rollout/retrieved_share": "Retrieved share of a response",
    },
    "Tools": {
        "rollout/tool_calls": "Tool calls per rollout",
        "tools/search": "Calls of search",
        "tools/python": "Calls of python",
        "tools/errors": "Calls that failed",
        "tools/timeouts": "Calls that timed out",
    },
    "Retrieval": {
        "reward/retrieval": "Retrieval reward Z (Eq. 7)",
        "buffer/hit_rate": "Hit rate",
        "buffer/similarity": "Similarity of key and history",
        "buffer/count": "Retrievals",
        "rollout/retrieval_probability": "Retrieval probability",
        "update/rows_without_traces": "Rows trained without their traces",
    },
    "Objective and numerics": {
        "loss/logp_gap": "|log π sampler − log π trainer|",
        "loss/policy": "Policy loss (Eq. 11)",
        "loss/ratio": "Shaped ratio (Eq. 8)",
        "loss/clip_fraction": "Clipped tokens",
        "loss/kl": "KL to the reference",
        "loss/grad_norm": "Gradient norm",
        "loss/learning_rate": "Learning rate",
        "update/padding": "Padding in an update",
        "update/zero_advantage_rows": "Rows whose advantage is 0",
        "floor/std_active": "Groups at the floor of the std",
        "floor/entropy_active": "Retrievals at the floor of H_before",
    },
}
COLD_START = {"loss/sft": "Loss"}
SHOWN_ELSEWHERE = ("heldout/", "time/", "cpu/", "buffer/origin/")
PERCENT = {
    "reward/accuracy", "reward/nonzero_groups", "reward/format_bad", "rollout/retrieved_share",
    "buffer/hit_rate", "loss/clip_fraction", "update/padding",
    "update/rows_without_traces",
}  # fmt: skip
PHASES = ("Rollout on the device", "Host: tools and rewards", "Update", "Rest")


def curve_charts(groups: Groups) -> dict[str, list[Chart]]:
    """Section -> charts of the RL stage; metrics without a section are in the last one."""
    known = {key for section in CURVES.values() for key in section}
    rows = [row for runs in groups.values() for run in runs for row in run.metrics.get("rl", [])]
    keys = sorted({key for row in rows for key in row if "/" in key} - known)
    others = {key: key for key in keys if not key.startswith(SHOWN_ELSEWHERE)}
    sections = CURVES | {"Other metrics": others}
    drawn = {name: charts_of(groups, keys, stage="rl") for name, keys in sections.items()}
    return {name: section for name, section in drawn.items() if section}


def charts_of(groups: Groups, section: Mapping[str, str], *, stage: str) -> list[Chart]:
    """Charts of the metrics of a stage, `section`: metric -> title."""
    drawn = []
    for key, title in section.items():
        lines = mean_lines(groups, functools.partial(_smooth_series, key=key, stage=stage))
        if lines:
            svg = charts.line_chart(lines, xlabel="step", percent=key in PERCENT)
            drawn.append(Chart(title, svg))
    return drawn


def _smooth_series(run: RunFiles, key: str, stage: str) -> Points:
    return smooth(*series(run, key, stage))


def heldout_charts(groups: Groups) -> list[Chart]:
    """Held-out accuracy, all, hidden and each set's, against steps, CPU time and tokens."""
    drawn = []
    rows = [row for runs in groups.values() for run in runs for row in run.metrics.get("rl", [])]
    sets = sorted({key for row in rows for key in row if key.startswith(f"{ACCURACY}/")})
    titles = {ACCURACY: "All questions", "heldout/hidden": "Hidden words"}
    titles |= {key: key.removeprefix(f"{ACCURACY}/") for key in sets}
    for key, name in titles.items():
        for curve, xlabel, title in (
            (series, "step", "step"),
            (cpu_curve, "CPU-seconds", "CPU time"),
            (token_curve, "sampled tokens", "sampled tokens"),
        ):
            lines = mean_lines(groups, functools.partial(curve, key=key), points=True)
            if lines:
                svg = charts.line_chart(lines, xlabel=xlabel, percent=True, size=charts.WIDE)
                drawn.append(Chart(f"{name}, against {title}", svg))
    return drawn


def mean_lines(
    groups: Groups, points_of: Callable[[RunFiles], Points], *, points: bool = False
) -> list[charts.Line]:
    """One line for each variant that has points: the mean over its seeds, ± one sample std."""
    lines = []
    for colour, runs in enumerate(groups.values()):
        x, y = mean_curve(_seed_curves(runs, points_of))
        if x.size:
            mean, std = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(x.size)
            lines.append(charts.Line(x, mean, mean - std, mean + std, colour, points))
    return lines


def _seed_curves(runs: Sequence[RunFiles], points_of: Callable[[RunFiles], Points]) -> list[Points]:
    """A curve for each seed that has points: the mean of its runs, where it has several."""
    curves: list[Points] = []
    for same in seed_groups(_counted(runs)):
        found = [curve for run in same if (curve := points_of(run))[0].size]
        if len(found) > 1:
            x, y = mean_curve(found)
            found = [(x, y.mean(0))] if x.size else []
        curves += found
    return curves


def _counted(runs: Sequence[RunFiles]) -> Sequence[RunFiles]:
    """The runs of a variant that have a final evaluation; all of them where none has one."""
    return [run for run in runs if accuracy(run) is not None] or runs


def mean_curve(curves: Sequence[Points]) -> Points:
    """All curves on one axis: x [n] and y [curves, n], in the range that all curves cover."""
    if not curves:
        return np.empty(0), np.empty((0, 0))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= low) & (places <= high)]
    if places.size > MAX_POINTS:
        places = places[np.linspace(0, places.size - 1, MAX_POINTS).round().astype(int)]
    return places, np.stack([np.interp(places, x, y) for x, y in curves])


def smooth(x: np.ndarray, y: np.ndarray) -> Points:
    """Centred moving average over n / SMOOTHING steps; the window shrinks at both ends."""
    half = x.size // SMOOTHING // 2
    if half == 0:
        return x, y
    window = np.ones(2 * half + 1)
    return x, np.convolve(y, window, "same") / np.convolve(np.ones(y.size), window, "same")


def time_charts(groups: Groups) -> list[Chart]:
    """Seconds of a step by phase: a bar for each variant, and over the steps of a single one."""
    by_variant = {label: _phases(runs) for label, runs in groups.items()}
    known = {label: times for label, times in by_variant.items() if times is not None}
    if not known:
        return []
    parts = [[float(parts[i].mean()) for _, parts in known.values()] for i in range(len(PHASES))]
    bars = charts.bar_chart(list(known), parts, xlabel="seconds per step, mean")
    drawn = [Chart("Mean time of a step", bars)]
    if len(known) == 1:
        step, phases = next(iter(known.values()))
        area = charts.area_chart(step, phases, xlabel="step", ylabel="seconds")
        drawn.append(Chart("Time of each step", area))
    return drawn


def _phases(runs: Sequence[RunFiles]) -> Points | None:
    """Steps [n] and seconds [phases, n], mean over runs; None where no step is of all of them."""
    times = []
    for run in _counted(runs):
        step, whole = series(run, "time/step")
        if step.size:
            parts = [_time(run, name, step) for name in ("rollout", "host", "update")]
            rest = np.maximum(whole - sum(parts), 0)
            times.append((step, np.stack([*parts, rest])))
    if not times:
        return None
    means = [mean_curve([(step, parts[i]) for step, parts in times]) for i in range(len(PHASES))]
    steps = means[0][0]
    return (steps, np.stack([y.mean(0) for _, y in means])) if steps.size else None


def _time(run: RunFiles, name: str, step: np.ndarray) -> np.ndarray:
    x, y = series(run, f"time/{name}")
    return np.interp(step, x, y) if x.size else np.zeros(step.size)
