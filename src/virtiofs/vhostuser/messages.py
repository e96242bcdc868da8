# SPDX-License-Identifier: Apache-2.0
"""Every message of vhost-user: bytes in, values out, no I/O.

Sources: QEMU documentation 11.1, "Vhost-user Protocol"; <linux/virtio_config.h>.

A message is a header of 12 bytes (request, flags, payload size), a payload, and descriptors beside its first
byte.  All numbers are in host byte order.  `FRONT_END` and `BACK_END` are tables with one row per request:
its payload (`payloads.py`), how many descriptors it carries, and what answers it.

The oracle of every function here that takes a peer's bytes: it accepts them, or raises `ProtocolError`.
"""

from __future__ import annotations

import struct

from virtiofs.vhostuser.payloads import (
    CONFIG,
    CONFIG_REPLY,
    DEVICE_STATE,
    EMPTY,
    INFLIGHT,
    IOTLB,
    LOG,
    MAX_TABLE_REGIONS,
    MEMORY_REGION,
    MEMORY_TABLE,
    OPAQUE,
    SHMEM_CONFIG,
    SHMEM_MAP,
    U64,
    UUID,
    VRING_ADDR,
    VRING_AREA,
    VRING_FD,
    VRING_PARAM,
    Codec,
    Value,
)
from virtiofs.vhostuser.payloads import MemoryRegion as MemoryRegion
from virtiofs.vhostuser.payloads import ProtocolError as ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# --- the header ---

HEADER_SIZE = 12
_HEADER = struct.Struct("=III")
MAX_PAYLOAD = 0x1000  # twice the largest legal payload (2056 bytes, GET_SHMEM_CONFIG)

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8
REPLY_FLAGS = VERSION | REPLY  # exactly this: QEMU drops the connection over a reply with any other flag

MAX_VRING_SIZE = 32768  # virtio 1.3, section 2.7

# --- feature bits, as masks ---

VIRTIO_FS_F_NOTIFICATION = 1 << 0
VHOST_F_LOG_ALL = 1 << 26
VIRTIO_RING_F_INDIRECT_DESC = 1 << 28
VIRTIO_RING_F_EVENT_IDX = 1 << 29
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
VIRTIO_F_VERSION_1 = 1 << 32
VIRTIO_F_IOMMU_PLATFORM = 1 << 33
VIRTIO_F_RING_PACKED = 1 << 34
VIRTIO_F_IN_ORDER = 1 << 35
VIRTIO_F_RING_RESET = 1 << 40

PROTOCOL_F_MQ = 1 << 0
PROTOCOL_F_LOG_SHMFD = 1 << 1
PROTOCOL_F_RARP = 1 << 2
PROTOCOL_F_REPLY_ACK = 1 << 3
PROTOCOL_F_NET_MTU = 1 << 4
PROTOCOL_F_BACKEND_REQ = 1 << 5
PROTOCOL_F_CROSS_ENDIAN = 1 << 6
PROTOCOL_F_CRYPTO_SESSION = 1 << 7
PROTOCOL_F_PAGEFAULT = 1 << 8
PROTOCOL_F_CONFIG = 1 << 9
PROTOCOL_F_BACKEND_SEND_FD = 1 << 10
PROTOCOL_F_HOST_NOTIFIER = 1 << 11
PROTOCOL_F_INFLIGHT_SHMFD = 1 << 12
PROTOCOL_F_RESET_DEVICE = 1 << 13
PROTOCOL_F_INBAND_NOTIFICATIONS = 1 << 14
PROTOCOL_F_CONFIGURE_MEM_SLOTS = 1 << 15
PROTOCOL_F_STATUS = 1 << 16
PROTOCOL_F_XEN_MMAP = 1 << 17
PROTOCOL_F_SHARED_OBJECT = 1 << 18
PROTOCOL_F_DEVICE_STATE = 1 << 19
PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 1 << 20
PROTOCOL_F_GPA_ADDRESSES = 1 << 21
PROTOCOL_F_SHMEM_MAP = 1 << 22

# --- requests of the front end ---

GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
RESET_OWNER = 4
SET_MEM_TABLE = 5
SET_LOG_BASE = 6
SET_LOG_FD = 7
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
SET_VRING_ERR = 14
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
SEND_RARP = 19
NET_SET_MTU = 20
SET_BACKEND_REQ_FD = 21
IOTLB_MSG = 22
SET_VRING_ENDIAN = 23
GET_CONFIG = 24
SET_CONFIG = 25
CREATE_CRYPTO_SESSION = 26
CLOSE_CRYPTO_SESSION = 27
POSTCOPY_ADVISE = 28
POSTCOPY_LISTEN = 29
POSTCOPY_END = 30
GET_INFLIGHT_FD = 31
SET_INFLIGHT_FD = 32
GPU_SET_SOCKET = 33
RESET_DEVICE = 34
VRING_KICK = 35
GET_MAX_MEM_SLOTS = 36
ADD_MEM_REG = 37
REM_MEM_REG = 38
SET_STATUS = 39
GET_STATUS = 40
GET_SHARED_OBJECT = 41
SET_DEVICE_STATE_FD = 42
CHECK_DEVICE_STATE = 43
GET_SHMEM_CONFIG = 44

# --- requests of the back end, on the socket SET_BACKEND_REQ_FD brought ---

BACKEND_IOTLB_MSG = 1
BACKEND_CONFIG_CHANGE_MSG = 2
BACKEND_VRING_HOST_NOTIFIER_MSG = 3
BACKEND_VRING_CALL = 4
BACKEND_VRING_ERR = 5
BACKEND_SHARED_OBJECT_ADD = 6
BACKEND_SHARED_OBJECT_REMOVE = 7
BACKEND_SHARED_OBJECT_LOOKUP = 8
BACKEND_SHMEM_MAP = 9
BACKEND_SHMEM_UNMAP = 10


class Header(Value):
    """The 12 bytes before every payload; `size` counts the payload alone."""

    __slots__ = ("flags", "request", "size")

    def __init__(self, request: int, flags: int, size: int) -> None:
        self.request = request
        self.flags = flags
        self.size = size

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & REPLY)

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & NEED_REPLY)


# --- the tables ---


class Message:
    """One request: what it carries and what answers it.

    `payload`    its codec
    `fds`        the least and the most descriptors that come with it
    `reply`      the codec of its reply, which always comes; None: a u64 (0 = success) that comes only if
                 REPLY_ACK was negotiated and the request has the flag NEED_REPLY
    `reply_fds`  the least and the most descriptors of the reply
    `needs`      the protocol feature without which there is no such request, or 0
    """

    __slots__ = ("fds", "name", "needs", "payload", "reply", "reply_fds", "request")

    def __init__(
        self,
        request: int,
        name: str,
        payload: Codec = EMPTY,
        fds: tuple[int, int] = (0, 0),
        reply: Codec | None = None,
        reply_fds: tuple[int, int] = (0, 0),
        needs: int = 0,
    ) -> None:
        self.request = request
        self.name = name
        self.payload = payload
        self.fds = fds
        self.reply = reply
        self.reply_fds = reply_fds
        self.needs = needs

    @property
    def always_answered(self) -> bool:
        return self.reply is not None


ONE, MAYBE = (1, 1), (0, 1)  # descriptors: exactly one, at most one

