# SPDX-License-Identifier: Apache-2.0
"""A read-only share that is cached always wants no OPEN and no OPENDIR: files are used by node, with handle 0."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from sharing import ROOT, USER, failure
from virtiofs.client.device import Device
from virtiofs.client.session import OFFER, Session
from virtiofs.client.tree import Tree
from virtiofs.fuse.abi import CONSTANTS, FUSE_IOCTL_IN, FUSE_IOCTL_OUT

MODE = ("--readonly", "--cache", "always")
NO_OPEN, NO_OPENDIR = CONSTANTS["FUSE_NO_OPEN_SUPPORT"], CONSTANTS["FUSE_NO_OPENDIR_SUPPORT"]
GETFLAGS = 0x80086601
CONTENTS = b"0123456789" * 1000
UNKNOWN = 1 << 32 | 1  # a handle that nobody was given


@pytest.fixture
def share() -> Iterator[Path]:
    with devices.share_for("ours") as base:  # which everybody can reach, other than pytest's own directories
        place = base / "share"
        place.mkdir()
        (place / "file").write_bytes(CONTENTS)
        (place / "directory").mkdir()
        (place / "link").symlink_to("file")
        os.mkfifo(place / "fifo")
        with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(place):
            sock.bind("socket")
        for path in (place, place / "file", place / "directory"):
            os.chown(path, USER, USER) if os.geteuid() == 0 else None
        yield place


@contextlib.contextmanager
def session(share: Path, *options: str, flags: int = OFFER, user: int | None = None) -> Iterator[Session]:
    with devices.start_ours(share, options, user) as daemon, Device.connect(daemon.socket) as device:
        yield Session(device, flags=flags)
        assert daemon.alive, "the daemon died:\n" + "\n".join(daemon.log)


def ioctl(guest: Session, node: int, fh: int, directory: bool = False) -> int:
    """The errno that FS_IOC_GETFLAGS is answered with."""
    flags = CONSTANTS["FUSE_IOCTL_DIR"] if directory else 0
    body = FUSE_IOCTL_IN.pack(fh=fh, flags=flags, cmd=GETFLAGS, in_size=0, out_size=8)
    return -guest.device.request("ioctl", node, body, FUSE_IOCTL_OUT.size + 8).error


def unless_missing(code: int) -> int:
    """0 where the host's file system has no such flags, which it says of an open file."""
    return 0 if code in (errno.ENOTTY, errno.EOPNOTSUPP) else code


def uses(guest: Session, fh: int) -> dict[str, int]:
    """The errno of each operation on a file or a directory that names handle `fh`."""
    file, directory = guest.lookup(ROOT, "file").nodeid, guest.lookup(ROOT, "directory").nodeid
    return {
        "read": failure(guest.read, file, fh, 0, 100),
        "lseek": failure(guest.lseek, file, fh, 0, os.SEEK_DATA),
        "fsync": failure(guest.fsync, file, fh),
        "getattr": failure(guest.getattr, file, fh),
        "statx": failure(guest.statx, file, fh=fh),
        "readdir": failure(guest.readdir, directory, fh),
        "readdirplus": failure(guest.readdirplus, directory, fh),
        "fsyncdir": failure(guest.fsyncdir, directory, fh),
        "ioctl": unless_missing(ioctl(guest, file, fh)),
        "ioctl of a directory": unless_missing(ioctl(guest, directory, fh, True)),
    }


OF_DIRECTORIES = ("readdir", "readdirplus", "fsyncdir", "ioctl of a directory")


