# SPDX-License-Identifier: Apache-2.0
"""Mounts of the host below the share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session

SUBMOUNT = 1

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A share with a tmpfs at `sub`, and a bind mount of `plain` at `bound`."""
    share = tmp_path / "share"
    for name in ("sub", "plain", "bound"):
        (share / name).mkdir(parents=True)
    (share / "plain" / "f").write_text("plain")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", share / "sub"], check=True)
    subprocess.run(["mount", "--bind", share / "plain", share / "bound"], check=True)
    (share / "sub" / "f").write_text("sub")
    yield share
    for name in ("sub", "bound"):
        subprocess.run(["umount", "-l", share / name], check=True)


def test_the_root_of_a_mount_is_announced_and_what_is_in_it_is_not(mounted):
    with devices.start_ours(mounted) as running, Device.connect(running.socket) as device:
        session = Session(device)
        assert session.has("SUBMOUNTS")
        for name in ("sub", "bound"):
            entry = session.lookup(1, name)
            assert entry.attr.flags & SUBMOUNT
            assert not session.lookup(entry.nodeid, "f").attr.flags & SUBMOUNT
        assert not session.lookup(1, "plain").attr.flags & SUBMOUNT
        handle = session.opendir(1).fh
        listed = {e.name: e.entry.attr.flags for e in session.readdirplus(1, handle) if e.entry is not None}
        assert listed[b"sub"] & SUBMOUNT
        assert listed[b"bound"] & SUBMOUNT
        assert not listed[b"plain"] & SUBMOUNT


def test_the_same_file_through_two_mounts_is_two_nodes(mounted):
    """A bind mount may be read-only, or have other options: a file is opened through the mount it was found on."""
    with devices.start_ours(mounted) as running, Device.connect(running.socket) as device:
        session = Session(device)
        nodes = []
        for name in ("plain", "bound"):
            directory = session.lookup(1, name).nodeid
            nodes.append(session.lookup(directory, "f").nodeid)
        assert nodes[0] != nodes[1]
        assert session.getattr(nodes[0]).ino == session.getattr(nodes[1]).ino


def test_a_guest_that_does_not_know_submounts_is_not_told(mounted):
    with devices.start_ours(mounted) as running, Device.connect(running.socket) as device:
        session = Session(device, flags=0)
        assert session.lookup(1, "sub").attr.flags == 0
    quiet = devices.start_ours(mounted, ["--no-announce-submounts"])
    with quiet as running, Device.connect(running.socket) as device:
        session = Session(device)
        assert not session.has("SUBMOUNTS")
        assert session.lookup(1, "sub").attr.flags == 0


def test_files_on_a_read_only_bind_mount_stay_read_only(mounted):
    subprocess.run(["mount", "-o", "remount,bind,ro", mounted / "bound"], check=True)
    with (
        devices.start_ours(mounted, ["--max-open", "16"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        bound = session.lookup(1, "bound").nodeid
        node = session.lookup(bound, "f").nodeid
        for i in range(64):  # use up the pool: the file is then come back to by its handle, through its mount
            (mounted / f"x{i}").touch()
            session.lookup(1, f"x{i}")
        with pytest.raises(OSError, match="Read-only file system"):
            session.open(node, os.O_RDWR)
        handle = session.open(node).fh
        assert session.read(node, handle, 0, 10) == b"plain"
