"""No state passes from one call of the Python tool to the next."""

from __future__ import annotations

import os

import pytest

from rapo_jax.tools.observation import Observation
from rapo_jax.tools.sandbox.pool import python_tool


@pytest.fixture(scope="module")
def tool():
    python = python_tool(workers=1, timeout_s=1.0, memory_mb=128, output_chars=300)
    yield python
    python.close()


def run(tool, code: str) -> Observation:
    (observation,) = tool([code])
    return observation


TRACES = {
    "a file": ("open('note', 'w').write('s')", "import os\nos.path.exists('note')", "False"),
    "an attribute of the scratch folder": (
        "import os\nos.setxattr('.', 'user.note', b's')",
        "import os\ntry: names = os.listxattr('.')\nexcept OSError: names = []\nnames",
        "[]",
    ),
    "the mode of the scratch folder": (
        "import os\nos.chmod('.', 0)",
        "import os\noct(os.stat('.').st_mode)",
        "'0o407",
    ),
    "shared memory": (
        "import ctypes\nctypes.CDLL(None).shmget(7, 4096, 0o1666)",
        "import ctypes\nctypes.CDLL(None).shmget(7, 4096, 0)",
        "-1",
    ),
    "a key in the kernel": (
        "import ctypes\nctypes.CDLL(None).syscall(248, b'user', b'note', b's', 1, -4)",
        "import ctypes\nctypes.CDLL(None).syscall(250, 10, -4, b'user', b'note', 0)",
        "-1",
    ),
    "a module": ("import math\nmath.note = 1", "import math\nhasattr(math, 'note')", "False"),
    "a builtin": ("import builtins\nbuiltins.note = 1", "'note' in dir(__builtins__)", "False"),
    "random numbers": (
        "import random\nrandom.seed(7)",
        "import random\nrandom.getstate()[1][0]",
        "",
    ),
    "an environment variable": (
        "import os\nos.environ['NOTE'] = 's'",
        "import os\nlen(os.environ)",
        "0",
    ),
    "a working folder": ("import os\nos.chdir('/')", "import os\nos.getcwd()", "'/tmp'"),
    "a limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
        "import resource\nresource.getrlimit(resource.RLIMIT_CPU)",
        "(2, 2)",
    ),
    "its text in the frames above": (
        "'the note' + ' of the first'",
        "import sys\nf, found = sys._getframe().f_back, False\nwhile f:\n"
        "    found |= 'note of the ' + 'first' in str(f.f_locals)\n    f = f.f_back\nfound",
        "False",
    ),
}


@pytest.mark.parametrize("trace", TRACES)
def test_no_state_passes_from_one_call_to_the_next(tool, trace):
    leave, look, expected = TRACES[trace]
    if trace == "a working folder" and "filesystem" in tool.missing_layers:
        expected = run(tool, look).text
    if trace == "a key in the kernel" and (
        os.uname().machine != "x86_64"  # its system calls have other numbers there
        or "seccomp" in tool.missing_layers  # nothing else forbids it
    ):
        return
    before = run(tool, look)
    run(tool, leave)
    assert run(tool, look) == before
    assert before.outcome == "ok" and expected in before.text


def test_a_call_leaves_no_descriptor_open_here(tool):
    programs = ["print(1)", "1 / 0", "print('x' * 9999)", "import os\nos.kill(os.getpid(), 9)"]
    counts = []
    for _ in range(3):
        for program in programs:
            run(tool, program)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1:] == counts[:-1]
