# SPDX-License-Identifier: Apache-2.0
"""Behaviours that any program can see, each said in calls of `os`: `place.tree` for those of the share's user and
`place.host` for what the host does and finds.

They run over a daemon without a kernel between us (`--device ours|c`), over the kernel's FUSE client (`--device
mount|relay`) and on any directory that is mounted already, also in a guest (`--mountpoint DIR`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
import mounting
from places import MakePlace, Place, on_device, on_mountpoint


@pytest.fixture(scope="module")
def make_place(
    carrier: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakePlace]:
    os.umask(0o022)
    if carrier != "mountpoint":
        reason = mounting.unavailable() if carrier in devices.MOUNTS else devices.available(carrier)
        if reason:
            pytest.skip(reason)
    if carrier == "mountpoint":
        mountpoint = Path(pytestconfig.getoption("--mountpoint"))
        host = pytestconfig.getoption("--host-directory") or mountpoint
        yield on_mountpoint(carrier, mountpoint, Path(host))
    elif carrier in devices.MOUNTS:
        with tempfile.TemporaryDirectory(prefix="virtiofs-mount-") as base:
            os.chmod(base, 0o755)  # the mount is for all users, other than pytest's own directories
            with contextlib.ExitStack() as stack:
                socket = None
                if carrier == "relay":
                    share = Path(base, "share")
                    share.mkdir()
                    socket = stack.enter_context(devices.start_ours(share)).socket
                running = stack.enter_context(mounting.mounted(Path(base), socket=socket))
                yield on_mountpoint(carrier, running.place, running.share)
    else:
        with (
            devices.share_for(carrier) as share,
            devices.start(carrier, share) as running,
            on_device(running) as make,
        ):
            yield make


@pytest.fixture
def tmp_path(carrier: str) -> Iterator[Path]:
    """A directory outside the share that belongs to whoever the test acts as."""
    with devices.share_for(carrier) as path:
        yield path


@pytest.fixture
def place(make_place: MakePlace) -> Iterator[Place]:
    """An empty directory of the share for one test."""
    with make_place() as place:
        yield place
