"""The Python tool: every program ends as an observation, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.config import SANDBOX_LAYERS, ToolsSettings
from rapo_jax.tools import close_tools, make_tools
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.sandbox.pool import python_tool, remedy

OUTPUT_CHARS = 200


@pytest.fixture(scope="module")
def tool():
    python = python_tool(workers=2, timeout_s=10.0, memory_mb=256, output_chars=OUTPUT_CHARS)
    yield python
    python.close()


@pytest.fixture(scope="module")
def hasty():
    python = python_tool(workers=1, timeout_s=0.5, memory_mb=256, output_chars=OUTPUT_CHARS)
    yield python
    python.close()


def run(tool, code: str) -> Observation:
    (observation,) = tool([code])
    return observation


def test_a_program_prints_and_its_last_expression_is_shown_as_in_a_notebook(tool):
    assert run(tool, "print(1 + 1)") == Observation("2", "ok")
    assert run(tool, "x = 3\nprint('a')\nx * 2") == Observation("a\n6", "ok")
    assert run(tool, "x = 3") == Observation("", "ok")
    assert run(tool, "'é'\n") == Observation("'é'", "ok")
    assert run(tool, "None") == Observation("", "ok")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("```python\nx = 3\nx\n```", "3"),
        ("\n```\r\nprint('a')\r\n``` \n", "a"),
        ("```py\nprint('```')\n```", "```"),
        ("print('a')\nexit()\nprint('b')", "a"),
        ("def f():\n    print('a')\n    quit()\n\nf()\nprint('b')", "a"),
        ("print('a')\nexit(0)", "a"),
    ],
)
def test_a_fence_is_taken_off_and_exit_ends_a_program(tool, code, text):
    assert run(tool, code) == Observation(text, "ok")


@pytest.mark.parametrize("code", ["```python\n1", "```\n1\n```\n2", "exit(1)", "exit('no')"])
def test_a_part_of_a_fence_and_a_bad_exit_are_errors(tool, code):
    assert run(tool, code).outcome == "error"


def test_a_batch_is_answered_in_its_order(tool):
    calls = [f"print({i})" for i in range(20)]
    assert tool(calls) == [Observation(str(i), "ok") for i in range(20)]
    assert tool([]) == []


def test_an_empty_program_is_an_error_observation(tool):
    assert tool(["", " \n"]) == [Observation("error: empty program", "empty")] * 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('so far')\n1 / 0", "so far\nline 2: 1 / 0\nZeroDivisionError: division by zero"),
        (
            "def f(x):\n    return 1 / x\n\nf(0)",
            "line 4: f(0)\nline 2, in f: return 1 / x\nZeroDivisionError: division by zero",
        ),
        (
            "import json\njson.loads('}')",
            "line 2: json.loads('}')\n"
            "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        ),
        (
            "def f():\n    f()\nf()",
            "line 3: f()\nline 2, in f: f()\nRecursionError: maximum recursion depth exceeded",
        ),
        ("x = 1\ndef f(:\n  1", "line 2: def f(:\nSyntaxError: invalid syntax"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("s = 'a\u2028b\x0c'\r\n1 / 0", "line 2: 1 / 0\nZeroDivisionError: division by zero"),
        ("raise KeyError('k')", "KeyError: 'k'"),
        ("import sys\nsys.exit(3)", "line 2: sys.exit(3)\nSystemExit: 3"),
        ("input()", "EOFError: EOF when reading a line"),
        ("x = bytearray(1 << 40)", "MemoryError"),
        ("import sys; sys.stdout = None; 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_exception_is_an_error_with_a_short_traceback(tool, code, text):
    assert run(tool, code) == Observation(text, "error")


def test_a_text_that_is_no_program_is_an_error(tool):
    assert [observed.outcome for observed in tool(["\x00", "\ud800", "(" * 5000])] == ["error"] * 3


def test_too_much_output_is_cut_and_marked(tool):
    observed = run(tool, "print('é' * 100_000)")
    assert observed == Observation("é" * OUTPUT_CHARS + " ...", "flooded")
    assert run(tool, "while True: print('x')").outcome == "flooded"
    assert run(tool, f"print('é' * {OUTPUT_CHARS})") == Observation("é" * OUTPUT_CHARS, "ok")


def test_a_program_without_end_times_out_even_with_its_output_closed(hasty):
    assert run(hasty, "while True: pass") == Observation(
        "timeout: the program ran longer than 0.5 s", "timeout"
    )
    closed = "import os\nos.close(1); os.close(2)\nwhile True: pass"
    assert run(hasty, closed).outcome == "timeout"


def test_a_program_killed_by_a_signal_is_a_crash(tool):
    observed = run(tool, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert observed == Observation("error: the program was killed", "crashed")


def test_no_program_sees_files_modules_or_names_of_another_one(tool):
    for _ in range(3):
        assert run(tool, "import os\nos.listdir('.')") == Observation("[]", "ok")
        assert run(tool, "open('a', 'w').write('b')") == Observation("1", "ok")
        assert run(tool, "import math\nmath.pi = leak = 3") == Observation("", "ok")
        assert run(tool, "import math\nprint(math.pi > 3)\nleak").text.endswith("not defined")


def test_the_same_program_prints_the_same_each_time(tool):
    code = "import random\nprint(random.random(), {'a', 'b', 'c', 'd'})"
    assert len(set(tool([code] * 6))) == 1


def test_a_program_has_no_environment_no_children_and_no_big_files(tool):
    assert run(tool, "import os\nlen(os.environ)") == Observation("0", "ok")
    big = run(tool, "open('a', 'w').write('x' * (2 << 20))")
    assert big == Observation("OSError: [Errno 27] File too large", "error")
    if not {"NPROC", "seccomp"} <= set(tool.missing_layers):
        assert run(tool, "import os\nos.fork()").outcome == "error"


def test_a_program_reaches_no_network_and_no_files_of_ours(tool, tmp_path):
    connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"
    assert run(tool, connect).outcome == "error"
    if not {"mount", "filesystem"} & set(tool.missing_layers):
        secret = tmp_path / "secret"
        secret.write_text("s")
        assert run(tool, f"open({str(secret)!r}).read()").text.startswith("FileNotFoundError")


def test_asyncio_sqlite_and_temporary_files_work_as_anywhere(tool):
    code = """
