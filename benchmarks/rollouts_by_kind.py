"""Where retrieval helps: rewards of on-policy and hybrid rollouts by kind of question, over RL.

    python benchmarks/rollouts_by_kind.py WORKDIR... [--parts N]

Each WORKDIR is a run on a synthetic task that kept its trajectories (log.trajectories), finished or
not. Prints for each of N equal parts of its steps and each kind: mean reward of on-policy and of
hybrid rollouts, step traces that a hybrid rollout retrieved, their mean Z, the share of groups
whose rewards differ; and of the policy's steps just after a trace, the share that takes the
trace's decision, and their mean token entropy in nats beside that of all other steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.tasks import TASKS
from rapo_jax.tasks.synthetic import decision

HEADER = (
    *("steps", "kind", "on-policy", "hybrid", "traces", "Z", "groups with spread"),
    *("followed", "entropy after a trace", "of other steps"),
)


class Row(NamedTuple):
    """A rollout: its group (step, question), and what is averaged."""

    group: tuple[int, str]
    kind: str
    hybrid: bool
    reward: float
    traces: int
    z: float
    followed: list[bool]
    """Of the policy's steps just after a trace."""
    entropy_after: list[float]
    entropy_else: list[float]


def kinds_of(workdir: Path) -> dict[str, str]:
    """Kind of each training question of a synthetic task, by its id."""
    task = read_settings(resolve(None, workdir=workdir).config).task
    arguments = dataclasses.asdict(getattr(task, task.name))
    world = TASKS[task.name].make_world(**arguments)
    return {question.id: question.kind for question in TASKS[task.name].questions(world, "train")}


def rows_of(workdir: Path, kinds: Mapping[str, str]) -> Iterator[Row]:
    with open(workdir / "trajectories.jsonl", encoding="utf-8") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            if row["stage"] != "rl" or row.get("off_policy"):
                continue
            name, segments = row["question_id"], row["segments"]
            traces = sum(segment["source"] == "RETRIEVED" for segment in segments)
            scores = (row["reward"], traces, row["retrieval_reward"])
            yield Row((row["step"], name), kinds[name], row["hybrid"], *scores, *follows(segments))


def follows(
    segments: Sequence[Mapping[str, Any]],
) -> tuple[list[bool], list[float], list[float]]:
    """`followed`, `entropy_after` and `entropy_else` of one rollout."""
    followed, after, other = [], [], []
    for before, segment in zip(segments, segments[1:], strict=False):
        if segment["source"] == "POLICY" and before["source"] == "RETRIEVED":
            followed.append(decision(segment["text"]) == decision(before["text"]))
            after.append(segment["entropy"])
        elif segment["source"] == "POLICY":
            other.append(segment["entropy"])
    return followed, after, other


def table(rows: Sequence[Row], *, parts: int) -> list[tuple[str, ...]]:
    """The cells of each part and kind, parts in order; a dash where there are no such rollouts."""
    end = 1 + max(row.group[0] for row in rows)
    cells = defaultdict(list)
    for row in rows:
        cells[row.group[0] * parts // end, row.kind].append(row)
    lines = []
    for (part, kind), some in sorted(cells.items()):
        groups = defaultdict(set)
        for row in some:
            groups[row.group].add(row.reward)
        hybrid = [row for row in some if row.hybrid]
        first, last = -(-part * end // parts), -(-(part + 1) * end // parts) - 1
        values = (
            _mean([row.reward for row in some if not row.hybrid]),
            _mean([row.reward for row in hybrid]),
            _mean([row.traces for row in hybrid]),
            _mean([row.z for row in hybrid], digits=3),
            _mean([len(rewards) > 1 for rewards in groups.values()]),
            _mean([each for row in some for each in row.followed]),
            _mean([each for row in some for each in row.entropy_after], digits=3),
            _mean([each for row in some for each in row.entropy_else], digits=3),
        )
        lines.append((f"{first}–{last}", kind, *values))
    return lines


def _mean(values: Sequence[float], *, digits: int = 2) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "–"


def main() -> None:
    description = __doc__.partition("\n")[0] if __doc__ else None
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--parts", type=int, default=3, help="parts of the training (default 3)")
    arguments = parser.parse_args()
    for workdir in arguments.workdirs:
        print(f"{workdir.name}\n\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
        for line in table(list(rows_of(workdir, kinds_of(workdir))), parts=arguments.parts):
            print(f"| {' | '.join(line)} |")
        print()


if __name__ == "__main__":
    main()
