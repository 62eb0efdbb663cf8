"""System calls that confine a process for good: limits, capabilities, Landlock, seccomp.

Only the standard library: `worker.py` runs it in a bare interpreter. Where the kernel refuses, a
call raises OSError.
"""

import ctypes
import os
import resource
import sys

NO_NEW_PRIVILEGES, SET_SECCOMP = 38, 22
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ, EXECUTE_OR_IOCTL, FILES_SINCE = 0b1100, 1 | 1 << 15, {1: 13, 2: 14, 3: 15, 5: 16}
CAPABILITIES, NONE_OF_THEM = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()


class Kernel:
    """System calls that Python 3.11 lacks, as methods."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name):
        function = getattr(self._libc, name)

        def call(*args):
            plain = [a.encode() if isinstance(a, str) else a for a in args]
            if (value := function(*plain)) < 0:
                raise OSError(ctypes.get_errno(), name)
            return value

        return call


class FilterProgram(ctypes.Structure):
    """struct sock_fprog: instructions of 8 bytes."""

    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def limit(kind: int, value: int) -> None:
    """Sets a limit of this process, unless a stricter one is set."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        value = min(value, ceiling)
    resource.setrlimit(kind, (value, value))


def landlock_rules(kernel: Kernel, readable: list[str], writable: str) -> int:
    """A descriptor of rules: reads and writes below these folders only, no TCP, no signals.

    Rules that an older kernel lacks are left out; those for files need Linux 5.13, for TCP 6.7, for
    signals to other processes 6.12.
    """
    if sys.platform != "linux":
        raise OSError("these numbers are Linux's")
    abi = kernel.syscall(LANDLOCK_CREATE, None, 0, 1)
    files = (1 << max(n for since, n in FILES_SINCE.items() if since <= abi)) - 1
    attributes = (ctypes.c_uint64 * 3)(files, 0b11, 0b11)  # files; TCP; abstract sockets, signals
    rules = kernel.syscall(LANDLOCK_CREATE, attributes, 8 * (1 + (abi >= 4) + (abi >= 6)), 0)
    allowed = {path: READ for path in readable} | {writable: files & ~EXECUTE_OR_IOCTL}
    for path, rights in allowed.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        below = rights.to_bytes(8, "little") + place.to_bytes(4, "little")
        kernel.syscall(LANDLOCK_ADD, rules, 1, ctypes.c_char_p(below), 0)
        os.close(place)
    return rules


def enter_filter(kernel: Kernel, code: bytes) -> None:
    """Allows only the system calls of a filter of `syscall_filter.py`. b'' is a ValueError."""
    if not code:
        raise ValueError("no filter was made")
    program = FilterProgram(len(code) // 8, code)
    kernel.prctl(SET_SECCOMP, 2, ctypes.byref(program), 0, 0)
