# SPDX-License-Identifier: Apache-2.0
"""Virtqueues: chains that are unusual but right, and rings that break the rules."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable

from virtiofs.client.check.case import MUST, SAFE, SHOULD, Check, Failed, NotApplicable, checker, expect
from virtiofs.client.check.subject import Subject
from virtiofs.client.device import Device, Layout
from virtiofs.client.hostile import INDIRECT, NEXT, WRITE, Descriptor, RawQueue
from virtiofs.client.session import Session
from virtiofs.fuse.abi import BY_NAME, FUSE_GETATTR_IN, FUSE_IN_HEADER, FUSE_ROOT_ID
from virtiofs.vhostuser.messages import PROTOCOL_F_RESET_DEVICE

CHECKS: list[Check] = []
check = checker("rings", CHECKS)

OUTSIDE = 1 << 50
ROOM = 120  # of a GETATTR's reply: out header and fuse_attr_out
UNIQUE = 7
WAIT = 0.5  # seconds for a device to take notice of a broken ring; nothing tells when it will never answer
QUEUE = 1


def _message() -> bytes:
    body = FUSE_GETATTR_IN.pack()
    header = FUSE_IN_HEADER.pack(
        len=FUSE_IN_HEADER.size + len(body),
        opcode=BY_NAME["getattr"].opcode,
        unique=UNIQUE,
        nodeid=FUSE_ROOT_ID,
    )
    return header + body


def _raw(subject: Subject, **options: int) -> tuple[Device, RawQueue]:
    """A device after INIT, and its request queue without manners."""
    device = subject.fresh(**options)
    Session(device)
    return device, RawQueue(device, QUEUE)


def _pieces(raw: RawQueue) -> tuple[Descriptor, Descriptor]:
    """A sound GETATTR: its readable and its writable descriptor, to be put at 0 and 1."""
    message = _message()
    return Descriptor(raw.place(message), len(message), NEXT, 1), Descriptor(raw.room(ROOM), ROOM, WRITE)


def _reply(raw: RawQueue, address: int) -> tuple[int, int, int]:
    length, error, unique = struct.unpack("<IiQ", raw.memory.read(address, 16))
    return length, error, unique


def _served(raw: RawQueue, reply: int) -> None:
    used = raw.wait_used()
    expect(used, "it was not served")
    expect(used[0].length == ROOM, f"{used[0].length} bytes were used instead of {ROOM}")
    expect(_reply(raw, reply) == (ROOM, 0, UNIQUE), "its reply is wrong")


@check(
    MUST, "serves a request that lies in direct descriptors, without an indirect table", "virtio 1.3, 2.7.5"
)
def _direct(subject: Subject) -> None:
    _, raw = _raw(subject)
    pieces = _pieces(raw)
    raw.offer(raw.chain(pieces))
    raw.kick()
    _served(raw, pieces[1].address)


@check(MUST, "serves direct descriptors that end in an indirect table", "virtio 1.3, 2.7.5.3.2")
def _mixed(subject: Subject) -> None:
    _, raw = _raw(subject)
    message, reply = _message(), raw.room(ROOM)
    rest = Descriptor(raw.place(message[20:]), len(message) - 20, NEXT, 1)
    table = raw.table([rest, Descriptor(reply, ROOM, WRITE)])
    raw.chain([Descriptor(raw.place(message[:20]), 20, NEXT, 1), Descriptor(table, 32, INDIRECT)])
    raw.offer(0)
    raw.kick()
    _served(raw, reply)


@check(MUST, "takes a message that is split anywhere", "virtio 1.3, 2.7.4")
def _splits(subject: Subject) -> None:
    device = subject.fresh()
    session = Session(device)
    for at in range(1, FUSE_IN_HEADER.size + FUSE_GETATTR_IN.size):
        session.layout = Layout([at], [at % ROOM], alignment=1, skew=at % 8)
        session.getattr(FUSE_ROOT_ID)


@check(SHOULD, "takes a message in pieces of one byte", "virtio 1.3, 2.7.4")
def _single_bytes(subject: Subject) -> None:
    _, raw = _raw(subject)
    message = _message()
    source, target = raw.place(message), raw.room(ROOM)
    pieces = [Descriptor(source + i, 1, NEXT) for i in range(len(message))]
    pieces += [Descriptor(target + i, 1, NEXT | WRITE) for i in range(ROOM)]
    pieces = [piece._replace(next=i + 1) for i, piece in enumerate(pieces)]
    pieces[-1] = pieces[-1]._replace(flags=WRITE)
    raw.chain([Descriptor(raw.table(pieces), 16 * len(pieces), INDIRECT)])
    raw.offer(0)
    raw.kick()
    _served(raw, target)


@check(SHOULD, "passes over descriptors of no bytes", "virtio 1.3, 2.7.5")
def _empty(subject: Subject) -> None:
    _, raw = _raw(subject)
    readable, writable = _pieces(raw)
    nothing = raw.room(1)
    raw.chain(
        [
            Descriptor(nothing, 0, NEXT, 1),
            readable._replace(next=2),
            writable._replace(flags=WRITE | NEXT, next=3),
            Descriptor(nothing, 0, WRITE),
        ]
    )
    raw.offer(0)
    raw.kick()
    _served(raw, writable.address)


@check(MUST, "takes as many requests at once as the ring holds", "virtio 1.3, 2.7.6")
def _full(subject: Subject) -> None:
    device = subject.fresh(queue_size=128)
    Session(device)
    waiting = [device.begin("getattr", FUSE_ROOT_ID, FUSE_GETATTR_IN.pack(), ROOM - 16) for _ in range(128)]
    for pending in waiting:
        reply = device.finish(pending)
        expect(reply is not None and reply.error == 0, "a GETATTR failed")


@check(
    MUST,
    "serves requests of a ring whose driver has no event index and no indirect tables",
    "virtio 1.3, 2.7.7",
)
def _plain(subject: Subject) -> None:
    session = Session(subject.fresh(event_idx=False, indirect=False))
    for _ in range(20):
        session.getattr(FUSE_ROOT_ID)


@check(SHOULD, "does not interrupt a driver that asked not to be interrupted", "virtio 1.3, 2.7.7")
def _no_interrupt(subject: Subject) -> None:
    device = subject.fresh(event_idx=False)
    Session(device)
    raw = RawQueue(device, QUEUE)
    raw.avail_flags(1)
    pieces = _pieces(raw)
    while select.select([raw.call_fd], [], [], 0)[0]:
        os.eventfd_read(raw.call_fd)
    raw.offer(raw.chain(pieces))
    raw.kick()
    deadline = time.monotonic() + 5
    while raw.used_index() == raw.seen:
        expect(time.monotonic() < deadline, "it was not served")
    expect(not select.select([raw.call_fd], [], [], 0.05)[0], "the call descriptor was written all the same")


# --- rings that break the rules ---

Spoil = Callable[[RawQueue], int]


def _loop(raw: RawQueue) -> int:
    readable, _ = _pieces(raw)
    return raw.chain([readable, readable._replace(next=0)])


def _loop_of_one(raw: RawQueue) -> int:
    return raw.chain([_pieces(raw)[0]._replace(next=0)])


def _next_outside(raw: RawQueue) -> int:
    return raw.chain([_pieces(raw)[0]._replace(next=raw.size)])


def _address_outside(raw: RawQueue) -> int:
    readable, writable = _pieces(raw)
    return raw.chain([readable._replace(address=OUTSIDE), writable])


def _reply_outside(raw: RawQueue) -> int:
    readable, writable = _pieces(raw)
    return raw.chain([readable, writable._replace(address=OUTSIDE)])


def _address_wraps(raw: RawQueue) -> int:
    return raw.chain([Descriptor((1 << 64) - 8, 64, NEXT, 1), _pieces(raw)[1]])


def _length_past_the_end(raw: RawQueue) -> int:
    readable, writable = _pieces(raw)
    return raw.chain([readable._replace(length=0xFFFFFFFF), writable])


def _readable_after_writable(raw: RawQueue) -> int:
    readable, writable = _pieces(raw)
    return raw.chain([writable._replace(flags=WRITE | NEXT, next=1), readable._replace(flags=0)])


def _nested(raw: RawQueue) -> int:
    inner = raw.table(_pieces(raw))
    outer = raw.table([Descriptor(inner, 32, INDIRECT)])
    return raw.chain([Descriptor(outer, 16, INDIRECT)])


def _indirect_with_next(raw: RawQueue) -> int:
    table = raw.table(_pieces(raw))
    return raw.chain([Descriptor(table, 32, INDIRECT | NEXT, 1), _pieces(raw)[1]])


def _odd_table(raw: RawQueue) -> int:
    return raw.chain([Descriptor(raw.table(_pieces(raw)), 33, INDIRECT)])


def _empty_table(raw: RawQueue) -> int:
    return raw.chain([Descriptor(raw.table(_pieces(raw)), 0, INDIRECT)])


def _table_outside(raw: RawQueue) -> int:
    return raw.chain([Descriptor(OUTSIDE, 32, INDIRECT)])


def _loop_in_a_table(raw: RawQueue) -> int:
    return raw.chain([Descriptor(raw.table([_pieces(raw)[0]._replace(next=0)]), 16, INDIRECT)])


def _head_outside(raw: RawQueue) -> int:
    return raw.size


BROKEN: dict[str, Spoil] = {
    "descriptors that form a loop": _loop,
    "a descriptor that follows itself": _loop_of_one,
    "a next descriptor outside the table": _next_outside,
    "a readable address outside memory": _address_outside,
    "a writable address outside memory": _reply_outside,
    "an address that wraps": _address_wraps,
    "a length past the end of memory": _length_past_the_end,
    "a readable descriptor behind a writable one": _readable_after_writable,
    "an indirect table inside an indirect table": _nested,
    "an indirect descriptor that has a next one": _indirect_with_next,
    "an indirect table of an odd length": _odd_table,
    "an indirect table of no length": _empty_table,
    "an indirect table outside memory": _table_outside,
    "a loop inside an indirect table": _loop_in_a_table,
    "a head outside the table": _head_outside,
}


def _wait_for_notice(device: Device, raw: RawQueue) -> None:
    """Until the device gave the ring up, used something or went, or it had time enough."""
    poll = select.poll()
    for fd in (raw.err_fd, raw.call_fd):
        poll.register(fd, select.POLLIN)
    poll.register(device.fileno(), select.POLLRDHUP)
    poll.poll(WAIT * 1000)


def _attack(subject: Subject, spoil: Callable[[RawQueue], None]) -> None:
    device, raw = _raw(subject)
    spoil(raw)
    raw.kick()
    _wait_for_notice(device, raw)
    used = raw.wait_used(timeout=0)
    expect(
        not any(entry.length >= ROOM for entry in used),
        f"it was served as if it were right: used {[tuple(entry) for entry in used]}",
    )
    subject.must_live()
    subject.leave()
    subject.must_serve()


def _broken(name: str, spoil: Spoil) -> None:
    @check(SAFE, f"does not serve, and survives, {name}", "virtio 1.3, 2.7.5")
    def _act(subject: Subject) -> None:
        _attack(subject, lambda raw: raw.offer(spoil(raw)))


for _name, _spoil in BROKEN.items():
    _broken(_name, _spoil)


@check(SAFE, "survives an available index that jumps by more than the queue's size", "virtio 1.3, 2.7.13.3")
def _jump(subject: Subject) -> None:
    _attack(subject, lambda raw: raw.publish(raw.next_avail + raw.size + 1))


@check(SHOULD, "gives a broken ring up alone: a reset makes the device whole again", "virtio 1.3, 2.1.2")
def _heals(subject: Subject) -> None:
    device, raw = _raw(subject)
    if not device.front_end.protocol_features & PROTOCOL_F_RESET_DEVICE:
        raise NotApplicable("RESET_DEVICE is not offered")
    raw.offer(_loop(raw))
    raw.kick()
    _wait_for_notice(device, raw)
    try:
        device.reset()
        Session(device).getattr(FUSE_ROOT_ID)
    except Exception as error:
        raise Failed(f"after the reset: {error}") from None


@check(SAFE, "is not kept busy by a driver that kicks without requests", "virtio 1.3, 2.7.13")
def _empty_kicks(subject: Subject) -> None:
    _, raw = _raw(subject)
    for _ in range(1000):
        raw.kick()
    pieces = _pieces(raw)
    raw.offer(raw.chain(pieces))
    raw.kick()
    _served(raw, pieces[1].address)
