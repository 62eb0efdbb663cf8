"""Confines a program: namespaces, a private root file system, limits, Landlock and seccomp.

Only the standard library: `worker.py` runs it in a bare interpreter. A layer that this machine
refuses is named in `missing`; the names are those of `rapo_jax.config.SANDBOX_LAYERS`.
"""

import contextlib
import ctypes
import math
import os
import resource
import signal
import sysconfig
import tempfile
import time
from collections.abc import Callable

from kernel import (
    CAPABILITIES,
    LANDLOCK_RESTRICT,
    NO_NEW_PRIVILEGES,
    NONE_OF_THEM,
    Kernel,
    enter_filter,
    landlock_rules,
    limit,
)

NEW_NS = {"mount": 0x20000, "ipc": 0x8000000, "network": 0x40000000, "pid": 0x20000000}
NEW_USER = 0x10000000
BIND, PRIVATE, REC, NO_SUID_DEV_EXEC, DETACH = 0x1000, 0x40000, 0x4000, 2 | 4 | 8, 2
SCRATCH = "size=16m,nr_inodes=1k,mode=777"
PACKAGES = "/packages"
"""The folder of numpy and other packages inside the sandbox."""
LIMITS = {"FSIZE": 1 << 20, "CORE": 0, "NOFILE": 32, "NPROC": 1}
"""A file of 1 MiB, and one process of one thread."""
EMPTYING_S = 0.5
ABANDONED = 3
"""Exit status of a worker whose pool was killed: its folder must be removed for the pool."""
MOUNT_SETATTR, SET_DUMPABLE, SET_DEATH_SIGNAL = 442, 4, 1


def libraries() -> list[str]:
    """Folders that the interpreter needs: its library, and shared objects of the system."""
    standard = sysconfig.get_path("stdlib")
    prefix, name = os.path.dirname(standard), sysconfig.get_config_var("MULTIARCH") or ""
    system = ["/lib64", "/usr/lib64"]
    for path in ("/lib", "/usr/lib"):
        narrow = os.path.join(path, name)  # Debian's; elsewhere they are in the folder itself
        system.append(narrow if name and os.path.isdir(narrow) else path)
    # An environment such as conda's has its shared objects beside the library.
    in_system = prefix.startswith(("/usr/", "/lib"))
    folders = [*map(os.path.realpath, system), standard if in_system else prefix]
    return [path for path in dict.fromkeys(folders) if os.path.isdir(path)]


def free_user_id() -> int | None:
    """A user id for this worker alone; None if there is none, as in some containers."""
    try:
        with open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return None
    for uid in (100_000 + os.getpid(), 10_000 + os.getpid() % 50_000):
        if any(first <= uid < first + count for first, _, count in ranges):
            return uid
    return None


