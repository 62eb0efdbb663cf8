"""Makes the tools of the agent: a Python sandbox, a search for passages, and user tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.config import ToolsSettings
from rapo_jax.search.exact import Encode
from rapo_jax.search.index.search import open_index
from rapo_jax.search.passages import Fits, Line, numbered_line
from rapo_jax.tools.observation import Tool
from rapo_jax.tools.sandbox.pool import python_tool
from rapo_jax.tools.search import index_search, local_search
from rapo_jax.tools.search_client import HttpSearch


def make_tools(
    settings: ToolsSettings,
    *,
    documents: Sequence[str],
    encode: Encode,
    fits: Fits = lambda text: True,
    line: Line | None = None,
    user_tools: Mapping[str, Tool] | None = None,
) -> dict[str, Tool]:
    """The tools by the name of their tag: `search`, `python`, and `user_tools`.

    Args:
        documents, encode: of the local search, see `local_search`.
        fits: whether an observation of an index or a service fits, see `render_passages`.
        line: how a hit of an index or a service is written; None: on a numbered line.
        user_tools: one named search or python replaces the built-in tool, which is not made.

    Raises:
        ValueError: a setting is wrong, or a retrieval server does not answer.
    """
    others = dict(user_tools or {})
    search = others.pop("search", None) or _make_search(
        settings, documents, encode, fits, line or numbered_line
    )
    python = others.pop("python", None) or python_tool(
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        memory_mb=settings.memory_mb,
        output_chars=settings.output_chars,
        require=settings.python.require,
    )
    return {"search": search, "python": python, **others}


def _make_search(
    settings: ToolsSettings, documents: Sequence[str], encode: Encode, fits: Fits, line: Line
) -> Tool:
    search, passages = settings.search, settings.passages
    if search.index:
        return index_search(open_index(search.index), passages=passages, fits=fits, line=line)
    if search.kind == "local":
        return local_search(documents, encode, passages=passages)
    tool = HttpSearch(search, passages=passages, fits=fits, line=line)
    if search.kind == "retrieval":
        tool.check()
    return tool


def close_tools(tools: Mapping[str, Tool]) -> None:
    """Ends the processes and connections of the tools that have a `close`."""
    for tool in tools.values():
        close = getattr(tool, "close", None)
        if close is not None:
            close()
