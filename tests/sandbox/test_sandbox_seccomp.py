# SPDX-License-Identifier: Apache-2.0
"""The list of system calls: what is on it works, what is not ends the process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import threading
import time
from pathlib import Path

import pytest
from inside import child

from virtiofs.sandbox import seccomp
from virtiofs.sandbox.process import load_filter, no_new_privileges

ALL = ("core", "ids", "handles")
LIBC = ctypes.CDLL(None, use_errno=True)

if os.uname().machine != "x86_64":
    pytest.skip("the numbers below are those of x86-64", allow_module_level=True)

CLONE_NEWUSER, CLONE_NEWNS, SIGCHLD = 0x10000000, 0x20000, 17
PAGE = 4096
# x86-64 system call numbers and arguments that must end the process.
FORBIDDEN = {
    "socket": (41, 1, 1, 0),
    "connect": (42, -1, 0, 0),
    "bind": (49, -1, 0, 0),
    "execve": (59, 0, 0, 0),
    "execveat": (322, -1, 0, 0, 0, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone a process": (56, SIGCHLD, 0, 0, 0, 0),
    "clone a thread into a user namespace": (56, 0x10100 | CLONE_NEWUSER, 0, 0, 0, 0),
    "unshare mounts": (272, CLONE_NEWNS),
    "unshare the user": (272, CLONE_NEWUSER | 0x200),
    "setns": (308, -1, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "open_tree": (428, -1, 0, 0),
    "move_mount": (429, -1, 0, -1, 0, 0),
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "kill": (62, 1, 0),
    "setpriority of another": (141, 0, 1, 19),
    "pidfd_open": (434, 1, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "memfd_create": (319, 0, 0),
    "open": (2, 0, 0),
    "mmap executable": (9, 0, PAGE, 7, 0x22, -1, 0),
    "mprotect executable": (10, 0, PAGE, 5),
    "ioctl TIOCSTI": (16, 0, 0x5412, 0),
    "ioctl TIOCSTI with high bits": (16, 0, 0xFFFFFFFF00005412, 0),
    "fcntl F_SETOWN": (72, 0, 8, 0),
    "prctl PR_SET_DUMPABLE": (157, 4, 1, 0, 0, 0),
    "prctl PR_SET_PDEATHSIG": (157, 1, 0, 0, 0, 0),
    "arch_prctl": (158, 0, 0),
    "seccomp": (317, 0, 0, 0),
    "sched_setaffinity": (203, 0, 0, 0),
    "setrlimit": (160, 0, 0),
    "socketpair": (53, 1, 1, 0, 0),
    "a call of the x32 ABI": (0x40000000 + 39,),
    "a call that nobody knows": (1000,),
}


def call(*arguments: int) -> int:
    """A raw system call: its result, or minus the error."""
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(*map(ctypes.c_long, arguments))
    return -ctypes.get_errno() if result == -1 else int(result)


def filtered(features, action, act):
    program = seccomp.program(features, action)

    def run():
        no_new_privileges()
        load_filter(program)
        return act()

    return child(run)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_call_that_is_not_on_the_list_ends_the_process(name):
    said, ended = filtered(ALL, "kill", lambda: call(*FORBIDDEN[name]))
    assert ended == -signal.SIGSYS and said is None


@pytest.mark.parametrize(
    ("feature", "arguments"),
    [("ids", (117, -1, -1, -1)), ("handles", (304, -1, 0, 0))],
)
def test_a_call_of_a_feature_is_allowed_only_with_it(feature, arguments):
    assert filtered(("core",), "kill", lambda: call(*arguments))[1] == -signal.SIGSYS
    said, ended = filtered(("core", feature), "kill", lambda: call(*arguments))
    assert ended == 0 and said is not None


def test_the_calls_of_serving_pass(tmp_path):
    """What the file system, its locks and waits, and Python itself call, each once."""
    (tmp_path / "f").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "p")

    def act():
        proc = os.open("/proc/self/fd", os.O_PATH)
        root = os.open(tmp_path, os.O_RDONLY)
        a = os.open("f", os.O_RDWR, dir_fd=root)
        b = os.open("g", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, dir_fd=root))
        os.close(os.open(str(a), os.O_RDONLY, dir_fd=proc))
        fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for command in (36, 37):  # F_OFD_GETLK, F_OFD_SETLK
            fcntl.fcntl(a, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        for command, size in ((0x80086601, 8), (0x801C581F, 28)):  # FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR
            with contextlib.suppress(OSError):  # tmpfs of older kernels has none
                fcntl.ioctl(a, command, bytes(size))
        assert os.preadv(a, [bytearray(4)], 0, os.RWF_NOWAIT) == 4
        assert os.pwritev(b, [b"ab", b"cd"], 0, os.RWF_APPEND | os.RWF_DSYNC) == 4
        assert os.pread(a, 4, 0) == b"0123" and os.pwrite(b, b"x", 0) == 1
        assert os.copy_file_range(a, b, 10, 0, 0) == 10
        os.posix_fallocate(b, 0, 100)
        os.posix_fadvise(a, 0, 0, os.POSIX_FADV_WILLNEED)
        os.lseek(a, 0, os.SEEK_DATA)
        os.fsync(b)
        os.fdatasync(b)
        os.ftruncate(b, 1)
        os.fchmod(b, 0o644)
        os.fchown(b, -1, -1)
        os.utime("g", dir_fd=root)
        os.statvfs(b)
        os.stat("g", dir_fd=root, follow_symlinks=False)
        os.listdir(root)
        os.mkdir("d", dir_fd=root)
        os.symlink("/x", "s", dir_fd=root)
        os.readlink("s", dir_fd=root)
        os.link("g", "h", src_dir_fd=root, dst_dir_fd=root)
        os.rename("h", "d/h", src_dir_fd=root, dst_dir_fd=root)
        os.unlink("d/h", dir_fd=root)
        os.rmdir("d", dir_fd=root)
        os.access("g", os.R_OK, dir_fd=root)
        os.setxattr(b, "user.a", b"1")
        assert os.getxattr(b, "user.a") == b"1" and os.listxattr(b)
        os.removexattr(b, "user.a")
        os.fchdir(proc)
        assert call(272, 0x200) == 0  # unshare(CLONE_FS)
        select.select([a], [], [], 0)
        select.poll().poll(0)
        with select.epoll() as poll:
            poll.register(os.eventfd(0))
            poll.poll(0)
        time.sleep(0)
        os.dup2(a, b)
        os.umask(0)
        os.nice(5)
        return "all"

    assert filtered(("core",), "kill", act) == ("all", 0)


def test_threads_start_as_clone3_is_said_not_to_exist():
    def act():
        found = []
        threads = [threading.Thread(target=lambda: found.append(call(435, 0, 0))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    said, ended = filtered(("core",), "kill", act)
    assert (said, ended) == ([-errno.ENOSYS] * 8, 0)


def test_a_forbidden_call_of_any_thread_ends_all():
    def act():
        thread = threading.Thread(target=lambda: call(41, 1, 1, 0))
        thread.start()
        thread.join()
        return "still here"

    assert filtered(ALL, "kill", act) == (None, -signal.SIGSYS)


def test_log_lets_a_forbidden_call_pass():
    said, ended = filtered(ALL, "log", lambda: call(*FORBIDDEN["memfd_create"]))
    assert ended == 0 and said != -errno.ENOSYS


def test_trap_signals_a_forbidden_call():
    assert filtered(ALL, "trap", lambda: call(*FORBIDDEN["socket"])) == (None, -signal.SIGSYS)


@pytest.mark.parametrize("features", seccomp.USUAL)
def test_the_build_stored_the_usual_programs(features):
    pytest.importorskip("pyseccomp")
    content = Path(seccomp.path_of(features, "kill")).read_bytes()
    assert content.startswith(seccomp.MAGIC)
    assert seccomp.program(features, "kill") == seccomp.compile_rules(features, "kill")


def test_a_stored_program_of_another_table_is_not_used(tmp_path, monkeypatch):
    pytest.importorskip("pyseccomp")
    monkeypatch.setattr(seccomp, "DIRECTORY", str(tmp_path))
    seccomp.store(str(tmp_path))
    stored = Path(seccomp.path_of(("core",), "kill"))
    content = stored.read_bytes()
    stored.write_bytes(content.replace(b"allow: flock", b"allow: fleck"))
    assert seccomp.program(("core",), "kill") == seccomp.compile_rules(("core",), "kill")
    stored.write_bytes(content + b"\0" * 8)
    assert seccomp.program(("core",), "kill").endswith(b"\0" * 8)  # so it was read


def test_every_name_in_the_table_is_a_system_call_of_linux():
    pyseccomp = pytest.importorskip("pyseccomp")
    unknown = [
        name
        for _, names, _, _, _ in seccomp.TABLE
        for name in names.split()
        if not name.isdigit() and pyseccomp.resolve_syscall(0, name) == -1
    ]
    assert unknown == []


def test_no_call_is_in_two_rows_but_for_features_of_their_own_or_more_arguments_of_it():
    rows = [(name, feature, tests) for feature, names, _, tests, _ in seccomp.TABLE for name in names.split()]
    assert len(rows) == len({(name, feature) for name, feature, _ in rows})
    for name in {name for name, _, _ in rows}:
        found = [tests for one, _, tests in rows if one == name]
        always = any(one == name and feature == "core" for one, feature, _ in rows)
        assert len(found) == 1 or all(found) or not always, name
