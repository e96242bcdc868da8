# SPDX-License-Identifier: Apache-2.0
"""Both ends over a socket pair, in two threads: what a driver's end asks is what a device is told."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import threading

import pytest
from recording_device import CONFIG, RecordingDevice, open_fds, same_file

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser import payloads as p
from virtiofs.vhostuser.backend import BASE_PROTOCOL_FEATURES, KNOWN_PROTOCOL_FEATURES, BackEnd
from virtiofs.vhostuser.frontend import WANTED_FEATURES, FrontEnd, FrontEndError
from virtiofs.vhostuser.payloads import MemoryRegion
from virtiofs.vhostuser.transport import Connection

USER = 0x7F00_0000_0000
REGIONS = [MemoryRegion(number << 20, 1 << 20, USER + (number << 20), 0) for number in range(3)]


class Served:
    """A recording device behind a socket, served by a thread until the front end goes."""

    def __init__(self, device: RecordingDevice) -> None:
        self.device = device
        self.log: list[str] = []
        self.errors: list[BaseException] = []
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours)
        self._thread = threading.Thread(target=self._serve, args=(Connection(theirs),))
        self._thread.start()

    def _serve(self, connection: Connection) -> None:
        backend = BackEnd(self.device, self.log.append)
        try:
            while backend.step(connection):
                pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            backend.close()
            connection.close()

    def finish(self) -> None:
        self.connection.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.device.gone


@pytest.fixture
def serve():
    """Makes a `Served` of a device; afterwards no thread, error or descriptor may be left."""
    before = open_fds()
    made: list[Served] = []

    def make(device: RecordingDevice | None = None) -> Served:
        made.append(Served(device or RecordingDevice()))
        return made[-1]

    yield make
    for served in made:
        served.finish()
        assert not served.errors
    assert open_fds() == before


@pytest.fixture
def fds():
    made = [os.memfd_create(f"fd{number}") for number in range(4)]
    yield made
    for fd in made:
        os.close(fd)


def test_negotiation_takes_what_both_ends_want(serve):
    served = serve()
    front_end = FrontEnd(served.connection)
    front_end.negotiate()
    assert front_end.features == WANTED_FEATURES | m.VHOST_USER_F_PROTOCOL_FEATURES
    assert front_end.protocol_features == BASE_PROTOCOL_FEATURES
    assert front_end.offered_protocol_features == KNOWN_PROTOCOL_FEATURES
    assert front_end.queue_count == 3


def test_a_device_without_anything_optional_still_works(fds, serve):
    served = serve(RecordingDevice(features=m.VIRTIO_F_VERSION_1, protocol_features=0))
    front_end = FrontEnd(served.connection)
    front_end.negotiate()
    assert front_end.queue_count is None
    front_end.set_memory(REGIONS[:2], fds[:2])
    front_end.setup_vring(0, 64, USER, USER + 0x1000, USER + 0x2000, 0, fds[2], fds[3])
    assert front_end.stop_vring(0) == 0
    for question in (front_end.get_status, front_end.reset_device, lambda: front_end.get_config(0, 1)):
        with pytest.raises(FrontEndError, match="was not negotiated"):
            question()


@pytest.mark.parametrize(
    "protocol_features", [BASE_PROTOCOL_FEATURES, BASE_PROTOCOL_FEATURES & ~m.PROTOCOL_F_CONFIGURE_MEM_SLOTS]
)
def test_a_queue_is_described_started_enabled_stopped_and_started_again(fds, serve, protocol_features):
    served = serve()
    device = served.device
    front_end = FrontEnd(served.connection)
    front_end.negotiate(protocol_features=protocol_features)
    front_end.set_memory(REGIONS[:2], [fds[0], fds[1]])
    front_end.setup_vring(1, 256, USER + 0x1000, USER + 0x3000, USER + 0x4000, 17, fds[2], fds[3], fds[1])
    vring = device.running[1]
    assert (vring.size, vring.desc, vring.avail, vring.used, vring.base) == (256, 0x1000, 0x3000, 0x4000, 17)
    assert not vring.enabled
    assert same_file(vring.kick, fds[2])
    assert same_file(vring.call, fds[3])
    assert same_file(vring.err, fds[1])
    assert [same_file(fd, given) for (_, fd), given in zip(device.memory, fds, strict=False)] == [True, True]
    front_end.enable(1, True)
    assert device.calls[-1] == ("set_enabled", 1, True)
    front_end.set_call(1, None)
    front_end.set_call(1, fds[0])
    device.next_base[1] = 300
    assert front_end.stop_vring(1) == 300
    front_end.setup_vring(1, 256, USER + 0x1000, USER + 0x3000, USER + 0x4000, 300, fds[2], fds[3])
    assert device.running[1].base == 300
    assert device.running[1].enabled


def test_memory_slots_are_changed_one_by_one_and_tables_as_a_whole(fds, serve):
    slots, tables = serve(), serve()
    for served, wanted, expected in (
        (slots, BASE_PROTOCOL_FEATURES, ["add_memory", "add_memory", "remove_memory", "add_memory"]),
        (tables, m.PROTOCOL_F_REPLY_ACK, ["map_memory", "map_memory"]),
    ):
        front_end = FrontEnd(served.connection)
        front_end.negotiate(protocol_features=wanted)
        front_end.set_memory(REGIONS[:2], fds[:2])
        front_end.set_memory(REGIONS[1:], fds[1:3])
        assert served.device.names() == expected
        assert [region for region, _ in served.device.memory] == REGIONS[1:]
        assert same_file(served.device.memory[1][1], fds[2])


@pytest.mark.parametrize("sharing", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_guest_memory_that_the_front_end_keeps_to_itself_is_noticed(fds, serve, sharing):
    """QEMU 7.2 passes the file also with share=off, when what the guest writes never gets there."""
    served = serve()
    os.ftruncate(fds[0], 1 << 16)
    with mmap.mmap(fds[0], 1 << 16, sharing) as memory:
        memory[0] = 1
        pin = ctypes.c_char.from_buffer(memory)
        base = ctypes.addressof(pin)
        front_end = FrontEnd(served.connection)
        front_end.negotiate()
        front_end.set_memory([MemoryRegion(0, 1 << 16, base, 0)], fds[:1])
        for index in (0, 1):
            front_end.setup_vring(index, 64, base, base + 0x1000, base + 0x2000, 0, fds[1], fds[2])
        served.finish()
        del pin
    warned = [line for line in served.log if "maps guest memory privately" in line and "share=on" in line]
    assert len(warned) == (1 if sharing == mmap.MAP_PRIVATE else 0)
    assert len(served.log) == len(warned)


def test_configuration_status_and_reset(serve):
    served = serve()
    front_end = FrontEnd(served.connection)
    front_end.negotiate()
    assert front_end.get_config(0, 40) == CONFIG
    assert front_end.get_config(36, 4) == CONFIG[36:]
    with pytest.raises(FrontEndError, match="no 8 bytes of configuration space at 36"):
        front_end.get_config(36, 8)
    front_end.set_status(0xF)
    assert front_end.get_status() == 0xF
    front_end.set_status(0)
    front_end.reset_device()
    assert served.device.names() == ["reset", "reset"]


def test_a_refusal_names_the_request(fds, serve):
    served = serve()
    front_end = FrontEnd(served.connection)
    front_end.negotiate()
    with pytest.raises(FrontEndError, match="the back end refused SET_VRING_ADDR"):
        front_end.setup_vring(0, 64, 0, 0, 0, 0, fds[0], fds[1])
    assert "shared no guest memory" in served.log[-1]
    with pytest.raises(FrontEndError, match="the back end refused SET_VRING_NUM"):
        front_end.setup_vring(0, 63, 0, 0, 0, 0, fds[0], fds[1])
    assert front_end.get_status() == 0  # the connection goes on


def test_a_back_end_channel_and_requests_without_a_method(fds, serve):
    served = serve()
    front_end = FrontEnd(served.connection)
    front_end.negotiate(protocol_features=KNOWN_PROTOCOL_FEATURES)
    front_end.set_backend_channel(fds[0])
    assert same_file(served.device.channel, fds[0])
    assert front_end.query(m.GET_SHMEM_CONFIG) == ((1 << 26, 0, 4096), [])
    inflight, received = front_end.query(m.GET_INFLIGHT_FD, p.Inflight(0, 0, 2, 64))
    assert inflight.mmap_size == 4096
    front_end.command(m.SET_INFLIGHT_FD, inflight, received)
    os.close(received[0])


def answering(data: bytes, fds: tuple[int, ...] = ()) -> tuple[FrontEnd, socket.socket]:
    """A front end whose back end has already said `data`."""
    ours, theirs = socket.socketpair()
    if data:
        socket.send_fds(theirs, [data], list(fds))
    return FrontEnd(Connection(ours, message_seconds=0.05), reply_seconds=0.05), theirs


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (m.encode(m.GET_QUEUE_NUM, 1, m.REPLY_FLAGS), "GET_FEATURES was answered with GET_QUEUE_NUM"),
        (m.encode(m.GET_FEATURES, 1, m.REPLY_FLAGS | m.NEED_REPLY), "flags 0xd"),
        (m.encode(m.GET_FEATURES), "flags 0x1"),
        (m.encode_acknowledgement(m.GET_FEATURES, 1)[:16], "no answer to GET_FEATURES"),
        (bytes(12), "version 0"),
        (b"", "did not answer GET_FEATURES in 0.05 s"),
    ],
)
def test_answers_that_are_none_are_told(data, text):
    before = open_fds()
    front_end, peer = answering(data)
    with peer, front_end, pytest.raises(FrontEndError, match=text):
        front_end.negotiate()
    assert open_fds() == before


def test_unwanted_descriptors_of_an_answer_are_closed(fds):
    before = open_fds()
    front_end, peer = answering(m.encode(m.GET_FEATURES, 1, m.REPLY_FLAGS), tuple(fds))
    with peer, front_end, pytest.raises(FrontEndError, match="4 descriptors"):
        front_end.negotiate()
    assert open_fds() == before


def test_a_back_end_that_goes_away_is_told():
    front_end, peer = answering(b"")
    peer.close()
    with front_end, pytest.raises(FrontEndError, match="GET_FEATURES"):
        front_end.negotiate()
