"""The study of fig. 4: how diverse on-policy and hybrid rollouts of the same questions are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapo_jax.io.jsonl import as_number, parse_line
from rapo_jax.report.runs import accuracy
from rapo_jax.report.studies import Values, Variants
from rapo_jax.report.study_pictures import draw_plane
from rapo_jax.report.trajectories import segments_of
from rapo_jax.search.ngram import NgramEncoder

KINDS = {False: "on-policy rollouts", True: "hybrid rollouts"}
WIDTH, ORDERS = 512, (1, 2, 3)
"""Of the n-gram encoder that embeds the responses, fitted on those of one run."""
COMPONENTS, NEIGHBOURS = 10, 10
"""Principal components that DBSCAN clusters, and the neighbours of a cluster's core point."""


class Rollouts(NamedTuple):
    """The logged rollouts of one kind: points on the principal components, rewards, lengths."""

    points: np.ndarray
    rewards: np.ndarray
    tokens: np.ndarray


def rollouts(path: Path) -> dict[str, Rollouts]:
    """The RL rollouts of a trajectories.jsonl by kind, equally many of each.

    A rollout's text is what the policy and the tools wrote: a retrieved trace would count as
    diversity though the policy did not write it. Rows that the policy did not sample in their step
    are left out. The kind with more rollouts keeps an evenly spaced
    part of them. Nothing where there is no such file or it holds too few.
    """
    if not path.is_file():
        return {}
    from sklearn.decomposition import PCA

    kinds: dict[bool, list[tuple[str, float, int]]] = {kind: [] for kind in KINDS}
    with path.open("rb") as lines:
        for line in lines:
            row = parse_line(line)
            if row is None or row.get("stage", "rl") != "rl" or row.get("off_policy"):
                continue
            parts = [p for p in segments_of(row) if p.get("source") in ("POLICY", "TOOL")]
            text = "".join(str(part.get("text", "")) for part in parts)
            tokens = sum(len(part.get("tokens") or ()) for part in parts)
            reward = as_number(row.get("reward")) or 0.0
            kinds[bool(row.get("hybrid"))].append((text, reward, tokens))
    count = min(map(len, kinds.values()))
    if count <= COMPONENTS:
        return {}
    for kind, found in kinds.items():
        places = np.linspace(0, len(found) - 1, count).round().astype(int)
        kinds[kind] = [found[place] for place in places]
    texts = [text for found in kinds.values() for text, _, _ in found]
    encoder = NgramEncoder.fit(texts, width=WIDTH, orders=ORDERS)
    points = PCA(COMPONENTS, svd_solver="full").fit_transform(encoder(texts))
    return {
        KINDS[kind]: Rollouts(
            points[place * count : (place + 1) * count],
            np.array([reward for _, reward, _ in found]),
            np.array([tokens for _, _, tokens in found], float),
        )
        for place, (kind, found) in enumerate(kinds.items())
    }


_rollouts = lru_cache(maxsize=64)(rollouts)


def clusters(points: np.ndarray, radius: float) -> int:
    """The clusters that DBSCAN finds: dense groups of points at most `radius` apart."""
    from sklearn.cluster import DBSCAN

    labels = DBSCAN(eps=radius, min_samples=NEIGHBOURS).fit_predict(points)
    return int(labels.max()) + 1


def radius_of(points: np.ndarray) -> float:
    """The median distance of a point to its NEIGHBOURS-th nearest other one, if it is not 0."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points).kneighbors()
    return max(float(np.median(distances[:, -1])), 1e-3)


def collect(variants: Variants, names: Sequence[str]) -> Values:
    """Clusters, variance, reward and length of both kinds of each finished run's rollouts, by seed.

    Both kinds of a run are clustered with one radius, the mean of theirs, and each alone: taken
    together, equal answers to a question would make it smaller than any cluster of one kind.
    """
    values: dict[str, dict[str, dict[int, float]]] = {
        kind: {name: {} for name in names} for kind in KINDS.values()
    }
    for run in (run for runs in variants.values() for run in runs):
        if run.seed is None or accuracy(run) is None:
            continue
        kinds = _rollouts(run.workdir / "trajectories.jsonl")
        if not kinds:
            continue
        radius = float(np.mean([radius_of(each.points) for each in kinds.values()]))
        for kind, each in kinds.items():
            measured = {
                "clusters": float(clusters(each.points, radius)),
                "variance": float(each.points.var(axis=0).sum()),
                "rollout_reward": float(each.rewards.mean()),
                "rollout_tokens": float(each.tokens.mean()),
            }
            for name in names:
                values[kind][name][run.seed] = measured[name]
    return values


def draw(variants: Variants, values: Values, measures: Sequence[str], file: Path) -> None:
    """The rollouts of the first finished run that has some, on two principal components."""
    for run in (run for runs in variants.values() for run in runs if accuracy(run) is not None):
        if kinds := _rollouts(run.workdir / "trajectories.jsonl"):
            draw_plane({kind: each.points[:, :2] for kind, each in kinds.items()}, file)
            return
