# SPDX-License-Identifier: Apache-2.0
"""The device's end: what each message does to memory and queues, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from recording_device import CONFIG, FEATURES, Direct, RecordingDevice, open_fds, same_file

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser import payloads as p
from virtiofs.vhostuser.backend import BASE_PROTOCOL_FEATURES, BackEnd
from virtiofs.vhostuser.payloads import MemoryRegion, ProtocolError, VringAddr, VringFd, VringParam

PLAIN = m.VIRTIO_F_VERSION_1 | m.VHOST_USER_F_PROTOCOL_FEATURES
USER = 0x7F00_0000_0000
LOW = MemoryRegion(guest_phys=0, size=0x10_0000, user_addr=USER, mmap_offset=0)
HIGH = MemoryRegion(
    guest_phys=0x1_0000_0000, size=0x10_0000, user_addr=USER + 0x4000_0000, mmap_offset=0x10_0000
)


class FdSource:
    """Makes descriptors that `same_file` can tell from each other."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self) -> int:
        self.made.append(os.memfd_create("test"))
        return self.made[-1]


@pytest.fixture
def fd():
    source = FdSource()
    yield source
    for made in source.made:
        os.close(made)


@pytest.fixture
def peer(fd):
    """A negotiated front end; afterwards no descriptor but the test's own may be left."""
    before = open_fds()
    peer = Direct(RecordingDevice())
    peer.negotiate()
    yield peer
    peer.backend.close()
    assert not peer.device.running
    assert len(open_fds()) == len(before) + len(fd.made)


def add_memory(peer, fd, *regions):
    for region in regions or (LOW, HIGH):
        assert peer.acknowledged(m.ADD_MEM_REG, region, [fd()]) == 0


def describe(peer, index=0, num=128, base=0, at=USER):
    """Set a queue of `num` entries up as QEMU does, up to the kick."""
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(index, num)) == 0
    assert peer.acknowledged(m.SET_VRING_BASE, VringParam(index, base)) == 0
    assert (
        peer.acknowledged(
            m.SET_VRING_ADDR, VringAddr(index, 0, desc=at, avail=at + 0x8000, used=at + 0x10000)
        )
        == 0
    )


def start(peer, fd, index=0, **queue):
    describe(peer, index, **queue)
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(index), [fd()]) == 0


def starts(peer):
    return [call for call in peer.device.calls if call[0] == "start_queue"]


# --- negotiation ---


def test_features_are_offered_with_the_bit_of_the_protocol_features():
    peer = Direct(RecordingDevice(features=m.VIRTIO_F_VERSION_1))
    assert peer.ask(m.GET_FEATURES) == m.VIRTIO_F_VERSION_1 | 1 << 30
    peer.send(m.SET_OWNER)
    assert peer.ask(m.GET_FEATURES) == m.VIRTIO_F_VERSION_1 | 1 << 30


def test_features_that_were_not_offered_are_refused(peer):
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | 1 << 38) == 1
    assert peer.backend.features == PLAIN
    assert peer.acknowledged(m.SET_PROTOCOL_FEATURES, 1 << 2) == 1
    assert "0x4" in peer.log[-1]


def test_nothing_is_acknowledged_before_that_was_negotiated():
    peer = Direct(RecordingDevice())
    assert peer.send(m.SET_OWNER) is None
    assert peer.send(m.SET_FEATURES, 1 << 60) is None
    assert len(peer.log) == 1


def test_nothing_is_acknowledged_unless_asked(peer):
    assert peer.send(m.SET_OWNER, flags=m.VERSION) is None
    assert peer.send(m.SET_OWNER, flags=m.VERSION | m.NEED_REPLY) == (0, [])


def test_the_reply_flags_do_not_repeat_need_reply(peer):
    reply, _ = peer.backend.handle(m.Header(m.GET_FEATURES, m.VERSION | m.NEED_REPLY, 0), b"", [])
    assert reply is not None
    assert m.decode_header(reply[:12]).flags == 0x5


def test_a_device_may_offer_only_what_is_implemented():
    with pytest.raises(ValueError, match="0x100"):
        BackEnd(RecordingDevice(protocol_features=BASE_PROTOCOL_FEATURES | m.PROTOCOL_F_PAGEFAULT), print)


