# SPDX-License-Identifier: Apache-2.0
"""The codec: what it writes is what C programs write, and whatever it reads it accepts or refuses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser import payloads as p
from virtiofs.vhostuser.payloads import ProtocolError

FUZZ = settings(deadline=None, derandomize=True)

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
regions = st.builds(p.MemoryRegion, u64, u64, u64, u64)
configs = st.builds(p.Config, u32, u32, st.binary(max_size=256))
sizes = st.lists(u64, max_size=256).map(
    lambda found: tuple(found[: 1 + max((i for i, size in enumerate(found) if size), default=-1)])
)

VALUES: dict[p.Codec, st.SearchStrategy] = {
    p.EMPTY: st.none(),
    p.OPAQUE: st.binary(max_size=m.MAX_PAYLOAD),
    p.UUID: st.binary(min_size=16, max_size=16),
    p.U64: u64,
    p.VRING_PARAM: st.builds(p.VringParam, u32, u32),
    p.VRING_ADDR: st.builds(p.VringAddr, u32, st.integers(0, 1), u64, u64, u64, u64),
    p.VRING_FD: st.builds(p.VringFd, u8, st.booleans()),
    p.MEMORY_TABLE: st.lists(regions, max_size=8).map(tuple),
    p.MEMORY_REGION: regions,
    p.LOG: st.builds(p.Log, u64, u64),
    p.CONFIG: configs,
    p.CONFIG_REPLY: st.none() | configs,
    p.VRING_AREA: st.builds(p.VringArea, u64, u64, u64),
    p.INFLIGHT: st.builds(p.Inflight, u64, u64, u16, u16),
    p.DEVICE_STATE: st.builds(p.DeviceState, st.integers(0, 1), u32),
    p.IOTLB: st.builds(p.Iotlb, u64, u64, u64, u8, u8),
    p.SHMEM_MAP: st.builds(p.ShmemMap, u8, u64, u64, u64, u64),
    p.SHMEM_CONFIG: sizes,
}

# Every payload that can be on the wire: who asks, the request, and whether it is the answer.
PAYLOADS = [
    (from_front_end, message, reply)
    for from_front_end, table in ((True, m.FRONT_END), (False, m.BACK_END))
    for message in table.values()
    for reply in (False, True)
]


def codec_of(message: m.Message, reply: bool) -> p.Codec:
    return (message.reply or p.U64) if reply else message.payload


@FUZZ
@given(st.data())
def test_every_value_of_every_message_comes_back_from_its_bytes(data):
    from_front_end, message, reply = data.draw(st.sampled_from(PAYLOADS))
    value = data.draw(VALUES[codec_of(message, reply)])
    flags = m.REPLY_FLAGS if reply else m.VERSION | data.draw(st.sampled_from([0, m.NEED_REPLY]))

    encoded = m.encode(message.request, value, flags, from_front_end)

    header = m.decode_header(encoded[: m.HEADER_SIZE])
    assert header == m.Header(message.request, flags, len(encoded) - m.HEADER_SIZE)
    assert m.decode_payload(message.request, encoded[m.HEADER_SIZE :], from_front_end, reply) == value


@FUZZ
@given(st.data())
def test_any_payload_is_accepted_or_refused_and_what_is_accepted_is_stable(data):
    from_front_end, message, reply = data.draw(st.sampled_from(PAYLOADS))
    size = data.draw(
        st.sampled_from([0, 8, 12, 16, 20, 24, 32, 40, 72, 264, 2056]) | st.integers(0, m.MAX_PAYLOAD)
    )
    payload = data.draw(st.binary(min_size=size, max_size=size) | st.just(bytes(size)))
    try:
        value = m.decode_payload(message.request, payload, from_front_end, reply)
    except ProtocolError as error:
        assert str(error).startswith(message.name)  # noqa: PT017
        return
    flags = m.REPLY_FLAGS if reply else m.VERSION
    again = m.encode(message.request, value, flags, from_front_end)[m.HEADER_SIZE :]
    assert m.decode_payload(message.request, again, from_front_end, reply) == value


@FUZZ
@given(
    st.binary(max_size=16)
    | st.tuples(u32, st.integers(0, 15), st.integers(0, 5000)).map(lambda f: struct.pack("=III", *f))
)
def test_any_header_is_accepted_or_refused(data):
    try:
        header = m.decode_header(data)
    except ProtocolError:
        return
    assert data == struct.pack("=III", header.request, header.flags, header.size)
    assert header.flags & 3 == 1
    assert header.size <= 0x1000


@pytest.mark.parametrize(
    ("request_number", "value", "layout", "fields"),
    [
        (m.SET_VRING_NUM, p.VringParam(1, 128), "=II", (1, 128)),
        # used stands before avail
        (m.SET_VRING_ADDR, p.VringAddr(1, 1, desc=2, used=3, avail=4, log=5), "=IIQQQQ", (1, 1, 2, 3, 4, 5)),
        (m.SET_VRING_KICK, p.VringFd(3), "=Q", (3,)),
        (m.SET_VRING_CALL, p.VringFd(3, True), "=Q", (0x103,)),
        (m.SET_MEM_TABLE, (p.MemoryRegion(1, 2, 3, 4),), "=IIQQQQ", (1, 0, 1, 2, 3, 4)),
        (m.ADD_MEM_REG, p.MemoryRegion(1, 2, 3, 4), "=QQQQQ", (0, 1, 2, 3, 4)),
        (m.SET_LOG_BASE, p.Log(1, 2), "=QQ", (1, 2)),
        (m.GET_CONFIG, p.Config(8, 0, b"abcd"), "=III4s", (8, 4, 0, b"abcd")),
        (m.GET_INFLIGHT_FD, p.Inflight(1, 2, 3, 4), "=QQHHI", (1, 2, 3, 4, 0)),
        (m.SET_DEVICE_STATE_FD, p.DeviceState(1, 0), "=II", (1, 0)),
        (m.IOTLB_MSG, p.Iotlb(1, 2, 3, 1, 2), "=QQQBB6s", (1, 2, 3, 1, 2, bytes(6))),
    ],
)
def test_payloads_have_the_layout_of_the_c_structures(request_number, value, layout, fields):
    assert m.encode(request_number, value)[m.HEADER_SIZE :] == struct.pack(layout, *fields)


def test_back_end_requests_have_their_own_numbers_and_layouts():
    encoded = m.encode(
        m.BACKEND_SHMEM_MAP, p.ShmemMap(1, 2, 3, 4, 1), m.VERSION | m.NEED_REPLY, from_front_end=False
    )
    assert encoded == struct.pack("=III", 9, 0x9, 40) + struct.pack("=B7xQQQQ", 1, 2, 3, 4, 1)
    area = m.encode(m.BACKEND_VRING_HOST_NOTIFIER_MSG, p.VringArea(1, 2, 3), from_front_end=False)
    assert area[m.HEADER_SIZE :] == struct.pack("=QQQ", 1, 2, 3)


def test_shared_memory_sizes_are_counted_and_indexed_by_region_id():
    encoded = m.encode(m.GET_SHMEM_CONFIG, (1 << 26, 0, 4096), m.REPLY_FLAGS)[m.HEADER_SIZE :]
    assert len(encoded) == 2056
    assert struct.unpack_from("=II4Q", encoded) == (2, 0, 1 << 26, 0, 4096, 0)


def test_the_in_flight_description_is_read_with_and_without_its_padding():
    fields = struct.pack("=QQHH", 4096, 0, 2, 128)
    for data in (fields, fields + bytes(4)):
        assert m.decode_payload(m.SET_INFLIGHT_FD, data) == p.Inflight(4096, 0, 2, 128)
    with pytest.raises(ProtocolError):
        m.decode_payload(m.SET_INFLIGHT_FD, fields + bytes(3))


def test_requests_nobody_knows_are_decoded_as_their_bytes():
    assert m.message(200) is None
    assert m.decode_payload(200, b"anything") == b"anything"
    assert m.encode(200, b"anything") == struct.pack("=III", 200, 1, 8) + b"anything"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (struct.pack("=III", 1, 0, 0), "version 0"),
        (struct.pack("=III", 1, 2, 0), "version 2"),
        (struct.pack("=III", 1, 1, 0x1001), "4097 bytes"),
        (b"\1" * 11, "11 bytes"),
    ],
)
def test_bad_headers_are_named(data, text):
    with pytest.raises(ProtocolError, match=text):
        m.decode_header(data)


@pytest.mark.parametrize(
    ("request_number", "payload"),
    [
        (m.GET_FEATURES, bytes(8)),
        (m.SET_FEATURES, bytes(7)),
        (m.SET_MEM_TABLE, struct.pack("=II", 9, 0) + bytes(9 * 32)),
        (m.SET_MEM_TABLE, struct.pack("=II", 2, 0) + bytes(32)),
        (m.SET_MEM_TABLE, bytes(4)),
        (m.SET_VRING_ADDR, struct.pack("=II4Q", 0, 2, 0, 0, 0, 0)),
        (m.SET_VRING_KICK, struct.pack("=Q", 0x200)),
        (m.GET_CONFIG, struct.pack("=III", 0, 257, 0) + bytes(257)),
        (m.GET_CONFIG, struct.pack("=III", 0, 4, 0) + bytes(3)),
        (m.GET_CONFIG, b""),
        (m.SET_DEVICE_STATE_FD, struct.pack("=II", 2, 0)),
        (m.GET_SHARED_OBJECT, bytes(15)),
    ],
)
def test_payloads_that_break_a_rule_are_refused(request_number, payload):
    with pytest.raises(ProtocolError, match=m.name(request_number)):
        m.decode_payload(request_number, payload)


def test_a_shared_memory_reply_must_count_its_regions_right():
    with pytest.raises(ProtocolError):
        m.decode_payload(m.GET_SHMEM_CONFIG, struct.pack("=II256Q", 2, 0, 4096, *[0] * 255), reply=True)


@pytest.mark.parametrize(
    ("request_number", "value"),
    [
        (m.SET_FEATURES, 1 << 64),
        (m.SET_VRING_NUM, p.VringParam(-1, 0)),
        (m.SET_VRING_KICK, p.VringFd(256)),
        (m.SET_MEM_TABLE, (p.MemoryRegion(0, 1, 0, 0),) * 9),
        (m.GET_CONFIG, p.Config(0, 0, bytes(257))),
        (m.GET_FEATURES, 1),
        (200, bytes(0x1001)),
    ],
)
def test_values_that_do_not_fit_their_message_are_not_sent(request_number, value):
    with pytest.raises(ProtocolError):
        m.encode(request_number, value)


def test_every_request_number_of_the_protocol_has_a_row():
    assert sorted(m.FRONT_END) == list(range(1, 45))
    assert sorted(m.BACK_END) == list(range(1, 11))
    for from_front_end, message, _ in PAYLOADS:
        prefix = "" if from_front_end else "BACKEND_"
        assert message.name.startswith(prefix)
        assert getattr(m, message.name) == message.request
