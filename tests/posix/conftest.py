# SPDX-License-Identifier: Apache-2.0
"""Behaviours that any program can see, each said in calls of `os`: `place.tree` for those of the share's user and
`place.host` for what the host does and finds.

They run over a daemon without a kernel between us (`--device ours|c`), over the kernel's FUSE client (`--device mount`)
and on any directory that is mounted already, also in a guest (`--mountpoint DIR`).
"""

from __future__ import annotations

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
    reason = mounting.unavailable() if carrier == "mount" else devices.available(carrier)
    if reason:
        pytest.skip(reason)
    if carrier == "mountpoint":
        mountpoint = Path(pytestconfig.getoption("--mountpoint"))
        host = pytestconfig.getoption("--host-directory") or mountpoint
        yield on_mountpoint(carrier, mountpoint, Path(host))
    elif carrier == "mount":
        with tempfile.TemporaryDirectory(prefix="virtiofs-mount-") as base:
            os.chmod(base, 0o755)  # the mount is for all users, other than pytest's own directories
            with mounting.mounted(Path(base)) as running:
                yield on_mountpoint(carrier, running.place, running.share)
    else:
        with devices.start(carrier, tmp_path_factory.mktemp("share")) as running, on_device(running) as make:
            yield make


@pytest.fixture
def place(make_place: MakePlace) -> Iterator[Place]:
    """An empty directory of the share for one test."""
    with make_place() as place:
        yield place