def test_the_number_of_queues_and_of_memory_slots(peer):
    assert peer.ask(m.GET_QUEUE_NUM) == 3
    assert peer.ask(m.GET_MAX_MEM_SLOTS) == 509


# --- starting and stopping queues ---


def test_a_queue_starts_at_its_kick_descriptor_and_waits_to_be_enabled(peer, fd):
    add_memory(peer, fd)
    call, kick = fd(), fd()
    assert peer.acknowledged(m.SET_VRING_CALL, VringFd(1), [call]) == 0
    describe(peer, 1, num=256, base=7, at=HIGH.user_addr)
    assert not starts(peer)
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(1), [kick]) == 0

    ((_, index, vring),) = starts(peer)
    assert index == 1
    assert (vring.size, vring.base, vring.enabled, vring.features) == (256, 7, False, PLAIN)
    high = HIGH.guest_phys
    assert (vring.desc, vring.avail, vring.used) == (high, high + 0x8000, high + 0x10000)
    assert same_file(vring.kick, kick)
    assert same_file(vring.call, call)
    assert vring.err == -1
    assert vring.log is None

    assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(1, 1)) == 0
    assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(1, 1)) == 0
    assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(1, 0)) == 0
    assert peer.device.calls[-2:] == [("set_enabled", 1, True), ("set_enabled", 1, False)]


def test_a_queue_that_was_enabled_before_starts_enabled(peer, fd):
    add_memory(peer, fd)
    assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(0, 1)) == 0
    assert "set_enabled" not in peer.device.names()
    start(peer, fd)
    assert starts(peer)[0][2].enabled


def test_without_protocol_features_all_queues_are_enabled(fd):
    peer = Direct(RecordingDevice())
    peer.send(m.SET_FEATURES, m.VIRTIO_F_VERSION_1)
    peer.send(m.SET_MEM_TABLE, (LOW,), [fd()])
    peer.send(m.SET_VRING_NUM, VringParam(0, 8))
    peer.send(m.SET_VRING_ADDR, VringAddr(0, 0, USER, USER + 0x1000, USER + 0x2000))
    peer.send(m.SET_VRING_KICK, VringFd(0), [fd()])
    assert starts(peer)[0][2].enabled
    peer.backend.close()


def test_stopping_returns_where_the_queue_stands_and_it_starts_there_again(peer, fd):
    add_memory(peer, fd)
    start(peer, fd, base=5)
    peer.device.next_base[0] = 77
    assert peer.ask(m.GET_VRING_BASE, VringParam(0, 0)) == VringParam(0, 77)
    assert peer.device.names()[-1] == "stop_queue"
    assert peer.ask(m.GET_VRING_BASE, VringParam(0, 0)) == VringParam(0, 77)  # it stands still
    assert peer.device.names().count("stop_queue") == 1
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 0
    assert starts(peer)[-1][2].base == 77


def test_a_guest_reboots_on_the_same_connection(peer, fd):
    add_memory(peer, fd)
    call = fd()
    assert peer.acknowledged(m.SET_VRING_CALL, VringFd(0), [call]) == 0
    for _ in range(3):
        start(peer, fd)
        assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(0, 1)) == 0
        assert peer.acknowledged(m.SET_VRING_ENABLE, VringParam(0, 0)) == 0
        peer.ask(m.GET_VRING_BASE, VringParam(0, 0))
        assert peer.acknowledged(m.RESET_DEVICE) == 0
        assert peer.acknowledged(m.REM_MEM_REG, LOW) == 0
        assert peer.acknowledged(m.ADD_MEM_REG, LOW, [fd()]) == 0
    once = ["start_queue", "set_enabled", "set_enabled", "stop_queue", "reset", "remove_memory", "add_memory"]
    assert peer.device.names()[2:] == once * 3
    assert all(same_file(call, vring.call) for _, _, vring in starts(peer)[-1:])
    assert peer.backend.features == PLAIN


