# SPDX-License-Identifier: Apache-2.0
"""Devices, FIFOs and sockets in a share are never opened, by any request: a device would be the host's
(CVE-2020-35517), a FIFO would hang the daemon, and another program of the host may wait behind it (CVE-2023-2861)."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from watching import OPEN, Watch

import devices
from sharing import ROOT
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import OPERATIONS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making device nodes needs root")
KINDS = {
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "character": (stat.S_IFCHR, os.makedev(1, 3)),
    "block": (stat.S_IFBLK, os.makedev(7, 0)),
}
FLAGS = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY | os.O_NONBLOCK,
    "both": os.O_RDWR,
    "truncate": os.O_WRONLY | os.O_TRUNC,
    "create": os.O_RDWR | os.O_CREAT,
    "path": 0o10000000,
    "direct": os.O_RDWR | os.O_DIRECT | os.O_SYNC,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
}


class Place(NamedTuple):
    session: Session
    running: devices.RunningDevice
    opens: Watch
    read_only: bool


@pytest.fixture(scope="module", params=["as-is", "xattr", "unopened"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A share on a mount that allows devices, without walls: only the rules of the file system are in the way."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as directory:
        share = Path(directory)
        for name, (type_, number) in KINDS.items():
            os.mknod(share / name, type_ | 0o666, number)
        options = ["--sandbox", "none", "--xattr"]
        if request.param == "unopened":  # handle 0, which all requests below name, is the node itself
            options += ["--readonly", "--cache", "always"]
        else:
            options += ["--ownership", request.param]
        with devices.start_ours(share, options) as running, Device.connect(running.socket) as device:
            opens = Watch([share / name for name in KINDS], OPEN)
            yield Place(Session(device), running, opens, request.param == "unopened")
            assert running.alive, running.log
            os.close(os.open(share / "fifo", os.O_RDWR))
            assert opens.seen() == {share / "fifo"}, "opening is noticed"
            opens.close()


def request(session: Session, operation: abi.Operation, node: int, name: bytes, flags: int) -> int:
    """Send what the table says an operation looks like; the errno it is answered with."""
    fields = {label for _, label, _ in operation.args.fields} if operation.args else set()
    wanted = {
        "flags": flags,
        "valid": abi.CONSTANTS["FATTR_SIZE"],
        "major": 7,
        "minor": 46,
        "oldnodeid": node,
        "newdir": ROOT,
        "nodeid_out": node,
        "size": 0,
    }
    body = operation.args.pack(**{k: v for k, v in wanted.items() if k in fields}) if operation.args else b""
    if operation.name == "setxattr":
        body = body[:8]
    strings = [b"user.x" if kind == abi.XATTR else name for kind in operation.names]
    body += b"".join(string + b"\0" for string in strings)
    room = operation.reply.size if operation.reply else 4096
    return -session.device.request(operation.name, node, body, room).error


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
@pytest.mark.parametrize("special", KINDS)
def test_no_request_opens_a_special_file(place, special, flags):
    session = place.session
    for operation in OPERATIONS:
        if operation.name in ("init", "destroy", "unlink", "rmdir", "rename", "rename2", "forget"):
            continue
        node = session.lookup(ROOT, special).nodeid
        request(session, operation, node, special.encode(), flags)
        if operation.names:
            request(session, operation, ROOT, special.encode(), flags)
        session.forget(node)
    assert place.opens.seen() == set()
    node = session.lookup(ROOT, special).nodeid
    for act in (session.open, session.opendir):
        with pytest.raises(OSError):
            act(node, flags)
    with pytest.raises(OSError):
        session.create(ROOT, special, flags)
    assert place.opens.seen() == set()
    # What a guest may do with them needs no opening.
    if not place.read_only:
        session.setattr(node, mtime=1)
        assert session.getattr(node).mtime == 0
    session.listxattr(node)
    session.forget(node)
    assert place.opens.seen() == set()
