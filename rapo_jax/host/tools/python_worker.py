"""The process behind one slot of the Python tool: stays warm, forks a confined child per call.

Started by `python.py` as a script, with a socket as standard input and nothing of this package
imported. A request is one JSON line (the program's text), a reply one JSON line (outcome, text);
the first line says which layers of the confinement this machine did not grant. What the child
runs is hostile: it owns nothing, reaches no network, sees only the standard library, and every
process of it is killed when its call ends.
"""

import ast
import contextlib
import ctypes
import gc
import json
import math
import os
import random
import resource
import selectors
import signal
import socket
import sys
import time
import traceback

WARM = "cmath collections datetime decimal fractions functools heapq itertools re statistics"
NEW_NS = {"mount": 0x20000, "ipc": 0x8000000, "network": 0x40000000, "pid": 0x20000000}
NEW_USER = 0x10000000
BIND, PRIVATE, REC, NO_SUID_DEV_EXEC, DETACH = 0x1000, 0x40000, 0x4000, 2 | 4 | 8, 2
OWN_LIBRARIES = os.path.dirname(os.path.dirname(os.__file__))
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", OWN_LIBRARIES)
SCRATCH = "size=16m,nr_inodes=1k,mode=777"
ERROR_EXIT = 1


class Kernel:
    """System calls that Python 3.11 lacks; a refusal raises OSError."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name):
        function = getattr(self._libc, name)

        def call(*args):
            plain = [a.encode() if isinstance(a, str) else a for a in args]
            if function(*plain) < 0:
                raise OSError(ctypes.get_errno(), name)

        return call


class Zygote:
    """Enters its namespaces once, then forks and watches one confined child per call."""

    def __init__(self, folder: str, timeout_s: float, memory_mb: int, output_chars: int):
        self.folder, self.timeout_s, self.output_chars = folder, timeout_s, output_chars
        self.memory_bytes = memory_mb << 20
        self.kernel = Kernel()
        self.missing: list[str] = []
        self.unshared: set[str] = set()
        self.devnull = os.open(os.devnull, os.O_RDWR)
        # As root each worker takes a user id of its own, so that process limits are its own too.
        self.uid = 100_000 + os.getpid() if os.geteuid() == 0 else None
        self.enter_namespaces()
        if "mount" not in self.unshared or not self.attempt("filesystem", self.change_root):
            if self.uid is not None:
                os.chown(self.folder, self.uid, self.uid)
        # A child must not read or trace this process.
        self.attempt("dumpable", lambda: self.kernel.prctl(4, 0, 0, 0, 0))

    def attempt(self, layer, action):
        try:
            action()
        except (OSError, ValueError, AttributeError):
            self.missing.append(layer)
            return False
        return True

    def enter_namespaces(self):
        try:
            self.kernel.unshare(NEW_NS["mount"])
        except (OSError, AttributeError):
            # Not privileged: only inside a user namespace of its own.
            if self.attempt("user", self.enter_user_namespace) and self.uid is not None:
                self.uid = None  # root outside, for whom the kernel counts no processes
                self.missing.append("NPROC")
        for name, flag in NEW_NS.items():
            if self.attempt(name, lambda flag=flag: self.kernel.unshare(flag)):
                self.unshared.add(name)
        if "pid" in self.unshared and (first := os.fork()):
            os.close(0)
            os.waitpid(first, 0)  # the socket now belongs to the namespace's first process
            os._exit(0)
        self.attempt("parent death", lambda: self.kernel.prctl(1, signal.SIGKILL, 0, 0, 0))

    def enter_user_namespace(self):
        uid, gid = os.geteuid(), os.getegid()
        self.kernel.unshare(NEW_USER)
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, line in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)

    def change_root(self):
        mount = self.kernel.mount
        mount("none", "/", None, REC | PRIVATE, None)
        mount("root", self.folder, "tmpfs", 0, "size=1m,mode=755")
        for path in LIBRARIES:
            place = self.folder + path
            if os.path.islink(path):
                os.symlink(os.readlink(path), place)
            elif os.path.isdir(path):
                os.makedirs(place, exist_ok=True)
                mount(path, place, None, BIND, None)
        os.mkdir(f"{self.folder}/tmp")
        os.chroot(self.folder)
        os.chdir("/")
        self.folder = "/tmp"
        flags = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)  # read-only, no setuid, no devices
        mount_setattr = (442, -100, "/", 0x8000, flags, 32)  # on "/" and all that is below it
        self.attempt("read-only", lambda: self.kernel.syscall(*mount_setattr))
        mount("scratch", "/tmp", "tmpfs", NO_SUID_DEV_EXEC, SCRATCH)

    def empty_scratch(self):
        if self.folder == "/tmp":
            if not os.listdir("/tmp") and os.stat("/tmp").st_mode & 0o777 == 0o777:
                return
            self.kernel.umount2("/tmp", DETACH)
            self.kernel.mount("scratch", "/tmp", "tmpfs", NO_SUID_DEV_EXEC, SCRATCH)
            return
        for path, folders, files in os.walk(self.folder, topdown=False):
            for remove, names in ((os.unlink, files), (os.rmdir, folders)):
                for name in names:
                    with contextlib.suppress(OSError):
                        remove(os.path.join(path, name))

    def confine(self):
        """Gives up in the child what it could harm with; missing layers are appended."""
        cpu_s = math.ceil(self.timeout_s) + 1
        limits = {"CPU": cpu_s, "AS": self.memory_bytes, "FSIZE": 1 << 20, "CORE": 0}
        for name, value in (limits | {"NOFILE": 32, "NPROC": 1}).items():
            kind = getattr(resource, f"RLIMIT_{name}")
            self.attempt(name, lambda k=kind, v=value: resource.setrlimit(k, (v, v)))
        if self.uid is not None:
            self.attempt("user id", self.become_nobody)
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        self.attempt("capabilities", lambda: self.kernel.capset(header, nothing))
        self.attempt("no new privileges", lambda: self.kernel.prctl(38, 1, 0, 0, 0))

    def become_nobody(self):
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)

    def probe(self):
        """The layers that a child misses, found by confining one."""
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            self.confine()
            os.write(write_end, json.dumps(self.missing).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return json.loads(text or '["all"]')

    def call(self, code: str) -> tuple[str, str]:
        """Runs one program: (outcome, text)."""
        self.empty_scratch()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.run_child(code, write_end)
        os.close(write_end)
        try:
            output, verdict = self.watch(pid, read_end)
        finally:
            os.close(read_end)
        text = output.decode("utf-8", "replace").rstrip()
        if len(text) > self.output_chars:
            return "flooded", text[: self.output_chars] + " ..."
        if verdict == "timeout":
            return (
                "timeout",
                f"timeout: the program ran longer than {self.timeout_s:g} s",
            )
        if verdict == "crashed":
            return "crashed", "error: the program was killed"
        return verdict, text

    def watch(self, pid, pipe):
        """Reads until the child has ended, talked too much or run too long; then ends it all."""
        deadline, output, status = time.monotonic() + self.timeout_s, bytearray(), None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0 and selector.select(left):
                chunk = os.read(pipe, 65536)
                output += chunk
                if not chunk or len(output) > 4 * self.output_chars:
                    break
            else:
                return output, self.end(pid, "timeout")
        if chunk:
            return output, self.end(pid, "flooded")
        nap = 1e-4  # the pipe is closed; a child that closed it by itself may still be running
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                return output, self.end(pid, "timeout")
            time.sleep(nap := min(2 * nap, 0.02))
        verdicts = {0: "ok", ERROR_EXIT: "error", -signal.SIGXCPU: "timeout"}
        return output, self.end(pid, verdicts.get(os.waitstatus_to_exitcode(status[1]), "crashed"))

    def end(self, pid, verdict):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            # As the first process of a namespace this reaches all others in it, and no one else.
            os.kill(-1 if os.getpid() == 1 else pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return verdict

    def run_child(self, code, output):
        try:
            os.setsid()
            for target, source in enumerate((self.devnull, output, output)):
                os.dup2(source, target)
            os.closerange(3, 256)
            os.chdir(self.folder)
            self.confine()
            os._exit(run(code))
        finally:
            os._exit(ERROR_EXIT)


def run(code: str) -> int:
    """Runs a program as a notebook cell: prints, then the value of a last expression."""
    sys.stdin = open(0, closefd=False)
    out = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = sys.stderr = out
    sys.modules["__main__"] = module = type(sys)("__main__")
    random.seed(0)  # the same program says the same each time
    exit_status = 0
    try:
        body = ast.parse(code, "<python>").body
        last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
        if last is not None:
            body.pop()
        exec(compile(ast.Module(body, []), "<python>", "exec"), module.__dict__)
        if last is not None:
            value = eval(compile(ast.Expression(last), "<python>", "eval"), module.__dict__)
            if value is not None:
                print(repr(value), file=out)
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            print(traceback.format_exception_only(error)[-1].strip(), file=out)
            exit_status = ERROR_EXIT
    out.flush()
    return exit_status


def main(folder: str, timeout_s: str, memory_mb: str, output_chars: str) -> None:
    zygote = Zygote(folder, float(timeout_s), int(memory_mb), int(output_chars))
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child may share this process's user id
    for name in WARM.split():  # agents' programs want these; an import costs more than the fork
        __import__(name)
    gc.freeze()
    connection = socket.socket(fileno=0)
    requests = connection.makefile("rb")
    reply = zygote.probe()
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        while True:
            connection.sendall(json.dumps(reply).encode() + b"\n")
            if not (line := requests.readline()):
                return
            reply = zygote.call(json.loads(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
