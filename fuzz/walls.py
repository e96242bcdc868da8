# SPDX-License-Identifier: Apache-2.0
"""A place where a file system may be attacked: what a hole lets through hits a sealed host, and is noticed.

The process moves into a mount namespace (and without privilege a user namespace) of its own, in which everything is
read-only but a small tmpfs and the directories the fuzzer writes its results to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_STRICTATIME = 0x1000, 0x4000, 1 << 18, 1 << 24
MS_NODEV = 4
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
LIMIT = "size=16m,nr_inodes=2000,mode=755"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2).  Raises `OSError`."""
    words = (source.encode(), target.encode(), kind.encode())
    _check(LIBC.mount(*words, ctypes.c_ulong(flags), data.encode()), f"cannot mount on {target}")


def enclose(writable: Sequence[Path]) -> Path:
    """Move this process, which must have one thread, into such a place.  Returns its scratch directory.

    `writable` are directories that stay writable.  Raises `OSError` where the kernel allows no namespaces.
    """
    scratch = Path(tempfile.mkdtemp(prefix="virtiofs-fuzz-"))
    user, group = os.geteuid(), os.getegid()
    _check(LIBC.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)), "cannot make a mount namespace")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    for directory in writable:
        mount(str(directory), str(directory), "", MS_BIND)
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    for path, flags in (("/", AT_RECURSIVE), *((str(directory), 0) for directory in writable)):
        word = struct.pack("QQQQ", 0, MOUNT_ATTR_RDONLY, 0, 0) if flags == 0 else attributes
        result = LIBC.syscall(
            SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, word, ctypes.c_size_t(len(word))
        )
        _check(result, f"cannot seal {path}")
    # Each look at a file is to show in its access time.
    mount("none", str(scratch), "tmpfs", MS_STRICTATIME, LIMIT)
    return scratch


class Canaries:
    """Files beside the share: `check` raises `AssertionError` once one was read, changed, moved or joined."""

    def __init__(self, outside: Path):
        self.outside = outside
        (outside / "secret").write_text("secret")
        (outside / "closed").mkdir()
        (outside / "closed" / "inner").write_text("inner")
        os.utime(outside / "secret", ns=(1, 1))
        os.utime(outside / "closed" / "inner", ns=(1, 1))
        os.utime(outside / "closed", ns=(1, 1))
        self.paths = [outside / "secret", outside / "closed", outside / "closed" / "inner"]
        self.inodes = {path.lstat().st_ino for path in [*self.paths, outside]}
        self.before = self.look()

    def look(self) -> list[object]:
        names = os.listdir(self.outside)
        return [
            sorted(names),
            *((*path.lstat(), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in self.paths),
        ]

    def check(self) -> None:
        after = self.look()
        assert after == self.before, f"files outside the share were touched: {self.before} became {after}"


def permitted(error: OSError) -> bool:
    """Whether the kernel merely forbids this to this process."""
    return error.errno in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS)
