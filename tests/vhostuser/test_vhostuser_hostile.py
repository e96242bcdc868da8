# SPDX-License-Identifier: Apache-2.0
"""Whatever comes over the socket: the back end answers or raises `ProtocolError`, its device is never told
nonsense (`RecordingDevice` asserts that), and when the connection ends no descriptor is left.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from recording_device import FEATURES, Direct, RecordingDevice, open_fds

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser import payloads as p
from virtiofs.vhostuser.backend import BASE_PROTOCOL_FEATURES, KNOWN_PROTOCOL_FEATURES, Device
from virtiofs.vhostuser.payloads import MemoryRegion, ProtocolError, VringAddr, VringFd, VringParam
from virtiofs.vhostuser.transport import MAX_FDS, Connection

FUZZ = settings(deadline=None, derandomize=True)


PLAIN = m.VIRTIO_F_VERSION_1 | m.VHOST_USER_F_PROTOCOL_FEATURES
USER = 0x7F00_0000_0000
SIZE = 0x4_0000
REGIONS = [MemoryRegion(number * SIZE, SIZE, USER + number * SIZE, 0) for number in range(5)]

INDEXES = [0, 0, 0, 1, 1, 1, 2, 2, 3, 255]
NUMBERS = [0, 1, 2, 3, 64, 100, 128, 32768, 32769, 65535, 65536, 0xFFFF_FFFF]
ADDRESSES = [USER + number for number in (0, 1, 2, 4, 16, SIZE - 16, SIZE, 2 * SIZE + 64)] + [0, 1 << 63]
EDGES = [0, 1, SIZE, 1 << 63, (1 << 64) - 1]
U64S = [
    0,
    1,
    0xF,
    0x100,
    (1 << 64) - 1,
    PLAIN,
    PLAIN | m.VHOST_F_LOG_ALL,
    PLAIN | m.VIRTIO_F_RING_PACKED,
    m.VIRTIO_F_VERSION_1,
    KNOWN_PROTOCOL_FEATURES,
    BASE_PROTOCOL_FEATURES,
]


def ring_address(number: int, flags: int = 0, log: int = 0) -> VringAddr:
    """Where `steps_to_a_running_queue` puts the queue of that number."""
    base = USER + number * SIZE
    return VringAddr(number, flags, desc=base, used=base + 0x2000, avail=base + 0x1000, log=log)


def some_address(random: Random) -> VringAddr:
    if random.randrange(2):
        return ring_address(random.randrange(4), random.randrange(2), random.choice(NUMBERS))
    addresses = [random.choice(ADDRESSES) for _ in range(3)]
    return VringAddr(random.choice(INDEXES), random.randrange(2), *addresses, random.choice(NUMBERS))


def some_region(random: Random) -> MemoryRegion:
    if random.randrange(4):
        return random.choice(REGIONS)
    edges = [random.choice(EDGES) for _ in range(2)]
    return MemoryRegion(*edges, random.choice(ADDRESSES), random.choice(EDGES))


def some_table(random: Random) -> tuple[MemoryRegion, ...]:
    if random.randrange(2):
        return tuple(REGIONS[:3])
    return tuple(some_region(random) for _ in range(random.randrange(5)))


# For each payload values near the border of what is allowed.
VALUES: dict[p.Codec, Callable[[Random], Any]] = {
    p.EMPTY: lambda random: None,
    p.OPAQUE: lambda random: bytes(random.randrange(40)),
    p.UUID: lambda random: bytes(16),
    p.U64: lambda random: random.choice(U64S),
    p.VRING_PARAM: lambda random: VringParam(random.choice(INDEXES), random.choice(NUMBERS)),
    p.VRING_ADDR: some_address,
    p.VRING_FD: lambda random: VringFd(random.choice(INDEXES), random.randrange(5) == 0),
    p.MEMORY_TABLE: some_table,
    p.MEMORY_REGION: some_region,
    p.LOG: lambda random: p.Log(random.choice(EDGES), random.choice(NUMBERS)),
    p.CONFIG: lambda random: p.Config(random.randrange(42), random.randrange(2), bytes(random.randrange(42))),
    p.INFLIGHT: lambda random: p.Inflight(
        random.choice(EDGES), 0, random.randrange(5), random.choice([0, 100, 128])
    ),
    p.DEVICE_STATE: lambda random: p.DeviceState(random.randrange(2), random.randrange(2)),
    p.IOTLB: lambda random: p.Iotlb(0, 0, 0, 1, 1),
}
REQUESTS = [*sorted(m.FRONT_END), 0, 45, 0xFFFF_FFFF]

# request, flags, payload, number of descriptors
Sent = tuple[int, int, bytes, int]


def some_message(random: Random) -> Sent:
    """Mostly a message that could be right.

    What ends a connection at once (replies, questions with descriptors, bytes that are no payload) is rare,
    or no sequence would come far.
    """
    request = random.choice(REQUESTS)
    flags = random.choice([m.VERSION] * 5 + [m.VERSION | m.NEED_REPLY] * 30 + [0xFFFF_FFF9, 0x5])
    message = m.message(request)
    if message is None or random.randrange(40) == 0:
        return request, flags, bytes(random.randrange(48)), random.randrange(4)
    value = VALUES[message.payload](random)
    count = len(value) if request == m.SET_MEM_TABLE else message.fds[1]
    if random.randrange(40) == 0:
        count = random.randrange(4)
    return request, flags, m.encode(request, value)[m.HEADER_SIZE :], count


def steps_to_a_running_queue(number: int) -> list[Sent]:
    steps = [
        (m.SET_VRING_NUM, VringParam(number, 128), 0),
        (m.SET_VRING_ADDR, ring_address(number), 0),
        (m.SET_VRING_KICK, VringFd(number), 1),
        (m.SET_VRING_ENABLE, VringParam(number, 1), 0),
    ]
    return [
        (request, 0x9, m.encode(request, value)[m.HEADER_SIZE :], count) for request, value, count in steps
    ]


METHODS = ["map_memory", "add_memory", "remove_memory", "start_queue", "stop_queue", "set_call", "reset"]


def run_a_sequence(random: Random) -> list[str]:
    """Send some messages to a back end with up to three running queues; returns what its device was told."""
    before = open_fds()
    offered = random.choice([KNOWN_PROTOCOL_FEATURES] * 3 + [BASE_PROTOCOL_FEATURES, 0])
    device = RecordingDevice(protocol_features=offered)
    peer = Direct(device)
    if offered:
        peer.negotiate()
    else:
        peer.send(m.SET_FEATURES, PLAIN)
    spare = os.memfd_create("spare")
    running = random.randrange(4)
    prelude = [(m.SET_MEM_TABLE, 0x9, m.encode(m.SET_MEM_TABLE, REGIONS[:3])[m.HEADER_SIZE :], 3)]
    for number in range(running):
        prelude += steps_to_a_running_queue(number)
    messages = [some_message(random) for _ in range(random.randrange(40))]
    ended = []
    try:
        for position, (request, flags, payload, count) in enumerate(prelude + messages):
            if position == len(prelude):
                assert len(device.running) == running
                device.failing = set(random.sample(METHODS, random.choice([0, 0, 0, 1, 2])))
            answer = peer.send_raw(m.Header(request, flags, len(payload)), payload, [spare] * count)
            for fd in answer[1] if answer else ():
                os.close(fd)
            known = m.message(request)
            if known and known.always_answered and not known.needs and request != m.IOTLB_MSG:
                assert answer is not None
    except ProtocolError:
        ended = ["connection ended"]
    finally:
        device.failing = set()
        peer.backend.close()
        os.close(spare)
    assert device.gone
    assert open_fds() == before
    return device.names() + ended


@FUZZ
@given(st.randoms(use_true_random=False))
def test_any_sequence_of_messages_is_answered_or_ends_the_connection_and_leaks_nothing(random):
    run_a_sequence(random)


def test_many_sequences_reach_every_method_of_the_device_and_leak_nothing():
    told = {name for seed in range(1000) for name in run_a_sequence(Random(seed))}
    methods = {name for name in vars(Device) if callable(getattr(Device, name)) and not name.startswith("_")}
    assert methods - told == {"config", "shmem_sizes"}  # these are not recorded
    assert "connection ended" in told


@FUZZ
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 3))
def test_any_bytes_on_the_socket_are_messages_or_an_error(pieces, fd_count):
    before = open_fds()
    ours, theirs = socket.socketpair()
    with ours, Connection(theirs) as connection:
        spare = os.memfd_create("spare")
        for number, piece in enumerate(pieces):
            fds = [spare] * fd_count if number == 0 else []
            socket.send_fds(ours, [piece], fds) if piece else None
        os.close(spare)
        ours.shutdown(socket.SHUT_WR)
        stream = b"".join(pieces)
        try:
            while (received := connection.receive(wait=10)) is not None:
                header, payload, fds = received
                for fd in fds:
                    os.close(fd)
                used = m.HEADER_SIZE + header.size
                assert payload == stream[m.HEADER_SIZE : used]
                assert header == m.decode_header(stream[: m.HEADER_SIZE])
                stream = stream[used:]
            assert stream == b""
        except ProtocolError:
            assert stream
    assert open_fds() == before


@FUZZ
@given(st.binary(min_size=12, max_size=64), st.integers(0, 2))
def test_a_back_end_survives_any_bytes_on_its_socket(data, fd_count):
    before = open_fds()
    ours, theirs = socket.socketpair()
    peer = Direct(RecordingDevice(FEATURES))
    with ours, Connection(theirs) as connection:
        spare = os.memfd_create("spare")
        socket.send_fds(ours, [m.encode(m.GET_FEATURES) + data], [spare] * fd_count)
        os.close(spare)
        ours.shutdown(socket.SHUT_WR)
        try:
            while peer.backend.step(connection):
                pass
        except ProtocolError:
            pass
        peer.backend.close()
    assert open_fds() == before


def test_more_descriptors_than_a_message_may_carry_end_the_connection():
    before = open_fds()
    ours, theirs = socket.socketpair()
    spare = os.memfd_create("spare")
    with ours, Connection(theirs) as connection:
        socket.send_fds(ours, [m.encode(m.SET_OWNER)], [spare] * MAX_FDS)
        received = connection.receive(wait=10)
        assert received is not None
        assert len(received[2]) == MAX_FDS
        assert all(not os.get_inheritable(fd) for fd in received[2])
        for fd in received[2]:
            os.close(fd)
        socket.send_fds(ours, [m.encode(m.SET_OWNER)], [spare] * (MAX_FDS + 1))
        try:
            connection.receive(wait=10)
            raise AssertionError("33 descriptors were accepted")
        except ProtocolError as error:
            assert "descriptors were lost" in str(error)  # noqa: PT017
    os.close(spare)
    assert open_fds() == before
