"""The paper's numbers for its backbones (arXiv 2603.03078, table 1).

Only certain figures are listed: the averages over the ten maths and knowledge suites. A suite
without a figure is a dash in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

AVERAGE = "average"
AVERAGED = (
    "gsm8k", "math", "math500", "aime24", "aime25",
    "hotpotqa", "twowiki", "musique", "bamboogle", "webwalkerqa",
)  # fmt: skip
"""Suites that the paper averages over."""


class Reported(NamedTuple):
    """Scores in percent."""

    grpo: float
    rapo: float


PAPER: Mapping[str, Mapping[str, Reported]] = {
    "Qwen2.5-7B-Instruct": {AVERAGE: Reported(46.7, 51.3)},
    "Llama3-8B-Instruct": {AVERAGE: Reported(40.6, 47.6)},
    "Qwen2.5-3B-Instruct": {AVERAGE: Reported(40.7, 47.0)},
}
"""Backbone -> suite -> what the paper reports."""

_SHAPES = {
    (3584, 28, 18944): "Qwen2.5-7B-Instruct",
    (4096, 32, 14336): "Llama3-8B-Instruct",
    (2048, 36, 11008): "Qwen2.5-3B-Instruct",
}


def backbone(*, width: int, layers: int, ffn: int) -> str:
    """The paper's backbone of this shape, '' if there is none."""
    return _SHAPES.get((width, layers, ffn), "")


def reported(backbone: str, suite: str) -> Reported | None:
    return PAPER.get(backbone, {}).get(suite)
