# SPDX-License-Identifier: Apache-2.0
"""`virtiofs serve --reload`: another class takes over while a guest is connected."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from test_many_shares import serving

import devices
from sharing import ROOT, failure
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree

CLASS = """
import os, stat, time
from virtiofs import Attributes, PathFilesystem

class Versioned(PathFilesystem):
    valid = 1e9
    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o755, valid=1e9)
        return Attributes(stat.S_IFREG | 0o644, 1, valid=1e9)
    def open(self, path, flags):
        return 7
    def readdir(self, path, handle):
        return ["same", "only VERSION"]
    def read(self, path, handle, offset, size):
        if path == "/slow":
            time.sleep(SLOW)
        return b"VERSION"[offset : offset + size]
"""


def write(path: Path, version: int, slow: float = 1.0, more: str = "") -> None:
    text = CLASS.replace("VERSION", str(version)).replace("SLOW", str(slow)) + more
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    write(tmp_path / "versioned.py", 1)
    return tmp_path / "versioned.py"


def reads(tree: Tree, text: bytes) -> bool:
    """Whether /same holds this; not while one class takes over from another, of which it was opened."""
    try:
        return tree.read_file("/same") == text
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False


def test_the_guest_that_is_connected_gets_the_next_class(module: Path) -> None:
    options = ["--reload", "--queues", "2", "--log-level", "info"]
    with (
        devices.start_ours(Path(f"{module}:Versioned"), options) as running,
        Device.connect(running.socket, queues=2) as device,
    ):
        session = Session(device)
        tree = Tree(session)
        node = session.lookup(ROOT, "same").nodeid
        handle = session.open(node).fh
        directory = session.opendir(ROOT).fh
        assert tree.read_file("/same") == b"1"
        for version in (2, 3):
            worker = running.worker
            write(module, version)
            assert devices.wait_until(lambda v=version: reads(tree, str(v).encode()), 20.0)
            assert devices.wait_until(lambda w=worker: not Path(f"/proc/{w}").exists())
            assert tree.listdir() == ["same", f"only {version}"]
        assert sum("was loaded again" in line for line in running.log) == 2
        # What it knew of the first is no more; the root is always there.
        assert failure(session.getattr, node) == errno.ESTALE
        assert failure(session.read, node, handle, 0, 10) == errno.ESTALE
        assert failure(session.release, node, handle) == errno.ESTALE
        session.forget(node)
        assert failure(session.readdir, ROOT, directory) == errno.EBADF
        assert session.lookup(ROOT, "same").entry_valid == 0  # whatever the class says


def test_a_class_that_does_not_start_leaves_the_guest_the_one_before(module: Path) -> None:
    with (
        devices.start_ours(Path(f"{module}:Versioned"), ["--reload"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        node = session.lookup(ROOT, "same").nodeid
        write(module, 2, more="\n    def start(self, directory):\n        raise RuntimeError('not yet')\n")
        assert devices.wait_until(lambda: any("not yet" in line for line in running.log), 20.0)
        assert session.read(node, session.open(node).fh, 0, 10) == b"1"
        write(module, 3)
        assert devices.wait_until(lambda: reads(Tree(session), b"3"), 20.0)


def test_what_has_begun_is_finished_by_the_one_that_began(module: Path) -> None:
    with (
        devices.start_ours(Path(f"{module}:Versioned"), ["--reload"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        node = session.lookup(ROOT, "slow").nodeid
        handle = session.open(node).fh
        begun = [session.begin("read", node, room=10, fh=handle, size=10) for _ in range(3)]
        write(module, 2)
        assert devices.wait_until(lambda: reads(Tree(session), b"2"), 20.0)
        assert [bytes(session.finish(one, "read", 10)) for one in begun] == [b"1"] * 3


def test_a_guest_whose_class_does_not_finish_loses_its_device(module: Path) -> None:
    write(module, 1, slow=3600, more="    patience = 0.2\n")
    with devices.start_ours(Path(f"{module}:Versioned"), ["--reload"]) as running:
        with Device.connect(running.socket) as device:
            session = Session(device)
            node = session.lookup(ROOT, "slow").nodeid
            session.begin("read", node, room=10, fh=session.open(node).fh, size=10)
            write(module, 2)
            assert running.process.wait(30.0) == 1
        assert any("did not finish" in line for line in running.log)


def test_a_guest_that_mounts_after_a_class_was_replaced_can(module: Path) -> None:
    with (
        devices.start_ours(Path(f"{module}:Versioned"), ["--reload", "--log-level", "info"]) as running,
        Device.connect(running.socket) as device,  # whose queues run, but which has sent no INIT yet
    ):
        write(module, 2)
        assert devices.wait_until(lambda: any("was loaded again" in line for line in running.log), 20.0)
        assert reads(Tree(Session(device)), b"2")


def test_each_of_several_shares_is_replaced_by_itself(tmp_path: Path) -> None:
    modules = [tmp_path / "one.py", tmp_path / "two.py"]
    for module in modules:
        write(module, 1)
    shares = [f"{module.stem}={module}:Versioned" for module in modules]
    with serving(tmp_path / "run", shares, "--reload") as daemon:
        with daemon.connect("one") as first, daemon.connect("two") as second:
            one, two = Tree(Session(first)), Tree(Session(second))
            assert reads(one, b"1") and reads(two, b"1")
            write(modules[1], 2)
            assert devices.wait_until(lambda: reads(two, b"2"), 20.0)
            assert reads(one, b"1")
            assert os.path.exists(f"/proc/{daemon.share('two')['worker']}")
            assert daemon.share("two")["queues"]["1"]["requests"] > 0
        write(modules[0], 3)
        with daemon.connect("one") as again:
            assert devices.wait_until(lambda: reads(Tree(Session(again)), b"3"), 20.0)
