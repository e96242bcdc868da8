# SPDX-License-Identifier: Apache-2.0
"""What a behaviour is written against: a `Place` of its own inside a share.

`place.tree` has the methods of `os`, so the behaviours that need only it can run on a mount as well; the
others speak FUSE through `place.session`, from the node `place.root`.  `place.host` is the same directory,
seen by the host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree


class Place:
    """A directory that belongs to one test."""

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


@pytest.fixture(scope="module")
def share(running: devices.RunningDevice) -> Iterator[Session]:
    """A session with the module's daemon."""
    os.umask(0o022)
    with Device.connect(running.socket) as device:
        yield Session(device)


@pytest.fixture
def tmp_path(running: devices.RunningDevice) -> Iterator[Path]:
    """A directory outside the share that belongs to whoever the test acts as."""
    with devices.share_for(running.kind) as path:
        yield path


@pytest.fixture
def place(running: devices.RunningDevice, share: Session) -> Iterator[Place]:
    """An empty directory of the share for one test; the daemon must have outlived the test."""
    host = running.directory / f"test-{len(os.listdir(running.directory))}"
    with devices.as_user_of(running.kind):
        host.mkdir()
        root = share.lookup(1, host.name).nodeid
        yield Place(running.kind, share, root, host)
        share.forget(root)
    assert running.alive, "the daemon died:\n" + "\n".join(running.log)
