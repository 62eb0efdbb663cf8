"""Tools of MCP servers (tools.mcp) over stdio or HTTP, with the official Python SDK.

A server is trusted as user code is: a command runs with this process's rights. Its connection is
kept open, and opened anew by the call after one that broke it.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib.util
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from rapo_jax.config import McpSettings
from rapo_jax.io.api_keys import SHOWN_CHARS, mask, mask_keys, read_api_key
from rapo_jax.io.files import Json
from rapo_jax.io.http import proxies_are_used
from rapo_jax.text.protocol import neutralise
from rapo_jax.tools.event_loop import run_async
from rapo_jax.tools.user import UserTool, check_tag

if TYPE_CHECKING:
    import mcp

START_S = 60.0
"""Until a server has started and listed its tools; one may be downloaded first."""
CLOSE_S = 8.0
"""The SDK ends a server's process within 6 s."""
MAX_PAGES = 100
MAX_PURPOSE_CHARS = 300
KEYS = "tools.mcp.servers"


class ToolError(Exception):
    """A call that the tool refuses, with its reason."""


def load_mcp_tools(
    settings: McpSettings, user_tools: Mapping[str, UserTool], *, output_chars: int
) -> dict[str, UserTool]:
    """The tools of all servers by tag: the name of the tool, in small letters.

    Raises:
        ValueError: the SDK is missing, a server does not answer, it has no tool of a name in
            `tools.mcp.tools`, or a name cannot be a tag or is that of another one or of one of
            `user_tools`.
    """
    if not settings.servers:
        return {}
    if importlib.util.find_spec("mcp") is None:
        raise ValueError(f"{KEYS}: the SDK is missing; install it: pip install '.[mcp]'")
    made: dict[str, UserTool] = {}
    names: list[str] = []
    with contextlib.ExitStack() as opened:
        for address in settings.servers:
            server = McpServer(address, settings)
            opened.callback(server.close)
            tools = server.tools()
            names += [tool.name for tool in tools]
            chosen = [each for each in tools if not settings.tools or each.name in settings.tools]
            for tool in chosen:
                tag = re.sub(r"[^a-z0-9_]+", "_", tool.name.lower())
                check_tag(
                    tag,
                    {**user_tools, **made},
                    where=f"tools.mcp of {mask(address)}, tool {tool.name!r}",
                )
                made[tag] = UserTool(
                    tag,
                    server.function(tool),
                    timeout_s=settings.deadline_s,
                    output_chars=output_chars,
                    key="tools.mcp",
                    timeout_key="tools.mcp.deadline_s",
                    close=server.close,
                )
            if not chosen:
                server.close()
        _check_names(settings.tools, names)
        opened.pop_all()
    return made