@pytest.mark.parametrize("how", [(m.RESET_DEVICE, None), (m.SET_STATUS, 0)])
def test_reset_stops_and_disables_and_keeps_what_was_negotiated(peer, fd, how):
    add_memory(peer, fd)
    start(peer, fd)
    peer.send(m.SET_VRING_ENABLE, VringParam(0, 1))
    assert peer.acknowledged(m.SET_STATUS, 0xF) == 0
    assert peer.ask(m.GET_STATUS) == 0xF
    assert peer.acknowledged(*how) == 0
    assert peer.device.names()[-2:] == ["stop_queue", "reset"]
    assert peer.ask(m.GET_STATUS) == 0
    assert (peer.backend.features, len(peer.backend.regions)) == (PLAIN, 2)
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 1  # set-up is forgotten
    start(peer, fd)
    assert not starts(peer)[-1][2].enabled


def test_reset_owner_is_ignored(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    assert peer.acknowledged(m.RESET_OWNER) == 0
    assert 0 in peer.device.running


def test_a_new_kick_descriptor_restarts_a_running_queue_where_it_stands(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    peer.device.next_base[0] = 9
    kick = fd()
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [kick]) == 0
    assert peer.device.names()[-2:] == ["stop_queue", "start_queue"]
    assert peer.device.running[0].base == 9
    assert same_file(peer.device.running[0].kick, kick)


def test_call_and_error_descriptors_are_replaced_while_a_queue_runs(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    assert peer.acknowledged(m.SET_VRING_CALL, VringFd(0), [fd()]) == 0
    assert peer.acknowledged(m.SET_VRING_ERR, VringFd(0), [fd()]) == 0
    assert peer.acknowledged(m.SET_VRING_CALL, VringFd(0, no_fd=True)) == 0
    assert peer.device.names()[-3:] == ["set_call", "set_err", "set_call"]
    assert peer.device.calls[-1] == ("set_call", 0, -1)


def test_call_descriptors_come_for_queues_that_never_start(peer, fd):
    for _ in range(3):
        for index in range(3):
            assert peer.acknowledged(m.SET_VRING_CALL, VringFd(index), [fd()]) == 0
    assert peer.device.calls == []


def test_a_queue_cannot_be_resized_or_moved_on_while_it_runs(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 64)) == 1
    assert peer.acknowledged(m.SET_VRING_BASE, VringParam(0, 1)) == 1
    assert "GET_VRING_BASE" in peer.log[-1]
    assert peer.device.running[0].size == 128


def test_only_logging_may_change_in_the_features_while_a_queue_runs(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    peer.send(m.SET_VRING_ENABLE, VringParam(0, 1))
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | m.VIRTIO_RING_F_EVENT_IDX) == 1
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | m.VHOST_F_LOG_ALL) == 0
    assert peer.device.calls[-1] == ("set_logging", True)
    assert peer.acknowledged(m.SET_FEATURES, PLAIN) == 0
    assert peer.device.calls[-1] == ("set_logging", False)
    assert list(peer.device.running) == [0]
    assert peer.backend.rings[0].enabled


def test_an_address_repeated_for_logging_does_not_stop_the_queue(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    for flags, log, told in ((0, 0, None), (1, 0x1234, 0x1234), (1, 0x1234, None), (0, 0, "off")):
        before = len(peer.device.calls)
        address = VringAddr(0, flags, desc=USER, avail=USER + 0x8000, used=USER + 0x10000, log=log)
        assert peer.acknowledged(m.SET_VRING_ADDR, address) == 0
        expected = [] if told is None else [("set_ring_log", 0, None if told == "off" else told)]
        assert peer.device.calls[before:] == expected


def test_another_address_for_a_running_queue_moves_it(peer, fd):
    add_memory(peer, fd)
    start(peer, fd)
    moved = VringAddr(0, 0, desc=USER + 0x2_0000, avail=USER + 0x3_0000, used=USER + 0x4_0000)
    assert peer.acknowledged(m.SET_VRING_ADDR, moved) == 0
    assert peer.device.running[0].desc == 0x2_0000
    nowhere = VringAddr(0, 0, desc=1 << 40, avail=USER + 0x3_0000, used=USER + 0x4_0000)
    before = len(peer.device.calls)
    assert peer.acknowledged(m.SET_VRING_ADDR, nowhere) == 1
    assert peer.device.calls[before:] == []
    assert peer.device.running[0].desc == 0x2_0000


def test_packed_rings_have_other_sizes_and_positions(peer, fd):
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | m.VIRTIO_F_RING_PACKED) == 0
    add_memory(peer, fd)
    end = USER + LOW.size
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 100)) == 0
    assert peer.acknowledged(m.SET_VRING_BASE, VringParam(0, 0x8001_8001)) == 0
    at_the_end = VringAddr(0, 0, desc=end - 1600, avail=end - 4, used=end - 8)
    assert peer.acknowledged(m.SET_VRING_ADDR, at_the_end) == 0
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 0
    assert peer.device.running[0].base == 0x8001_8001


