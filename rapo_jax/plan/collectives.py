"""Bytes that a compiled program sends between chips, read off its HLO text.

A loop counts by its trips, which XLA notes where it knows them, and which for TPUs stand in its
condition: a counter less than a constant, there perhaps with another reason to end, so that it is
the most turns. A loop of unknown length counts as often as the caller says.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

BITS = {"pred": 8, "s8": 8, "u8": 8, "f8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
        "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "s4": 4,
        "u4": 4}  # fmt: skip

SENT: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, _: size,
}
"""(bytes of one chip's result, chips of a group) -> bytes that each chip sends around a ring."""

_NAME = r"%?([\w.\-]+)"
_HEADER = re.compile(rf"^(ENTRY )?{_NAME} \(.*\) -> .* \{{")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")
_OPERATION = re.compile(r" = (.+?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(rf"\b(?:calls|to_apply|called_computation)={_NAME}")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_EITHER = re.compile(rf"\b(?:true|false)_computation={_NAME}")
_BODY = re.compile(rf"\bbody={_NAME}")
_CONDITION = re.compile(rf"\bcondition={_NAME}")
_NUMBER = re.compile(rf"^ *{_NAME} = [su]\d+\[\](?:\{{[^}}]*\}})? constant\((\d+)\)")
_LIMIT = re.compile(rf"^ .* compare\([^,]*, (?:[^%)]* )?{_NAME}\), direction=LT")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_GROUPS = re.compile(r"\breplica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"\breplica_groups=\[\d+,(\d+)\]")
_AXES = re.compile(r"\breplica_groups=mesh\[([^\]]*)\][^{]* \{([^}]*)\}")


class Computation(NamedTuple):
    own: Counter[str]
    """Bytes sent by its own collectives, by kind."""
    calls: list[tuple[str, int | str]]
    """Computations it calls, and how often; of a loop perhaps the name of its condition."""
    branches: list[list[str]]
    """Of each conditional, of which the costliest branch counts."""
    constants: dict[str, int]
    limits: list[int]
    """Constants that it asks a number to be less than: of a loop's condition, the most turns."""


def bytes_of(shape: str) -> float:
    """Bytes of an HLO shape; a tuple's are the sum."""
    total = 0.0
    for dtype, sides in _ARRAY.findall(shape):
        if dtype in BITS:
            size = 1
            for side in filter(None, sides.split(",")):
                size *= int(side)
            total += size * BITS[dtype] / 8
    return total


def collective_bytes(hlo: str, *, devices: int, unknown_trips: int) -> Counter[str]:
    """Bytes that each chip sends in one call of a program, by kind of collective."""
    computations, entry = _read(hlo, devices)

    def total(name: str) -> Counter[str]:
        if name not in known:
            here = computations[name]
            known[name] = Counter(here.own)
            for called, times in here.calls:
                if isinstance(times, str):
                    limits = computations[times].limits if times in computations else []
                    times = limits[0] if limits else unknown_trips
                for kind, sent in total(called).items():
                    known[name][kind] += times * sent
            for branches in here.branches:
                known[name].update(max(map(total, branches), key=lambda sent: sum(sent.values())))
        return known[name]

    known: dict[str, Counter[str]] = {}
    return total(entry)


def _read(hlo: str, devices: int) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, here = "", None
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            here = computations[header[2]] = Computation(Counter(), [], [], {}, [])
            entry = header[2] if header[1] else entry
        elif here is not None:
            _read_operation(here, line, devices)
    for name, found in computations.items():
        if name.startswith("all-reduce-scatter"):  # TPUs: each chip keeps its part of the sum alone
            found.own["reduce-scatter"] += found.own.pop("all-reduce", 0) // 2
    if not entry:
        raise ValueError("no ENTRY computation in the HLO text")
    return computations, entry


def _read_operation(here: Computation, line: str, devices: int) -> None:
    number, limit = _NUMBER.match(line), _LIMIT.match(line)
    if number:
        here.constants[number[1]] = int(number[2])
    elif limit and limit[1] in here.constants:
        here.limits.append(here.constants[limit[1]])
    operation = _OPERATION.search(line)
    if not operation:
        return
    shape, code = operation.groups()
    kind = code.removesuffix("-start")
    if kind in SENT:
        # -start gives (operand, result, …) or, of an all-reduce, the result alone.
        sizes = [bytes_of(part) for part in re.findall(r"[a-z]+\d*\w*\[[\d,]*\]", shape)]
        paired = code.endswith("-start") and shape.startswith("(") and kind != "all-reduce"
        size = (sizes[1] if len(sizes) > 1 else sum(sizes)) if paired else sum(sizes)
        here.own[kind] += round(SENT[kind](size, _group(line, devices)))
        return
    if code == "while":
        trips, body, condition = (p.search(line) for p in (_TRIPS, _BODY, _CONDITION))
        if body and condition:
            here.calls.append((body[1], int(trips[1]) if trips else condition[1]))
        return
    if code == "conditional":
        listed = _BRANCHES.search(line)
        names = re.findall(_NAME, listed[1]) if listed else _EITHER.findall(line)
        here.branches.append(names)
        return
    here.calls.extend((name, 1) for name in _CALLED.findall(line))


def _group(line: str, devices: int) -> int:
    listed, iota = _GROUPS.search(line), _IOTA.search(line)
    if iota:
        return int(iota[1])
    if axes := _AXES.search(line):  # mesh['a'=16,'b'=4] {'b'}: groups along b
        sides = dict(side.split("=") for side in axes[1].split(","))
        return math.prod(int(sides[name]) for name in axes[2].split(","))
    if listed and listed[1]:
        return listed[1].count(",") + 1
    return devices
