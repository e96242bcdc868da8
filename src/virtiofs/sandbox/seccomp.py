# SPDX-License-Identifier: Apache-2.0
"""Which system calls the worker may make: the table, and the BPF programs made of it with libseccomp.

Each row: what needs it, the calls, why, and the conditions on arguments.  A call that is in no row kills the
worker.  Making a program takes libseccomp's binding 40 ms, so the build makes the usual ones
and stores each beside the text of its rules; a program is used only if that text is still the one of the
table.  Any other is made when it is asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence

# Features: rows of "core" are always in, the others if the worker needs them.
FEATURES = ("core", "ids", "handles", "dax", "python", "network")

# Conditions on arguments: alternatives of tests, all of which must hold: (argument, mask, value).
Tests = tuple[tuple[int, int, int], ...]
CLONE_VM, CLONE_THREAD = 0x100, 0x10000
CLONE_FS, CLONE_FILES = 0x200, 0x400
CLONE_PTRACE = 0x2000
CLONE_NEW = 0x7E020000
PROT_EXEC = 4
INT = 0xFFFFFFFF  # the kernel looks at these bits only
ONLY_THREADS: tuple[Tests, ...] = (
    ((0, CLONE_VM | CLONE_THREAD | CLONE_PTRACE | CLONE_NEW, CLONE_VM | CLONE_THREAD),),
)
NOT_EXECUTABLE: tuple[Tests, ...] = (((2, PROT_EXEC, 0),),)


def one_of(argument: int, values: Iterable[int]) -> tuple[Tests, ...]:
    """An `int` argument has one of these values."""
    return tuple(((argument, INT, value),) for value in values)


FCNTL = one_of(
    1,
    (
        0,  # F_DUPFD
        1,  # F_GETFD
        2,  # F_SETFD
        3,  # F_GETFL
        4,  # F_SETFL
        36,  # F_OFD_GETLK: locks that other guests and the host see
        37,  # F_OFD_SETLK
        38,  # F_OFD_SETLKW
        1030,  # F_DUPFD_CLOEXEC
    ),
)
# For files and directories only, which is all that is ever opened.
IOCTL = one_of(
    1,
    (
        0x80086601,  # FS_IOC_GETFLAGS: lsattr
        0x40086602,  # FS_IOC_SETFLAGS: chattr
        0x801C581F,  # FS_IOC_FSGETXATTR: project ids
        0x401C5820,  # FS_IOC_FSSETXATTR
        0xC020660B,  # FS_IOC_FIEMAP: what a nearly full quota has room for
    ),
)
PYTHON_FCNTL = one_of(
    1, (5, 6, 7, 1031, 1032, 1033, 1034)
)  # F_GETLK, F_SETLK, F_SETLKW, F_[GS]ETPIPE_SZ, F_*_SEALS
PYTHON_IOCTL = one_of(1, (0x5401, 0x5421, 0x541B, 0x5451))  # TCGETS, FIONBIO, FIONREAD, FIOCLEX
ITSELF: tuple[Tests, ...] = (((0, INT, 0), (1, INT, 0)),)  # PRIO_PROCESS, the calling thread
PRCTL = one_of(0, (15, 0x53564D41))  # PR_SET_NAME, PR_SET_VMA: names of threads and of malloc's memory

ALLOW, NO_SUCH_CALL = "allow", "no such call"

TABLE: tuple[tuple[str, str, str, tuple[Tests, ...], str], ...] = (
    # --- what CPython and the C library call by themselves ---
    ("core", "mmap mprotect", "memory of Python, malloc, threads, the guest", NOT_EXECUTABLE, ALLOW),
    ("core", "brk mremap munmap madvise", "memory that grows, and is given back", (), ALLOW),
    ("core", "futex futex_waitv", "locks; the GIL", (), ALLOW),
    ("core", "clone", "a thread for each queue: threads only, in the same namespaces", ONLY_THREADS, ALLOW),
    ("core", "clone3", "its arguments can not be seen: the C library falls back to clone", (), NO_SUCH_CALL),
    ("core", "set_robust_list rseq sigaltstack", "a thread begins", (), ALLOW),
    (
        "core",
        "sched_getaffinity sched_yield",
        "the C library sizes its pools; waiting for a moment",
        (),
        ALLOW,
    ),
    ("core", "getpriority setpriority", "a thread of the pool yields to the queues", ITSELF, ALLOW),
    ("core", "getpid gettid", "a thread asks who it is", (), ALLOW),
    ("core", "getuid geteuid getgid getegid", "and whose", (), ALLOW),
    ("core", "capget capset", "set-id bits: CAP_FSETID for those who keep them only", (), ALLOW),
    ("core", "prctl", "names of threads and memory", PRCTL, ALLOW),
    ("core", "membarrier", "barriers between threads", (), ALLOW),
    (
        "core",
        "rt_sigaction rt_sigprocmask rt_sigreturn restart_syscall",
        "signals, stop and continue",
        (),
        ALLOW,
    ),
    ("core", "tgkill", "abort()", (), ALLOW),
    ("core", "exit exit_group", "the end", (), ALLOW),
    ("core", "getrandom", "seeds of hashes", (), ALLOW),
    ("core", "clock_gettime clock_getres gettimeofday time", "clocks, where the vDSO has none", (), ALLOW),
    ("core", "clock_nanosleep nanosleep", "waiting", (), ALLOW),
    # --- obeying the supervisor, and the queues ---
    ("core", "recvmsg sendmsg", "the channel to the supervisor, with descriptors", (), ALLOW),
    ("core", "read readv write writev", "eventfds, the log", (), ALLOW),
    ("core", "close close_range dup dup2 dup3", "descriptors come and go", (), ALLOW),
    ("core", "eventfd2", "waking a queue", (), ALLOW),
    ("core", "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2", "waiting for a kick", (), ALLOW),
    ("core", "poll ppoll select pselect6", "waiting for one of several things", (), ALLOW),
    ("core", "timerfd_create timerfd_settime", "waiting for a time", (), ALLOW),
    # --- the file system: names ---
    ("core", "openat openat2", "LOOKUP, OPEN, CREATE, OPENDIR, TMPFILE", (), ALLOW),
    ("core", "readlinkat", "READLINK", (), ALLOW),
    ("core", "symlinkat linkat mkdirat mknodat", "SYMLINK, LINK, MKDIR, MKNOD", (), ALLOW),
    ("core", "unlinkat renameat renameat2", "UNLINK, RMDIR, RENAME", (), ALLOW),
    ("core", "getdents64", "READDIR", (), ALLOW),
    # --- the file system: attributes ---
    ("core", "statx fstat newfstatat", "GETATTR, STATX, LOOKUP", (), ALLOW),
    ("core", "fstatfs", "STATFS", (), ALLOW),
    ("core", "faccessat faccessat2", "ACCESS", (), ALLOW),
    ("core", "fchmod fchmodat 452", "SETATTR; 452: fchmodat2", (), ALLOW),
    ("core", "fchown fchownat utimensat ftruncate", "SETATTR", (), ALLOW),
    ("core", "getxattr lgetxattr fgetxattr", "GETXATTR", (), ALLOW),
    ("core", "listxattr llistxattr flistxattr", "LISTXATTR", (), ALLOW),
    ("core", "setxattr lsetxattr fsetxattr", "SETXATTR", (), ALLOW),
    ("core", "removexattr lremovexattr fremovexattr", "REMOVEXATTR", (), ALLOW),
    ("core", "463 464 465 466", "setxattrat, getxattrat, listxattrat, removexattrat", (), ALLOW),
    ("core", "ioctl", "flags and project ids of files", IOCTL, ALLOW),
    ("core", "fchdir", "naming an O_PATH descriptor from /proc/self/fd", (), ALLOW),
    (
        "core",
        "unshare",
        "a working directory, or descriptors, of a thread's own",
        one_of(0, (CLONE_FS, CLONE_FILES)),
        ALLOW,
    ),
    ("core", "umask", "CREATE with the guest's umask", (), ALLOW),
    # --- the file system: data ---
    ("core", "preadv preadv2 pread64", "READ", (), ALLOW),
    ("core", "pwritev pwritev2 pwrite64", "WRITE", (), ALLOW),
    ("core", "lseek", "LSEEK, READDIR", (), ALLOW),
    ("core", "fallocate copy_file_range", "FALLOCATE, COPY_FILE_RANGE", (), ALLOW),
    ("core", "fsync fdatasync syncfs sync_file_range", "FSYNC, SYNCFS", (), ALLOW),
    ("core", "fadvise64 readahead", "what will be read next", (), ALLOW),
    ("core", "fcntl", "locks, flags of descriptors; not F_SETOWN and the like", FCNTL, ALLOW),
    ("core", "flock", "SETLK of whole files", (), ALLOW),
    ("core", "name_to_handle_at", "asking for a file's handle", (), ALLOW),
    # --- a file system in Python: what its methods, and the standard library, do with files they may touch ---
    ("python", "fcntl", "locks of SQLite; asking about pipes", PYTHON_FCNTL, ALLOW),
    ("python", "ioctl", "open(): is it a terminal?  sockets that do not block", PYTHON_IOCTL, ALLOW),
    ("python", "open stat lstat access readlink creat", "older names of the calls above", (), ALLOW),
    ("python", "mkdir rmdir unlink rename link symlink mknod", "and of these", (), ALLOW),
    ("python", "chmod chown lchown truncate utime utimes futimesat", "and of these", (), ALLOW),
    ("python", "getdents statfs epoll_create pipe eventfd", "and of these", (), ALLOW),
    ("python", "getcwd chdir", "relative paths", (), ALLOW),
    (
        "python",
        "pipe2 memfd_create sendfile msync mlock munlock mincore",
        "pipes, files and maps of memory",
        (),
        ALLOW,
    ),
    ("python", "uname sysinfo getrusage getrlimit times getppid getgroups", "asking about itself", (), ALLOW),
    ("python", "prlimit64", "its own limits", (((2, 0xFFFFFFFFFFFFFFFF, 0),),), ALLOW),
    ("python", "socketpair", "waking an event loop", one_of(0, (1,)), ALLOW),
    ("python", "sendto recvfrom shutdown getsockopt setsockopt", "the same", (), ALLOW),
    ("python", "getsockname getpeername", "the same", (), ALLOW),
    ("network", "socket connect bind listen accept accept4", "a class that needs the network", (), ALLOW),
    ("network", "sendmmsg recvmmsg", "questions to name servers", (), ALLOW),
    # --- with privilege ---
    ("ids", "setresuid setresgid setgroups", "creating as the guest's user", (), ALLOW),
    ("handles", "open_by_handle_at", "coming back to a file by its handle", (), ALLOW),
    # --- with a DAX window, or a metadata table ---
    ("dax", "getsockname", "the back-end channel becomes a socket of Python's", (), ALLOW),
    ("dax", "memfd_create", "the last, partial page of a mapped file; a guest's versions", (), ALLOW),
    ("dax", "fcntl", "versions that can not shrink: F_ADD_SEALS", one_of(1, (1033,)), ALLOW),
    ("dax", "fanotify_init", "watching mapped files", (), ALLOW),
    ("dax", "fanotify_mark", "watching mapped files, not all of a file system", one_of(1, (1, 2)), ALLOW),
)
# --seccomp: what happens to a call that is in no row.
ACTIONS = ("kill", "log", "trap")

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "filters")
# What the build makes: as root, without handles, and as a user, each also with a window; for a file system in Python.
USUAL = (
    *(
        (*features, *dax)
        for features in (("core", "ids", "handles"), ("core", "ids"), ("core",))
        for dax in ((), ("dax",))
    ),
    ("core", "python"),
)
MAGIC = b"virtiofs filter\n"


def rules(features: Sequence[str], action: str) -> list[str]:
    """One line for each rule of a program: also what tells whether a stored one is still right."""
    lines = [f"{os.uname().machine} {struct.calcsize('P') * 8} otherwise {action}"]
    for feature, calls, _why, conditions, verdict in TABLE:
        if feature in features:
            for call in calls.split():
                for tests in conditions or ((),):
                    lines.append(f"{verdict}: {call} {' '.join(f'{a}&{m:#x}={v:#x}' for a, m, v in tests)}")
    return lines


def compile_rules(features: Sequence[str], action: str) -> bytes:
    """The BPF program for some features, made by libseccomp.

    Raises `OSError` saying what to install if libseccomp is not there.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise OSError(
            f"system calls can not be filtered ({error}): install libseccomp2 and pyseccomp, or use --seccomp none"
        ) from None
    otherwise = {"kill": pyseccomp.KILL_PROCESS, "log": pyseccomp.LOG, "trap": pyseccomp.TRAP}[action]
    verdicts = {ALLOW: pyseccomp.ALLOW, NO_SUCH_CALL: pyseccomp.ERRNO(38)}
    program = pyseccomp.SyscallFilter(otherwise)
    program.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a tree: the last call is found as fast as the first
    for feature, calls, _why, conditions, verdict in TABLE:
        if feature not in features:
            continue
        for call in calls.split():
            number = int(call) if call.isdigit() else pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call)
            # Not on this architecture (negative numbers stand for that); numbers from 424 on are the same on all.
            if number < 0:
                continue
            for tests in conditions or ((),):
                program.add_rule(
                    verdicts[verdict],
                    number,
                    *(pyseccomp.Arg(a, pyseccomp.MASKED_EQ, m, v) for a, m, v in tests),
                )
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    with open(fd, "rb") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def path_of(features: Sequence[str], action: str) -> str:
    return os.path.join(DIRECTORY, f"{'-'.join(features)}-{action}.bpf")


def store(directory: str = DIRECTORY) -> None:
    """Make the usual programs, for the build.  Raises `OSError`."""
    os.makedirs(directory, exist_ok=True)
    for features in USUAL:
        text = "\n".join(rules(features, "kill")).encode()
        content = MAGIC + struct.pack("<I", len(text)) + text + compile_rules(features, "kill")
        with open(os.path.join(directory, os.path.basename(path_of(features, "kill"))), "wb") as file:
            file.write(content)


def program(features: Sequence[str], action: str) -> bytes:
    """The BPF program for some of `FEATURES` and an action of `ACTIONS`: stored, or made now.  Raises `OSError`."""
    text = "\n".join(rules(features, action)).encode()
    head = MAGIC + struct.pack("<I", len(text)) + text
    try:
        with open(path_of(features, action), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        content = b""
    if content.startswith(head):
        return content[len(head) :]
    return compile_rules(features, action)
