"""The fourteen suites of the paper by name, each with its split, and how they are read."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rapo_jax.tasks.dataset_files import read_part, split_first
from rapo_jax.tasks.published import SETS
from rapo_jax.tasks.published.published import where_to_get
from rapo_jax.tasks.schema import Question

KEY = "evaluate.suites"


class Listed(NamedTuple):
    """A suite of the paper: a published set and the split that the protocol evaluates on."""

    set: str
    split: str
    family: str


SUITES = {
    "gsm8k": Listed("gsm8k", "test", "maths"),
    "math": Listed("math", "test", "maths"),
    "math500": Listed("math500", "test", "maths"),
    "aime24": Listed("aime24", "test", "maths"),
    "aime25": Listed("aime25", "test", "maths"),
    "hotpotqa": Listed("hotpotqa", "dev", "knowledge"),
    "twowiki": Listed("twowiki", "dev", "knowledge"),
    "musique": Listed("musique", "dev", "knowledge"),
    "bamboogle": Listed("bamboogle", "test", "knowledge"),
    "webwalkerqa": Listed("webwalkerqa", "main", "knowledge"),
    "simpleqa": Listed("simpleqa", "test", "web"),
    "gaia": Listed("gaia", "text", "web"),
    "webwalkerqa_web": Listed("webwalkerqa", "main", "web"),
    "browsecomp": Listed("browsecomp", "test", "web"),
}
"""WebWalkerQA occurs twice: over Wikipedia, and over the web, where the paper reports it by
difficulty. Both have the same questions and differ in the search tool of the run."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Questions, each with the metric of its set; `name` names its files and its table row."""

    name: str
    source: str
    """The set and split, or the file."""
    questions: tuple[Question, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]
    """A summary of each file, for people."""

    @property
    def metric(self) -> str:
        return " and ".join(sorted(set(self.metrics)))

    def only(self, indices: Sequence[int]) -> Suite:
        """The suite with the questions at these places only."""
        return dataclasses.replace(
            self,
            questions=tuple(self.questions[i] for i in indices),
            metrics=tuple(self.metrics[i] for i in indices),
        )

    def digest(self) -> str:
        """A digest of all questions and metrics."""
        digest = hashlib.sha256()
        for each in zip(self.questions, self.metrics, strict=True):
            digest.update(repr(each).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_suites(
    wanted: Sequence[str], *, manual_dir: str, malformed: str, metric: str
) -> list[Suite]:
    """The suites that evaluate.suites names, in that order; `metric` is for a user's files.

    A name is one of `SUITES`, a published set with its split ('gaia:level1') or a file of questions
    (JSON lines, Parquet, CSV), each perhaps with '[:N]' for its first N questions.

    Raises:
        ValueError: a suite is not known or named twice; or its files are missing, damaged or
            without a usable record; or a record is malformed and `malformed` is 'fail'.
    """
    suites: dict[str, Suite] = {}
    for each in wanted:
        suite = _read(each.strip(), manual_dir=manual_dir, malformed=malformed, metric=metric)
        if suite.name in suites:
            raise ValueError(
                f"{KEY}={each!r}: another suite has the name {suite.name!r} too; leave one out, or "
                "rename its file"
            )
        suites[suite.name] = suite
    return list(suites.values())


def _read(wanted: str, *, manual_dir: str, malformed: str, metric: str) -> Suite:
    source, first = split_first(wanted)
    set_name, _, split = source.partition(":")
    if source in SUITES:
        name, (set_name, split, _) = source, SUITES[source]
        source = f"{set_name}:{split}"
    elif split and set_name in SETS:
        name = f"{set_name}-{split}"
    elif Path(source).is_file():
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(source).name.partition(".")[0]) or "user"
        name = f"user-{name}" if name in SUITES else name
    else:
        raise ValueError(_unknown(wanted, source))
    published = SETS.get(set_name)
    if published and split in published.files and not manual_dir:
        where = where_to_get(published, [split], f"MANUAL_DIR/{set_name}")
        raise ValueError(
            f"{KEY}={name!r}: set evaluate.manual_dir=MANUAL_DIR, the folder of published sets; "
            f"{where}"
        )
    read = read_part(source, first, key=KEY, manual_dir=manual_dir, malformed=malformed)
    return Suite(
        name if first is None else f"{name}-first{first}",
        source,
        tuple(read.questions),
        tuple(each or metric for each in read.metrics),
        tuple(str(file["summary"]) for file in read.files),
    )


def _unknown(wanted: str, name: str) -> str:
    near = difflib.get_close_matches(name.partition(":")[0].lower(), [*SUITES, *SETS], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"{KEY}={wanted!r}: there is no such suite and no such file; {hint}the suites are "
        f"{', '.join(SUITES)}; a published set with its split, as in 'gaia:level1', or a file of "
        "questions does too"
    )
