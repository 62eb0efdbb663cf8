"""Hostile programs against the Python tool: each ends as an observation and leaves nothing behind.

The table has the outcome of each attack with every layer of the sandbox. NEEDS lists the attacks
that only one layer stops; on a machine without it these must end, with any outcome.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rapo_jax.tools.observation import Observation
from rapo_jax.tools.sandbox.pool import PythonTool, python_tool

LIMIT_S = 1.0
SLACK_S = 1.0
OUTPUT_CHARS = 300

TIMEOUT = ("timeout", "the program ran longer than 1 s")
KILLED = ("crashed", "the program was killed")
REFUSED = ("error", "Operation not permitted")
MEMORY = ("error", "MemoryError")

ATTACKS = {
    # without end
    "an infinite loop": ("while True: pass", TIMEOUT),
    "a sleep": ("import time\ntime.sleep(1000)", TIMEOUT),
    "catching every exception": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        TIMEOUT,
    ),
    "ignoring every signal": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        TIMEOUT,
    ),
    "a huge integer power": ("9 ** 9 ** 9 ** 9", TIMEOUT),
    "an exponential regular expression": (
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
        TIMEOUT,
    ),
    "an exit that never comes": (
        "import atexit\nclass A:\n    def __del__(self):\n        while True: pass\na = A()\ndel a",
        TIMEOUT,
    ),
    # memory and output
    "a memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 20))", MEMORY),
    "a memory bomb of one piece": ("bytearray(10 << 30)", MEMORY),
    "a mapping bomb": (
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 26))",
        ("error", "Cannot allocate memory"),
    ),
    "deep recursion": ("def f(): f()\nf()", ("error", "RecursionError")),
    "recursion without a limit": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n"
        "    def __getattr__(self, name): return getattr(self, name + 'x')\nA().x",
        ("error crashed timeout", ""),
    ),
    "10 GB of output": (
        "import os\nfor _ in range(10 << 10): os.write(1, b'x' * (1 << 20))",
        ("flooded", "x" * OUTPUT_CHARS + " ..."),
    ),
    "10 GB of output on standard error": (
        "import sys\nwhile True: sys.stderr.write('y' * (1 << 20))",
        ("flooded", "y" * OUTPUT_CHARS + " ..."),
    ),
    # processes and threads
    "a fork bomb": (
        "import os\nwhile True: os.fork()",
        ("error", "Resource temporarily unavailable"),
    ),
    "a fork bomb that does not give up": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        TIMEOUT,
    ),
    "a thread storm": (
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(99,)).start()",
        ("error", "can't start new thread"),
    ),
    "another program": (
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo out'])",
        ("error", ""),
    ),
    "becoming another program": (
        "import os\nos.execv('/lib64/ld-linux-x86-64.so.2', ['ld', '--help'])",
        ("error", ""),
    ),
    "a daemon that stays behind": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
        ("error", "Resource temporarily unavailable"),
    ),
    # ends and kills
    "os._exit": ("import os\nprint('unseen')\nos._exit(0)", ("ok", "")),
    "os._exit with a strange status": ("import os\nos._exit(77)", KILLED),
    "a segmentation fault": ("import ctypes\nctypes.string_at(0)", KILLED),
    "killing itself": ("import os\nos.kill(os.getpid(), 9)", KILLED),
    "killing its parent": ("import os\nos.kill(os.getppid(), 9)", REFUSED),
    "killing everyone": ("import os\nos.kill(-1, 9)", ("ok error crashed", "")),
    "tracing its parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.ptrace(16, os.getppid(), 0, 0), ctypes.get_errno()",
        ("ok", "(-1, 1)"),
    ),
    "reading its parent's memory": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "b = ctypes.create_string_buffer(8)\nv = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
        "libc.process_vm_readv(os.getppid(), v, 1, v, 1, 0), ctypes.get_errno()",
        ("ok", "(-1, 1)"),
    ),
    # files
    "reading /etc/passwd": ("open('/etc/passwd').read()", ("error", "FileNotFoundError")),
    "reading a checkpoint": ("open({checkpoint!r}).read()", ("error", "FileNotFoundError")),
    "reading about processes": ("open('/proc/self/environ')", ("error", "FileNotFoundError")),
    "leaving its root": (
        "import os\nos.chroot('.')",
        REFUSED,
    ),
    "opening a file by handle": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.open_by_handle_at(-100, b'\\0' * 64, 0), ctypes.get_errno()",
        ("ok", "(-1, 1)"),
    ),
    "writing outside of the scratch folder": (
        "open('/evil', 'w')",
        ("error", "PermissionError|Read-only file system"),
    ),
    "writing into the standard library": (
        "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'evil.py'), 'w')",
        ("error", "PermissionError|Read-only file system"),
    ),
    "deleting the standard library": (
        "import os\nos.unlink(os.__file__)",
        ("error", "Permission denied|Read-only file system"),
    ),
    "filling the disk by one file": (
        "with open('big', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
        ("error", "File too large"),
    ),
    "filling the disk by many files": (
        "import itertools\nfor i in itertools.count():\n"
        "    with open(str(i), 'wb') as f: f.write(b'x' * (1 << 19))",
        ("error", "No space left on device"),
    ),
    "filling the disk by names": (
        "import os, itertools\nfor i in itertools.count(): os.mkdir(str(i))",
        ("error", "No space left on device"),
    ),
    "making a device": (
        "import os\nos.mknod('sda', 0o60666, os.makedev(8, 0))",
        REFUSED,
    ),
    "making a program": (
        "import os\nopen('x', 'w').write('#!/bin/sh')\nos.chmod('x', 0o777)\nos.execv('x', ['x'])",
        ("error", "PermissionError"),
    ),
    # network: loopback, by its number only
    "opening a socket": (
        "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)",
        REFUSED,
    ),
    "listening on a socket": (
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))",
        REFUSED,
    ),
    "a raw socket": (
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        REFUSED,
    ),
    # namespaces and privileges
    "becoming root": ("import os\nos.setuid(0)", REFUSED),
    "a user namespace": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.unshare(0x10000000), ctypes.get_errno()",
        ("ok", "(-1, 1)"),
    ),
    "raising its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (100, 100))",
        ("error", "not allowed to raise maximum limit"),
    ),
    # the interpreter
    "deleting every module": (
        "import sys\nsys.modules.clear()\n1 / 0",
        ("error", "ZeroDivisionError"),
    ),
    "monkeypatching builtins": (
        "import builtins\nvars(builtins).update(dict.fromkeys(vars(builtins)))\n1 / 0",
        ("error", "ZeroDivisionError"),
    ),
    "an exception whose text cannot be made": (
        "class E(BaseException):\n    def __str__(self): raise self\n"
        "    __repr__ = __str__\nraise E",
        ("error", "E"),
    ),
    "a value that cannot be shown": (
        "class V:\n    def __repr__(self):\n        while True: pass\nV()",
        TIMEOUT,
    ),
    "closing every descriptor": ("import os\nos.closerange(0, 100)\n1 / 0", ("error", "")),
    "walking up to the tool's own frames": (
        "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\n"
        "f.f_globals['VERDICTS'] = None\nf.f_globals['Zygote'].end = None\nprint('done')",
        ("ok", "done"),
    ),
}

NEEDS = {
    "seccomp": (
        "tracing its parent",
        "reading its parent's memory",
        "opening a socket",
        "listening on a socket",
        "a user namespace",
        "making a device",
        "opening a file by handle",
    ),
    "filesystem": (
        "reading /etc/passwd",
        "reading a checkpoint",
        "reading about processes",
        "filling the disk by many files",
        "filling the disk by names",
    ),
}


@pytest.fixture(scope="module")
def tool():
    python = python_tool(workers=1, timeout_s=LIMIT_S, memory_mb=128, output_chars=OUTPUT_CHARS)
    yield python
    python.close()


def run(tool: PythonTool, code: str) -> Observation:
    (observation,) = tool([code])
    return observation


def processes_of(tool: PythonTool) -> int:
    """The number of the tool's living workers and their descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="latin-1").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    family = set(tool.process_ids())
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return len(family)


