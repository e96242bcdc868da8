# SPDX-License-Identifier: Apache-2.0
"""The device's end: regions of guest memory come, go and are refused."""

from __future__ import annotations

import pytest
from recording_device import (
    HIGH,
    LOW,
    USER,
    add_memory,
    open_fds,
    start,
)

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import MemoryRegion, VringParam


def test_a_memory_table_replaces_all_regions_and_running_queues_go_on(peer, fd):
    table = (LOW, HIGH)
    assert peer.acknowledged(m.SET_MEM_TABLE, table, [fd(), fd()]) == 0
    start(peer, fd, 0)
    start(peer, fd, 2, at=HIGH.user_addr)
    peer.device.next_base[0] = 11
    moved = MemoryRegion(0x20_0000, LOW.size, LOW.user_addr, 0)
    before = len(peer.device.calls)
    assert peer.acknowledged(m.SET_MEM_TABLE, (moved, HIGH), [fd(), fd()]) == 0
    calls = peer.device.calls[before:]
    assert [call[:2] for call in calls] == [
        ("stop_queue", 0),
        ("stop_queue", 2),
        ("map_memory", (moved, HIGH)),
        ("start_queue", 0),
        ("start_queue", 2),
    ]
    assert (calls[3][2].desc, calls[3][2].base) == (0x20_0000, 11)


def test_a_table_that_keeps_the_rings_leaves_their_queues_running(peer, fd):
    """With shared memory each mapping of the device's brings one, while a thread of a queue waits for it."""
    low = fd()
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW,), [low]) == 0
    start(peer, fd, 0)
    before = len(peer.device.calls)
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW, HIGH), [low, fd()]) == 0
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW,), [low]) == 0
    assert [call[:2] for call in peer.device.calls[before:]] == [
        ("add_memory", HIGH),
        ("remove_memory", HIGH),
    ]


def test_a_table_without_the_ring_leaves_that_queue_stopped(peer, fd):
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW, HIGH), [fd(), fd()]) == 0
    start(peer, fd, 0)
    start(peer, fd, 1, at=HIGH.user_addr)
    assert peer.acknowledged(m.SET_MEM_TABLE, (HIGH,), [fd()]) == 1
    assert list(peer.device.running) == [1]
    assert "queue 0 cannot run again" in peer.log[-1]


def test_a_bad_table_changes_nothing(peer, fd):
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW,), [fd()]) == 0
    start(peer, fd)
    overlapping = MemoryRegion(LOW.size - 1, 0x1000, USER + 0x8000_0000, 0)
    before = len(peer.device.calls)
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW, overlapping), [fd(), fd()]) == 1
    assert peer.acknowledged(m.SET_MEM_TABLE, (LOW, HIGH), [fd()]) == 1
    assert peer.device.calls[before:] == []
    assert list(peer.backend.regions) == [LOW]


@pytest.mark.parametrize(
    "region",
    [
        MemoryRegion(0x20_0000, 0, USER, 0),
        MemoryRegion((1 << 64) - 0x1000, 0x2000, USER, 0),
        MemoryRegion(0x20_0000, 0x2000, (1 << 64) - 0x1000, 0),
        MemoryRegion(0x20_0000, 0x2000, USER, (1 << 63) - 0x1000),
        MemoryRegion(LOW.guest_phys + 0x1000, 0x1000, 0x1000, 0),
        MemoryRegion(LOW.guest_phys + LOW.size - 1, 2, 0x1000, 0),
    ],
)
def test_impossible_and_overlapping_regions_are_refused(peer, fd, region):
    add_memory(peer, fd, LOW)
    before = open_fds()
    assert peer.acknowledged(m.ADD_MEM_REG, region, [fd()]) == 1
    assert peer.device.names() == ["add_memory"]
    assert len(open_fds()) == len(before) + 1  # the test's own


def test_the_same_memory_under_two_guest_addresses_is_accepted(peer, fd):
    alias = MemoryRegion(0x8000_0000, LOW.size, LOW.user_addr, 0)
    add_memory(peer, fd, LOW, alias)
    start(peer, fd)
    assert peer.device.running[0].desc in (LOW.guest_phys, alias.guest_phys)


def test_a_region_is_removed_whatever_its_mmap_offset_and_queues_elsewhere_go_on(peer, fd):
    add_memory(peer, fd)
    start(peer, fd, 0)
    start(peer, fd, 1, at=HIGH.user_addr)
    peer.device.next_base[1] = 3
    nameless = MemoryRegion(HIGH.guest_phys, HIGH.size, HIGH.user_addr, 0)
    assert peer.acknowledged(m.REM_MEM_REG, nameless, [fd()]) == 0
    assert peer.device.calls[-2:] == [("stop_queue", 1), ("remove_memory", HIGH)]
    assert list(peer.device.running) == [0]
    assert peer.ask(m.GET_VRING_BASE, VringParam(1, 0)) == VringParam(1, 3)
    assert peer.acknowledged(m.REM_MEM_REG, nameless) == 1


def test_more_regions_than_promised_slots_are_taken(peer, fd):
    """QEMU shows each DAX mapping as a region and does not count those against the slots."""
    backing = fd()
    for number in range(600):
        region = MemoryRegion(number << 21, 1 << 21, USER + (number << 21), 0)
        assert peer.acknowledged(m.ADD_MEM_REG, region, [backing]) == 0
    assert len(peer.device.memory) == 600
