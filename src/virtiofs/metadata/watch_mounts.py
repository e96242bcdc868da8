# SPDX-License-Identifier: Apache-2.0
"""What is mounted in a tree, and when that changes (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from typing import NamedTuple

# Others change files there, and this kernel hears nothing of it.
REMOTE = frozenset(
    b"9p afs ceph cifs coda fuse fuseblk gfs2 glusterfs lustre nfs nfs4 ocfs2 smb3 virtiofs".split()
)


class Mount(NamedTuple):
    """One line of mountinfo: its number, its place, and its type of file system."""

    number: int
    path: bytes
    type: bytes

    @property
    def remote(self) -> bool:
        return self.type.partition(b".")[0] in REMOTE


class Mounts:
    """The mounts below the directory of descriptor `root`, and the one it lies in.

    `fd` becomes urgent (POLLPRI) when any mount of the host changes; ask `changed` then.
    """

    def __init__(self, root: int):
        self._root = root
        self.fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self.root_path = b""
        self.below: list[Mount] = []
        self.own: Mount | None = None
        self.changed()

    def changed(self) -> bool:
        """Read them again: whether they are others than before."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        text = b""
        while piece := os.read(self.fd, 1 << 20):
            text += piece
        before = self.below
        self.root_path = os.readlink(b"/proc/self/fd/%d" % self._root)
        inside = self.root_path.rstrip(b"/") + b"/"
        number = mount_id(self._root)
        self.below, self.own = [], None
        for line in text.splitlines():
            mount = parse(line)
            if mount.number == number:
                self.own = mount
            elif mount.path.startswith(inside):
                self.below.append(mount)
        return self.below != before


def parse(line: bytes) -> Mount:
    """A line of mountinfo."""
    words = line.split(b" ")
    path = words[4]
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, byte)
    return Mount(int(words[0]), path, words[words.index(b"-") + 1])


def mount_id(fd: int) -> int:
    """The number of the mount that a descriptor lies in."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return int(next(line for line in lines if line.startswith(b"mnt_id:")).split()[1])
