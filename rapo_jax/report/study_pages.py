"""The page of a study: its table with intervals, its picture, and the paper's statements."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rapo_jax.io.files import write_text
from rapo_jax.io.tables import markdown_table
from rapo_jax.report.runs import RunFiles, accuracy
from rapo_jax.report.studies import MEASURES, Measure, Study, Values, difference, verdict

DASH = "–"
Kept = TypeVar("Kept")


class Numbers(NamedTuple):
    """Contents of a study's page; NAME.json holds them."""

    options: Sequence[str]
    """Flags of all runs, --KEY=VALUE."""
    variants: Mapping[str, str]
    """Label -> settings."""
    commits: Mapping[int, Sequence[str]]
    """Seed -> commits of its finished runs."""
    values: Values

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a finished run."""
        return sorted(self.commits)


def numbers_of(
    options: Sequence[str], variants: Mapping[str, str], runs: Iterable[RunFiles], values: Values
) -> Numbers:
    """The numbers of finished runs."""
    commits: dict[int, set[str]] = {}
    for run in runs:
        if run.seed is not None and accuracy(run) is not None:
            commits.setdefault(run.seed, set()).add(_short(str(run.config.get("commit", ""))))
    by_seed = {seed: sorted(found) for seed, found in commits.items()}
    return Numbers(options, variants, by_seed, values)


def _short(commit: str) -> str:
    """Seven digits, and '+' where there were local changes."""
    return commit[:7] + "+" * commit.endswith("+") or "unknown"


def read_numbers(file: Path, options: Sequence[str], variants: Mapping[str, str]) -> Numbers | None:
    """The numbers of a page that is there already, None without one.

    ValueError where they are of other flags or settings than `options` and `variants`, or cannot be
    read.
    """
    remedy = "choose another --output, or move the file away"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        old = Numbers(
            list(found["options"]),
            dict(found["variants"]),
            {int(seed): list(each) for seed, each in found["commits"].items()},
            {
                label: {
                    name: {int(seed): float(x) for seed, x in of.items()}
                    for name, of in each.items()
                }
                for label, each in found["values"].items()
            },
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: not the numbers of a study ({error!r}); {remedy}") from error
    if set(old.options) != set(options):
        was, now = (shlex.join(each) or "no flags" for each in (old.options, options))
        raise ValueError(f"{file} is of {was}, this study of {now}; {remedy}")
    for label in old.variants.keys() & variants.keys():
        if (was := old.variants[label]) != (now := variants[label]):
            raise ValueError(f"{file}: {label} is {was}, in this study {now}; {remedy}")
    return old


def joined(new: Numbers, old: Numbers | None) -> Numbers:
    """`new`, and from `old` the seeds that `new` has not measured: no seed is of both."""
    if old is None:
        return new
    kept = set(old.seeds) - set(new.seeds)

    def earlier(of: Mapping[int, Kept]) -> dict[int, Kept]:
        return {seed: x for seed, x in of.items() if seed in kept}

    values = {
        label: {
            name: earlier(old.values.get(label, {}).get(name, {})) | dict(by_seed)
            for name, by_seed in of.items()
        }
        for label, of in new.values.items()
    }
    return new._replace(commits=earlier(old.commits) | dict(new.commits), values=values)


def write_page(name: str, study: Study, numbers: Numbers, folder: Path) -> str:
    """Writes NAME.md and NAME.json into `folder`, beside the picture NAME.svg; returns the page."""
    command = ["python", "launch/studies.py", name, "--workdir=WORKDIR", *numbers.options]
    if numbers.seeds:
        command.append(f"--seeds={','.join(map(str, numbers.seeds))}")
    commits = sorted({commit for each in numbers.commits.values() for commit in each})
    parts = [
        f"# {study.title} ({study.source})",
        f"```\n{shlex.join(command)}\n```",
        f"Commit of the runs: {', '.join(commits) or DASH}. Mean ± standard deviation over seeds; "
        "differences are paired by\nseed, with 95 % t intervals; *detectable* is the smallest true "
        "difference that this number of\nseeds detects with power 0.8.",
        table(study, numbers.values),
    ]
    if (folder / f"{name}.svg").exists():
        parts.append(f"![{study.title}]({name}.svg)")
    if study.claims:
        parts += ["## Statements of the paper", claims_table(study, numbers.values)]
    page = "\n\n".join(parts) + "\n"
    text = json.dumps({"study": name, **numbers._asdict()}, indent=1, ensure_ascii=False)
    write_text(folder / f"{name}.json", text + "\n")
    write_text(folder / f"{name}.md", page)
    return page


def table(study: Study, values: Values) -> str:
    """A row for each variant: every measure, and the first one's difference to the baseline."""
    measures = [MEASURES[name] for name in study.measures]
    first = measures[0]
    head = [
        "variant", "seeds", *(measure.name for measure in measures),
        f"to {study.baseline} [95 %]", "detectable",
    ]  # fmt: skip
    rows = []
    for label, of in values.items():
        seeds = max((len(of.get(name, {})) for name in study.measures), default=0)
        cells = [spread(of.get(name, {}), MEASURES[name]) for name in study.measures]
        baseline = study.own_baselines.get(label, study.baseline)
        found = difference(values, study.measures[0], label, baseline)
        ours = [interval(found.interval, first), number(found.detectable, first)]
        rows.append([label, str(seeds), *cells, *(ours if label != baseline else ["", ""])])
    return markdown_table(head, rows)


def claims_table(study: Study, values: Values) -> str:
    """A row for each statement: its measure, the difference with its interval, the verdict."""
    rows = []
    for claim in study.claims:
        measure = MEASURES[claim.measure]
        found = difference(values, claim.measure, claim.more, claim.less)
        pair = f"{claim.more} − {claim.less}"
        rows.append(
            [claim.text, measure.name, pair, interval(found.interval, measure), verdict(found)]
        )
    return markdown_table(
        ["the paper says", "measure", "difference", "here [95 %]", "verdict"], rows
    )


def spread(of: Mapping[int, float], measure: Measure) -> str:
    """Mean ± standard deviation."""
    if not of:
        return DASH
    values = np.array(list(of.values()))
    mean = number(float(values.mean()), measure)
    return mean + (f" ± {number(float(values.std(ddof=1)), measure)}" if len(values) > 1 else "")


def number(value: float, measure: Measure, *, signed: bool = False) -> str:
    """A value in the measure's unit."""
    if math.isnan(value):
        return DASH
    text = f"{measure.scale * value:{'+' if signed else ''}z.{measure.digits}f}"
    return text.replace("-", "−")


def interval(value: tuple[float, float, float], measure: Measure) -> str:
    """Mean and interval; the mean alone for one pair."""
    mean, low, high = (number(x, measure, signed=True) for x in value)
    return mean if DASH in (low, mean) else f"{mean} [{low}, {high}]"
