# SPDX-License-Identifier: Apache-2.0
"""Rings that break the rules: the queue stops and says why; the daemon and its other queues go on."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
from virtiofs.client.device import Device
from virtiofs.client.hostile import INDIRECT, NEXT, WRITE, Descriptor, RawQueue
from virtiofs.client.session import Session
from virtiofs.fuse.abi import BY_NAME, FUSE_GETATTR_IN, FUSE_IN_HEADER, FUSE_LK_IN

OUTSIDE = 1 << 50
VICTIM, WITNESS = 1, 2  # the queue that is attacked, and one that must go on


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[devices.RunningDevice]:
    directory = tmp_path_factory.mktemp("share")
    (directory / "file").write_text("unharmed")
    with devices.start_ours(directory, ["--queues", "2"]) as running:
        yield running


@pytest.fixture
def device(daemon: devices.RunningDevice) -> Iterator[Device]:
    with Device.connect(daemon.socket, queues=2) as connected:
        yield connected
    assert daemon.alive, "the daemon died:\n" + "\n".join(daemon.log)


def check_unharmed(device: Device) -> None:
    """Another queue of the same device still serves."""
    session = Session(device, queue=WITNESS)
    node = session.lookup(1, "file").nodeid
    assert session.getattr(node).size == len("unharmed")
    session.forget(node)


def check_healed(device: Device) -> None:
    """After a reset of the device the broken queue serves again."""
    device.reset()
    session = Session(device, queue=VICTIM)
    assert session.getattr(1).mode & 0o170000 == 0o040000


def getattr_message() -> bytes:
    body = FUSE_GETATTR_IN.pack()
    header = FUSE_IN_HEADER.pack(
        len=FUSE_IN_HEADER.size + len(body), opcode=BY_NAME["getattr"].opcode, unique=7, nodeid=1
    )
    return header + body


def request_pieces(raw: RawQueue) -> list[Descriptor]:
    """A sound GETATTR, to be spoiled."""
    message = getattr_message()
    return [
        Descriptor(raw.place(message), len(message), NEXT, 1),
        Descriptor(raw.room(120), 120, WRITE),
    ]


def loop(raw: RawQueue) -> int:
    pieces = request_pieces(raw)
    return raw.chain([pieces[0], pieces[0]._replace(next=0)])


def loop_of_one(raw: RawQueue) -> int:
    return raw.chain([request_pieces(raw)[0]._replace(next=0)])


def next_outside_the_table(raw: RawQueue) -> int:
    return raw.chain([request_pieces(raw)[0]._replace(next=raw.size)])


def address_outside_memory(raw: RawQueue) -> int:
    return raw.chain([request_pieces(raw)[0]._replace(address=OUTSIDE), request_pieces(raw)[1]])


def address_that_wraps(raw: RawQueue) -> int:
    return raw.chain([Descriptor((1 << 64) - 8, 64, NEXT, 1), request_pieces(raw)[1]])


def length_past_the_end_of_memory(raw: RawQueue) -> int:
    return raw.chain([request_pieces(raw)[0]._replace(length=0xFFFFFFFF), request_pieces(raw)[1]])


def readable_after_writable(raw: RawQueue) -> int:
    readable, writable = request_pieces(raw)
    return raw.chain([writable._replace(flags=WRITE | NEXT, next=1), readable._replace(flags=0)])


def nested_indirect(raw: RawQueue) -> int:
    inner = raw.table(request_pieces(raw))
    outer = raw.table([Descriptor(inner, 32, INDIRECT)])
    return raw.chain([Descriptor(outer, 16, INDIRECT)])


def indirect_with_next(raw: RawQueue) -> int:
    table = raw.table(request_pieces(raw))
    return raw.chain([Descriptor(table, 32, INDIRECT | NEXT, 1), request_pieces(raw)[1]])


def indirect_table_of_odd_length(raw: RawQueue) -> int:
    return raw.chain([Descriptor(raw.table(request_pieces(raw)), 33, INDIRECT)])


def indirect_table_of_no_length(raw: RawQueue) -> int:
    return raw.chain([Descriptor(raw.table(request_pieces(raw)), 0, INDIRECT)])


def indirect_table_longer_than_the_queue(raw: RawQueue) -> int:
    table = raw.room(16 * (raw.size + 1))
    return raw.chain([Descriptor(table, 16 * (raw.size + 1), INDIRECT)])


def indirect_table_outside_memory(raw: RawQueue) -> int:
    return raw.chain([Descriptor(OUTSIDE, 32, INDIRECT)])


def loop_inside_an_indirect_table(raw: RawQueue) -> int:
    readable, _ = request_pieces(raw)
    return raw.chain([Descriptor(raw.table([readable._replace(next=0)]), 16, INDIRECT)])


def head_outside_the_table(raw: RawQueue) -> int:
    return raw.size


BROKEN = [
    loop,
    loop_of_one,
    next_outside_the_table,
    address_outside_memory,
    address_that_wraps,
    length_past_the_end_of_memory,
    readable_after_writable,
    nested_indirect,
    indirect_with_next,
    indirect_table_of_odd_length,
    indirect_table_of_no_length,
    indirect_table_longer_than_the_queue,
    indirect_table_outside_memory,
    loop_inside_an_indirect_table,
    head_outside_the_table,
]


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_chain_stops_only_its_queue_until_the_reset(daemon, device, spoil):
    lines = len(daemon.log)
    Session(device, queue=WITNESS)  # INIT; the victim queue stays in its first state
    raw = RawQueue(device, VICTIM)
    raw.offer(spoil(raw))
    raw.kick()
    assert raw.wait_broken()
    assert raw.wait_used(timeout=0) == []
    assert devices.wait_until(lambda: any("queue 1 is stopped" in line for line in daemon.log[lines:]))
    check_unharmed(device)
    check_healed(device)


@pytest.mark.parametrize("jump", [129, 40000, 65535])
def test_an_available_index_that_jumps_stops_the_queue(daemon, device, jump):
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    assert raw.size <= 256
    raw.publish(raw.next_avail + max(jump, raw.size + 1))
    raw.kick()
    assert raw.wait_broken()
    check_unharmed(device)
    check_healed(device)


def waiting_request(raw: RawQueue, session: Session) -> tuple[int, int]:
    """Offer descriptors 0 and 1 as a request that waits for a lock; the room for its reply, and the locked file."""
    node = session.lookup(1, "file").nodeid
    handle = session.open(node, os.O_RDWR).fh
    lock = {"start": 0, "end": 99, "type": fcntl.F_WRLCK, "pid": 1}
    session.call("setlk", node, fh=handle, owner=1, lk=lock)
    body = FUSE_LK_IN.pack(fh=handle, owner=2, lk=lock)
    opcode = BY_NAME["setlkw"].opcode
    header = FUSE_IN_HEADER.pack(len=FUSE_IN_HEADER.size + len(body), opcode=opcode, unique=9, nodeid=node)
    room = raw.room(16)
    message = header + body
    raw.chain([Descriptor(raw.place(message), len(message), NEXT, 1), Descriptor(room, 16, WRITE)])
    raw.offer(0)
    raw.kick()
    return room, node


def test_a_chain_that_is_offered_again_while_it_waits_for_a_lock_stops_the_queue(daemon, device):
    """Its memory would be answered twice, and one waiting request would be many."""
    lines = len(daemon.log)
    session = Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    room, _ = waiting_request(raw, session)
    raw.offer(0)
    raw.kick()
    assert raw.wait_broken()
    said = "queue 1 is stopped until the device is reset: a descriptor chain was offered again before it was given back"
    assert devices.wait_until(lambda: any(said in line for line in daemon.log[lines:]))
    assert raw.wait_used() == [(0, 16)], "it is given back once, unanswered"
    assert struct.unpack("<IiQ", raw.memory.read(room, 16)) == (16, -errno.EIO, 9)
    assert raw.wait_used(timeout=0) == []
    check_unharmed(device)
    check_healed(device)


def test_a_chain_may_be_offered_again_once_it_was_given_back(device):
    session = Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    room, node = waiting_request(raw, session)
    # Chains beside it come and go meanwhile, many more than there are descriptors.
    readable, writable = request_pieces(raw)
    raw.chain([readable._replace(next=3), writable], first=2)
    for _ in range(2 * raw.size):
        raw.offer(2)
        raw.kick()
        assert raw.wait_used() == [(2, 120)]
    session.call(
        "setlk", node, fh=session.open(node, os.O_RDWR).fh, owner=1, lk={"end": 99, "type": fcntl.F_UNLCK}
    )
    assert raw.wait_used() == [(0, 16)]
    raw.offer(0)
    raw.kick()
    assert raw.wait_used() == [(0, 16)]
    assert struct.unpack("<IiQ", raw.memory.read(room, 16)) == (16, 0, 9)


def test_a_sound_request_after_direct_descriptors_and_an_indirect_table_is_served(device):
    """The one mixed form that a device must accept (virtio 1.3, section 2.7.5.3.2)."""
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    message = getattr_message()
    reply = raw.room(120)
    table = raw.table(
        [
            Descriptor(raw.place(message[20:]), len(message) - 20, NEXT, 1),
            Descriptor(reply, 120, WRITE),
        ]
    )
    raw.chain([Descriptor(raw.place(message[:20]), 20, NEXT, 1), Descriptor(table, 32, INDIRECT)])
    raw.offer(0)
    raw.kick()
    assert raw.wait_used() == [(0, 120)]
    assert struct.unpack("<IiQ", raw.memory.read(reply, 16)) == (120, 0, 7)


def test_empty_descriptors_between_the_pieces_are_passed_over(device):
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    readable, writable = request_pieces(raw)
    raw.chain(
        [
            Descriptor(0, 0, NEXT, 1),
            readable._replace(next=2),
            Descriptor(OUTSIDE, 0, NEXT, 3),
            writable._replace(flags=WRITE | NEXT, next=4),
            Descriptor(0, 0, WRITE),
        ]
    )
    raw.offer(0)
    raw.kick()
    assert raw.wait_used() == [(0, 120)]


@pytest.mark.parametrize("apart", [1, 2, -1], ids=["side by side", "apart", "backwards"])
def test_a_request_whose_pieces_are_single_bytes_is_served(device, apart):
    """What lies side by side in the order of the chain is one piece to the host, and nothing else is."""
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    message = getattr_message()
    source, target = raw.room(512) + 256, raw.room(512) + 256
    for i, byte in enumerate(message):
        raw.memory.write(source + i * apart, bytes([byte]))
    pieces = [Descriptor(source + i * apart, 1, NEXT) for i in range(len(message))]
    pieces += [Descriptor(target + i * apart, 1, NEXT | WRITE) for i in range(120)]
    pieces = [piece._replace(next=i + 1) for i, piece in enumerate(pieces)]
    pieces[-1] = pieces[-1]._replace(flags=WRITE)
    raw.chain([Descriptor(raw.table(pieces), 16 * len(pieces), INDIRECT)])
    raw.offer(0)
    raw.kick()
    assert raw.wait_used() == [(0, 120)]
    head = b"".join(raw.memory.read(target + i * apart, 1) for i in range(16))
    assert struct.unpack("<IiQ", head) == (120, 0, 7)


def test_kicks_without_requests_cost_nothing_but_time(device):
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    for _ in range(1000):
        raw.kick()
    raw.chain(request_pieces(raw))
    raw.offer(0)
    raw.kick()
    assert raw.wait_used() == [(0, 120)]


descriptors = st.builds(
    Descriptor,
    address=st.one_of(st.integers(0, 1 << 27), st.integers(0, (1 << 64) - 1)),
    length=st.one_of(st.integers(0, 4096), st.integers(0, (1 << 32) - 1)),
    flags=st.one_of(st.integers(0, 7), st.integers(0, 65535)),
    next=st.one_of(st.integers(0, 15), st.integers(0, 65535)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(descriptors, min_size=1, max_size=16),
    tables=st.lists(st.lists(descriptors, min_size=1, max_size=8), max_size=2),
    heads=st.lists(st.integers(0, 20), min_size=1, max_size=8),
)
def test_any_ring_is_served_or_stopped_and_harms_nobody(daemon, device, entries, tables, heads):
    """The oracle: afterwards the daemon lives, its other queue serves, and a reset heals the device."""
    Session(device, queue=WITNESS)
    raw = RawQueue(device, VICTIM)
    for place, table in enumerate(tables):
        address = raw.table(table)
        entries.insert(place, Descriptor(address, 16 * len(table), INDIRECT))
    raw.chain(entries)
    raw.offer(*heads)
    raw.kick()
    check_unharmed(device)
    check_healed(device)
    assert daemon.alive


def test_rings_outside_memory_are_refused_and_the_daemon_goes_on(
    daemon: devices.RunningDevice, tmp_path: Path
):
    from virtiofs.vhostuser.frontend import FrontEndError

    with Device.connect(daemon.socket) as device:
        device.stop_queue(VICTIM)
        ring = device.queues[VICTIM].ring
        with pytest.raises((FrontEndError, ConnectionError)):
            device.front_end.setup_vring(
                VICTIM, 256, OUTSIDE, ring.avail_address, ring.used_address, 0,
                device.queues[VICTIM].kick_fd, device.queues[VICTIM].call_fd,
            )  # fmt: skip
    with Device.connect(daemon.socket) as device:
        assert Session(device).getattr(1).nlink >= 1
    assert daemon.alive