def become_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class Confinement:
    """Namespaces of a worker for its whole life, and the confinement of each of its children."""

    def __init__(self, folder: str, cpu_s: float, filter_code: bytes, packages: list[str]):
        self.folder, self.cpu_s, self.filter_code = folder, cpu_s, filter_code
        self.memory_bytes = 0  # of address space; set by the worker
        self.kernel = Kernel()
        self.missing: list[str] = []
        self.unshared: set[str] = set()
        self.scratch_state: tuple[int, ...] = ()
        self.rules = -1
        # As root each worker takes a separate user id, so that process limits are separate too.
        self.uid = free_user_id() if os.geteuid() == 0 else None
        self.enter_namespaces()
        self.size_file = self.open_size_file()
        if "mount" not in self.unshared:
            self.missing.append("filesystem")
        else:
            self.attempt("filesystem", lambda: self.change_root(packages))
        self.give_scratch_to_user()
        # A child must not read or trace this process.
        self.attempt("dumpable", lambda: self.kernel.prctl(SET_DUMPABLE, 0, 0, 0, 0))

    def attempt(self, layer: str, action: Callable[..., object], *arguments: int) -> bool:
        try:
            action(*arguments)
        except (OSError, ValueError, AttributeError):
            self.missing.append(layer)
            return False
        return True

    def enter_namespaces(self) -> None:
        try:
            self.kernel.unshare(NEW_NS["mount"])
        except (OSError, AttributeError):
            self.enter_user_namespace()  # without privileges only inside a user namespace
        for name, flag in NEW_NS.items():
            if self.attempt(name, lambda f: self.kernel.unshare(f), flag):
                self.unshared.add(name)
        if "pid" in self.unshared and (first := os.fork()):
            os.close(0)
            _, status = os.waitpid(first, 0)  # that process uses the socket now
            if os.waitstatus_to_exitcode(status) == ABANDONED:
                self.remove_folder()
            os._exit(0)
        die = (SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        self.attempt("parent_death", lambda: self.kernel.prctl(*die))

    def remove_folder(self) -> None:
        with contextlib.suppress(OSError):
            self.kernel.umount2(self.folder, DETACH)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
            os.rmdir(os.path.dirname(self.folder))  # the last worker does it

    def enter_user_namespace(self) -> None:
        uid, gid = os.geteuid(), os.getegid()
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        try:
            self.kernel.unshare(NEW_USER)
            for name, line in maps.items():
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(line)
            if uid == 0:  # still root outside, for whom the kernel counts no processes
                self.uid = None
                self.missing.append("NPROC")
        except (OSError, AttributeError):
            if self.uid is None:
                self.missing += ["user"] + ["NPROC"] * (uid == 0)

    def open_size_file(self) -> int | None:
        try:
            return os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            return None

    def process_size(self) -> int:
        """Bytes of address space of this process; 0 if they are unknown."""
        if self.size_file is None:
            return 0
        return int(os.pread(self.size_file, 64, 0).split()[0]) * resource.getpagesize()

    def change_root(self, packages: list[str]) -> None:
        mount = self.kernel.mount
        mount("none", "/", None, REC | PRIVATE, None)
        mount("root", self.folder, "tmpfs", 0, "size=1m,mode=755")
        for path in ("/lib", "/lib64"):
            if os.path.islink(path):
                os.symlink(os.readlink(path), self.folder + path)
        places = [(path, self.folder + path) for path in libraries()]
        beside = f"{self.folder}{PACKAGES}/"
        for path, place in places + [(path, beside + os.path.basename(path)) for path in packages]:
            if not os.path.isdir(place):  # else it is inside another one
                os.makedirs(place)
                mount(path, place, None, BIND, None)
        others = os.path.join(sysconfig.get_path("stdlib"), "site-packages")
        if os.path.isdir(self.folder + others):
            mount("none", self.folder + others, "tmpfs", 0, "size=4k")
        os.mkdir(f"{self.folder}/tmp")
        os.chroot(self.folder)
        os.chdir("/")
        self.folder = "/tmp"
        flags = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)  # read-only, no setuid, no devices
        everywhere = (MOUNT_SETATTR, -100, "/", 0x8000, flags, 32)  # "/" and all below it
        self.attempt("read_only", lambda: self.kernel.syscall(*everywhere))
        self.mount_scratch()

    def mount_scratch(self) -> None:
        self.kernel.mount("scratch", "/tmp", "tmpfs", NO_SUID_DEV_EXEC, SCRATCH)
        self.scratch_state = self.state_of_scratch()

    def state_of_scratch(self) -> tuple[int, ...]:
        stat = os.stat("/tmp")
        return stat.st_ctime_ns, stat.st_size, stat.st_nlink, stat.st_mode

    def empty_scratch(self) -> None:
        """Replaces the scratch folder if it was changed; its names are never read."""
        if self.folder == "/tmp":
            if self.state_of_scratch() != self.scratch_state:
                self.kernel.umount2("/tmp", DETACH)
                self.mount_scratch()
                self.forget_rules()
            return
        try:
            os.chmod(self.folder, 0o700)
            deadline = time.monotonic() + EMPTYING_S
            for entry in os.scandir(self.folder):
                (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
                if time.monotonic() > deadline:
                    raise OSError("too many to remove now")
        except OSError:  # the pool removes the rest when it is closed
            self.folder = tempfile.mkdtemp(dir=os.path.dirname(self.folder))
            self.give_scratch_to_user()
            self.forget_rules()

    def give_scratch_to_user(self) -> None:
        if self.folder != "/tmp" and self.uid is not None:
            os.chown(self.folder, self.uid, self.uid)

    def write_rules(self) -> None:
        readable = ["/"] if self.folder == "/tmp" else libraries()
        self.rules = landlock_rules(self.kernel, readable, self.folder)

    def forget_rules(self) -> None:
        if self.rules >= 0:
            os.close(self.rules)
            self.rules = -1

    def prepare(self) -> None:
        """Makes Landlock's rules for the present scratch folder; once, not for each child."""
        if self.rules < 0 and "landlock" not in self.missing:
            self.attempt("landlock", self.write_rules)

    def confine(self) -> None:
        """Confines the child that calls it; layers that fail are appended to `missing`."""
        limits = LIMITS | {"CPU": math.ceil(self.cpu_s) + 1, "AS": self.memory_bytes}
        for name, value in limits.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            self.attempt(name, limit, kind, value)
        if not self.filter_code and "ipc" in self.unshared:
            # Without a filter that forbids shared memory, a child's must end with it.
            self.attempt("ipc", lambda: self.kernel.unshare(NEW_NS["ipc"]))
        if self.uid is not None:
            self.attempt("user", become_user, self.uid)
        self.attempt("capabilities", lambda: self.kernel.capset(CAPABILITIES, NONE_OF_THEM))
        forbid = (NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        self.attempt("no_new_privileges", lambda: self.kernel.prctl(*forbid))
        if self.rules >= 0:
            self.attempt("landlock", lambda: self.kernel.syscall(LANDLOCK_RESTRICT, self.rules, 0))
        self.attempt("seccomp", lambda: enter_filter(self.kernel, self.filter_code))
