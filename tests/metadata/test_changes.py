# SPDX-License-Identifier: Apache-2.0
"""What each operation of a guest tells the metadata table: all that it changes, and nothing if it changes nothing."""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from sharing import ROOT, Shared, failure, shared
from virtiofs.fs.passthrough import changes
from virtiofs.fuse import abi
from virtiofs.fuse.abi import CONSTANTS
from virtiofs.metadata import layout, registry
from virtiofs.metadata.follower import Follower
from virtiofs.metadata.layout import ATTRIBUTES, DATA, ENTRY, GONE
from virtiofs.metadata.table import Table

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
# What comes to no file system, and what there is only with a DAX window, of which the table hears nothing.
ELSEWHERE = {"init", "destroy", "interrupt", "bmap", "poll", "setupmapping", "removemapping"}


class Told(NamedTuple):
    """A change: of which path, its kind, and for names which, and what went or came with it."""

    path: str
    kind: int
    name: str = ""
    child: str = ""


class Bench:
    """A share with a file `f`, another `g` linked as `h`, and directories `d` and `e`, and the table of it."""

    def __init__(self, share: Shared, table: Table):
        self.session, self.host, self.table = share.session, share.host, table
        self.f, self.g = self.session.create(ROOT, "f")[0], self.session.create(ROOT, "g")[0]
        self.fh = self.session.open(self.f.nodeid, os.O_RDWR).fh
        self.gh = self.session.open(self.g.nodeid, os.O_RDWR).fh
        self.session.write(self.g.nodeid, self.gh, 0, b"x" * 8192)
        self.session.link(self.g.nodeid, ROOT, "h")
        self.d = self.session.mkdir(ROOT, "d")
        self.session.mkdir(ROOT, "e")
        self.session.setxattr(self.f.nodeid, "user.old", b"1")
        self.dh = self.session.opendir(ROOT).fh
        self.root = (share.host.stat().st_dev, share.host.stat().st_ino)
        self.inodes = self.known()
        self.words = {key: table.word(table.slot(*key)) for key in self.inodes}
        self.follower: Follower = table.follow()

    def known(self) -> dict[tuple[int, int], str]:
        found = {self.root: "/"} if hasattr(self, "root") else {}
        for path in sorted(self.host.rglob("*")):
            found.setdefault((path.lstat().st_dev, path.lstat().st_ino), path.name)
        found[(self.host.stat().st_dev, self.host.stat().st_ino)] = "/"
        return found

    def told(self) -> list[Told]:
        """All that the table was told, sorted; each change must have moved the inode's word."""
        names = self.known() | self.inodes
        found = []
        while (change := self.follower.next(0)) is not None:
            assert change.kind != layout.EVERYTHING
            key = (change.dev, change.ino)
            if key in self.words:
                assert self.table.word(self.table.slot(*key)) != self.words[key]
            child = names.get((change.child_dev, change.child_ino), "")
            found.append(Told(names[key], change.kind, os.fsdecode(change.name), child))
        for key, word in self.words.items():
            now = self.table.word(self.table.slot(*key))
            assert not now & layout.IN_PROGRESS
            if not any(one.path == names[key] for one in found):
                assert now == word, f"nothing was said of {names[key]}"
        return sorted(found)


@pytest.fixture(scope="module")
def share() -> Iterator[tuple[Shared, Table]]:
    with shared("--metadata-table") as share:
        table = registry.attach(str(share.host))
        assert devices.wait_until(lambda: table.watched, 20.0)
        daemon = share.running.process.pid
        watcher = int(Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()[0])
        os.kill(watcher, signal.SIGSTOP)  # what the test does as a program of the host is not to be told
        yield share, table
        os.kill(watcher, signal.SIGCONT)
        table.close()


