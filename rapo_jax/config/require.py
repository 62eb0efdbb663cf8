"""How a value is refused: key, value and remedy in one line."""

from __future__ import annotations

import difflib
from typing import Any

from rapo_jax.config import Settings


def require(holds: bool, key: str, value: Any, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value!r}: {remedy}")


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    require(value in known, key, value, f"expected one of {', '.join(known)}{hint}")


def read(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value
