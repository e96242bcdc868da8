# SPDX-License-Identifier: Apache-2.0
"""A read-only share stays as it is, whatever a guest asks for: by the rules of the file system alone (without walls),
and behind a mount that is read-only itself."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from sharing import ROOT, failure
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import CONSTANTS, OPERATIONS

MUTATING = [operation for operation in OPERATIONS if operation.flags & abi.MUTATES]
SETFLAGS, FSSETXATTR = 0x40086602, 0x401C5820
# A request that would do as much as it can, if it were let: values of the fields of any operation.
STRONG = {
    "flags": os.O_RDWR | os.O_TRUNC | os.O_CREAT,
    "mode": 0o6777,
    "valid": sum(CONSTANTS[f"FATTR_{name}"] for name in ("MODE", "UID", "GID", "SIZE", "MTIME_NOW", "KILL_SUIDGID")),
    "uid": 12,
    "gid": 34,
    "length": 4096,
    "len": 4096,
    "nlookup": 0,
    "major": 7,
    "minor": 46,
    "in_size": 28,
}  # fmt: skip


class Place(NamedTuple):
    session: Session
    share: Path
    node: int
    fh: int
    directory: int  # a handle of the root


@pytest.fixture(scope="module", params=["none", "namespace"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    share = tmp_path_factory.mktemp("share")
    (share / "name").write_text("kept")
    (share / "name").chmod(0o4755)
    (share / "directory").mkdir()
    os.symlink("name", share / "link")
    os.setxattr(share / "name", "user.x", b"kept")
    options = ["--readonly", "--xattr", "--sandbox", request.param]
    if os.geteuid() != 0 and request.param == "namespace":
        options.remove("--xattr")
    with devices.start_ours(share, options) as running, Device.connect(running.socket) as device:
        session = Session(device)
        node = session.lookup(ROOT, "name").nodeid
        yield Place(session, share, node, session.open(node).fh, session.opendir(ROOT).fh)
        assert running.alive, running.log


def state(share: Path) -> list[object]:
    """All that can be told of a tree, the times of access among it."""
    found: list[object] = []
    for path in [share, *sorted(share.rglob("*"))]:
        status = path.lstat()
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        owner = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, status.st_size)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        found.append((path, owner, times, attributes))
    return found


def arguments(place: Place, operation: abi.Operation) -> bytes:
    labels = {label for _, label, _ in operation.args.fields} if operation.args else set()
    values = STRONG | {label: place.fh for label in ("fh", "fh_in", "fh_out")}
    values |= {"newdir": ROOT, "oldnodeid": place.node, "nodeid_out": place.node}
    return operation.args.pack(**{k: v for k, v in values.items() if k in labels}) if operation.args else b""


def bodies(place: Place, operation: abi.Operation) -> Iterator[bytes]:
    """The rest of a request: with the name of each file there is, and with one that is free."""
    structure = arguments(place, operation)
    structure = structure[:8] if operation.name == "setxattr" else structure
    for name in (b"name", b"directory", b"link", b"new") if operation.names else (b"",):
        strings = [b"user.x" if kind == abi.XATTR else name for kind in operation.names]
        if len(strings) == 2:
            strings[1] = b"other"
        yield structure + b"".join(string + b"\0" for string in strings)


@pytest.mark.parametrize("operation", MUTATING, ids=lambda operation: operation.name)
def test_every_change_is_refused(place, operation):
    """By the flag in the table; before anything else is looked at, so that nothing can be learnt from the error."""
    before = state(place.share)
    room = operation.reply.size if operation.reply else 0
    for node in (ROOT, place.node):
        for body in bodies(place, operation):
            assert place.session.device.request(operation.name, node, body, room).error == -errno.EROFS
    assert state(place.share) == before


@pytest.mark.parametrize("caller", [Caller(0, 0, 1), Caller(1000, 1000, 1)], ids=["root", "user"])
def test_no_operation_of_the_table_leaves_a_trace(place, caller):
    """Also those that are not said to change anything: flags of OPEN, IOCTL, a lock, SYNCFS, reading."""
    before = state(place.share)
    for operation in OPERATIONS:
        if operation.name in ("init", "destroy", "forget", "batch_forget", "release", "setlkw"):
            continue
        for node in (ROOT, place.node):
            for body in bodies(place, operation):
                tail = bytes(64) if operation.flags & abi.TAIL else b""
                place.session.device.request(operation.name, node, body + tail, 4096, caller=caller)
    assert place.session.read(place.node, place.fh, 0, 10) == b"kept"
    assert [entry.name for entry in place.session.readdir(ROOT, place.directory)]
    assert state(place.share) == before


ACCESS = [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_EXCL]
TRUNCATE = [os.O_TRUNC, os.O_TRUNC | os.O_CREAT, os.O_RDONLY | os.O_TRUNC | os.O_DIRECT]


@pytest.mark.parametrize("flags", [*ACCESS, *TRUNCATE], ids=oct)
def test_no_flag_of_open_changes_a_file_or_opens_it_for_writing(place, flags):
    before = state(place.share)
    assert failure(place.session.open, place.node, flags) == errno.EROFS
    assert state(place.share) == before


@pytest.mark.parametrize(
    "flags", [os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TMPFILE & ~os.O_DIRECTORY], ids=oct
)
def test_what_creates_elsewhere_only_reads_here(place, flags):
    before = state(place.share)
    handle = place.session.open(place.node, flags).fh
    write = {"fh": handle, "offset": 0, "size": 4}
    assert failure(place.session.call, "write", place.node, tail=b"evil", **write) == errno.EROFS
    assert place.session.read(place.node, handle, 0, 10) == b"kept"
    place.session.release(place.node, handle)
    assert state(place.share) == before


@pytest.mark.parametrize("command", [SETFLAGS, FSSETXATTR], ids=["setflags", "fssetxattr"])
@pytest.mark.parametrize("directory", [False, True])
def test_no_flags_of_a_file_are_set(place, command, directory):
    fields = {"fh": place.directory if directory else place.fh, "cmd": command, "in_size": 28}
    fields["flags"] = CONSTANTS["FUSE_IOCTL_DIR"] if directory else 0
    node = ROOT if directory else place.node
    tail = struct.pack("<7I", 0x40, *[0] * 6)
    assert failure(place.session.call, "ioctl", node, tail=tail, room=64, **fields) == errno.EROFS


def test_no_page_of_a_file_is_mapped(place):
    """A front end may map what it is told to map for writing (CVE-2026-24834)."""
    assert not place.session.has("MAP_ALIGNMENT") and not place.session.has("HAS_INODE_DAX")
    for flags in (0, 1, 2, 3):
        body = abi.FUSE_SETUPMAPPING_IN.pack(fh=place.fh, len=4096, flags=flags)
        reply = place.session.device.request("setupmapping", place.node, body, 0)
        assert reply.error in (-errno.ENOSYS, -errno.EROFS, -errno.EOPNOTSUPP)
