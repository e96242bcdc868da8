# SPDX-License-Identifier: Apache-2.0
"""The device's end: when queues start, stop and move, and what a ring may not be."""

from __future__ import annotations

import pytest
from recording_device import (
    HIGH,
    LOW,
    PLAIN,
    USER,
    Direct,
    RecordingDevice,
    add_memory,
    describe,
    same_file,
    start,
    starts,
)

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import MemoryRegion, VringAddr, VringFd, VringParam


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
