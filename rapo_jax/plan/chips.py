"""The accelerators that the stage `plan` knows, and the names of their slices."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
    """Published peak numbers of one chip; GB are 1e9 bytes."""

    name: str
    platform: str
    memory: float
    """Bytes of HBM."""
    flops: float
    """bfloat16 FLOP/s, dense."""
    bandwidth: float
    """Bytes/s of HBM."""
    link: float
    """Bytes/s that one chip sends to its neighbours, all links together, one direction."""
    host: int
    """Chips of one host: tensor parallelism stays inside it."""
    shapes: tuple[str, ...]
    """The slices that are offered, from the smallest."""


_PLANE = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBE = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"
_NODES = "1 2 4 8 16 32 64 128"

# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e (system architecture; "bidirectional
# inter-chip interconnect bandwidth per chip", of which a half goes one way);
# NVIDIA H100 and H200 data sheets, SXM (dense bfloat16 is half of what they give with sparsity;
# NVLink is given for both directions, of which a half goes one way).
CHIPS = {
    "v4": Chip("TPU v4", "tpu", 32e9, 275e12, 1228e9, 150e9, 4, tuple(_CUBE.split())),
    "v5e": Chip("TPU v5e", "tpu", 16e9, 197e12, 819e9, 200e9, 4, tuple(_PLANE.split())),
    "v5p": Chip("TPU v5p", "tpu", 95e9, 459e12, 2765e9, 600e9, 4, tuple(_CUBE.split())),
    "v6e": Chip("TPU v6e", "tpu", 32e9, 918e12, 1640e9, 400e9, 4, tuple(_PLANE.split())),
    "h100": Chip("NVIDIA H100", "gpu", 80e9, 989e12, 3350e9, 450e9, 8, tuple(_NODES.split())),
    "h200": Chip("NVIDIA H200", "gpu", 141e9, 989e12, 4800e9, 450e9, 8, tuple(_NODES.split())),
}
GPUS = tuple(kind for kind, chip in CHIPS.items() if chip.platform == "gpu")


class Slice(NamedTuple):
    """A slice of chips of one kind; `shape` is `8x8` for TPUs, or a number of GPUs."""

    kind: str
    shape: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def name(self) -> str:
        """The slice's name in `plan.topology`: v5e:8x8, h100x8."""
        return f"{self.kind}{'x' if self.chip.platform == 'gpu' else ':'}{self.shape}"

    @property
    def host(self) -> int:
        return min(self.chip.host, self.chips)

    @property
    def usable(self) -> float:
        """Bytes of a chip that a program may use: 90 % of a GPU, as launch/gpu.sh sets it."""
        return self.chip.memory * (0.9 if self.chip.platform == "gpu" else 1.0)


def slices(topology: str) -> list[Slice]:
    """The slices that an item of `plan.topology` names, from the smallest.

    `v5e:8x8` and `h100x8` are one slice, `v5e` or `h200` all of that kind, `gpu` all H100 and H200.

    Raises:
        ValueError: there is no such kind or shape; lists those that exist.
    """
    if topology == "gpu":
        return [each for kind in GPUS for each in slices(kind)]
    match = re.fullmatch(r"(h100|h200)(?:x(.+))?|([^:]+)(?::(.+))?", topology)
    kind, shape = (match[1] or match[3], match[2] or match[4]) if match else (topology, None)
    if kind not in CHIPS:
        raise ValueError(
            f"plan.topology={topology!r}: no such kind of chip; give a slice of TPUs as 'v5e:8x8' "
            f"({', '.join(k for k in CHIPS if k not in GPUS)}), GPUs as 'h100x8' "
            f"({', '.join(GPUS)}), a kind alone for its smallest slice that fits, or 'gpu'"
        )
    known = CHIPS[kind].shapes
    if shape is None:
        return [Slice(kind, each) for each in known]
    if shape not in known:
        raise ValueError(
            f"plan.topology={topology!r}: {CHIPS[kind].name} comes as "
            + ", ".join(Slice(kind, each).name for each in known)
        )
    return [Slice(kind, shape)]
