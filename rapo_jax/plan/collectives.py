"""Counts the bytes that a compiled program sends between chips, from its HLO text.

The body of a loop counts once for each iteration. XLA notes the number of iterations where it knows
it. For TPUs it is read from the loop's condition, which compares a counter with a constant; the
condition may have another reason to end, so this is the largest possible number. Otherwise the
caller's number is used.
"""

from __future__ import annotations

import functools
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
"""(bytes of the result on one chip, chips of a group) -> bytes that each chip sends in a ring."""

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
    """One function of an HLO module."""

    sent: Counter[str]
    """Bytes sent by collectives in the function itself, by kind."""
    calls: list[tuple[str, int | str]]
    """Called functions: how often, or the name of a loop's condition that says so."""
    branches: list[list[str]]
    """The branches of each conditional; the costliest one counts."""
    constants: dict[str, int]
    limits: list[int]
    """Constants of `less than` comparisons: in a loop's condition, the number of iterations."""


def bytes_of(shape: str) -> float:
    """Bytes of an HLO shape; for a tuple, the sum."""
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * BITS[dtype] / 8
        for dtype, sides in _ARRAY.findall(shape)
        if dtype in BITS
    )


def collective_bytes(hlo: str, *, devices: int, unknown_trips: int) -> Counter[str]:
    """Bytes that each chip sends in one call of a program, by kind of collective.

    Args:
        devices: chips of the program, for collectives that name no groups.
        unknown_trips: iterations of a loop for which HLO does not give them.
    """
    computations, entry = _read(hlo, devices)

    @functools.cache
    def total(name: str) -> Counter[str]:
        here = computations[name]
        result = Counter(here.sent)
        for called, times in here.calls:
            if isinstance(times, str):
                limits = computations[times].limits if times in computations else []
                times = limits[0] if limits else unknown_trips
            for kind, sent in total(called).items():
                result[kind] += times * sent
        for branches in here.branches:
            result.update(max(map(total, branches), key=lambda sent: sum(sent.values())))
        return result

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
    for name, computation in computations.items():
        if name.startswith("all-reduce-scatter"):  # TPUs: each chip keeps only its part of the sum
            sent = computation.sent
            sent["reduce-scatter"] += sent.pop("all-reduce", 0) // 2
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
        paired = code.endswith("-start") and shape.startswith("(") and kind != "all-reduce"
        size = bytes_of(_result(shape) if paired else shape)
        here.sent[kind] += round(SENT[kind](size, _group(line, devices)))
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


def _result(started: str) -> str:
    """The result in (operand, result, …); of several arrays, both are tuples."""
    parts = re.findall(r"\([^()]*\)|\w+\[[\d,]*\]", re.sub(r"\{[^}]*\}", "", started)[1:-1])
    return parts[1] if len(parts) > 1 else started


def _group(line: str, devices: int) -> int:
    """The number of chips in a group of a collective."""
    listed, iota = _GROUPS.search(line), _IOTA.search(line)
    if iota:
        return int(iota[1])
    if axes := _AXES.search(line):  # mesh['a'=16,'b'=4] {'b'}: groups along b
        sides = dict(side.split("=") for side in axes[1].split(","))
        return math.prod(int(sides[name]) for name in axes[2].split(","))
    if listed and listed[1]:
        return listed[1].count(",") + 1
    return devices
