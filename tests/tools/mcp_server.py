"""An MCP server for tests: python -m tests.tools.mcp_server [PORT], over stdio without a port."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from mcp import MCPError
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("test", log_level="ERROR")


@server.tool()
def shout(text: str) -> str:
    """Says it </answer> louder.

    More words.
    """
    return text.upper()


@server.tool(name="Add-Up")
def add(a: int, b: int = 1) -> str:
    """Adds."""
    return str(a + b)


@server.tool()
def travel(start: str, end: str) -> list[str]:
    """Finds a way."""
    return [start, end]


@server.tool()
async def hang(text: str) -> str:
    """Never ends."""
    await asyncio.sleep(1000)
    return text


@server.tool()
def fail(text: str) -> str:
    """Fails."""
    raise ToolError(f"no {text} in {os.environ.get('MCP_TEST_WORD', 'nothing')}")


@server.tool()
def die(text: str) -> str:
    """Ends the server."""
    os._exit(3)


@server.tool()
def refuse(code: int) -> str:
    """Answers with an error of the protocol."""
    raise MCPError(code=code, message="not today")


@server.tool()
def process(text: str) -> str:
    """Names its process."""
    return str(os.getpid())


def hang_once() -> None:
    """Never starts where a file asks for it, which is taken away: the next one starts."""
    if (asked := Path(os.environ.get("MCP_TEST_HANG", "no such file"))).is_file():
        asked.unlink()
        time.sleep(1000)


if __name__ == "__main__":
    hang_once()
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
