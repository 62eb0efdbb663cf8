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
from rapo_jax.io.api_keys import KEY_CHARS, mask, mask_keys, read_api_key
from rapo_jax.io.files import Json
from rapo_jax.io.http import proxies_are_used
from rapo_jax.text.protocol import neutralise
from rapo_jax.tools.event_loop import run_async
from rapo_jax.tools.mcp_arguments import ToolError, arguments_of, form
from rapo_jax.tools.user import UserTool, check_tag

if TYPE_CHECKING:
    import mcp

START_S = 60.0
"""Until a server has started and listed its tools; one may be downloaded first."""
CLOSE_S = 8.0
"""The SDK ends a server's process within 6 s."""
LOST = ("connection closed", "session terminated", "session not found")
"""What the SDK, and servers of HTTP, say of a connection or session that is no more. Their codes do
not tell: servers give the SDK's for a closed connection, -32000, to any error of a call."""
MAX_PAGES = 100
MAX_PURPOSE_CHARS = 300
KEYS = "tools.mcp.servers"


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

    def __init__(self, address: str, settings: McpSettings, *, start_s: float = START_S) -> None:
        self._address, self._settings, self._start_s = address, settings, start_s
        self._key = read_api_key(settings.key_variable, key="tools.mcp.key_variable")
        self._lock = asyncio.Lock()
        self._connection: _Connection | None = None

    def tools(self) -> list[mcp.types.Tool]:
        """Starts the server; raises ValueError if it does not answer."""
        try:
            return run_async(self._list(), self._start_s)
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
        call.__doc__ = f"{words} Its input: {form(schema)}."
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
        client = await self._client()
        connection = self._connection
        try:
            result = await client.call_tool(
                name, arguments, read_timeout_seconds=self._settings.deadline_s
            )
        except Exception as error:
            if connection is not None and _is_lost(error):
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
        return mask_keys(text, [self._key] if len(self._key) >= KEY_CHARS else [])

    async def _client(self) -> mcp.Client:
        async with self._lock:
            if self._connection is None or self._connection.leave.is_set():
                client = _open(self._address, self._settings, self._key)
                self._connection = _Connection(client, start_s=self._start_s)
            return await asyncio.shield(self._connection.opened)

    async def _close(self) -> None:
        if self._connection is not None:
            self._connection.leave.set()
            if not self._connection.opened.done():
                self._connection.task.cancel()
            await self._connection.task


class _Connection:
    """A client, opened and closed in one task as the SDK needs it; `leave` ends it.

    A client that is not open after `start_s` has failed: a call may then open another one.
    """

    def __init__(self, client: AbstractAsyncContextManager[mcp.Client], *, start_s: float) -> None:
        self.opened: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._hold(client, start_s))

    async def _hold(self, client: AbstractAsyncContextManager[mcp.Client], start_s: float) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(start_s):
                    opened = await stack.enter_async_context(client)
                self.opened.set_result(opened)
                await self.leave.wait()
        except Exception as error:
            if not self.opened.done():
                self.opened.set_exception(error)
        finally:
            self.leave.set()


def _is_lost(error: Exception) -> bool:
    """Whether an error of a call ends the connection, which all rows have in common.

    Any other error is the call's own, such as one that a row's arguments cause.
    """
    import anyio
    from mcp import MCPError

    if isinstance(error, MCPError):
        return error.message.lower() in LOST
    return isinstance(error, OSError | anyio.BrokenResourceError | anyio.ClosedResourceError)


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


def _reason(error: BaseException) -> str:
    """The innermost error of a group, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return mask(" ".join(f"{type(error).__name__}: {error}".split()).rstrip(": "))
