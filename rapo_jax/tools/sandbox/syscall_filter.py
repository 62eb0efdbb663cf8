"""The system calls that a program may make, as a seccomp filter made by libseccomp."""

from __future__ import annotations

import errno
import functools
import tempfile

ALLOWED = (
    # files; the file system and Landlock decide which ones
    "open openat creat close close_range read write readv writev pread64 pwrite64 lseek _llseek "
    "stat stat64 fstat fstat64 lstat lstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs "
    "fstatfs64 access faccessat faccessat2 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat "
    "rename renameat renameat2 link linkat symlink symlinkat readlink readlinkat chmod fchmod "
    "fchmodat truncate ftruncate truncate64 ftruncate64 fallocate fsync fdatasync getdents "
    "getdents64 dup dup2 dup3 pipe pipe2 fcntl fcntl64 flock utimensat umask sendfile sendfile64 "
    "copy_file_range fadvise64 "
    # waiting
    "poll ppoll select _newselect pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait "
    "epoll_pwait epoll_pwait2 eventfd2 nanosleep clock_nanosleep pause sched_yield "
    # a pair of sockets inside the process, as asyncio makes one
    "recvfrom recvmsg sendto sendmsg shutdown getsockopt setsockopt getsockname getpeername "
    # memory
    "brk mmap mmap2 munmap mprotect mremap madvise msync mincore membarrier "
    # signals to itself: namespace, user id and Landlock exclude other processes
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend "
    "sigaltstack sigreturn kill tkill tgkill alarm setitimer getitimer restart_syscall "
    # time, and ids of itself
    "clock_gettime clock_gettime64 clock_getres gettimeofday time times getrusage getpid gettid "
    "getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid "
    "uname sysinfo getcpu sched_getaffinity sched_getparam sched_getscheduler getpriority "
    "getrlimit ugetrlimit capget getrandom "
    # threads of the C library, and the end
    "futex futex_time64 set_robust_list get_robust_list rseq set_tid_address arch_prctl exit "
    "exit_group wait4 waitid waitpid"
).split()
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""


@functools.cache
def filter_code() -> bytes:
    """The filter in the kernel's instructions; b'' without libseccomp.

    Calls that are not listed fail with 'Operation not permitted', a new process or thread with
    'Resource temporarily unavailable', as beyond a limit of processes.
    """
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError, AttributeError):
        return b""
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))

    def add(action: int, call: str, *arguments) -> None:
        try:
            rules.add_rule(action, call, *arguments)
        except (OSError, ValueError):  # a name of another architecture or of a newer kernel
            return

    for name in ALLOWED:
        add(seccomp.ALLOW, name)
    for question in TERMINAL_QUESTIONS:
        add(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, question))
    add(seccomp.ALLOW, "socketpair", seccomp.Arg(0, seccomp.EQ, 1))  # AF_UNIX
    add(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # of itself
    for name in ("fork", "vfork", "clone"):
        add(seccomp.ERRNO(errno.EAGAIN), name)
    add(seccomp.ERRNO(errno.ENOSYS), "clone3")  # the C library then asks for clone
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
