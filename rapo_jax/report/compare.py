"""Runs grouped by variant and compared seed by seed.

A *variant* is everything in the configuration that can change a result, except the seed. The report
and the sweep's summary take their numbers from here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rapo_jax.config import KEYS
from rapo_jax.report.costs import (
    Points,
    StepCost,
    cpu_curve,
    cpu_seconds,
    step_cost,
    token_curve,
    value_at,
)
from rapo_jax.report.runs import RunFiles, accuracy, hidden_accuracy

BASELINE = "grpo"
"""The default variant to compare with."""

IGNORED_KEYS = (
    "seed", "commit", "config_file", "task.data_dir", "sft.folder", "buffer.folder",
    *(name for name, key in KEYS.items() if key.per_call),
)  # fmt: skip
"""Settings of where, when and how often a run writes do not make a variant."""

Interval = tuple[float, float, float]
"""Mean, lower and upper bound."""
Measure = Callable[[RunFiles], float | None]

STEP_COSTS: tuple[Measure, ...] = (
    lambda run: step_cost(run).tokens,
    lambda run: step_cost(run).calls,
    lambda run: step_cost(run).cpu,
    lambda run: step_cost(run).seconds,
)
"""Of the fields of a StepCost, in their order."""


@dataclass(frozen=True)
class Summary:
    """One variant over its seeds. Accuracies are in [0, 1]; None where unknown."""

    label: str
    seeds: tuple[int, ...]
    accuracy_before: float | None
    accuracy: float | None
    accuracy_std: float | None
    hidden: float | None
    hidden_std: float | None
    difference: Interval | None
    """Accuracy minus the baseline's, paired by seed: mean and 90 % interval (NaN for one pair)."""
    difference_95: Interval | None
    """The same with its 95 % interval."""
    hidden_difference: Interval | None
    pairs: int
    equal_cpu: float | None
    """Held-out accuracy where a run had used as much CPU time as the cheapest run in all."""
    equal_cpu_difference: Interval | None
    equal_tokens: float | None
    """Held-out accuracy where a run had sampled as many tokens as the run that sampled fewest in
    all; the last one of a run that samples nothing."""
    equal_tokens_difference: Interval | None
    step: StepCost
    cpu_seconds: float | None