import asyncio, sqlite3, tempfile
async def wait():
    await asyncio.sleep(0.01)
    return 5
with tempfile.TemporaryFile() as file:
    file.write(b'abc')
(asyncio.run(wait()), sqlite3.connect('a.db').execute('select 1 + 1').fetchone())
"""
    assert run(tool, code) == Observation("(5, (2,))", "ok")


def test_an_installed_numpy_can_be_imported_and_nothing_else_that_is_installed(tool):
    if "filesystem" not in tool.missing_layers:
        code = "import numpy as np\nfloat(np.ones((3, 3)).sum())"
        assert tool([code] * 3) == [Observation("9.0", "ok")] * 3
        assert run(tool, "import pytest").text == "ModuleNotFoundError: No module named 'pytest'"
        folders = "import os\nsorted(os.listdir('/packages'))"
        assert "pytest" not in run(tool, folders).text


def test_no_observation_names_a_folder_of_the_machine(tool):
    observed = run(tool, "from math import nothing")
    assert observed.outcome == "error" and os.path.dirname(os.__file__) not in observed.text
    assert observed.text.startswith("ImportError: cannot import name 'nothing' from 'math'")


PLACES = """
import sys
print(sys.argv, sys.orig_argv, sys.executable, sys._base_executable)
print([getattr(module, "__file__", None) for module in sys.modules.values()])
frame = sys._getframe()
while frame:
    print(frame.f_code.co_filename, "settings" in frame.f_locals)
    frame = frame.f_back
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/cwd"), reason="no /proc")
def test_no_program_learns_its_command_line_where_the_package_lies_or_its_limits():
    tool = python_tool(workers=1, timeout_s=10.0, memory_mb=256, output_chars=20_000)
    text = run(tool, PLACES).text
    tool.close()
    assert text.splitlines()[0] == "[''] ['']  "
    hidden = (str(Path(__file__).parents[3]), sys.executable, "python_tool_", "memory_mb", "True")
    assert [each for each in hidden if each in text] == []


def test_a_layer_that_is_required_and_missing_is_fatal():
    limits = {"workers": 1, "timeout_s": 10.0, "memory_mb": 256, "output_chars": 100}
    tool = python_tool(**limits)
    missing = tool.missing_layers
    tool.close()
    present = [layer for layer in SANDBOX_LAYERS if layer not in missing]
    python_tool(**limits, require=present).close()
    for layer in missing:
        with pytest.raises(ValueError, match=rf"tools\.python\.require.*lacks {layer}"):
            python_tool(**limits, require=(layer,))
    with pytest.raises(ValueError, match=r"tools\.python\.require=\('moat',\): this machine lacks"):
        python_tool(**limits, require=("moat",))


def test_a_missing_layer_has_advice():
    assert "pyseccomp" in remedy(["seccomp"])
    assert "kernel" in remedy(["landlock"])
    assert "namespaces" in remedy(["pid", "seccomp"])


def test_a_killed_pool_leaves_no_process_and_no_folder(tmp_path):
    program = (
        "from rapo_jax.tools.sandbox.pool import python_tool\n"
        "tool = python_tool(workers=2, timeout_s=60.0, memory_mb=256, output_chars=100)\n"
        "print(tool.process_ids(), '|', ' '.join(tool.missing_layers), flush=True)\n"
        "tool(['while True: pass'] * 2)"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
    )
    line = host.stdout.readline()
    workers, missing = json.loads(line.partition("|")[0]), line.partition("|")[2].split()
    host.kill()
    host.communicate()
    folders = [] if {"mount", "pid"} & set(missing) else list(tmp_path.iterdir())
    left = [Path(f"/proc/{pid}") for pid in workers] + folders
    deadline = time.monotonic() + 10
    while any(path.exists() for path in left) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path for path in left if path.exists()] == []


def test_a_pool_without_workers_time_or_memory_is_refused():
    with pytest.raises(ValueError, match=r"tools\.workers=0"):
        python_tool(workers=0, timeout_s=1.0, memory_mb=256, output_chars=100)


def test_the_tools_are_named_after_their_tags():
    def encode(texts):
        return np.ones((len(texts), 1), np.float32)

    settings = ToolsSettings(passages=1, workers=1, timeout_s=10.0)
    tools = make_tools(settings, documents=["the only passage"], encode=encode)
    assert tools["search"](["any"]) == [Observation("the only passage", "ok")]
    assert tools["python"](["2 ** 5"]) == [Observation("32", "ok")]
    close_tools(tools)
    assert set(tools) == {"search", "python"}
