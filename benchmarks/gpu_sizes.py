"""The sizes that benchmarks/gpu.py measures, and the bytes and FLOPs that it compares times with.

Bytes and FLOPs are the least that the work needs: rematerialisation takes time but does not count.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import NamedTuple

import jax

from configs import default, qwen7b
from rapo_jax.config import ModelSettings, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.plan.arithmetic import cache_bytes
from rapo_jax.plan.chips import CHIPS, Chip
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.shapes import shape_on

PUBLISHED_NAMES = {
    "0.5b": "Qwen2.5-0.5B",
    "1.5b": "Qwen2.5-1.5B",
    "3b": "Qwen2.5-3B",
    "7b": "Qwen2.5-7B",
    "8b": "Meta-Llama-3-8B",
}
DEVICE_KINDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
"""The driver's name of a device -> chip; other variants of these chips have other peak numbers."""

HEAD = (
    "model", "measured", "rows", "tokens a row", "ms", "slowest", "tokens/s", "share", "of",
    "peak so far", "note",
)  # fmt: skip


class Sizes(NamedTuple):
    """The sizes of all measurements; tokens are those of a row."""

    batches: tuple[int, ...]
    """Numbers of rows that are decoded at once."""
    prompt: int
    ticks: int
    """Tokens decoded."""
    questions: int
    """Questions of the rollout, each with `group` rows."""
    group: int
    update_rows: int
    update_width: int
    micro_rows: int
    remats: tuple[str, ...]
    repeats: int


SIZES = {
    "usual": Sizes((1, 16, 64, 256), 512, 128, 8, 8, 8, 4096, 4, ("dots_no_batch", "full"), 5),
    "full": Sizes(
        (1, 4, 16, 64, 128, 256), 1024, 256, 8, 8, 16, 4096, 4,
        ("none", "dots", "dots_no_batch", "full"), 9,
    ),
    "tiny": Sizes((2,), 16, 8, 2, 2, 2, 32, 1, ("none",), 1),
}  # fmt: skip

FULL_FINE_TUNE = ("0.5b", "1.5b", "tiny")
"""Models that train all weights on one GPU; larger ones train adapters."""


class Row(NamedTuple):
    """One line of the table."""

    measured: str
    rows: int = 0
    tokens: int = 0
    model: str = ""
    seconds: tuple[float, ...] = ()
    """Seconds of each repetition."""
    total: float = 0
    """Tokens of all rows."""
    share: float | None = None
    """Least possible time as a share of the measured one, by the peak number in `of`."""
    of: str = "-"
    peak: float | None = None
    """Peak of memory so far, in bytes."""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def cells(self) -> tuple[str, ...]:
        known = bool(self.seconds)
        return (
            self.model,
            self.measured,
            str(self.rows),
            str(self.tokens or "-"),
            f"{1e3 * self.median:.4g}" if known else "-",
            f"{1e3 * max(self.seconds):.4g}" if known else "-",
            f"{self.total / self.median:,.4g}" if self.total and known else "-",
            "-" if self.share is None else f"{100 * self.share:.3g} %",
            self.of,
            "-" if self.peak is None else f"{self.peak / 1e9:.2f} GB",
            self.note,
        )


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def chip_of(device: jax.Device) -> Chip | None:
    """The published peak numbers of a device; None if they are not known."""
    kind = DEVICE_KINDS.get(device.device_kind)
    return CHIPS[kind] if kind else None


def settings_of(name: str, *, adapters: int) -> tuple[Settings, ModelSettings]:
    """configs/qwen7b.py with another model; for `tiny`, configs/default.py, in float32."""
    c = default.get_config() if name == "tiny" else qwen7b.get_config()
    c.stages = ("plan",)  # like a plan, a benchmark needs no files
    c.model.lora.rank = adapters
    if name == "tiny":
        c.model.update(vocab=1024, init_scale=0.1, tied=False)
    else:
        c.model.folder = PUBLISHED_NAMES[name]
    s = read_settings(c.to_dict())
    model = planned_model(s.model)
    return s, dataclasses.replace(model, folder="")


def read_weights(model: ModelSettings) -> float:
    """Bytes of weights that are read to decode one token of each row.

    Of an untied embedding, only one line is read for each token: it does not count.
    """
    shape = shape_on(model, fsdp=1, tensor=1)
    looked_up = 0 if model.tied else model.vocab * model.width * shape.itemsize
    return shape.sampled - looked_up


def decode_bytes(model: ModelSettings, *, rows: int, prompt: int, ticks: int) -> float:
    """Bytes that are read to decode `ticks` tokens after a prompt: weights and cache.

    Token i (from 0) attends to the prompt, to the i tokens before it and to itself.
    """
    attended = ticks * prompt + ticks * (ticks + 1) / 2
    return ticks * read_weights(model) + rows * attended * cache_bytes(model, model.kv_heads)


def attention_flops(model: ModelSettings, *, width: int) -> float:
    """FLOPs of a token, forward: scores and weighted sum over half of a row of `width`."""
    return 4 * model.heads * model.head_width * model.layers * width / 2


def read_flops(model: ModelSettings, *, width: int) -> float:
    """FLOPs of a prompt's token: forward, without the head."""
    shape = shape_on(model, fsdp=1, tensor=1)
    matrix = shape.matrix - model.vocab * model.width + shape.adapters
    return 2 * matrix + attention_flops(model, width=width)


def trained_flops(model: ModelSettings, *, width: int) -> float:
    """FLOPs of a trained token: forward, and backward twice as many (once for a frozen matrix)."""
    shape = shape_on(model, fsdp=1, tensor=1)
    frozen = 2 * shape.matrix * (1 + shape.passed_back)
    return frozen + 3 * (2 * shape.adapters + attention_flops(model, width=width))