def test_opening_is_not_wanted_and_handle_0_is_the_node(share: Path) -> None:
    with session(share, *MODE) as guest:
        assert guest.has("NO_OPEN_SUPPORT") and guest.has("NO_OPENDIR_SUPPORT")
        # The guest would take what it can not truncate for truncated.
        assert not guest.has("ATOMIC_O_TRUNC")
        file, directory = guest.lookup(ROOT, "file").nodeid, guest.lookup(ROOT, "directory").nodeid
        assert failure(guest.open, file) == failure(guest.opendir, directory) == errno.ENOSYS
        assert failure(guest.flush, file, 0) == errno.ENOSYS
        assert not any(uses(guest, 0).values())
        assert guest.read(file, 0, 5, 100) == CONTENTS[5:105]
        assert guest.read(file, 0, 9990, 100) == CONTENTS[-10:]
        assert guest.read(file, 0, 20000, 100) == b""
        assert guest.lseek(file, 0, 0, os.SEEK_HOLE) == len(CONTENTS)
        assert guest.getattr(file, 0).size == guest.statx(file, fh=0).size == len(CONTENTS)
        # Who sends more than is wanted gets nothing by it.
        assert failure(guest.release, file, 0) == failure(guest.releasedir, directory, 0) == errno.EBADF
        assert failure(guest.write, file, 0, 0, b"x") == errno.EROFS
    assert (share / "file").read_bytes() == CONTENTS


def test_what_is_no_handle_is_none_here_either(share: Path) -> None:
    with session(share, *MODE) as guest:
        assert set(uses(guest, UNKNOWN).values()) == {errno.EBADF}
        assert set(uses(guest, 1).values()) == {errno.EBADF}


@pytest.mark.parametrize(
    "options",
    [(), ("--readonly",), ("--cache", "always"), ("--readonly", "--cache", "metadata")],
    ids=" ".join,
)
def test_handle_0_is_none_in_other_modes(share: Path, options: tuple[str, ...]) -> None:
    with session(share, *options) as guest:
        file = guest.lookup(ROOT, "file").nodeid
        assert guest.read(file, guest.open(file).fh, 0, 3) == CONTENTS[:3]
        assert set(uses(guest, 0).values()) == {errno.EBADF}


def test_a_guest_that_did_not_agree_opens_as_ever(share: Path) -> None:
    with session(share, *MODE, flags=OFFER & ~(NO_OPEN | NO_OPENDIR)) as guest:
        file, directory = guest.lookup(ROOT, "file").nodeid, guest.lookup(ROOT, "directory").nodeid
        assert guest.read(file, guest.open(file).fh, 0, 3) == CONTENTS[:3]
        assert guest.opendir(directory).fh
        assert failure(guest.open, file, os.O_RDWR) == errno.EROFS
        assert set(uses(guest, 0).values()) == {errno.EBADF}


@pytest.mark.parametrize("option", [("--locks", "shared"), ("--allow-direct-io",)], ids=" ".join)
def test_files_are_opened_where_a_lock_or_o_direct_needs_it(share: Path, option: tuple[str, ...]) -> None:
    with session(share, *MODE, *option) as guest:
        file, directory = guest.lookup(ROOT, "file").nodeid, guest.lookup(ROOT, "directory").nodeid
        assert failure(guest.opendir, directory) == errno.ENOSYS
        handle = guest.open(file).fh
        guest.flush(file, handle)
        guest.release(file, handle)
        found = uses(guest, 0)
        assert {name for name, code in found.items() if code == 0} == set(OF_DIRECTORIES)
        assert {code for name, code in found.items() if name not in OF_DIRECTORIES} == {errno.EBADF}


def test_only_what_may_be_opened_is_read(share: Path) -> None:
    with session(share, *MODE) as guest:
        nodes = {name: guest.lookup(ROOT, name).nodeid for name in os.listdir(share)}
        for name, refusal in (
            ("directory", errno.EISDIR),
            ("link", errno.ELOOP),
            ("fifo", errno.ENXIO),
            ("socket", errno.ENXIO),
        ):
            assert failure(guest.read, nodes[name], 0, 0, 100) == refusal, name
            assert failure(guest.fsync, nodes[name], 0) == refusal, name
            assert ioctl(guest, nodes[name], 0) == refusal, name
        for name in ("file", "link", "fifo", "socket"):
            assert failure(guest.readdir, nodes[name], 0) == errno.ENOTDIR, name
            assert failure(guest.fsyncdir, nodes[name], 0) == errno.ENOTDIR, name
            assert ioctl(guest, nodes[name], 0, True) == errno.ENOTDIR, name


