# SPDX-License-Identifier: Apache-2.0
"""The life of a process that serves: bound to its parent's, without groups, new privileges or core files, and
within limits.
"""

import os
import resource
import select

import cython
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.virtiofs.sandbox.host import (
    CLONE_FILES,
    M_ARENA_MAX,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    SECCOMP_FILTER_FLAG_TSYNC,
    SECCOMP_SET_MODE_FILTER,
    SIG_DFL,
    SIGKILL,
    WEXITSTATUS,
    WIFSIGNALED,
    WTERMSIG,
    SYS_seccomp,
    _exit,
    getpid,
    kill,
    mallopt,
    prctl,
    signal,
    sock_filter,
    sock_fprog,
    syscall,
    unshare,
    waitpid,
)

# /proc/sys/fs/nr_open may allow more; a share has no use for it.
MOST_DESCRIPTORS = 1_000_000
# A queue has a thread, and there are at most 65 queues; the rest is room.
MOST_THREADS = 256
# As many threads allocate at the same time, at most.
MALLOC_ARENAS = 8
INSTRUCTION_SIZE = 8


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG).

    `parent` is a pidfd of the parent, from before the fork: in a process id namespace of our own getppid()
    says nothing.  Call it after the last change of user, which undoes it.  Raises `OSError` if the kernel
    refuses, `ProcessLookupError` if the parent is gone already.
    """
    if prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        raise OSError(errno, "prctl(PR_SET_PDEATHSIG)")
    watch = select.poll()
    watch.register(parent, select.POLLIN)
    if watch.poll(0):
        raise ProcessLookupError("the parent ended while its child started")


def own_descriptors(*keep: int) -> None:
    """Give the calling thread a table of descriptors of its own, with only `keep` in it (unshare(2), CLONE_FILES).

    The others are closed when the other threads end, also if this one can not end yet.  Raises `OSError`.
    """
    if unshare(CLONE_FILES) != 0:
        raise OSError(errno, "cannot give a thread its own descriptors")
    first: int = 0
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 0x7FFFFFFF)


def shed_privilege() -> None:
    """Give up supplementary groups (CVE-2022-0358), the umask, which is the guest's business, and the hope for
    privilege that executing a set-user-ID program brings.

    Raises `OSError` if the kernel refuses the last.
    """
    os.umask(0)
    try:
        os.setgroups([])
    except PermissionError:
        pass  # not privileged: then the groups give nothing that the user does not have
    no_new_privileges()


def no_new_privileges() -> None:
    """Set no_new_privs, for this process and all it forks.  Raises `OSError`."""
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(errno, "prctl(PR_SET_NO_NEW_PRIVS)")


def forbid_core() -> None:
    """Never leave a core file: what is mapped here is the guest's.

    A pipe in core_pattern ignores the limit but not the second; that also keeps debuggers of the same user out.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(errno, "prctl(PR_SET_DUMPABLE)")


def limit_threads() -> None:
    """Bound the threads of this user in this user namespace; in the host's it would count other programs, too."""
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST_THREADS, MOST_THREADS))


def settle_allocator() -> None:
    """Tell malloc how many arenas to make: it would count the processors, by reading a file below /sys, which in
    a jail is the guest's to write.
    """
    mallopt(M_ARENA_MAX, MALLOC_ARENAS)


def load_filter(program: bytes) -> None:
    """Have the kernel check each system call of all threads with a seccomp program (seccomp(2)).

    Raises `OSError` if it is refused; no_new_privs must be set.
    """
    prog: sock_fprog
    prog.len = len(program) // INSTRUCTION_SIZE
    prog.filter = cython.cast(cython.pointer(sock_filter), cython.cast(cython.p_char, program))
    if syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, cython.address(prog)) != 0:
        raise OSError(errno, "seccomp(SECCOMP_SET_MODE_FILTER)")


def stand_in(child: int) -> None:
    """Wait for a child, and end as it ended, so that whoever waits for us learns what became of it.  Never returns."""
    status: cython.int = 0
    pid: cython.int = child
    with cython.nogil:
        while waitpid(pid, cython.address(status), 0) < 0:
            if errno != EINTR:
                _exit(1)
        if WIFSIGNALED(status):
            signal(WTERMSIG(status), SIG_DFL)
            kill(getpid(), WTERMSIG(status))
            _exit(1)
        _exit(WEXITSTATUS(status))


def set_descriptor_limit(limit: int = 0) -> int:
    """Let this process have `limit` descriptors (0: as many as is allowed and useful); returns how many it may have.

    Raises `OSError` or `ValueError` if a limit that was asked for is not allowed.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return limit
    with open("/proc/sys/fs/nr_open") as file:
        ceiling: int = min(int(file.read()), MOST_DESCRIPTORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (ceiling, hard):
        if wanted <= soft:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            return wanted
        except (ValueError, OSError):
            continue  # without privilege the hard limit is the end
    return soft
