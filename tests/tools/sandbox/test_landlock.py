"""Landlock alone: what it forbids to a process that no other layer confines."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from rapo_jax.tools.sandbox.pool import FOLDER

PROGRAM = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from kernel import LANDLOCK_CREATE, LANDLOCK_RESTRICT, NO_NEW_PRIVILEGES, Kernel, landlock_rules

inside, outside, port = sys.argv[2:]
kernel = Kernel()
try:
    abi = kernel.syscall(LANDLOCK_CREATE, None, 0, 1)
    rules = landlock_rules(kernel, ["/"], inside)
except OSError as error:
    print(json.dumps([0, {"error": str(error)}]))
    sys.exit()
kernel.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
kernel.syscall(LANDLOCK_RESTRICT, rules, 0)

def tried(action, *arguments):
    try:
        action(*arguments)
    except PermissionError:
        return "refused"
    return "done"

def write(folder):
    with open(f"{folder}/new", "w") as file:
        file.write("x")

found = {
    "read": tried(open, f"{outside}/kept"),
    "write": tried(write, outside),
    "remove": tried(os.unlink, f"{outside}/kept"),
    "write inside": tried(write, inside),
    "run": tried(os.posix_spawn, "/bin/sh", ["sh", "-c", "true"], {}),
    "connect": tried(socket.create_connection, ("127.0.0.1", int(port))),
    "listen": tried(socket.create_server, ("127.0.0.1", 0)),
    "signal": tried(os.kill, os.getppid(), 0),
}
print(json.dumps([abi, found]))
"""


def test_landlock_alone_allows_reading_and_a_scratch_folder_and_nothing_else(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("weights")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, FOLDER, inside, outside, str(port)],
            capture_output=True,
            text=True,
            check=True,
        )
    abi, found = json.loads(done.stdout)
    if not abi:
        pytest.skip(f"no Landlock here: {found}")
    tcp, signals = ("refused" if abi >= since else "done" for since in (4, 6))
    allowed = {"read": "done", "write inside": "done"}
    forbidden = dict.fromkeys(("write", "remove", "run"), "refused")
    assert found == allowed | forbidden | {"connect": tcp, "listen": tcp, "signal": signals}
    assert (outside / "kept").read_text() == "weights"