def _check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raises ValueError for wanted tools that no server has, with the nearest `names` they have."""
    missing = []
    for name in wanted:
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names))
            missing.append(repr(name) + f" (the nearest: {near})" * bool(near))
    if missing:
        raise ValueError(
            f"tools.mcp.tools={tuple(wanted)!r}: no server has {', '.join(missing)}; the servers "
            f"have {', '.join(names) or 'no tools'}"
        )


class McpServer:
    """A server, a command or an address of http; all methods may be called from any thread."""

    def __init__(self, address: str, settings: McpSettings) -> None:
        self._address, self._settings = address, settings
        self._key = read_api_key(settings.key_variable, key="tools.mcp.key_variable")
        self._lock = asyncio.Lock()
        self._connection: _Connection | None = None

    def tools(self) -> list[mcp.types.Tool]:
        """Starts the server; raises ValueError if it does not answer."""
        try:
            return run_async(self._list(), START_S)
        except Exception as error:
            self.close()
            raise ValueError(
                f"{KEYS}={mask(self._address)!r}: the server does not answer ({_reason(error)}); "
                "fix the command or the address"
            ) from None

    def function(self, tool: mcp.types.Tool) -> Callable[[str], str]:
        """The tool as a function of a text, with its purpose as docstring."""
        schema = tool.input_schema

        def call(text: str) -> str:
            arguments = arguments_of(text, schema)
            return run_async(self._call(tool.name, arguments), self._settings.deadline_s + 1.0)

        words = neutralise(" ".join((tool.description or tool.name).split()))[:MAX_PURPOSE_CHARS]
        call.__doc__ = f"{words} Its input: {_form(schema)}."
        return call

    def close(self) -> None:
        with contextlib.suppress(Exception):
            run_async(self._close(), CLOSE_S)

    async def _list(self) -> list[mcp.types.Tool]:
        client = await self._client()
        page = await client.list_tools()
        tools = list(page.tools)
        for _ in range(MAX_PAGES):
            if page.next_cursor is None:
                break
            page = await client.list_tools(cursor=page.next_cursor)
            tools += page.tools
        return tools

    async def _call(self, name: str, arguments: dict[str, Json]) -> str:
        from mcp import MCPError
        from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, REQUEST_TIMEOUT

        client = await self._client()
        connection = self._connection
        try:
            result = await client.call_tool(
                name, arguments, read_timeout_seconds=self._settings.deadline_s
            )
        except Exception as error:
            answered = (INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, REQUEST_TIMEOUT)
            if not isinstance(error, MCPError) or error.code not in answered:
                if connection is not None:
                    connection.leave.set()
            raise ToolError(self._masked(_reason(error))) from error
        texts = [getattr(block, "text", f"[{block.type}]") for block in result.content]
        if not texts and result.structured_content is not None:
            texts = [json.dumps(result.structured_content)]
        text = self._masked("\n".join(texts))
        if result.is_error:
            raise ToolError(text)
        return text

    def _masked(self, text: str) -> str:
        return mask_keys(text, [self._key] if len(self._key) >= SHOWN_CHARS else [])

    async def _client(self) -> mcp.Client:
        async with self._lock:
            if self._connection is None or self._connection.leave.is_set():
                self._connection = _Connection(_open(self._address, self._settings, self._key))
            return await asyncio.shield(self._connection.opened)

    async def _close(self) -> None:
        if self._connection is not None:
            self._connection.leave.set()
            if not self._connection.opened.done():
                self._connection.task.cancel()
            await self._connection.task


class _Connection:
    """A client, opened and closed in one task as the SDK needs it; `leave` ends it."""

    def __init__(self, client: AbstractAsyncContextManager[mcp.Client]) -> None:
        self.opened: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._hold(client))

    async def _hold(self, client: AbstractAsyncContextManager[mcp.Client]) -> None:
        try:
            async with client as opened:
                self.opened.set_result(opened)
                await self.leave.wait()
        except Exception as error:
            if not self.opened.done():
                self.opened.set_exception(error)
        finally:
            self.leave.set()


@asynccontextmanager
async def _open(address: str, settings: McpSettings, key: str) -> AsyncIterator[mcp.Client]:
    """A client of the server. ~/.netrc is not read, and proxies only with RAPO_USE_PROXY=1."""
    import httpx2
    import mcp
    from mcp.client.streamable_http import streamable_http_client

    if not address.startswith(("http://", "https://")):
        command, *arguments = shlex.split(address)
        known = {name: os.environ[name] for name in settings.variables if name in os.environ}
        server = mcp.StdioServerParameters(command=command, args=arguments, env=known)
        async with mcp.Client(server) as client:
            yield client
        return
    async with httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=settings.deadline_s,
        trust_env=proxies_are_used(),
    ) as http:
        async with mcp.Client(streamable_http_client(address, http_client=http)) as client:
            yield client


def arguments_of(text: str, schema: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments of a call: a JSON object of them, or the text of the only (needed) one.

    Raises ToolError, with the form of the input, for any other text.
    """
    properties = schema.get("properties") or {}
    needed = schema.get("required") or []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and set(needed) <= set(value) <= set(properties):
        return value
    single = needed if len(needed) == 1 else list(properties)
    if not properties and not text.strip():
        return {}
    if len(single) != 1:
        raise ToolError(f"the input is {_form(schema)}")
    is_text = properties.get(single[0], {}).get("type", "string") == "string"
    return {single[0]: text if is_text or value is None else value}


def _form(schema: Mapping[str, Json]) -> str:
    """What `arguments_of` takes, in words."""
    properties = schema.get("properties") or {}
    needed = schema.get("required") or []
    if not properties:
        return "none"
    if len(properties) == 1:
        return neutralise(str(next(iter(properties))))
    names = [
        f'"{name}": {each.get("type", "any") if isinstance(each, Mapping) else "any"}'
        + ("" if name in needed else " (optional)")
        for name, each in properties.items()
    ]
    return neutralise(f"a JSON object {{{', '.join(names)}}}")


def _reason(error: BaseException) -> str:
    """The innermost error of a group, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return mask(" ".join(f"{type(error).__name__}: {error}".split()).rstrip(": "))
