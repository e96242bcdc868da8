# SPDX-License-Identifier: Apache-2.0
"""Beginnings and ends: guests that reboot or vanish, daemons that are told to stop while a guest works."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shares import Place, directory_for_a_share, serve

import devices
from virtiofs.vm.guest import Guest, GuestError, Share

pytestmark = pytest.mark.guest

RECORD = 4096
HELD = 60  # files that a guest has open when it is reset


@pytest.fixture
def directory() -> Iterator[Path]:
    with directory_for_a_share() as path:
        yield path


@pytest.mark.parametrize("orderly", [True, False], ids=["orderly", "reset"])
def test_a_guest_that_reboots_finds_its_share_as_it_was(directory: Path, probe: Path, orderly: bool) -> None:
    with serve(directory, probe) as served:
        place = Place(served, ".")
        worker = served.worker()
        place.output("echo before >kept; mkdir dir; mv kept dir/; /bin/probe fill big 3000000 5; sync")
        place.output(f"cd dir; for i in $(seq {HELD}); do : >held-$i; done")
        held = {(directory / "dir" / f"held-{number}").stat().st_ino for number in range(1, HELD + 1)}
        # A program that has them all open, one of them unlinked, when the guest goes down.
        opens = " -- ".join(f"open {number} held-{number} rw" for number in range(1, HELD + 1))
        hold = f"(/bin/probe {opens} -- unlink held-1 -- wait for) <>/dev/ttyS0 >/tmp/said 2>&1 &"
        served.guest.run(f"cd /mnt/dir; {hold}")
        place.wait("grep -q '? for' /tmp/said")
        assert served.holds(held) == held
        served.guest.reboot(orderly=orderly)
        assert served.worker() == worker
        assert place.output("cat dir/kept") == "before"
        # Nothing of the guest's former life is left: no inode, no open file, no unlinked one that takes space.
        assert served.holds(held) == set()
        assert place.output("ls dir | wc -l") == str(HELD)
        assert place.output("echo after >>dir/kept; cat dir/kept") == "before\nafter"
        assert (directory / "dir" / "kept").read_text() == "before\nafter\n"
        assert served.daemon.alive
        assert served.daemon.log == []


def test_a_share_is_unmounted_and_mounted_again(directory: Path, probe: Path) -> None:
    (directory / "f").write_text("x")
    inodes = {(directory / "f").stat().st_ino}
    with serve(directory, probe) as served:
        for _ in range(5):
            assert served.guest.run("tail -f /mnt/f >/dev/null & echo $! >/tmp/tail; ls -l /mnt").status == 0
            assert devices.wait_until(lambda: served.holds(inodes) == inodes)
            served.guest.run(
                "kill $(cat /tmp/tail); while [ -e /proc/$(cat /tmp/tail) ]; do usleep 1000; done"
            )
            assert served.guest.run("umount /mnt && ! ls /mnt/f 2>/dev/null").status == 0
            assert served.holds(inodes) == set()
            assert served.guest.run("mount -t virtiofs data /mnt && cat /mnt/f").output == b"x"
        assert served.daemon.log == []


def test_the_next_vm_gets_the_share_when_the_first_has_gone(directory: Path) -> None:
    with devices.start_ours(directory) as daemon:
        share = Share("data", daemon.socket, "/mnt")
        with Guest([share], timeout=60) as guest:
            guest.run("echo 1 >/mnt/f; echo 2 >>/mnt/f")
        with Guest([share], timeout=60) as guest:
            assert guest.run("cat /mnt/f").text == "1\n2\n"
            guest.run("exec 3</mnt/f; rm /mnt/f; sleep 1000 >/dev/null 2>&1 & true")
            os.kill(guest.pid, signal.SIGKILL)  # a VM that is killed says no good-bye
        with Guest([share], timeout=60) as guest:
            assert guest.run("ls /mnt; echo 3 >/mnt/g").output == b""
        assert (directory / "g").read_text() == "3\n"
        assert daemon.alive
        assert daemon.log == []


def test_a_daemon_told_to_stop_while_the_guest_writes_loses_nothing_that_was_synced(
    directory: Path, probe: Path
) -> None:
    """Each number that the guest prints says that the record of that number has been synced."""
    script = f"""
        cd /mnt
        (while :; do cp noise other; rm other; done) &
        i=0
        while :; do
            dd if=/tmp/record of=log bs={RECORD} count=1 seek=$i conv=notrunc,fsync 2>/dev/null || exit 1
            echo $i
            i=$((i + 1))
        done
    """
    (directory / "noise").write_bytes(os.urandom(1 << 20))
    record = os.urandom(RECORD)
    with serve(directory, probe, extra_files={"/tmp/record": record}) as served:
        printed = bytearray()
        told: list[float] = []

        def watch(data: bytes) -> None:
            printed.extend(data)
            if not told and printed.count(b"\n") >= 50:
                told.append(time.monotonic())
                served.daemon.process.terminate()

        with pytest.raises(GuestError, match="the daemon ended"):
            served.guest.run(script, stdout=watch, timeout=60)
        assert served.daemon.process.wait(1) == 0
        assert time.monotonic() - told[0] < 5
        synced = int(re.findall(rb"(\d+)\n", bytes(printed))[-1]) + 1
        contents = (directory / "log").read_bytes()
        assert len(contents) >= synced * RECORD
        # Nothing is torn: the one record that was written and not reported yet is there as a whole, or not at all.
        assert contents == record * (len(contents) // RECORD)
        assert served.guest.monitor.command("query-status")["running"] is True
        assert not os.path.exists(served.daemon.socket)
        assert served.daemon.log == []


def test_a_vm_outlives_its_daemon(directory: Path, probe: Path) -> None:
    (directory / "f").write_text("x")
    with serve(directory, probe, watch=False) as served:
        assert served.guest.run("cat /mnt/f").output == b"x"
        assert served.daemon.stop() == 0
        assert served.guest.run("echo alive").output == b"alive\n"
        assert served.guest.monitor.command("query-status")["running"] is True
        # It would try to unmount what nobody serves any more.
        os.kill(served.guest.pid, signal.SIGKILL)


def test_a_paused_vm_goes_on_where_it_was(directory: Path, probe: Path) -> None:
    (directory / "big").write_bytes(bytes(4 << 20))
    (directory / "log").write_text("")
    work = "echo $$ >/tmp/work; cd /mnt; while :; do cat big >/dev/null; echo x >>log; done"
    with serve(directory, probe) as served:
        served.guest.run(f"sh -c '{work}' >/dev/null 2>&1 & true")
        for _ in range(5):
            served.guest.pause()
            size = (directory / "log").stat().st_size
            served.guest.resume()
            assert devices.wait_until(lambda size=size: (directory / "log").stat().st_size > size, 20)
        assert served.guest.run("kill $(cat /tmp/work); ls /mnt").text == "big\nlog\n"
        assert set((directory / "log").read_text()) == {"x", "\n"}
        assert served.daemon.log == []
