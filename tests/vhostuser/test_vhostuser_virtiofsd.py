# SPDX-License-Identifier: Apache-2.0
"""Our driver's end against a device that is not ours: the C virtiofsd of QEMU 7.2."""

from __future__ import annotations

import mmap
import os
import select
import struct
import subprocess
import time
from pathlib import Path

import pytest

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.frontend import FrontEnd, FrontEndError
from virtiofs.vhostuser.payloads import MemoryRegion
from virtiofs.vhostuser.transport import Connection, TransportError, connect, listen

BINARY = Path("/usr/lib/qemu/virtiofsd")
pytestmark = [
    pytest.mark.skipif(
        not BINARY.exists(), reason=f"{BINARY} is not installed (Debian 12: qemu-system-common)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason=f"{BINARY} runs as root only"),
]

USER = 0x7F00_0000_0000
GUEST = 0x10_0000  # not 0: a device that mixes the two addresses up must fail here
SIZE = 1 << 20
DESC, AVAIL, USED, REQUEST, REPLY = 0x0, 0x1000, 0x2000, 0x3000, 0x4000
ENTRIES = 64
SECONDS = 20.0


def wait_for(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(SECONDS * 1000), "the device did not answer in time"


@pytest.fixture
def daemon(tmp_path):
    """A C virtiofsd that listens; ends by itself when its front end goes."""
    shared = tmp_path / "shared"
    shared.mkdir()
    path = str(tmp_path / "c.sock")
    process = subprocess.Popen(
        [
            BINARY,
            f"--socket-path={path}",
            "-o",
            f"source={shared}",
            "-o",
            "sandbox=chroot",
            "-o",
            "cache=auto",
        ],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    said = b""
    while b"Waiting for vhost-user socket connection" not in said:  # it listens before it says so
        wait_for(process.stderr.fileno())
        piece = process.stderr.read()
        assert piece, f"virtiofsd ended: {said.decode()}"
        said += piece
    yield process, path
    process.kill()
    process.stderr.close()
    process.wait()


class Guest:
    """One megabyte of guest memory with one split ring in it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, SIZE)
        self.memory = mmap.mmap(self.fd, SIZE)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_CLOEXEC)
        self.region = MemoryRegion(GUEST, SIZE, USER, 0)

    def close(self) -> None:
        self.memory.close()
        for fd in (self.fd, self.kick, self.call):
            os.close(fd)

    def start(self, front_end: FrontEnd, index: int, base: int) -> None:
        front_end.setup_vring(
            index, ENTRIES, USER + DESC, USER + AVAIL, USER + USED, base, self.kick, self.call
        )
        front_end.enable(index, True)

    def exchange(self, request: bytes, room: int) -> bytes:
        """Send one request of two descriptors through the ring and wait for its reply."""
        index = struct.unpack_from("<H", self.memory, AVAIL + 2)[0]
        self.memory[REQUEST : REQUEST + len(request)] = request
        struct.pack_into("<QIHH", self.memory, DESC, GUEST + REQUEST, len(request), 1, 1)
        struct.pack_into("<QIHH", self.memory, DESC + 16, GUEST + REPLY, room, 2, 0)
        struct.pack_into("<H", self.memory, AVAIL + 4 + 2 * (index % ENTRIES), 0)
        struct.pack_into("<H", self.memory, AVAIL + 2, (index + 1) & 0xFFFF)
        os.eventfd_write(self.kick, 1)
        deadline = time.monotonic() + SECONDS
        while struct.unpack_from("<H", self.memory, USED + 2)[0] != (index + 1) & 0xFFFF:
            assert time.monotonic() < deadline
            wait_for(self.call)
            os.eventfd_read(self.call)
        head, length = struct.unpack_from("<II", self.memory, USED + 4 + 8 * (index % ENTRIES))
        assert head == 0
        return self.memory[REPLY : REPLY + length]


@pytest.fixture
def guest():
    made = Guest()
    yield made
    made.close()


def fuse_init(unique: int) -> bytes:
    body = struct.pack("<IIII", 7, 31, 0x10000, 0)
    return struct.pack("<IIQQIIII", 40 + len(body), 26, unique, 0, 0, 0, 0, 0) + body


def fuse_getattr_of_the_root(unique: int) -> bytes:
    return struct.pack("<IIQQIIII", 56, 3, unique, 1, 0, 0, 0, 0) + bytes(16)


def check_init(reply: bytes, unique: int) -> None:
    length, error, echoed = struct.unpack_from("<IiQ", reply)
    assert (length, error, echoed) == (len(reply), 0, unique)
    assert struct.unpack_from("<I", reply, 16)[0] == 7


@pytest.mark.parametrize("acknowledged", [True, False])
def test_requests_go_through_a_queue_that_stops_and_starts_again(daemon, guest, acknowledged):
    process, path = daemon
    with FrontEnd(connect(path)) as front_end:
        wanted = m.PROTOCOL_F_MQ | (
            m.PROTOCOL_F_REPLY_ACK | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS if acknowledged else 0
        )
        front_end.negotiate(features=m.VIRTIO_F_VERSION_1, protocol_features=wanted)
        assert front_end.protocol_features == wanted
        assert front_end.queue_count is not None
        assert front_end.queue_count >= 2
        front_end.set_memory([guest.region], [guest.fd])

        guest.start(front_end, 1, 0)
        check_init(guest.exchange(fuse_init(71), 256), 71)
        reply = guest.exchange(fuse_getattr_of_the_root(72), 256)
        assert struct.unpack_from("<IiQ", reply) == (120, 0, 72)
        assert front_end.stop_vring(1) == 2

        guest.start(front_end, 1, 2)
        assert struct.unpack_from("<IiQ", guest.exchange(fuse_getattr_of_the_root(73), 256)) == (120, 0, 73)
        assert front_end.stop_vring(1) == 3
    assert process.wait(SECONDS) == 0


def test_what_it_offers_is_what_we_negotiate(daemon):
    _, path = daemon
    with FrontEnd(connect(path)) as front_end:
        front_end.negotiate()
        offered = front_end.offered_protocol_features
        assert offered & m.PROTOCOL_F_MQ
        assert offered & m.PROTOCOL_F_REPLY_ACK
        assert front_end.features & m.VIRTIO_F_VERSION_1
        assert not offered & m.PROTOCOL_F_STATUS
        with pytest.raises(FrontEndError, match="GET_STATUS"):
            front_end.get_status()


def test_asking_who_listens_does_not_end_a_daemon_that_serves_one_front_end(daemon):
    process, path = daemon
    with pytest.raises(TransportError, match=rf"a live process \(pid {process.pid}\) is using it"):
        listen(path)
    assert process.poll() is None
    connection = connect(path)
    assert isinstance(connection, Connection)
    with FrontEnd(connection) as front_end:
        front_end.negotiate()
    assert process.wait(SECONDS) == 0
