# SPDX-License-Identifier: Apache-2.0
"""The device's end: negotiation, the configuration space, what only some devices offer, and failure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from recording_device import (
    CONFIG,
    FEATURES,
    LOW,
    PLAIN,
    Direct,
    RecordingDevice,
    add_memory,
    describe,
    open_fds,
    same_file,
    start,
)

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser import payloads as p
from virtiofs.vhostuser.backend import BASE_PROTOCOL_FEATURES, BackEnd
from virtiofs.vhostuser.payloads import ProtocolError, VringFd, VringParam

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
