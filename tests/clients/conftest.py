# SPDX-License-Identifier: Apache-2.0
"""Programs of others that start a virtio-fs daemon, unmodified, with our `virtiofsd` in its place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kernel import find_kernel
from virtiofs.vm.qemu import find_qemu
from virtiofs.vm.ramdisk import find_busybox

SOURCES = Path(__file__).resolve().parent.parent.parent / "src"


@pytest.fixture(scope="session", autouse=True)
def everything_is_there() -> None:
    """Skip all that needs a guest where one cannot be made."""
    try:
        find_qemu(), find_busybox(), find_kernel()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if os.geteuid() != 0:
        pytest.skip("system-wide launchers need root")


@pytest.fixture
def virtiofsd(tmp_path: Path) -> Path:
    """Our drop-in as a program of that name, which notes how it was started in `virtiofsd.arguments` beside it.

    It is this machine's program also where it is started from another root file system.
    """
    program = tmp_path / "bin" / "virtiofsd"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{program}.arguments\n'
        f"[ -d {SOURCES} ] || here='nsenter --mount=/proc/{os.getpid()}/ns/mnt --'\n"
        f'exec $here env PYTHONPATH={SOURCES} {sys.executable} -m virtiofs.cli.virtiofsd "$@"\n'
    )
    program.chmod(0o755)
    return program