@pytest.fixture
def bench(share: tuple[Shared, Table]) -> Iterator[Bench]:
    bench = Bench(*share)
    yield bench
    bench.follower.close()
    bench.session.release(bench.f.nodeid, bench.fh)
    bench.session.release(bench.g.nodeid, bench.gh)
    bench.session.releasedir(ROOT, bench.dh)
    for path in sorted(bench.host.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def ioctl(bench: Bench, command: int, data: bytes = b"") -> None:
    bench.session.call(
        "ioctl", bench.f.nodeid, tail=data, room=64, fh=bench.fh, cmd=command, in_size=len(data), out_size=4
    )


def flags_of(bench: Bench) -> int:
    payload = bench.session.call(
        "ioctl", bench.f.nodeid, room=64, fh=bench.fh, cmd=FS_IOC_GETFLAGS, out_size=4
    )
    return int(struct.unpack_from("<I", payload, len(payload) - 4)[0])


def set_flags(bench: Bench) -> None:
    ioctl(bench, FS_IOC_SETFLAGS, struct.pack("<I", flags_of(bench) | 0x40))  # FS_NODUMP_FL


Case = tuple[Callable[[Bench], object], list[Told]]
SIZE, MODE = CONSTANTS["FATTR_SIZE"], CONSTANTS["FATTR_MODE"]
CASES: dict[str, list[Case]] = {
    "lookup": [(lambda b: b.session.lookup(ROOT, "f"), [])],
    "forget": [(lambda b: (b.session.lookup(ROOT, "f"), b.session.forget(b.f.nodeid)), [])],
    "batch_forget": [
        (lambda b: (b.session.lookup(ROOT, "f"), b.session.batch_forget([(b.f.nodeid, 1)])), [])
    ],
    "getattr": [(lambda b: b.session.getattr(b.f.nodeid), [])],
    "statx": [(lambda b: b.session.statx(b.f.nodeid), [])],
    "access": [(lambda b: b.session.access(b.f.nodeid, os.R_OK), [])],
    "readlink": [
        (
            lambda b: b.session.readlink(b.session.symlink(ROOT, "s", "f").nodeid),
            [Told("/", ENTRY, "s", "s")],  # of the symlink itself
        )
    ],
    "read": [(lambda b: b.session.read(b.g.nodeid, b.gh, 0, 4096), [])],
    "lseek": [(lambda b: b.session.lseek(b.g.nodeid, b.gh, 0, os.SEEK_DATA), [])],
    "flush": [(lambda b: b.session.flush(b.f.nodeid, b.fh), [])],
    "fsync": [(lambda b: b.session.fsync(b.f.nodeid, b.fh), [])],
    "release": [(lambda b: b.session.release(b.g.nodeid, b.session.open(b.g.nodeid, os.O_RDWR).fh), [])],
    "statfs": [(lambda b: b.session.statfs(), [])],
    "syncfs": [(lambda b: b.session.syncfs(), [])],
    "opendir": [(lambda b: b.session.releasedir(ROOT, b.session.opendir(ROOT).fh), [])],
    "readdir": [(lambda b: b.session.readdir(ROOT, b.dh), [])],
    "readdirplus": [(lambda b: b.session.readdirplus(ROOT, b.dh), [])],
    "releasedir": [(lambda b: b.session.releasedir(ROOT, b.session.opendir(ROOT).fh), [])],
    "fsyncdir": [(lambda b: b.session.fsyncdir(ROOT, b.dh), [])],
    "getxattr": [(lambda b: b.session.getxattr(b.f.nodeid, "user.old"), [])],
    "listxattr": [(lambda b: b.session.listxattr(b.f.nodeid), [])],
    **{
        name: [
            (
                lambda b, name=name: b.session.call(
                    name, b.f.nodeid, fh=b.fh, owner=1, lk={"start": 0, "end": 1, "type": 0, "pid": 1}
                ),
                [],
            )
        ]
        for name in ("getlk", "setlk", "setlkw")
    },
    "tmpfile": [(lambda b: b.session.tmpfile(b.d.nodeid), [])],
    "write": [
        (lambda b: b.session.write(b.f.nodeid, b.fh, 0, b"new"), [Told("f", DATA)]),
        # By the handle, whatever node a hostile guest names.
        (lambda b: b.session.write(b.g.nodeid, b.fh, 0, b"new"), [Told("f", DATA)]),
        (lambda b: failure(b.session.write, b.f.nodeid, 0, 0, b"new"), []),
    ],
    "fallocate": [(lambda b: b.session.fallocate(b.f.nodeid, b.fh, 0, 4096), [Told("f", DATA)])],
    **{
        name: [
            (
                lambda b, name=name: b.session.call(
                    name,
                    b.g.nodeid,
                    fh_in=b.gh,
                    off_in=0,
                    nodeid_out=b.f.nodeid,
                    fh_out=b.fh,
                    off_out=0,
                    len=4096,
                ),
                [Told("f", DATA)],
            )
        ]
        for name in ("copy_file_range", "copy_file_range_64")
    },
    "setxattr": [(lambda b: b.session.setxattr(b.f.nodeid, "user.new", b"1"), [Told("f", ATTRIBUTES)])],
    "removexattr": [(lambda b: b.session.removexattr(b.f.nodeid, "user.old"), [Told("f", ATTRIBUTES)])],
    "setattr": [
        (lambda b: b.session.setattr(b.f.nodeid, MODE, mode=0o600), [Told("f", ATTRIBUTES)]),
        (lambda b: b.session.setattr(b.f.nodeid, SIZE, size=9), [Told("f", DATA)]),
        (
            lambda b: b.session.setattr(b.f.nodeid, SIZE | CONSTANTS["FATTR_FH"], size=9, fh=b.gh),
            [Told("f", DATA), Told("g", DATA)],
        ),
    ],
    "open": [
        (lambda b: b.session.release(b.f.nodeid, b.session.open(b.f.nodeid, os.O_RDWR).fh), []),
        (
            lambda b: b.session.release(b.f.nodeid, b.session.open(b.f.nodeid, os.O_RDWR | os.O_TRUNC).fh),
            [Told("f", DATA)],
        ),
    ],
    "ioctl": [
        (flags_of, []),
        (set_flags, [Told("f", ATTRIBUTES), Told("f", ATTRIBUTES)]),
    ],
    "create": [
        (lambda b: b.session.create(ROOT, "new"), [Told("/", ENTRY, "new", "new")]),
        (
            lambda b: b.session.create(ROOT, "f", os.O_RDWR | os.O_TRUNC),
            [Told("/", ENTRY, "f", "f"), Told("f", DATA)],
        ),
        (
            lambda b: failure(b.session.create, ROOT, "f", os.O_RDWR | os.O_EXCL),
            [Told("/", ENTRY, "f")],  # how far it came is not looked at
        ),
    ],
    "mknod": [(lambda b: b.session.mknod(ROOT, "new", 0o100644), [Told("/", ENTRY, "new", "new")])],
    "mkdir": [(lambda b: b.session.mkdir(b.d.nodeid, "new"), [Told("d", ENTRY, "new", "new")])],
    "symlink": [(lambda b: b.session.symlink(ROOT, "new", "f"), [Told("/", ENTRY, "new", "new")])],
    "link": [
        (
            lambda b: b.session.link(b.f.nodeid, b.d.nodeid, "new"),
            [Told("d", ENTRY, "new", "f"), Told("f", ATTRIBUTES)],
        )
    ],
    "unlink": [
        (
            lambda b: b.session.unlink(ROOT, "f"),
            [Told("/", GONE, "f", "f"), Told("f", ATTRIBUTES)],
        ),
        # It has another name: the inode stays.
        (lambda b: b.session.unlink(ROOT, "h"), [Told("/", GONE, "h"), Told("g", ATTRIBUTES)]),
        (lambda b: failure(b.session.unlink, ROOT, "missing"), [Told("/", GONE, "missing")]),
    ],
    "rmdir": [
        (lambda b: b.session.rmdir(ROOT, "e"), [Told("/", GONE, "e", "e"), Told("e", ATTRIBUTES)]),
    ],
    "rename": [
        (
            lambda b: b.session.rename(ROOT, "f", b.d.nodeid, "new"),
            [Told("/", ENTRY, "f"), Told("d", ENTRY, "new", "f"), Told("f", ATTRIBUTES)],
        ),
        (
            lambda b: b.session.rename(ROOT, "f", ROOT, "h"),
            [
                Told("/", ENTRY, "f"),
                Told("/", ENTRY, "h", "f"),
                Told("f", ATTRIBUTES),
                Told("g", ATTRIBUTES),
            ],
        ),
    ],
    "rename2": [
        (
            lambda b: b.session.rename(ROOT, "f", ROOT, "d", 2),  # RENAME_EXCHANGE
            [
                Told("/", ENTRY, "d", "f"),
                Told("/", ENTRY, "f", "d"),
                Told("d", ATTRIBUTES),
                Told("f", ATTRIBUTES),
            ],
        )
    ],
}


def test_every_operation_has_a_rule_and_is_tried() -> None:
    assert changes.RULES.keys() | ELSEWHERE == abi.BY_NAME.keys()
    assert CASES.keys() == changes.RULES.keys()


@pytest.mark.parametrize(
    ("act", "expected"), [pytest.param(*case, id=name) for name, cases in CASES.items() for case in cases]
)
def test_the_table_is_told_what_changes(
    bench: Bench, act: Callable[[Bench], object], expected: list[Told]
) -> None:
    try:
        act(bench)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            pytest.skip(f"the file system of temporary files says: {error.strerror}")
        raise
    assert bench.told() == sorted(expected)


def test_a_share_that_can_not_change_says_nothing_and_serves_all() -> None:
    with shared("--metadata-table", "--readonly") as share:
        (share.host / "f").write_text("x")
        table = registry.attach(str(share.host))
        follower = table.follow()
        nodeid = share.session.lookup(ROOT, "f").nodeid
        assert failure(share.session.setattr, nodeid, MODE, mode=0) == errno.EROFS
        fh = share.session.open(nodeid).fh
        assert share.session.read(nodeid, fh, 0, 10) == b"x"
        while (change := follower.next(0)) is not None:  # what the host did may be told
            assert change.kind == layout.EVERYTHING or not table.worker(change.origin)
        follower.close()
        table.close()
