"""Runs grouped by variant and compared seed by seed.

A *variant* is everything in the configuration that can change a result, the seed apart. The report
and the sweep's summary both take their numbers from here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rapo_jax.config import SUITE_KEYS
from rapo_jax.report.runs import Run, accuracy, cpu_seconds, hidden_accuracy, load_run, series

__all__ = ["Summary", "group_runs", "load_run", "paired_difference", "summarise"]

BASELINE = "grpo"
"""The variant that the others are compared with, where nobody names another."""

IGNORED_KEYS = (
    "seed", "stages", "commit", "task.data_dir", "sft.folder", "buffer.folder",
    *(f"evaluate.{key}" for key in SUITE_KEYS),
)  # fmt: skip
IGNORED_GROUPS = ("log", "checkpoint")
"""What says where, when and how often a run writes never makes two runs differ."""


@dataclass(frozen=True)
class Summary:
    """One variant over its seeds. Accuracies are shares in [0, 1]; None where nothing is known."""

    label: str
    seeds: tuple[int, ...]
    accuracy_before: float | None
    accuracy: float | None
    accuracy_std: float | None
    hidden: float | None
    hidden_std: float | None
    difference: tuple[float, float, float] | None
    """Accuracy minus the baseline's, paired by seed: mean and 90 % interval (NaN for one pair)."""
    hidden_difference: tuple[float, float, float] | None
    pairs: int
    equal_cpu: float | None
    """Held-out accuracy once every run of the comparison has used the same CPU time."""
    cpu_seconds: float | None


def settings_of(run: Run) -> dict[str, str]:
    """The settings that can change a result, flat: dotted key -> value as text."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if prefix in IGNORED_KEYS:
            return
        if isinstance(value, Mapping):
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        elif prefix.split(".")[0] not in IGNORED_GROUPS:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", run.config)
    flat["method"] = run.method
    return flat


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by variant, in the order given; the label is the method and what sets a variant apart.

    A setting is named in the label where it departs from what is usual among the runs of the same
    method: the value that most of its variants have, or of two values the one seen first. Runs
    that left nothing in their workdir belong to no variant.
    """
    variants: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in filter(Run.holds_anything, runs):
        variants.setdefault(tuple(sorted(settings_of(run).items())), []).append(run)
    by_method: dict[str, list[dict[str, str]]] = {}
    for items in variants:
        by_method.setdefault(dict(items)["method"], []).append(dict(items))
    usual = {method: _usual_values(settings) for method, settings in by_method.items()}
    groups: dict[str, list[Run]] = {}
    for items, members in variants.items():
        settings = dict(items)
        reference = usual[settings["method"]]
        changed = [f"{key}={settings.get(key, '—')}" for key in reference
                   if settings.get(key) != reference[key]]  # fmt: skip
        groups.setdefault(" · ".join([settings["method"], *changed]), []).extend(members)
    return groups


def _usual_values(settings: Sequence[Mapping[str, str]]) -> dict[str, str | None]:
    """Key -> usual value, for keys that differ; a value no setting has where none is usual."""
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
) -> tuple[float, float, float]:
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


def summarise(groups: Mapping[str, Sequence[Run]], baseline: str = BASELINE) -> list[Summary]:
    """One line for each variant, in their order. Only runs with a final evaluation count."""
    budgets = [cpu for runs in groups.values() for run in runs if (cpu := _curve_cpu(run))]
    budget = min(budgets, default=None)
    return [_summary(label, runs, groups.get(baseline, ()), budget, label == baseline)
            for label, runs in groups.items()]  # fmt: skip


def _summary(
    label: str, runs: Sequence[Run], base: Sequence[Run], budget: float | None, is_base: bool
) -> Summary:
    final = by_seed(runs, accuracy)
    hidden = by_seed(runs, hidden_accuracy)
    base_final = {} if is_base else by_seed(base, accuracy)
    base_hidden = {} if is_base else by_seed(base, hidden_accuracy)
    equal = [_at_cpu(run, budget) for run in runs] if budget is not None else []
    return Summary(
        label=label,
        seeds=tuple(sorted(final)),
        accuracy_before=_mean([x for run in runs if (x := accuracy(run, "before")) is not None]),
        accuracy=_mean(final.values()),
        accuracy_std=_std(final.values()),
        hidden=_mean(hidden.values()),
        hidden_std=_std(hidden.values()),
        difference=_difference(final, base_final),
        hidden_difference=_difference(hidden, base_hidden),
        pairs=len(final.keys() & base_final.keys()),
        equal_cpu=_mean([x for x in equal if x is not None]),
        cpu_seconds=_mean([x for run in runs if (x := cpu_seconds(run)) is not None]),
    )


def by_seed(runs: Sequence[Run], value: Callable[[Run], float | None]) -> dict[int, float]:
    """Seed -> value(run), for the runs that know both."""
    return {run.seed: x for run in runs if run.seed is not None and (x := value(run)) is not None}


def _difference(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[float, float, float] | None:
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])


def _mean(values: Any) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _std(values: Any) -> float | None:
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def cpu_curve(run: Run, key: str = "heldout/accuracy") -> tuple[np.ndarray, np.ndarray]:
    """CPU-seconds of the RL steps before each measurement of `key`, and what it found.

    A step measures the policy it begins with, so the CPU time of that step itself comes after.
    """
    step, value = series(run, key)
    cpu_step, cpu = series(run, "cpu/total")
    if not step.size or not cpu.size:
        return np.empty(0), np.empty(0)
    return np.concatenate([[0.0], cpu])[np.searchsorted(cpu_step, step)], value


def _curve_cpu(run: Run) -> float | None:
    cpu, _ = cpu_curve(run)
    return float(cpu[-1]) if cpu.size else None


def _at_cpu(run: Run, budget: float) -> float | None:
    cpu, value = cpu_curve(run)
    return float(np.interp(budget, cpu, value)) if cpu.size else None
