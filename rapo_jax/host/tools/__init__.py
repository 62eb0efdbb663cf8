"""The tools of the agent: a Python sandbox and a search over passages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rapo_jax.host.tools.observation import Observation, Tool
from rapo_jax.host.tools.python import PythonTool, python_tool
from rapo_jax.host.tools.search import local_search

__all__ = [
    "Observation",
    "PythonTool",
    "Tool",
    "close_tools",
    "local_search",
    "make_tools",
    "python_tool",
]


def make_tools(
    *,
    documents: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    passages: int,
    workers: int,
    timeout_s: float,
    memory_mb: int,
    output_chars: int,
) -> dict[str, Tool]:
    """The tools by the name of their tag: `search` over the documents, and `python`."""
    search = local_search(documents, encode, passages=passages)
    python = python_tool(
        workers=workers,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
        output_chars=output_chars,
    )
    return {"search": search, "python": python}


def close_tools(tools: Mapping[str, Tool]) -> None:
    """Ends the processes behind the tools; a tool without any has no `close`."""
    for tool in tools.values():
        close = getattr(tool, "close", None)
        if close is not None:
            close()
