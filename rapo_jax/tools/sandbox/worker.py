"""The process behind one slot of the Python tool: stays warm, forks a confined child per call.

Started by `pool.py` as a script, with a socket as standard input and nothing of this
package on its path but the two files beside it. It first says which layers of the confinement
this machine did not grant. Then, for each call, it forks a child ahead of time, hands the ends of
its standard input and output to the pool, ends it when told so, and says how it ended. So this
process never holds a program nor what one printed, and nothing of them can reach the next one.

What a child runs is hostile: it owns nothing, reaches no network, sees only the standard library
and the packages named, and every process of it is killed when its call ends.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time

sys.path.append(os.path.dirname(__file__))
from confine import ABANDONED, PACKAGES, Confinement  # noqa: E402
from program import ERROR_EXIT, rehearse, run  # noqa: E402

sys.path.pop()

WARM = "cmath collections datetime decimal fractions functools heapq itertools re statistics"
GOODBYE = b"bye"
VERDICTS = {0: "ok", ERROR_EXIT: "error", -signal.SIGXCPU: "timeout"}


class Zygote:
    """Enters its namespaces once, then forks and ends one confined child per call."""

    def __init__(self, settings: dict):
        self.confinement = Confinement(
            settings["folder"],
            settings["timeout_s"],
            bytes.fromhex(settings["filter"]),
            settings["packages"],
        )
        self.warm([*WARM.split(), *settings["warm"]])
        # A child shares this process's address space at first: a program's memory comes on top.
        self.confinement.memory_bytes = (settings["memory_mb"] << 20) + self.confinement.own_size()
        self.connection = socket.socket(fileno=0)

    def warm(self, names):
        """Imports what programs want: an import costs more than the fork."""
        if self.confinement.folder == "/tmp" and os.path.isdir(PACKAGES):
            sys.path.append(PACKAGES)
        os.environ.clear()
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        for name in names:
            with contextlib.suppress(ImportError):
                __import__(name)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)  # the same program says the same each time
        os.environ.clear()
        gc.collect()
        gc.freeze()

    def probe(self) -> list[str]:
        """The layers that a child misses, found by confining one."""
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
        """One child after the other, until whoever asks has gone; whether it said so."""
        self.connection.send(json.dumps(self.probe()).encode() + b"\n")
        while True:
            self.confinement.empty_scratch()
            self.confinement.prepare()
            pid = self.offer_child()
            said = self.connection.recv(64)
            gone = not said or said.endswith(GOODBYE)
            verdict = self.end(pid, 0.0 if gone else float(said))
            if gone:
                return bool(said)
            self.connection.send(verdict[:1].encode())

    def offer_child(self) -> int:
        """Forks a child that waits for its program, and hands out the ends of its pipes."""
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
        """How the child ended; it is killed after so many seconds, and all that it left behind."""
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
            # As the first process of a namespace this reaches all others in it, and no one else.
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
            rehearse()
            with open(0, "rb", closefd=False) as stream:
                text = stream.read().decode()
            os._exit(run(text))
        finally:
            os._exit(ERROR_EXIT)


def main(settings: str) -> None:
    zygote = Zygote(json.loads(settings))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child may share this process's user id
    told = False
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has gone
        told = zygote.serve()
    sys.exit(0 if told else ABANDONED)


if __name__ == "__main__":
    main(*sys.argv[1:])