# --- what a ring may not be ---


@pytest.mark.parametrize("num", [0, 3, 100, 32769, 65536, 0xFFFF_FFFF])
def test_split_rings_have_a_power_of_two_of_entries_up_to_32768(peer, num):
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, num)) == 1
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 32768)) == 0
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 1)) == 0


@pytest.mark.parametrize(
    ("request_number", "value"),
    [
        (m.SET_VRING_NUM, VringParam(3, 128)),
        (m.SET_VRING_BASE, VringParam(3, 0)),
        (m.SET_VRING_ADDR, VringAddr(3, 0, USER, USER, USER)),
        (m.SET_VRING_ENABLE, VringParam(0xFFFF_FFFF, 1)),
        (m.SET_VRING_BASE, VringParam(0, 0x10000)),
        (m.SET_VRING_ENABLE, VringParam(0, 2)),
        (m.SET_STATUS, 0x100),
    ],
)
def test_numbers_out_of_range_are_refused(peer, fd, request_number, value):
    add_memory(peer, fd)
    assert peer.acknowledged(request_number, value) == 1
    assert not starts(peer)


@pytest.mark.parametrize(
    "address",
    [
        VringAddr(0, 0, desc=USER - 16, avail=USER, used=USER),
        VringAddr(0, 0, desc=USER + 8, avail=USER, used=USER),
        VringAddr(0, 0, desc=USER, avail=USER + 1, used=USER),
        VringAddr(0, 0, desc=USER, avail=USER, used=USER + 2),
        VringAddr(0, 0, desc=USER + LOW.size - 16 * 127, avail=USER, used=USER),
        VringAddr(0, 0, desc=USER, avail=USER + LOW.size - (2 * 128 + 4), used=USER),
        VringAddr(0, 0, desc=USER, avail=USER, used=USER + LOW.size - (8 * 128 + 4)),
        VringAddr(0, 0, desc=(1 << 64) - 16, avail=USER, used=USER),
        VringAddr(0, 0, desc=LOW.guest_phys, avail=LOW.guest_phys, used=LOW.guest_phys),
    ],
)
def test_ring_areas_must_be_aligned_and_inside_one_region(peer, fd, address):
    add_memory(peer, fd)
    describe(peer)
    assert peer.acknowledged(m.SET_VRING_ADDR, address) == 1
    assert peer.backend.rings[0].address != address


def test_areas_that_end_with_their_region_are_fine(peer, fd):
    add_memory(peer, fd)
    describe(peer)
    end = USER + LOW.size
    for address in (
        VringAddr(0, 0, desc=end - 16 * 128, avail=USER, used=USER),
        VringAddr(0, 0, desc=USER, avail=end - (2 * 128 + 6), used=USER),
        VringAddr(0, 0, desc=USER, avail=USER, used=end - (8 * 128 + 8)),
    ):
        assert peer.acknowledged(m.SET_VRING_ADDR, address) == 0


def test_an_area_across_two_adjacent_regions_is_refused(peer, fd):
    beside = MemoryRegion(LOW.size, LOW.size, USER + LOW.size, 0)
    add_memory(peer, fd, LOW, beside)
    peer.send(m.SET_VRING_NUM, VringParam(0, 128))
    address = VringAddr(0, 0, desc=USER + LOW.size - 16, avail=USER, used=USER)
    assert peer.acknowledged(m.SET_VRING_ADDR, address) == 1