def test_nodes_that_the_guest_does_not_hold_are_stale(share: Path) -> None:
    with session(share, *MODE) as guest:
        file = guest.lookup(ROOT, "file").nodeid
        assert guest.read(file, 0, 0, 1) == b"0"
        guest.forget(file)
        for node in (0, file, file + 1, file + (1 << 32), 2**64 - 1):
            assert failure(guest.read, node, 0, 0, 100) == errno.ESTALE
            assert failure(guest.readdir, node, 0) == errno.ESTALE


@pytest.mark.parametrize("user", [None, USER], ids=["by handle", "by name"])
def test_many_files_are_read_by_few_descriptors(share: Path, user: int | None) -> None:
    """The status of some is asked first, so that they have a descriptor that can not be read."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    names = [f"n{number}" for number in range(100)]
    for name in names:
        (share / name).write_text(name * 10)
        (share / name).chmod(0o644)
    with session(share, *MODE, "--max-open", "16", user=user) as guest:
        nodes = {name: guest.lookup(ROOT, name).nodeid for name in names}
        for _ in range(3):
            for number, name in enumerate(names):
                if number % 3:
                    assert guest.getattr(nodes[name]).size == len(name) * 10
                assert guest.read(nodes[name], 0, 0, 100).decode() == name * 10
                assert guest.getattr(nodes[name], 0).size == len(name) * 10
                assert guest.read(nodes[name], 0, len(name), 2).decode() == name[:2]
        assert guest.read(guest.lookup(ROOT, "file").nodeid, 0, 0, 3) == b"012"


def test_two_queues_use_the_same_files_at_once(share: Path) -> None:
    """One reads them, so that a readable descriptor takes the place of the one that the other asks for their status."""
    names = [f"n{number}" for number in range(64)]
    for name in names:
        (share / name).write_text(name * 10)
    with (
        devices.start_ours(share, (*MODE, "--max-open", "16", "--queues", "2")) as daemon,
        Device.connect(daemon.socket, queues=2) as device,
    ):
        guest = Session(device)
        nodes = {name: guest.lookup(ROOT, name).nodeid for name in names}
        for _ in range(20):
            pending = []
            for name in names:
                guest.queue = 1
                read = guest.begin("read", nodes[name], room=100, fh=0, size=100)
                guest.queue = 2
                pending.append((name, read, guest.begin("getattr", nodes[name])))
                if len(pending) == 32:
                    for of, reading, asking in pending:
                        assert guest.finish(reading, "read", 100).decode() == of * 10
                        assert guest.finish(asking, "getattr").attr.size == len(of) * 10
                    pending.clear()
        assert daemon.alive


def test_a_listing_goes_on_where_it_stopped(share: Path) -> None:
    names = {f"name-{number:04}" for number in range(1000)}
    for name in names:
        (share / "directory" / name).touch()
    with session(share, *MODE) as guest:
        node = guest.lookup(ROOT, "directory").nodeid
        for read in (guest.readdir, guest.readdirplus):
            found, cookie = [], 0
            while part := read(node, 0, cookie, 1000):
                found += [os.fsdecode(entry.name) for entry in part]
                cookie = part[-1].cookie
            assert len(found) == len(names) + 2
            assert set(found) == names | {".", ".."}
        assert failure(guest.readdir, node, 0, 0, 10) == errno.EINVAL


def test_reading_leaves_no_time_of_access(share: Path) -> None:
    for name in ("file", "directory"):
        os.utime(share / name, ns=(1, 10**18))
    with session(share, *MODE) as guest:
        guest.read(guest.lookup(ROOT, "file").nodeid, 0, 0, 100)
        guest.readdir(guest.lookup(ROOT, "directory").nodeid, 0)
    assert [os.stat(share / name).st_atime_ns for name in ("file", "directory")] == [1, 1]


def test_a_tree_does_without_opening(share: Path) -> None:
    with session(share, *MODE) as guest:
        tree = Tree(guest)
        assert tree.read_file("link") == CONTENTS
        assert tree.listdir("directory") == []
        assert set(tree.listdir()) == set(os.listdir(share))
        with tree.open("file") as file:
            assert file.fstat().st_size == len(CONTENTS)
