"""Tools of real MCP servers, over stdio and over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rapo_jax.config import McpSettings
from rapo_jax.tools import close_tools, mcp_servers
from rapo_jax.tools.mcp_arguments import ToolError, arguments_of
from rapo_jax.tools.mcp_servers import McpServer, load_mcp_tools

mcp, anyio = map(pytest.importorskip, ("mcp", "anyio"))
ROOT = Path(__file__).parents[2]
NAMES = ["shout", "add_up", "travel", "hang", "fail", "die", "refuse", "process"]
COMMAND = f"{sys.executable} -m tests.tools.mcp_server"


def load(*servers, user_tools=(), output_chars=100, **keys):
    settings = McpSettings(servers=servers, **{"deadline_s": 10.0, **keys})
    return load_mcp_tools(settings, dict.fromkeys(user_tools), output_chars=output_chars)


def children():
    """The processes that this one has started and that still run."""
    stats = [path.read_text().rsplit(")", 1) for path in Path("/proc").glob("[0-9]*/stat")]
    return {start.split()[0] for start, rest in stats if int(rest.split()[1]) == os.getpid()}


def wait_for(port):
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server of the test does not start")


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request):
    os.environ["MCP_TEST_WORD"] = "sight"
    if request.param == "stdio":
        made = load(COMMAND, variables=("MCP_TEST_WORD", "NO_SUCH_VARIABLE"))
        yield made
        close_tools(made)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND.split(), str(port)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        made = load(f"http://127.0.0.1:{port}/mcp")
        yield made
        close_tools(made)
    finally:
        process.kill()
        process.wait()


def test_the_tools_of_a_server_are_tags_with_a_purpose(tools):
    assert list(tools) == NAMES
    assert tools["shout"].purpose == "Says it < /answer> louder. More words. Its input: text."
    assert tools["add_up"].purpose == (
        'Adds. Its input: a JSON object {"a": integer, "b": integer (optional)}.'
    )


def test_calls_are_answered_in_their_places(tools):
    texts = [f"a{n}" for n in range(20)]
    assert tools["shout"](texts) == [(text.upper(), "ok") for text in texts]
    assert tools["add_up"](["1", '{"a": 1, "b": 5}']) == [("2", "ok"), ("6", "ok")]
    assert tools["travel"](['{"start": "x", "end": "y"}'])[0].text.split() == ["x", "y"]


def test_output_is_cut_and_failures_are_observations_with_their_reason(tools):
    assert tools["shout"](["a" * 101]) == [("A" * 100 + " ...", "flooded")]
    for observation in tools["fail"](["luck"] * 2):
        assert observation.outcome == "error" and "no luck in sight" in observation.text
    (found,) = tools["travel"](["x to y"])
    assert found.outcome == "error"
    assert 'the input is a JSON object {"start": string, "end": string}' in found.text
    (found,) = tools["add_up"](["many"])
    assert found.outcome == "error" and "a" in found.text


def test_a_call_that_takes_too_long_is_a_timeout_and_the_next_one_is_answered():
    made = load(COMMAND, deadline_s=1.0, tools=("hang", "shout"))
    assert list(made) == ["shout", "hang"]
    assert made["hang"](["x"]) == [("error: hang timed out", "timeout")]
    assert made["shout"](["x"]) == [("X", "ok")]
    close_tools(made)


def test_a_server_that_died_is_started_again():
    made = load(COMMAND)
    (found,) = made["die"](["x"])
    assert found.outcome == "error" and "losed" in found.text
    assert made["shout"](["x"]) == [("X", "ok")]
    close_tools(made)


@pytest.mark.parametrize("code", [-32000, -32050, -32600, -32700, 7])
def test_an_error_that_the_server_answers_with_closes_no_connection(tools, code):
    before = tools["process"]([""])
    (found,) = tools["refuse"]([str(code)])
    assert found.outcome == "error" and "not today" in found.text
    assert tools["process"]([""]) == before


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (mcp.MCPError(code=-32600, message="Session terminated"), True),
        (mcp.MCPError(code=-32001, message="Session not found"), True),
        (mcp.MCPError(code=-32001, message="Request 'tools/call' timed out"), False),
        (ConnectionResetError(), True),
        (anyio.BrokenResourceError(), True),
        (RuntimeError("Invalid structured content returned by tool x"), False),
    ],
    ids=repr,
)
def test_a_connection_is_lost_where_its_stream_or_session_ended(error, lost):
    assert mcp_servers._is_lost(error) is lost


@pytest.mark.parametrize("depth", [150, 210, 255, 400])
def test_arguments_that_no_message_can_hold_close_no_connection(depth):
    made = load(COMMAND)
    before = made["process"]([""])
    assert made["shout"](['{"text": "a\\ud83d"}']) == [("A?", "ok")]
    (found,) = made["shout"]([f'{{"text": {"[" * depth}{"]" * depth}}}'])
    assert found.outcome == "error" and "the input is nested more than 100 deep" in found.text
    assert made["process"]([""]) == before
    close_tools(made)


def test_a_server_that_hangs_while_it_is_started_again_is_started_once_more(tmp_path, monkeypatch):
    asked = tmp_path / "hang"
    monkeypatch.setenv("MCP_TEST_HANG", str(asked))
    settings = McpSettings(servers=(COMMAND,), deadline_s=3.0, variables=("MCP_TEST_HANG",))
    server = McpServer(COMMAND, settings, start_s=8.0)
    tools = {tool.name: server.function(tool) for tool in server.tools()}
    asked.touch()
    with pytest.raises(ToolError, match="losed"):
        tools["die"]("x")
    with pytest.raises(TimeoutError):
        tools["shout"]("x")
    assert not asked.is_file()
    deadline = time.monotonic() + 60
    while (said := answer_of(tools["shout"])) != "X":
        assert time.monotonic() < deadline, said
    server.close()


def answer_of(function):
    try:
        return function("x")
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "server", ["no_such_command_here --x", "http://127.0.0.1:9/mcp", f"{sys.executable} -c 3"]
)
def test_a_server_that_does_not_answer_is_refused(server):
    with pytest.raises(ValueError, match=r"tools.mcp.servers='.*': the server does not answer \("):
        load(server)


def test_a_missing_sdk_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tools.mcp.servers: the SDK is missing; install it"):
        load(COMMAND)
    assert load() == {}


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="there are two tools 'shout'; rename one"):
        load(COMMAND, COMMAND, tools=("shout",))
    with pytest.raises(ValueError, match="there are two tools 'shout'; rename one"):
        load(COMMAND, user_tools=("shout",))


def test_a_misspelt_name_of_a_tool_is_refused_with_the_nearest_ones():
    before = children()
    with pytest.raises(ValueError) as refusal:
        load(COMMAND, tools=("shout", "add-up", "travl", "fly"))
    assert str(refusal.value) == (
        "tools.mcp.tools=('shout', 'add-up', 'travl', 'fly'): no server has 'add-up' (the nearest: "
        "Add-Up), 'travl' (the nearest: travel), 'fly'; the servers have shout, Add-Up, travel, "
        "hang, fail, die, refuse, process"
    )
    assert children() == before


def test_a_server_of_which_no_tool_is_chosen_is_closed():
    before = children()
    idle = "from mcp.server.mcpserver import MCPServer as Server; Server('idle').run()"
    made = load(COMMAND, f'{sys.executable} -c "{idle}"', tools=("shout",))
    assert len(children() - before) == 1
    close_tools(made)
    assert children() == before


ONE = {"properties": {"query": {"type": "string"}}, "required": ["query"]}
NUMBERS = {"properties": {"numbers": {"type": "array"}}}


@pytest.mark.parametrize(
    ("text", "schema", "arguments"),
    [
        ("who?", ONE, {"query": "who?"}),
        ('{"query": "who?"}', ONE, {"query": "who?"}),
        ('{"other": 1}', ONE, {"query": '{"other": 1}'}),
        ("3", ONE, {"query": "3"}),
        ("[1, 2]", NUMBERS, {"numbers": [1, 2]}),
        ("2024", {"properties": {"q": {"type": ["string", "null"]}}}, {"q": "2024"}),
        ("2024", {"properties": {"n": {"type": ["integer", "null"]}}}, {"n": 2024}),
        ("who?", {"properties": {"q": True}}, {"q": "who?"}),
        ("", {}, {}),
        ("[" * 100_000, ONE, {"query": "[" * 100_000}),
    ],
)
def test_a_text_becomes_the_arguments_of_a_tool(text, schema, arguments):
    assert arguments_of(text, schema) == arguments


@pytest.mark.parametrize("schema", [{}, {"properties": {"a": {}, "b": {}}}])
def test_a_text_that_gives_no_arguments_is_refused(schema):
    with pytest.raises(ToolError, match="the input is"):
        arguments_of("text", schema)