def test_unshared_guest_memory_is_explained(peer):
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 128)) == 0
    assert peer.acknowledged(m.SET_VRING_ADDR, VringAddr(0, 0, USER, USER, USER)) == 1
    assert "the front end shared no guest memory" in peer.log[-1]
    assert "share=on" in peer.log[-1]


def test_the_same_trouble_is_told_once_until_the_next_driver_starts(peer):
    for boots in (1, 2):
        assert peer.acknowledged(m.SET_FEATURES, PLAIN) == 0
        for index in range(3):
            assert peer.acknowledged(m.SET_VRING_NUM, VringParam(index, 128)) == 0
            assert peer.acknowledged(m.SET_VRING_ADDR, VringAddr(index, 0, USER, USER, USER)) == 1
        assert len(peer.log) == boots


def test_a_queue_without_size_or_address_does_not_start(peer, fd):
    add_memory(peer, fd)
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 1
    assert "SET_VRING_NUM" in peer.log[-1]
    assert peer.acknowledged(m.SET_VRING_NUM, VringParam(0, 128)) == 0
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 1
    assert "SET_VRING_ADDR" in peer.log[-1]


def test_a_queue_without_a_kick_descriptor_is_refused_with_the_reason(peer, fd):
    add_memory(peer, fd)
    describe(peer)
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0, no_fd=True)) == 1
    assert "polled" in peer.log[-1]
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0)) == 1
    assert not starts(peer)


def test_split_sizes_are_checked_again_when_packed_rings_are_given_up(peer, fd):
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | m.VIRTIO_F_RING_PACKED) == 0
    add_memory(peer, fd)
    describe(peer, num=100)
    assert peer.acknowledged(m.SET_FEATURES, PLAIN) == 0
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 1


# --- memory ---


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


# --- the configuration space ---


def test_any_part_of_the_configuration_space_can_be_read(peer):
    for offset, size in ((0, 40), (36, 4), (39, 1), (0, 1)):
        config = peer.ask(m.GET_CONFIG, p.Config(offset, 0, bytes(size)))
        assert config == p.Config(offset, 0, CONFIG[offset : offset + size])


@pytest.mark.parametrize(("offset", "size"), [(40, 1), (0, 41), (39, 2), (0xFFFF_FFFF, 1), (0, 0)])
def test_what_is_not_in_the_configuration_space_is_answered_with_nothing(peer, offset, size):
    assert peer.ask(m.GET_CONFIG, p.Config(offset, 0, bytes(size))) is None


def test_the_configuration_space_is_read_only(peer):
    assert peer.acknowledged(m.SET_CONFIG, p.Config(0, 0, b"x")) == 1
    assert peer.acknowledged(m.SET_CONFIG, p.Config(0, 1, b"x")) == 1
    assert peer.acknowledged(m.SET_CONFIG, p.Config(0, 1, CONFIG)) == 0  # a migration that brings the same


# --- what only some devices offer ---


def test_a_back_end_channel_is_passed_on(peer, fd):
    channel = fd()
    assert peer.acknowledged(m.SET_BACKEND_REQ_FD, None, [fd()]) == 0
    assert peer.acknowledged(m.SET_BACKEND_REQ_FD, None, [channel]) == 0
    assert same_file(peer.device.channel, channel)


def test_the_log_of_a_migration_is_always_answered(peer, fd):
    assert peer.ask(m.SET_LOG_BASE, p.Log(4096, 0), [fd()]) == 0
    assert peer.ask(m.SET_LOG_BASE, p.Log(0, 0), [fd()]) != 0
    assert peer.ask(m.SET_LOG_BASE, p.Log(4096, 1 << 63), [fd()]) != 0
    assert peer.acknowledged(m.SET_LOG_FD, None, [fd()]) == 0
    assert peer.device.calls == [("set_log", p.Log(4096, 0)), ("set_log_eventfd",)]


