# SPDX-License-Identifier: Apache-2.0
"""The driver without manners can also behave: what it writes is what the device sees."""

import pytest

from virtiofs.client.device import Device
from virtiofs.client.hostile import INDIRECT, NEXT, WRITE, Descriptor, RawQueue
from virtiofs.client.session import Session
from virtiofs.fuse.abi import BY_NAME, FUSE_ATTR_OUT, FUSE_GETATTR_IN, FUSE_IN_HEADER, FUSE_OUT_HEADER

GETATTR = FUSE_IN_HEADER.pack(
    len=FUSE_IN_HEADER.size + FUSE_GETATTR_IN.size, opcode=BY_NAME["getattr"].opcode, unique=77, nodeid=1
) + bytes(FUSE_GETATTR_IN.size)


def test_a_request_made_by_hand_is_answered(running):
    with Device.connect(running.socket) as device:
        Session(device)
        raw, free = RawQueue(device), device.arena.free
        request, room = raw.place(GETATTR), raw.room(120)
        entries = [Descriptor(request, 56, NEXT, 6), Descriptor(room, 120, WRITE)]
        raw.offer(raw.chain(entries, first=5))
        raw.kick()
        assert raw.wait_used() == [(5, 120)]
        header = FUSE_OUT_HEADER.unpack(device.memory.read(room, 16))
        assert (header.len, header.error, header.unique) == (120, 0, 77)
        attr = FUSE_ATTR_OUT.unpack(device.memory.read(room + 16, 104)).attr
        assert attr.ino == running.directory.stat().st_ino
        table = raw.table([Descriptor(request, 56, NEXT, 1), Descriptor(room, 120, WRITE)])
        raw.descriptor(9, Descriptor(table, 32, INDIRECT))
        raw.offer(9)
        raw.kick()
        assert raw.wait_used() == [(9, 120)]
        raw.release()
        assert device.arena.free == free


def test_a_broken_ring_is_seen_and_a_reset_heals_it(running):
    if running.kind == "c":
        pytest.skip("it exits over a broken ring")
    with Device.connect(running.socket) as device:
        Session(device)
        raw = RawQueue(device)
        raw.publish(raw.next_avail + 3000)
        raw.kick()
        assert raw.wait_broken()
        assert raw.wait_used(timeout=0) == []
        device.reset()
        assert Session(device).getattr(1).nlink >= 2
