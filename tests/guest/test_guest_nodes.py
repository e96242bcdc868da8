# SPDX-License-Identifier: Apache-2.0
"""FIFOs, sockets and devices in a share are the guest's own: nothing of the host is opened through them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from shares import Place

pytestmark = pytest.mark.guest


def make_device(path: Path, kind: int, major: int, minor: int) -> None:
    """Make a device node on the host, or skip the test where even root may not (in some containers)."""
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("the host lets nobody make device nodes")
    path.chmod(kind | 0o666)


def test_a_fifo_connects_two_programs_of_the_guest(place: Place) -> None:
    assert place.output("mkfifo fifo; (echo through >fifo) & cat fifo; wait") == "through"
    assert stat.S_ISFIFO((place.host / "fifo").stat().st_mode)


def test_a_fifo_does_not_reach_from_the_guest_to_the_host(place: Place) -> None:
    os.mkfifo(place.host / "fifo")
    host = os.open(place.host / "fifo", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(host, b"from the host")
        # The host has a reader and a writer, the guest neither.
        assert place.steps(
            ("open", "w", "fifo", "w,nonblock"), ("open", "r", "fifo", "r,nonblock"), ("read", "r", 100)
        ) == ["ENXIO", None, b""]
        assert os.read(host, 100) == b"from the host"
    finally:
        os.close(host)


def test_the_guest_makes_no_device_that_would_be_one_on_the_host(place: Place) -> None:
    for kind in ("c 1 1", "b 8 0"):
        result = place.run(f"mknod node {kind}")
        assert result.status != 0
        assert b"Operation not permitted" in result.errors
    assert os.listdir(place.host) == []
    # Device 0:0 has no driver anywhere: overlayfs hides names with it.
    place.output("mknod whiteout c 0 0")
    assert (place.host / "whiteout").stat().st_rdev == 0


def test_a_device_found_in_the_share_is_the_guests(place: Place) -> None:
    make_device(place.host / "zero", stat.S_IFCHR, 1, 5)
    make_device(place.host / "null", stat.S_IFCHR, 1, 3)
    assert place.output("head -c 4 zero | xxd -p; echo lost >null; cat null") == "00000000"
    assert place.output("stat -c '%F %t:%T' zero") == "character special file 1:5"
    assert (place.host / "null").stat().st_size == 0


def test_a_device_of_the_host_opens_the_guests_device_of_that_number(place: Place) -> None:
    # The kernel log (1:11) is another one in the guest than on the host: it says whose device this is.
    make_device(place.host / "kmsg", stat.S_IFCHR, 1, 11)
    place.output("echo written by the guest >kmsg; dmesg | grep -q 'written by the guest'")
    with open("/dev/kmsg", "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        lines = b""
        while line := next_record(log.fileno()):
            lines += line
    assert b"written by the guest" not in lines
    # A number that the guest has no driver for, and the host may have one.
    make_device(place.host / "disk", stat.S_IFBLK, 254, 0)
    assert place.do(("open", "f", "disk", "r")) == "ENXIO"


def next_record(log: int) -> bytes:
    """The next record of /dev/kmsg; b"" at the end.  EPIPE says that some were overwritten."""
    try:
        return os.read(log, 8192)
    except BlockingIOError:
        return b""
    except BrokenPipeError:
        return next_record(log)


def test_a_socket_of_the_host_cannot_be_connected_to(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(place.host / "s"))
        listener.listen()
        assert place.output("stat -c %F s") == "socket"
        assert place.run("nc local:s </dev/null").status != 0
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
