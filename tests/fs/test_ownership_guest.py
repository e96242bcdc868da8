# SPDX-License-Identifier: Apache-2.0
"""Owners, set-id bits and labels as a Linux guest meets them."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from sharing import USER
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.guest import Guest, Share
from virtiofs.vm.kernel import find_kernel
from virtiofs.vm.qemu import find_qemu
from virtiofs.vm.ramdisk import find_busybox

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[Guest, Path, Path]]:
    """A guest with two shares: one whose owners are as is, and one of a daemon without privilege."""
    try:
        find_qemu(), find_busybox(), find_kernel()
    except MissingPart as missing:
        pytest.skip(str(missing))
    user = USER if os.geteuid() == 0 else None
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as plain,
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as stored,
    ):
        if user is not None:
            os.chown(stored, user, user)
        with (
            devices.start_ours(Path(plain), ["--xattr"]) as one,
            devices.start_ours(Path(stored), ["--ownership", "xattr"], user) as other,
        ):
            shares = [Share("plain", one.socket, "/plain"), Share("stored", other.socket, "/stored")]
            with Guest(shares, timeout=60) as guest:
                assert guest.run("chmod 755 /plain /stored").status == 0
                yield guest, Path(plain), Path(stored)


def shown(guest: Guest, path: str) -> str:
    return guest.run(["stat", "-c", "%u:%g:%a:%F", path]).text.strip()


@pytest.mark.parametrize("place", ["/plain", "/stored"])
def test_a_program_written_by_a_user_loses_its_bits_and_one_written_by_root_keeps_them(guest, place):
    if place == "/plain" and os.geteuid() != 0:
        pytest.skip("keeping the bits needs CAP_FSETID")
    machine = guest[0]
    machine.run(f"cd {place} && echo x >p && chmod 6777 p && chown 0:0 p && chmod 6777 p && echo y >>p")
    assert shown(machine, f"{place}/p") == "0:0:6777:regular file"
    assert machine.run(f"su user -c 'echo z >>{place}/p'").status == 0
    assert shown(machine, f"{place}/p") == "0:0:777:regular file"
    machine.run(f"chmod 4777 {place}/p; su user -c ': >{place}/p'")
    assert shown(machine, f"{place}/p") == "0:0:777:regular empty file"


def test_root_of_the_guest_is_root_on_a_share_of_an_unprivileged_daemon(guest):
    machine, _, host = guest
    script = """
        set -e
        cd /stored
        mkdir -m 1777 tmp; mkdir home; chown 1000:1000 home
        mknod null c 1 3; chmod 666 null; mkfifo fifo; chown 5:6 fifo
        su user -c 'echo mine >home/f; chmod 600 home/f; echo gone >null'
        cp /bin/busybox su-id; chmod 4755 su-id
        ln -s home link
    """
    result = machine.run(script)
    assert result.status == 0, result
    assert shown(machine, "/stored/home/f") == "1000:1000:600:regular file"
    assert shown(machine, "/stored/null") == "0:0:666:character special file"
    assert shown(machine, "/stored/fifo") == "5:6:644:fifo"
    assert shown(machine, "/stored/tmp") == "0:0:1777:directory"
    assert shown(machine, "/stored/su-id") == "0:0:4755:regular file"
    assert machine.run("su user -c 'chown 0 /stored/home/f'").status != 0
    assert machine.run("(echo through >/stored/fifo & cat /stored/fifo)").text == "through\n"
    assert machine.run("find /stored -type p; find /stored -type c").text == "/stored/fifo\n/stored/null\n"
    for name in ("null", "fifo", "su-id", "home/f"):
        status = (host / name).stat()
        assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == host.stat().st_uid
