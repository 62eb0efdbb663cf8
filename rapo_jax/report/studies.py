"""The measures of a study: values of its variants by seed, differences, and the paper's statements.

`launch/studies.py` has the table of studies and runs them; `report.study_pages` writes their pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rapo_jax.report.compare import Interval, by_seed, paired_difference
from rapo_jax.report.costs import Points, cpu_curve, step_cost, token_curve, value_at
from rapo_jax.report.runs import RunFiles, accuracy, series

POWER, CONFIDENCE = 0.8, 0.95


class Measure(NamedTuple):
    """A number of a run, for a table."""

    name: str
    of: Callable[[RunFiles], float | None] | None = None
    """None where one run holds several variants: a study's `collect` measures them together."""
    scale: float = 1.0
    """What the number is multiplied by where it is shown: 100 for percent."""
    digits: int = 1


class Claim(NamedTuple):
    """A statement of the paper: one variant has more of a measure than another."""

    text: str
    measure: str
    more: str
    less: str


Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Variant -> measure -> seed -> value."""
Variants = Mapping[str, Sequence[RunFiles]]


class Study(NamedTuple):
    """One of the paper's studies: what is run, what is measured, and what the paper says of it."""

    title: str
    source: str
    """Figure or table of the paper."""
    runs: Callable[[Mapping[str, object]], Mapping[str, str]]
    """The config of all runs -> settings of each variant, `KEY=VALUE,...`, by its label."""
    baseline: str
    """Variant that the others are compared with."""
    measures: tuple[str, ...]
    """Names in MEASURES; the differences in the table are of the first one."""
    draw: Callable[[Variants, Values, Sequence[str], Path], None]
    """(variants, values, measures, file) draws the study's picture."""
    claims: tuple[Claim, ...] = ()
    collect: Callable[[Variants, Sequence[str]], Values] | None = None
    """What measures the variants, where that is not `measured`."""
    own_baselines: Mapping[str, str] = MappingProxyType({})
    """The baselines of variants that are compared with another one than `baseline`."""


def step_mean(key: str, last: float = 1.0) -> Callable[[RunFiles], float | None]:
    """The mean of a metric over the last share of a run's RL steps."""

    def mean(run: RunFiles) -> float | None:
        _, value = series(run, key)
        return float(value[-math.ceil(last * len(value)) :].mean()) if value.size else None

    return mean


def step_median(key: str) -> Callable[[RunFiles], float | None]:
    """The median of a metric over a run's RL steps: times have outliers, such as compilation."""

    def median(run: RunFiles) -> float | None:
        _, value = series(run, key)
        return float(np.median(value)) if value.size else None

    return median


MEASURES = {
    "accuracy": Measure("held-out accuracy, %", accuracy, scale=100),
    "reward": Measure("reward, last quarter", step_mean("reward/mean", last=0.25), digits=3),
    "entropy": Measure("entropy, nats", step_mean("entropy/policy"), digits=3),
    "tokens": Measure("policy tokens of a rollout", step_mean("rollout/policy_tokens")),
    "calls": Measure("tool calls of a rollout", step_mean("rollout/tool_calls"), digits=2),
    "rollout_s": Measure("rollout of a step, s", step_median("time/rollout"), digits=2),
    "update_s": Measure("update of a step, s", step_median("time/update"), digits=2),
    "cpu_s": Measure("CPU-seconds of a step", lambda run: step_cost(run).cpu, digits=2),
    "equal_cpu": Measure("at GRPO's CPU time, %", scale=100),
    "equal_tokens": Measure("at GRPO's tokens, %", scale=100),
    "sampled": Measure("tokens sampled in a step", lambda run: step_cost(run).tokens, digits=0),
    "clusters": Measure("clusters", digits=0),
    "variance": Measure("variance of the embeddings", digits=3),
    "rollout_reward": Measure("outcome reward", digits=3),
    "rollout_tokens": Measure("tokens of a rollout"),
}


def measured(variants: Variants, names: Sequence[str]) -> Values:
    """The named measures of each variant's finished runs by seed, where a run has them."""
    of = {name: found for name in names if (found := MEASURES[name].of) is not None}
    return {
        label: {name: by_seed(runs, each) for name, each in of.items()}
        for label, runs in variants.items()
    }


def with_equal_costs(
    variants: Variants,
    names: Sequence[str],
    *,
    baseline: str,
    own_baselines: Mapping[str, str] = MappingProxyType({}),
) -> Values:
    """`measured`, and the held-out accuracy at the cost of the baseline's run of the same seed.

    That is its CPU time, or its sampled tokens, up to its last evaluation during training. A run
    that never spends so much counts with its last accuracy.
    """
    values = {label: dict(of) for label, of in measured(variants, names).items()}
    for name, curve_of in {"equal_cpu": cpu_curve, "equal_tokens": token_curve}.items():
        for label, runs in variants.items():
            spent = by_seed(variants[own_baselines.get(label, baseline)], partial(_spent, curve_of))
            values[label][name] = by_seed(runs, partial(_accuracy_at, curve_of, spent))
    return values


def _spent(curve_of: Callable[[RunFiles], Points], run: RunFiles) -> float | None:
    """Cost of a run up to its last evaluation during training."""
    costs, _ = curve_of(run)
    return float(costs[-1]) if costs.size else None


def _accuracy_at(
    curve_of: Callable[[RunFiles], Points], spent: Mapping[int, float], run: RunFiles
) -> float | None:
    return None if run.seed is None else value_at(curve_of(run), spent.get(run.seed))


class Difference(NamedTuple):
    """A paired difference of two variants."""

    interval: Interval
    """Mean and two-sided interval of confidence 0.95; NaN bounds for one pair."""
    detectable: float
    """The smallest true difference that as many pairs detect with power 0.8; NaN for one pair."""
    pairs: int


def difference(values: Values, measure: str, left: str, right: str) -> Difference:
    """`left` minus `right`, paired by seed.

    Detectable is c s / sqrt(n), with the standard deviation s of the n pairs' differences, and c of
    `_noncentrality`.
    """
    ours, theirs = (values.get(label, {}).get(measure, {}) for label in (left, right))
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    found = paired_difference(*pairs, confidence=CONFIDENCE)
    if len(seeds) < 2:
        return Difference(found, math.nan, len(seeds))
    deviation = np.std(np.subtract(*pairs), ddof=1)
    detectable = _noncentrality(len(seeds)) * deviation / math.sqrt(len(seeds))
    return Difference(found, float(detectable), len(seeds))


@cache
def _noncentrality(pairs: int) -> float:
    """That of the noncentral t with which the two-sided paired t test has its power."""
    from scipy import optimize, stats

    freedom = pairs - 1
    bound, more = stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], freedom)

    def lacking(c: float) -> float:
        return float(stats.nct.sf(bound, freedom, c)) - POWER  # beyond -bound is below 1e-6 there

    about = bound + more
    return float(optimize.brentq(lacking, about * 0.9, about * 1.3))


def verdict(found: Difference) -> str:
    """Whether a claim `more > less` holds, by the interval of the difference."""
    _, low, high = found.interval
    if not found.pairs:
        return "not measured"
    if low > 0:
        return "holds"
    return "the opposite holds" if high < 0 else "undecided"
