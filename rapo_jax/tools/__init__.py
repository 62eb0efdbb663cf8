"""The tools of the agent: a Python sandbox, a search over passages, and own ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rapo_jax.config import SearchSettings
from rapo_jax.tools.observation import Observation, Tool
from rapo_jax.tools.sandbox.pool import PythonTool, python_tool
from rapo_jax.tools.search import index_search, local_search
from rapo_jax.tools.search_apis import APIS
from rapo_jax.tools.search_client import HttpSearch
from rapo_jax.tools.user import UserTool, load_user_tools

__all__ = [
    "HttpSearch",
    "Observation",
    "UserTool",
    "PythonTool",
    "SEARCHES",
    "Tool",
    "close_tools",
    "local_search",
    "make_tools",
    "load_user_tools",
    "python_tool",
]


SEARCHES = ("local", *APIS)
"""What tools.search.kind may be: the task's own documents or an index on disk, or a service of
APIS over HTTP."""


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
    fits: Callable[[str], bool] = lambda text: True,
    user_tools: Mapping[str, Tool] | None = None,
) -> dict[str, Tool]:
    """The tools by the name of their tag: `search`, `python`, and those of `own`.

    `require` names the layers that the sandbox of `python` must have, see `python_tool`; `search`
    says where to search, None in the documents; `fits` whether an observation from there
    has room in the tape, see `render_passages`. A tool of `own` named search or python takes the
    place of the built-in one, which is not made. Raises ValueError if a service is set up wrongly
    or a retrieval server does not answer.
    """
    found = dict(user_tools or {})
    searching = found.pop("search", None)
    if searching is None:
        searching = _make_search(search, documents, encode, passages, fits)
    python = found.pop("python", None)
    if python is None:
        python = python_tool(
            workers=workers,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            output_chars=output_chars,
            require=require,
        )
    return {"search": searching, "python": python, **found}


def _make_search(
    settings: SearchSettings | None,
    documents: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    passages: int,
    fits: Callable[[str], bool],
) -> Tool:
    if settings is not None and settings.index:
        from rapo_jax.search.index.search import open_index  # which is made of our own parts

        return index_search(open_index(settings.index), passages=passages, fits=fits)
    if settings is None or settings.kind == "local":
        return local_search(documents, encode, passages=passages)
    tool = HttpSearch(settings, passages=passages, fits=fits)
    if settings.kind == "retrieval":
        tool.check()
    return tool


def close_tools(tools: Mapping[str, Tool]) -> None:
    """Ends the processes behind the tools; a tool without any has no `close`."""
    for tool in tools.values():
        close = getattr(tool, "close", None)
        if close is not None:
            close()
