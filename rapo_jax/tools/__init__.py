"""Makes the tools of the agent: a Python sandbox, a search for passages, and user tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rapo_jax.config import SearchSettings
from rapo_jax.search.index.search import open_index
from rapo_jax.search.passages import Fits
from rapo_jax.tools.observation import Tool
from rapo_jax.tools.sandbox.pool import python_tool
from rapo_jax.tools.search import index_search, local_search
from rapo_jax.tools.search_apis import APIS
from rapo_jax.tools.search_client import HttpSearch

SEARCHES = ("local", *APIS)
"""Values of tools.search.kind: 'local' searches the documents of the task or an index on disk, the
others are services over HTTP."""


def make_tools(
    *,
    documents: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    passages: int,
    workers: int,
    timeout_s: float,
    memory_mb: int,
    output_chars: int,
    require: Sequence[str] = (),
    search: SearchSettings | None = None,
    fits: Fits = lambda text: True,
    user_tools: Mapping[str, Tool] | None = None,
) -> dict[str, Tool]:
    """The tools by the name of their tag: `search`, `python`, and `user_tools`.

    Args:
        documents, encode: of the local search, see `local_search`.
        passages: hits of a query.
        workers, timeout_s, memory_mb, output_chars, require: of the sandbox, see `python_tool`.
        search: where to search; None in the documents.
        fits: whether an observation of an index or a service has room, see `render_passages`.
        user_tools: one named search or python replaces the built-in tool, which is not made.

    Raises:
        ValueError: a setting is wrong, or a retrieval server does not answer.
    """
    others = dict(user_tools or {})
    searching = others.pop("search", None)
    if searching is None:
        searching = _make_search(search, documents, encode, passages, fits)
    python = others.pop("python", None)
    if python is None:
        python = python_tool(
            workers=workers,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            output_chars=output_chars,
            require=require,
        )
    return {"search": searching, "python": python, **others}


def _make_search(
    settings: SearchSettings | None,
    documents: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    passages: int,
    fits: Fits,
) -> Tool:
    if settings is not None and settings.index:
        return index_search(open_index(settings.index), passages=passages, fits=fits)
    if settings is None or settings.kind == "local":
        return local_search(documents, encode, passages=passages)
    tool = HttpSearch(settings, passages=passages, fits=fits)
    if settings.kind == "retrieval":
        tool.check()
    return tool


def close_tools(tools: Mapping[str, Tool]) -> None:
    """Ends the processes and connections of the tools that have a `close`."""
    for tool in tools.values():
        close = getattr(tool, "close", None)
        if close is not None:
            close()
