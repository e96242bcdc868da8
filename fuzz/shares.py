# SPDX-License-Identifier: Apache-2.0
"""The shared directory that is attacked, always the same at the start of an input."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from fuzz.walls import LIMIT, MS_NODEV, Canaries, mount, permitted
from virtiofs.fs.passthrough.share import Passthrough

ROOT = 1
# What an attacker would name; the last ones are too long by one byte, or just not.
NAMES = [
    *(
        b"file",
        b"dir",
        b"inner",
        b"link",
        b"out",
        b"abs",
        b"fifo",
        b"mount",
        b"new",
        b"other",
        b"null",
        b"deep",
    ),
    *(b".", b"..", b"", b"/", b"../secret", b"/etc/passwd", b"dir/inner", b"a\0b", b"file\0", b"\xff\xfe"),
    *(
        b"user.a",
        b"user.b",
        b"user.",
        b"user",
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.x",
    ),
    *(b"x" * 255, b"y" * 256, b"user." + b"z" * 250, b"user." + b"z" * 251, b"/proc/self/fd/3", b"t" * 4096),
]


class Place:
    """`share` with one of everything, beside canaries; `reset` makes it anew."""

    def __init__(self, scratch: Path):
        outside = scratch / "outside"
        self.share = outside / "share"
        (self.share / "mount").mkdir(parents=True)
        self.canaries = Canaries(outside)
        mount("none", str(self.share / "mount"), "tmpfs", MS_NODEV, LIMIT)
        # Numbers of inodes begin anew in each tmpfs: those of the canaries are not to be met again here.
        for _ in range(max(self.canaries.inodes) + 1):
            (self.share / "mount" / "burnt").touch()
            (self.share / "mount" / "burnt").unlink()
        self.reset()

    def reset(self) -> None:
        share = self.share
        for entry in [*os.scandir(share), *os.scandir(share / "mount")]:
            if entry.path == str(share / "mount"):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        for directory in (share, share / "mount"):
            os.chmod(directory, 0o777)
            for name in os.listxattr(directory):
                os.removexattr(directory, name)
            if os.geteuid() == 0:
                os.chown(directory, os.geteuid(), os.getegid())
        (share / "file").write_bytes(b"0123456789" * 1000)
        (share / "dir").mkdir(mode=0o2775)
        (share / "dir" / "inner").write_text("inner")
        (share / "dir" / "deep").mkdir()
        (share / "mount" / "far").write_text("far")
        os.symlink("file", share / "link")
        os.symlink("../secret", share / "out")
        os.symlink("/etc/passwd", share / "abs")
        os.mkfifo(share / "fifo")
        try:
            os.mknod(share / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except OSError as error:
            if not permitted(error):
                raise
        try:
            os.setxattr(share / "file", "user.a", b"value")
        except OSError as error:
            if error.errno != 95:  # a tmpfs before Linux 6.6 has none
                raise

    def shares(self) -> list[Passthrough]:
        """The same directory in the ways that differ inside: by handle or by name, crowded, read-only, unopened."""
        directory = str(self.share)
        made = [
            Passthrough(directory, max_open=64),
            Passthrough(directory, max_open=16, file_handles="never"),
            Passthrough(directory, read_only=True, max_open=64),
            Passthrough(directory, max_open=64, announce_submounts=False, shared_locks=False),
            Passthrough(directory, read_only=True, max_open=16, cache="always"),
        ]
        made[0].start_thread()
        return made