def test_an_in_flight_buffer_is_made_and_taken_back(peer, fd):
    answer = peer.send(m.GET_INFLIGHT_FD, p.Inflight(0, 0, 2, 128), flags=m.VERSION)
    assert answer is not None
    inflight, fds = answer
    assert inflight == p.Inflight(4096, 0, 2, 128)
    assert peer.acknowledged(m.SET_INFLIGHT_FD, inflight, fds) == 0
    for made in fds:
        os.close(made)
    assert peer.ask(m.GET_INFLIGHT_FD, p.Inflight(0, 0, 4, 128)) == p.Inflight(0, 0, 0, 0)
    assert peer.acknowledged(m.SET_INFLIGHT_FD, p.Inflight(0, 0, 2, 128), [fd()]) == 1


def test_the_state_of_the_device_moves_while_queues_stand(peer, fd):
    answer = peer.send(m.SET_DEVICE_STATE_FD, p.DeviceState(p.STATE_SAVE, 0), [fd()], m.VERSION)
    assert answer is not None
    assert answer[0] == 0  # use the descriptor that comes with it
    assert len(answer[1]) == 1
    os.close(answer[1][0])
    assert peer.ask(m.SET_DEVICE_STATE_FD, p.DeviceState(p.STATE_LOAD, 0), [fd()]) == 0x100
    assert peer.ask(m.CHECK_DEVICE_STATE) == 0
    peer.device.failing.add("check_state")
    assert peer.ask(m.CHECK_DEVICE_STATE) == 1
    assert peer.ask(m.SET_DEVICE_STATE_FD, p.DeviceState(p.STATE_LOAD, 1), [fd()]) & 0xFF != 0
    add_memory(peer, fd)
    start(peer, fd)
    assert peer.ask(m.SET_DEVICE_STATE_FD, p.DeviceState(p.STATE_LOAD, 0), [fd()]) & 0xFF != 0


def test_shared_memory_sizes_are_told(peer):
    assert peer.ask(m.GET_SHMEM_CONFIG) == (1 << 26, 0, 4096)


@pytest.mark.parametrize(
    ("request_number", "value", "count"),
    [
        (m.SET_LOG_BASE, p.Log(4096, 0), 1),
        (m.GET_INFLIGHT_FD, p.Inflight(0, 0, 1, 128), 0),
        (m.SET_INFLIGHT_FD, p.Inflight(4096, 0, 1, 128), 1),
        (m.SET_DEVICE_STATE_FD, p.DeviceState(0, 0), 1),
        (m.CHECK_DEVICE_STATE, None, 0),
        (m.GET_SHMEM_CONFIG, None, 0),
        (m.SET_BACKEND_REQ_FD, None, 1),
        (m.POSTCOPY_ADVISE, None, 0),
        (m.VRING_KICK, VringParam(0, 0), 0),
        (m.IOTLB_MSG, p.Iotlb(0, 0, 0, 1, 1), 0),
        (77, b"from the future", 2),
    ],
)
def test_what_was_not_offered_is_like_a_request_nobody_knows(fd, request_number, value, count):
    peer = Direct(RecordingDevice(protocol_features=BASE_PROTOCOL_FEATURES))
    peer.negotiate()
    fds = [fd() for _ in range(count)]
    before = open_fds()
    assert peer.send(request_number, value, fds, m.VERSION) is None
    answer = peer.send(request_number, value, fds)
    assert answer is not None
    assert answer[0] == 1 if isinstance(answer[0], int) else answer[0]
    assert len(peer.log) == 1
    assert peer.device.calls == []
    assert open_fds() == before
    assert peer.ask(m.GET_FEATURES)  # the connection goes on


def test_a_device_without_the_optional_parts_refuses_them():
    class Minimal(RecordingDevice):
        def set_logging(self, enabled: bool) -> None:
            super(RecordingDevice, self).set_logging(enabled)

    peer = Direct(Minimal())
    peer.negotiate()
    assert peer.acknowledged(m.SET_FEATURES, PLAIN | m.VHOST_F_LOG_ALL) == 1
    assert peer.backend.features == PLAIN


# --- failure ---


