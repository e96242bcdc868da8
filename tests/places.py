# SPDX-License-Identifier: Apache-2.0
"""What a behaviour is written against: a `Place`, a directory that belongs to one test.

`place.tree` has the methods of `os` and `place.host` is the same directory as the host sees it.  In a `DevicePlace` the
tree speaks to a daemon through our driver end, so `place.session` can send any request from the node `place.root`;
in a `MountedPlace` it is `os` itself on a mounted directory, so the system calls are those of a real FUSE client.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import devices
from mounted import MountedTree
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree


class DevicePlace:
    """A directory in the share of a daemon that we speak to without a kernel between us."""

    def __init__(self, kind: str, session: Session, root: int, host: Path):
        self.kind = kind
        self.session = session
        self.root = root
        self.host = host
        self.tree = Tree(session, root)

    @contextlib.contextmanager
    def caller(self, uid: int, gid: int, pid: int = 1) -> Iterator[None]:
        """Let requests be made in another user's name."""
        before = self.session.caller
        self.session.caller = Caller(uid, gid, pid)
        try:
            yield
        finally:
            self.session.caller = before

    def lookup(self, name: str) -> int:
        """The node id of a name in the place."""
        return int(self.session.lookup(self.root, name).nodeid)


class MountedPlace:
    """A directory on a mount point."""

    def __init__(self, kind: str, path: Path, host: Path):
        self.kind = kind
        self.host = host
        self.tree = MountedTree(path)

    @contextlib.contextmanager
    def caller(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> Iterator[None]:
        """Be another user, in `groups` besides his own; this process must be root."""
        before = os.getgroups()
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(before)


Place = DevicePlace | MountedPlace


MakePlace = Callable[[], contextlib.AbstractContextManager[Place]]
"""Gives the next test of a module its place, and takes it away again."""


@contextlib.contextmanager
def on_device(running: devices.RunningDevice) -> Iterator[MakePlace]:
    """Places in the share of a daemon, over one session; the daemon must outlive each test."""
    with Device.connect(running.socket) as device:
        session = Session(device)

        @contextlib.contextmanager
        def make() -> Iterator[DevicePlace]:
            with devices.as_user_of(running.kind), directory_in(running.directory) as host:
                root = int(session.lookup(1, host.name).nodeid)
                yield DevicePlace(running.kind, session, root, host)
                session.forget(root)
            assert running.alive, "the daemon died:\n" + "\n".join(running.log)

        yield make


def on_mountpoint(kind: str, mountpoint: Path, host: Path) -> MakePlace:
    """Places on a mount point; `host` is another way to the same directory, or the same."""

    @contextlib.contextmanager
    def make() -> Iterator[MountedPlace]:
        with directory_in(host) as place:
            yield MountedPlace(kind, mountpoint / place.name, place)

    return make


@contextlib.contextmanager
def directory_in(parent: Path) -> Iterator[Path]:
    """An empty directory with a name that was never used before, as a client may remember the old one."""
    path = Path(tempfile.mkdtemp(prefix="test-", dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
