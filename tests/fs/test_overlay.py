# SPDX-License-Identifier: Apache-2.0
"""A share on overlayfs, as the root file systems of containers are: a file is copied when it is first written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlay with files f0 to f39 in its lower layer."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    for number in range(40):
        (lower / f"f{number}").write_text(f"lower {number}")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    yield merged
    subprocess.run(["umount", "-l", merged], check=True)


@pytest.mark.parametrize("options", [(), ("--max-open", "16")], ids=["descriptors", "few descriptors"])
def test_a_file_stays_the_same_node_when_it_is_copied_up(overlay: Path, options: tuple[str, ...]) -> None:
    with devices.start_ours(overlay, [*options]) as running, Device.connect(running.socket) as device:
        session = Session(device)
        nodes = [session.lookup(1, f"f{number}").nodeid for number in range(40)]
        born = [os.stat(overlay / "f0").st_ino]
        for number in (0, 39):
            handle = session.open(nodes[number], os.O_RDWR).fh
            session.write(nodes[number], handle, 0, b"upper")
            assert session.lookup(1, f"f{number}").nodeid == nodes[number]
            assert session.getattr(nodes[number]).size == len(f"lower {number}")
            again = session.open(nodes[number], os.O_RDONLY).fh
            assert session.read(nodes[number], again, 0, 5) == b"upper"
        # By the host, too, while the guest knows the file.
        (overlay / "f1").write_text("by the host")
        assert session.lookup(1, "f1").nodeid == nodes[1]
        assert session.getattr(nodes[1]).size == len("by the host")
        assert os.stat(overlay / "f0").st_ino == born[0]


def test_another_file_of_the_same_name_is_another_node(overlay: Path) -> None:
    with devices.start_ours(overlay) as running, Device.connect(running.socket) as device:
        session = Session(device)
        node = session.lookup(1, "f2").nodeid
        (overlay / "new").write_text("another")
        os.replace(overlay / "new", overlay / "f2")
        assert session.lookup(1, "f2").nodeid != node
