"""The worker process of the Python tool: it stays warm and forks a confined child for each call.

`pool.py` starts it as a script, with a socket as standard input; it can import the standard library
and the files in this folder. It reads its settings, a line of JSON, from the socket, and answers
with the layers of confinement that this machine lacks. Then it forks a child ahead of each call,
sends the ends of its standard input and output to the pool, ends it when the pool asks, and sends
how it ended. So this process never holds a program or its output, and nothing of them can reach the
next program.

A child's program is hostile: it can write to a scratch folder only, has no network, reads only the
standard library and the given packages, and all its processes are killed when its call ends.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))  # Python has added the folder's real name
from confine import ABANDONED, PACKAGES, Confinement
from program import ERROR_EXIT, rehearse, run

del sys.path[:2]  # programs must not import from it

WARM = "cmath collections datetime decimal fractions functools heapq itertools re statistics"
GOODBYE = b"bye"
VERDICTS = {0: "ok", ERROR_EXIT: "error", -signal.SIGXCPU: "timeout"}


class Zygote:
    """Enters its namespaces once, then forks and ends one confined child per call."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        with connection.makefile("rb") as lines:
            settings = json.loads(lines.readline())
        self.confinement = Confinement(
            settings["folder"],
            settings["timeout_s"],
            bytes.fromhex(settings["filter"]),
            settings["packages"],
        )
        self.warm([*WARM.split(), *settings["warm"]])
        # A child begins with this process's address space; a program's memory is added to it.
        size = self.confinement.process_size()
        self.confinement.memory_bytes = (settings["memory_mb"] << 20) + size

    def warm(self, names):
        """Imports what programs often need: an import takes longer than the fork."""
        if self.confinement.folder == "/tmp" and os.path.isdir(PACKAGES):
            sys.path.append(PACKAGES)
        os.environ.clear()
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        for name in names:
            with contextlib.suppress(ImportError):
                __import__(name)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)  # the same program prints the same each time
        os.environ.clear()
        gc.collect()
        gc.freeze()

    def probe(self) -> list[str]:
        """Confines a child; returns the layers that it lacks."""
        read_end, write_end = os.pipe()
        self.confinement.prepare()
        if (pid := os.fork()) == 0:
            self.confinement.confine()
            os.write(write_end, json.dumps(self.confinement.missing).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return json.loads(text or '["all"]')

    def serve(self) -> bool:
        """Serves one child after the other until the pool has gone; whether it sent GOODBYE."""
        self.connection.send(json.dumps(self.probe()).encode() + b"\n")
        while True:
            self.confinement.empty_scratch()
            self.confinement.prepare()
            pid = self.offer_child()
            message = self.connection.recv(64)
            gone = not message or message.endswith(GOODBYE)
            verdict = self.end(pid, 0.0 if gone else float(message))
            if gone:
                return bool(message)
            self.connection.send(verdict[:1].encode())

    def offer_child(self) -> int:
        """Forks a child that waits for its program, and sends the ends of its pipes."""
        code, code_end = os.pipe()
        output_end, output = os.pipe()
        if (pid := os.fork()) == 0:
            self.run_child(code, output)
        os.close(code)
        os.close(output)
        socket.send_fds(self.connection, [b"r"], [code_end, output_end])
        os.close(code_end)
        os.close(output_end)
        return pid

    def end(self, pid: int, seconds: float) -> str:
        """Waits for the child; returns how it ended. Kills its processes after `seconds`."""
        deadline, nap, verdict = time.monotonic() + seconds, 1e-4, "timeout"
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                verdict = VERDICTS.get(os.waitstatus_to_exitcode(status), "crashed")
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(nap := min(2 * nap, 0.02))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            # The first process of a namespace reaches all others in it with -1, and only those.
            os.kill(-1 if "pid" in self.confinement.unshared else pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return verdict

    def run_child(self, code: int, output: int) -> None:
        try:
            os.setsid()
            for target, source in enumerate((code, output, output)):
                os.dup2(source, target)
            os.chdir(self.confinement.folder)
            self.confinement.confine()
            os.closerange(3, 256)
            vars(sys).update(argv=[""], orig_argv=[""], executable="", _base_executable="")
            rehearse()
            with open(0, "rb", closefd=False) as stream:
                text = stream.read().decode()
            os._exit(run(text))
        finally:
            os._exit(ERROR_EXIT)


def main() -> None:
    zygote = Zygote(socket.socket(fileno=0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child may share this process's user id
    closed = False
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the pool has gone
        closed = zygote.serve()
    sys.exit(0 if closed else ABANDONED)


if __name__ == "__main__":
    main()