@pytest.mark.parametrize(
    ("request_number", "value", "count"),
    [
        (m.GET_FEATURES, None, 1),
        (m.GET_VRING_BASE, VringParam(3, 0), 0),
        (m.GET_QUEUE_NUM, None, 2),
    ],
)
def test_a_question_that_cannot_be_answered_ends_the_connection(peer, fd, request_number, value, count):
    before = open_fds()
    with pytest.raises(ProtocolError, match=m.name(request_number)):
        peer.send(request_number, value, [fd() for _ in range(count)])
    assert len(open_fds()) == len(before) + count


def test_a_reply_on_the_main_socket_ends_the_connection(peer):
    with pytest.raises(ProtocolError):
        peer.backend.handle(m.Header(m.GET_FEATURES, m.REPLY_FLAGS, 8), bytes(8), [])


def test_malformed_payloads_are_refused_and_the_connection_goes_on(peer, fd):
    header = m.Header(m.SET_VRING_NUM, m.VERSION | m.NEED_REPLY, 3)
    assert peer.send_raw(header, b"abc", [fd()]) == (1, [])
    header = m.Header(m.GET_CONFIG, m.VERSION, 3)
    assert peer.send_raw(header, b"abc") == (None, [])
    assert peer.ask(m.GET_QUEUE_NUM) == 3


@pytest.mark.parametrize(
    ("method", "request_number"), [("add_memory", m.ADD_MEM_REG), ("map_memory", m.SET_MEM_TABLE)]
)
def test_memory_the_device_cannot_map_is_refused(peer, fd, method, request_number):
    peer.device.failing.add(method)
    value = LOW if request_number == m.ADD_MEM_REG else (LOW,)
    assert peer.acknowledged(request_number, value, [fd()]) == 1
    assert len(peer.backend.regions) == 0
    peer.device.failing.clear()
    assert peer.acknowledged(request_number, value, [fd()]) == 0


def test_a_queue_the_device_cannot_start_is_refused_and_can_be_tried_again(peer, fd):
    add_memory(peer, fd)
    describe(peer)
    peer.device.failing.add("start_queue")
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 1
    assert "start_queue failed" in peer.log[-1]
    peer.device.failing.clear()
    assert peer.acknowledged(m.SET_VRING_KICK, VringFd(0), [fd()]) == 0
    assert list(peer.device.running) == [0]


def test_a_queue_that_fails_to_stop_does_not_keep_others_running(peer, fd):
    add_memory(peer, fd)
    start(peer, fd, 0)
    start(peer, fd, 1)
    peer.device.failing.add("stop_queue")
    assert peer.acknowledged(m.RESET_DEVICE) == 0
    assert not peer.device.running
    assert len(peer.log) == 2


def test_closing_stops_the_queues_and_closes_every_descriptor(fd):
    before = open_fds()
    peer = Direct(RecordingDevice())
    peer.negotiate()
    add_memory(peer, fd)
    for index in range(2):
        peer.send(m.SET_VRING_CALL, VringFd(index), [fd()])
        peer.send(m.SET_VRING_ERR, VringFd(index), [fd()])
        start(peer, fd, index)
    peer.backend.close()
    peer.backend.close()
    assert peer.device.names()[-3:] == ["stop_queue", "stop_queue", "disconnected"]
    assert len(open_fds()) == len(before) + len(fd.made)
    with pytest.raises(ProtocolError):
        peer.send(m.ADD_MEM_REG, LOW, [fd.made[0]])
    assert len(open_fds()) == len(before) + len(fd.made)


# --- the price ---


def test_importing_the_back_end_loads_nothing_heavy():
    """A daemon is to be ready in 100 ms; typing, enum, socket and their like cost 5 to 15 ms each."""
    listing = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "import sys, os; before = set(sys.modules); import virtiofs.vhostuser.backend; "
            "print('\\n'.join(set(sys.modules) - before))",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name for name in listing.stdout.split() if name.partition(".")[0] != "virtiofs"}
    assert loaded <= {"__future__", "struct", "_struct"}


def test_features_are_offered_as_the_device_says():
    peer = Direct(RecordingDevice())
    assert peer.ask(m.GET_FEATURES) == FEATURES | m.VHOST_USER_F_PROTOCOL_FEATURES