FRONT_END: dict[int, Message] = {
    message.request: message
    for message in (
        Message(GET_FEATURES, "GET_FEATURES", reply=U64),
        Message(SET_FEATURES, "SET_FEATURES", U64),
        Message(SET_OWNER, "SET_OWNER"),
        Message(RESET_OWNER, "RESET_OWNER"),
        Message(SET_MEM_TABLE, "SET_MEM_TABLE", MEMORY_TABLE, (0, MAX_TABLE_REGIONS)),
        Message(SET_LOG_BASE, "SET_LOG_BASE", LOG, ONE, reply=U64, needs=PROTOCOL_F_LOG_SHMFD),
        Message(SET_LOG_FD, "SET_LOG_FD", EMPTY, ONE, needs=PROTOCOL_F_LOG_SHMFD),
        Message(SET_VRING_NUM, "SET_VRING_NUM", VRING_PARAM),
        Message(SET_VRING_ADDR, "SET_VRING_ADDR", VRING_ADDR),
        Message(SET_VRING_BASE, "SET_VRING_BASE", VRING_PARAM),
        Message(GET_VRING_BASE, "GET_VRING_BASE", VRING_PARAM, reply=VRING_PARAM),
        Message(SET_VRING_KICK, "SET_VRING_KICK", VRING_FD, MAYBE),
        Message(SET_VRING_CALL, "SET_VRING_CALL", VRING_FD, MAYBE),
        Message(SET_VRING_ERR, "SET_VRING_ERR", VRING_FD, MAYBE),
        Message(GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", reply=U64),
        Message(SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", U64),
        Message(GET_QUEUE_NUM, "GET_QUEUE_NUM", reply=U64, needs=PROTOCOL_F_MQ),
        Message(SET_VRING_ENABLE, "SET_VRING_ENABLE", VRING_PARAM),
        Message(SEND_RARP, "SEND_RARP", U64, needs=PROTOCOL_F_RARP),
        Message(NET_SET_MTU, "NET_SET_MTU", U64, needs=PROTOCOL_F_NET_MTU),
        Message(SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", EMPTY, ONE, needs=PROTOCOL_F_BACKEND_REQ),
        Message(IOTLB_MSG, "IOTLB_MSG", IOTLB, reply=U64),
        Message(SET_VRING_ENDIAN, "SET_VRING_ENDIAN", VRING_PARAM, needs=PROTOCOL_F_CROSS_ENDIAN),
        Message(GET_CONFIG, "GET_CONFIG", CONFIG, reply=CONFIG_REPLY, needs=PROTOCOL_F_CONFIG),
        Message(SET_CONFIG, "SET_CONFIG", CONFIG, needs=PROTOCOL_F_CONFIG),
        Message(
            CREATE_CRYPTO_SESSION,
            "CREATE_CRYPTO_SESSION",
            OPAQUE,
            reply=OPAQUE,
            needs=PROTOCOL_F_CRYPTO_SESSION,
        ),
        Message(CLOSE_CRYPTO_SESSION, "CLOSE_CRYPTO_SESSION", U64, needs=PROTOCOL_F_CRYPTO_SESSION),
        Message(POSTCOPY_ADVISE, "POSTCOPY_ADVISE", reply=EMPTY, reply_fds=MAYBE, needs=PROTOCOL_F_PAGEFAULT),
        Message(POSTCOPY_LISTEN, "POSTCOPY_LISTEN", needs=PROTOCOL_F_PAGEFAULT),
        Message(POSTCOPY_END, "POSTCOPY_END", reply=U64, needs=PROTOCOL_F_PAGEFAULT),
        Message(
            GET_INFLIGHT_FD,
            "GET_INFLIGHT_FD",
            INFLIGHT,
            reply=INFLIGHT,
            reply_fds=MAYBE,
            needs=PROTOCOL_F_INFLIGHT_SHMFD,
        ),
        Message(SET_INFLIGHT_FD, "SET_INFLIGHT_FD", INFLIGHT, ONE, needs=PROTOCOL_F_INFLIGHT_SHMFD),
        Message(GPU_SET_SOCKET, "GPU_SET_SOCKET", EMPTY, ONE),
        Message(RESET_DEVICE, "RESET_DEVICE", needs=PROTOCOL_F_RESET_DEVICE),
        Message(VRING_KICK, "VRING_KICK", VRING_PARAM, needs=PROTOCOL_F_INBAND_NOTIFICATIONS),
        Message(GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", reply=U64, needs=PROTOCOL_F_CONFIGURE_MEM_SLOTS),
        Message(ADD_MEM_REG, "ADD_MEM_REG", MEMORY_REGION, ONE, needs=PROTOCOL_F_CONFIGURE_MEM_SLOTS),
        Message(REM_MEM_REG, "REM_MEM_REG", MEMORY_REGION, MAYBE, needs=PROTOCOL_F_CONFIGURE_MEM_SLOTS),
        Message(SET_STATUS, "SET_STATUS", U64, needs=PROTOCOL_F_STATUS),
        Message(GET_STATUS, "GET_STATUS", reply=U64, needs=PROTOCOL_F_STATUS),
        Message(
            GET_SHARED_OBJECT,
            "GET_SHARED_OBJECT",
            UUID,
            reply=OPAQUE,
            reply_fds=MAYBE,
            needs=PROTOCOL_F_SHARED_OBJECT,
        ),
        Message(
            SET_DEVICE_STATE_FD,
            "SET_DEVICE_STATE_FD",
            DEVICE_STATE,
            ONE,
            reply=U64,
            reply_fds=MAYBE,
            needs=PROTOCOL_F_DEVICE_STATE,
        ),
        Message(CHECK_DEVICE_STATE, "CHECK_DEVICE_STATE", reply=U64, needs=PROTOCOL_F_DEVICE_STATE),
        Message(GET_SHMEM_CONFIG, "GET_SHMEM_CONFIG", reply=SHMEM_CONFIG, needs=PROTOCOL_F_SHMEM_MAP),
    )
}

BACK_END: dict[int, Message] = {
    message.request: message
    for message in (
        Message(BACKEND_IOTLB_MSG, "BACKEND_IOTLB_MSG", IOTLB),
        Message(BACKEND_CONFIG_CHANGE_MSG, "BACKEND_CONFIG_CHANGE_MSG", needs=PROTOCOL_F_CONFIG),
        Message(
            BACKEND_VRING_HOST_NOTIFIER_MSG,
            "BACKEND_VRING_HOST_NOTIFIER_MSG",
            VRING_AREA,
            MAYBE,
            needs=PROTOCOL_F_HOST_NOTIFIER,
        ),
        Message(BACKEND_VRING_CALL, "BACKEND_VRING_CALL", VRING_PARAM, needs=PROTOCOL_F_INBAND_NOTIFICATIONS),
        Message(BACKEND_VRING_ERR, "BACKEND_VRING_ERR", VRING_PARAM, needs=PROTOCOL_F_INBAND_NOTIFICATIONS),
        Message(BACKEND_SHARED_OBJECT_ADD, "BACKEND_SHARED_OBJECT_ADD", UUID, needs=PROTOCOL_F_SHARED_OBJECT),
        Message(
            BACKEND_SHARED_OBJECT_REMOVE, "BACKEND_SHARED_OBJECT_REMOVE", UUID, needs=PROTOCOL_F_SHARED_OBJECT
        ),
        Message(
            BACKEND_SHARED_OBJECT_LOOKUP,
            "BACKEND_SHARED_OBJECT_LOOKUP",
            UUID,
            reply_fds=MAYBE,
            needs=PROTOCOL_F_SHARED_OBJECT,
        ),
        Message(BACKEND_SHMEM_MAP, "BACKEND_SHMEM_MAP", SHMEM_MAP, ONE, needs=PROTOCOL_F_SHMEM_MAP),
        Message(BACKEND_SHMEM_UNMAP, "BACKEND_SHMEM_UNMAP", SHMEM_MAP, needs=PROTOCOL_F_SHMEM_MAP),
    )
}


# --- the functions ---


def message(request: int, from_front_end: bool = True) -> Message | None:
    """The row of `request`, or None for a number this version of the protocol does not know."""
    return (FRONT_END if from_front_end else BACK_END).get(request)


def name(request: int, from_front_end: bool = True) -> str:
    """The name of `request`, for people."""
    known = message(request, from_front_end)
    return known.name if known is not None else f"unknown request {request}"


def _codec(request: int, reply: bool, from_front_end: bool) -> Codec:
    known = message(request, from_front_end)
    if reply:
        return known.reply if known is not None and known.reply is not None else U64
    return known.payload if known is not None else OPAQUE


def decode_header(data: bytes) -> Header:
    """The header in `data`, 12 bytes.

    Raises `ProtocolError` for another length, a version other than 1, or a payload above `MAX_PAYLOAD` bytes.
    After that error the stream has no known message boundary any more: close the connection.
    """
    if len(data) != HEADER_SIZE:
        raise ProtocolError(f"a header of {len(data)} bytes instead of {HEADER_SIZE}")
    request, flags, size = _HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION:
        raise ProtocolError(f"version {flags & VERSION_MASK} of vhost-user, only {VERSION} is known")
    if size > MAX_PAYLOAD:
        raise ProtocolError(f"request {request}: {size} bytes of payload, at most {MAX_PAYLOAD} are allowed")
    return Header(request, flags, size)


def decode_payload(request: int, data: bytes, from_front_end: bool = True, reply: bool = False) -> Any:
    """The value in `data`, the payload of `request`, or with `reply` of the answer to it.

    `from_front_end` says who sent the *request* (the two ends number theirs separately).  What type the value
    has stands in the request's row of the table; a number without a row gives the bytes as they are.
    Raises `ProtocolError`, beginning with the request's name.
    """
    try:
        return _codec(request, reply, from_front_end).decode(data)
    except ProtocolError as error:
        raise ProtocolError(f"{name(request, from_front_end)}: {error}") from None


def encode(request: int, value: Any = None, flags: int = VERSION, from_front_end: bool = True) -> bytes:
    """The bytes of a whole message: header and payload.

    With the flag `REPLY` this is the answer to `request`, otherwise the request itself.
    Raises `ProtocolError` for a value that does not fit the message.
    """
    try:
        payload = _codec(request, bool(flags & REPLY), from_front_end).encode(value)
        if len(payload) > MAX_PAYLOAD:
            raise ProtocolError(f"{len(payload)} bytes of payload, at most {MAX_PAYLOAD} are allowed")
        return _HEADER.pack(request, flags, len(payload)) + payload
    except (ProtocolError, struct.error) as error:
        raise ProtocolError(f"{name(request, from_front_end)}: {error}") from None


def encode_acknowledgement(request: int, result: int) -> bytes:
    """The answer to a request that had the flag NEED_REPLY and has no reply of its own; 0 is success."""
    return _HEADER.pack(request, REPLY_FLAGS, 8) + U64.encode(result)