def settings_of(run: RunFiles) -> dict[str, str]:
    """The settings that can change a result, flat: dotted key -> value as text.

    A key that a config of an older version lacks counts with its default.
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if prefix in IGNORED_KEYS:
            return
        if isinstance(value, Mapping):
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", run.config)
    for name, key in KEYS.items() if run.config else ():
        if name not in flat:
            walk(name, key.value)
    flat["method"] = run.method
    return flat


def group_runs(runs: Sequence[RunFiles]) -> dict[str, list[RunFiles]]:
    """Runs by variant, in the order given; a label is the method and the unusual settings.

    A setting is in the label if its value is not the usual one among runs of the same method: that
    of most variants, or the first of two values. Runs with an empty workdir belong to no variant.
    """
    variants: dict[tuple[tuple[str, str], ...], list[RunFiles]] = {}
    for run in filter(RunFiles.holds_anything, runs):
        variants.setdefault(tuple(sorted(settings_of(run).items())), []).append(run)
    by_method: dict[str, list[dict[str, str]]] = {}
    for items in variants:
        by_method.setdefault(dict(items)["method"], []).append(dict(items))
    usual = {method: _usual_values(settings) for method, settings in by_method.items()}
    groups: dict[str, list[RunFiles]] = {}
    for items, members in variants.items():
        settings = dict(items)
        reference = usual[settings["method"]]
        changed = [f"{key}={settings.get(key, '—')}" for key in reference
                   if settings.get(key) != reference[key]]  # fmt: skip
        groups.setdefault(" · ".join([settings["method"], *changed]), []).extend(members)
    return groups


def _usual_values(settings: Sequence[Mapping[str, str]]) -> dict[str, str | None]:
    """Key -> usual value, for keys that differ; where none is usual, a value that no run has."""
    keys = sorted({key for each in settings for key in each})
    usual: dict[str, str | None] = {}
    for key in keys:
        counts = Counter(each.get(key) for each in settings)
        value, votes = counts.most_common(1)[0]  # ties: the one counted first
        if len(counts) > 1:
            clear = len(counts) == 2 or 2 * votes > len(settings)
            usual[key] = value if clear else "\0"
    return usual


def paired_difference(
    values_a: Sequence[float], values_b: Sequence[float], confidence: float = 0.9
) -> Interval:
    """Mean of a - b over pairs, with its two-sided Student t interval.

    Returns (mean, low, high); the bounds are NaN for a single pair, all three without any.
    """
    if len(values_a) != len(values_b):
        raise ValueError(f"{len(values_a)} values cannot be paired with {len(values_b)}")
    gap = np.asarray(values_a, float) - np.asarray(values_b, float)
    if gap.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(gap.mean())
    if gap.size == 1:
        return mean, math.nan, math.nan
    from scipy import stats

    half = stats.t.ppf((1 + confidence) / 2, gap.size - 1) * gap.std(ddof=1) / math.sqrt(gap.size)
    return mean, mean - float(half), mean + float(half)


def summarise(groups: Mapping[str, Sequence[RunFiles]], baseline: str = BASELINE) -> list[Summary]:
    """A summary of each variant, in their order. Only runs with a final evaluation count."""
    runs = [run for members in groups.values() for run in members]
    at_equal = [_at_least_cost(runs, curve) for curve in (cpu_curve, token_curve)]
    measures = (accuracy, hidden_accuracy, *at_equal)
    base = [by_seed(groups.get(baseline, ()), measure) for measure in measures]
    return [
        _summary(label, members, measures, [{}] * len(base) if label == baseline else base)
        for label, members in groups.items()
    ]


def _at_least_cost(runs: Sequence[RunFiles], curve_of: Callable[[RunFiles], Points]) -> Measure:
    """Held-out accuracy at the cost up to the last measurement of the run that spent least.

    Runs that are not finished or spend nothing do not decide that cost.
    """
    ended = [curve_of(run)[0] for run in runs if accuracy(run) is not None]
    least = min((costs[-1] for costs in ended if costs.size and costs[-1] > 0), default=None)
    return lambda run: value_at(curve_of(run), least)


def _summary(
    label: str,
    runs: Sequence[RunFiles],
    measures: Sequence[Measure],
    base: Sequence[Mapping[int, float]],
) -> Summary:
    """`measures` are the final accuracies and those at equal costs; `base` the baseline's."""
    final, hidden, at_cpu, at_tokens = ours = [by_seed(runs, measure) for measure in measures]
    gap, hidden_gap, cpu_gap, tokens_gap = map(_difference, ours, base)

    def mean_of(measure: Measure) -> float | None:
        return _mean(by_seed(runs, measure).values())

    return Summary(
        label=label,
        seeds=tuple(sorted(final)),
        accuracy_before=mean_of(partial(accuracy, when="before")),
        accuracy=_mean(final.values()),
        accuracy_std=_std(final.values()),
        hidden=_mean(hidden.values()),
        hidden_std=_std(hidden.values()),
        difference=gap,
        difference_95=_difference(final, base[0], confidence=0.95),
        hidden_difference=hidden_gap,
        pairs=len(final.keys() & base[0].keys()),
        equal_cpu=_mean(at_cpu.values()),
        equal_cpu_difference=cpu_gap,
        equal_tokens=_mean(at_tokens.values()),
        equal_tokens_difference=tokens_gap,
        step=StepCost(*map(mean_of, STEP_COSTS)),
        cpu_seconds=mean_of(cpu_seconds),
    )


def by_seed(runs: Iterable[RunFiles], value: Measure) -> dict[int, float]:
    """Seed -> value(run), of the runs with a final evaluation; the mean where a seed has several.

    Runs that have no seed or no such value are left out.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        if run.seed is not None and accuracy(run) is not None and (x := value(run)) is not None:
            values.setdefault(run.seed, []).append(x)
    return {seed: float(np.mean(each)) for seed, each in values.items()}


def seed_groups(runs: Iterable[RunFiles]) -> list[list[RunFiles]]:
    """The runs of each seed, in the order given; a run without a seed is alone."""
    groups: dict[int | Path, list[RunFiles]] = {}
    for run in runs:
        groups.setdefault(run.workdir if run.seed is None else run.seed, []).append(run)
    return list(groups.values())


def repeated_seeds(groups: Mapping[str, Sequence[RunFiles]]) -> list[str]:
    """A line for each seed with several finished runs of one variant: they count as one."""
    return [
        f"{label}: {count} runs of seed {seed} count as one, with their mean"
        for label, runs in groups.items()
        for seed, count in Counter(run.seed for run in runs if accuracy(run) is not None).items()
        if seed is not None and count > 1
    ]


def _difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.9
) -> Interval | None:
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds], confidence)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _std(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
