"""The paper's tables 1 and 2 (arXiv 2603.03078): scores of its methods by backbone and suite.

The figures are in paper_tables.json, read from the text of the paper. Maths suites are scored by a
judge there, the others by token F1.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

AVERAGE = "average"
AVERAGED = (
    "gsm8k", "math", "math500", "aime24", "aime25",
    "hotpotqa", "twowiki", "musique", "bamboogle", "webwalkerqa",
)  # fmt: skip
"""Suites that the paper's table 1 averages over."""
METHODS = {
    "rapo": "RAPO", "grpo": "GRPO", "dapo": "DAPO", "gppo": "GPPO", "gigpo": "GiGPO",
    "tree_grpo": "Tree-GRPO", "arpo": "ARPO", "aepo": "AEPO", "luffy": "LUFFY",
    "rollout_replay": "RolloutReplay", "sft": "SFT", "search_o1": "Search-o1",
    "search_r1": "Search-R1", "tool_star": "Tool-Star",
}  # fmt: skip
"""A value of config.method or config.protocol -> the paper's name."""
_GROUPS = {
    **{("gaia", f"gaia/{n}"): f"gaia-level{n}" for n in (1, 2, 3)},
    **{
        ("webwalkerqa_web", f"webwalkerqa/{level}"): f"webwalkerqa-{level}"
        for level in ("easy", "medium", "hard")
    },
}
"""(suite, group of its questions) -> column of table 2."""
_SHAPES = {
    (3584, 28, 18944): "Qwen2.5-7B-Instruct",
    (4096, 32, 14336): "Llama3-8B-Instruct",
    (2048, 36, 11008): "Qwen2.5-3B-Instruct",
}

Scores = Mapping[str, Mapping[str, float]]
"""Suite -> method by the paper's name -> per cent."""


class Reported(NamedTuple):
    """What the paper reports of a suite, in per cent."""

    same: float | None
    """Of the same method; None where the table has no such row."""
    best: float
    """The highest score of another method."""
    best_method: str


@functools.cache
def paper_scores() -> Mapping[str, Scores]:
    """Both tables: backbone -> suite -> method -> per cent; the average is that of table 1."""
    tables = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("web", "knowledge_and_maths"):
        columns = tables[name]["columns"]
        for backbone, method, *row in tables[name]["rows"]:
            for suite, score in zip(columns, row, strict=True):
                if (name, suite) != ("web", AVERAGE):
                    scores.setdefault(backbone, {}).setdefault(suite, {})[method] = score
    return scores


def backbone(*, width: int, layers: int, ffn: int) -> str:
    """The paper's backbone of this shape, '' if there is none."""
    return _SHAPES.get((width, layers, ffn), "")


def reported(backbone: str, suite: str, *, method: str, group: str = "") -> Reported | None:
    """The paper's scores of a suite, or of a group of its questions; None if it has none.

    `method` is a value of config.method or config.protocol.
    """
    column = _GROUPS.get((suite, group), "") if group else suite
    scores = paper_scores().get(backbone, {}).get(column)
    if not scores:
        return None
    name = METHODS.get(method, "")
    others = {other: score for other, score in scores.items() if other != name}
    best = max(others, key=lambda other: others[other])
    return Reported(scores.get(name), others[best], best)