def settled_processes_of(tool: PythonTool, expected: int) -> int:
    """The same once the next child waits, which the worker forks after its answer."""
    for _ in range(200):
        if (count := processes_of(tool)) == expected:
            break
        time.sleep(0.01)
    return count


@pytest.fixture(scope="module")
def idle_processes(tool) -> int:
    """A worker, and the child that waits for the next program; one more has a pid namespace."""
    assert run(tool, "print(1+1)") == Observation("2", "ok")
    return 2 if "pid" in tool.missing_layers else 3


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_as_an_observation_and_harms_nothing(tool, idle_processes, tmp_path, attack):
    code, (outcomes, expected) = ATTACKS[attack]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text("weights")
    workers = tool.process_ids()
    start = time.monotonic()
    observed = run(tool, code.replace("{checkpoint!r}", repr(str(checkpoint))))
    assert time.monotonic() - start < LIMIT_S + SLACK_S
    if not any(layer in tool.missing_layers and attack in NEEDS[layer] for layer in NEEDS):
        assert observed.outcome in outcomes.split()
        assert any(words in observed.text for words in expected.split("|")), observed.text
    assert run(tool, "print(1+1)") == Observation("2", "ok")
    assert run(tool, "import os\nos.listdir('.')") == Observation("[]", "ok")
    assert tool.process_ids() == workers
    assert settled_processes_of(tool, idle_processes) == idle_processes
    assert os.listdir(tmp_path) == ["checkpoint"] and checkpoint.read_text() == "weights"
