# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF023  (the slots of a payload stand in wire order)
"""What a vhost-user message can carry: one value class and one codec per payload.

Sources: QEMU documentation 11.1, "Vhost-user Protocol", message types; <linux/vhost_types.h>.
All numbers are in host byte order.  Padding is written as zeros and not looked at.

The oracle of every `decode`: it accepts the bytes, or raises `ProtocolError`.

The values are slots classes rather than `typing.NamedTuple`: importing `typing` costs a starting daemon more
than everything else in this room together.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_TABLE_REGIONS = 8  # VHOST_MEMORY_BASELINE_NREGIONS
MAX_CONFIG_SIZE = 256  # VHOST_USER_MAX_CONFIG_SIZE
MAX_SHMEM_REGIONS = 256  # the id of a shared memory region is one byte

VRING_F_LOG = 1 << 0  # SET_VRING_ADDR: log the writes to the used ring
NO_FD = 0x100  # SET_VRING_KICK, _CALL, _ERR: no descriptor comes with it, poll
CONFIG_F_WRITABLE, CONFIG_F_MIGRATION = 0, 1  # SET_CONFIG: by the driver, or by a migration
STATE_SAVE, STATE_LOAD = 0, 1  # SET_DEVICE_STATE_FD: direction
STATE_PHASE_STOPPED = 0  # SET_DEVICE_STATE_FD: phase
STATE_NO_FD = 0x100  # the reply to it: use the descriptor you gave
SHMEM_F_RW = 1 << 0  # SHMEM_MAP


class ProtocolError(ValueError):
    """A peer broke the rules of vhost-user; the text is one line that says which."""


# --- the values ---


class Value:
    """Base of the payload types: compared and shown by their fields, in wire order."""

    __slots__: tuple[str, ...] = ()

    def fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), self.fields()))

    def __repr__(self) -> str:
        shown = (
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}"
            for name, value in zip(self.__slots__, self.fields(), strict=True)
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class VringParam(Value):
    """A vring index and one number: a size, a base or a switch (the protocol calls this a vring state)."""

    __slots__ = ("index", "num")

    def __init__(self, index: int, num: int) -> None:
        self.index = index
        self.num = num


class VringAddr(Value):
    """Where a vring lies, in the front end's user addresses; `log` is a guest physical address.

    The fields stand in wire order, in which `used` comes before `avail`.
    """

    __slots__ = ("index", "flags", "desc", "used", "avail", "log")

    def __init__(self, index: int, flags: int, desc: int, used: int, avail: int, log: int = 0) -> None:
        self.index = index
        self.flags = flags
        self.desc = desc
        self.used = used
        self.avail = avail
        self.log = log


class VringFd(Value):
    """SET_VRING_KICK, _CALL and _ERR: whose descriptor this is, or that there is none (poll)."""

    __slots__ = ("index", "no_fd")

    def __init__(self, index: int, no_fd: bool = False) -> None:
        self.index = index
        self.no_fd = no_fd


class MemoryRegion(Value):
    """A piece of guest memory: `size` bytes at `mmap_offset` of a descriptor, under two addresses."""

    __slots__ = ("guest_phys", "size", "user_addr", "mmap_offset")

    def __init__(self, guest_phys: int, size: int, user_addr: int, mmap_offset: int) -> None:
        self.guest_phys = guest_phys
        self.size = size
        self.user_addr = user_addr
        self.mmap_offset = mmap_offset


class Log(Value):
    """The dirty page log of a migration: `mmap_size` bytes at `mmap_offset` of a descriptor."""

    __slots__ = ("mmap_size", "mmap_offset")

    def __init__(self, mmap_size: int, mmap_offset: int) -> None:
        self.mmap_size = mmap_size
        self.mmap_offset = mmap_offset


class Config(Value):
    """A piece of the device's configuration space; at most `MAX_CONFIG_SIZE` bytes."""

    __slots__ = ("offset", "flags", "data")

    def __init__(self, offset: int, flags: int, data: bytes) -> None:
        self.offset = offset
        self.flags = flags
        self.data = data


class VringArea(Value):
    """A host notifier: bits 0-7 of `index` are the vring, bit 8 says that there is no descriptor."""

    __slots__ = ("index", "size", "offset")

    def __init__(self, index: int, size: int, offset: int) -> None:
        self.index = index
        self.size = size
        self.offset = offset


class Inflight(Value):
    """The buffer that records requests in flight, for `num_queues` queues of `queue_size` entries."""

    __slots__ = ("mmap_size", "mmap_offset", "num_queues", "queue_size")

    def __init__(self, mmap_size: int, mmap_offset: int, num_queues: int, queue_size: int) -> None:
        self.mmap_size = mmap_size
        self.mmap_offset = mmap_offset
        self.num_queues = num_queues
        self.queue_size = queue_size


class DeviceState(Value):
    """Which way the device's state travels (`STATE_SAVE`, `STATE_LOAD`), and in which migration phase."""

    __slots__ = ("direction", "phase")

    def __init__(self, direction: int, phase: int) -> None:
        self.direction = direction
        self.phase = phase


class Iotlb(Value):
    """One entry of the front end's IOMMU.

    `perm`: 1 read, 2 write.  `kind`: 1 miss, 2 update, 3 invalidate, 4 access fails.
    """

    __slots__ = ("iova", "size", "user_addr", "perm", "kind")

    def __init__(self, iova: int, size: int, user_addr: int, perm: int, kind: int) -> None:
        self.iova = iova
        self.size = size
        self.user_addr = user_addr
        self.perm = perm
        self.kind = kind


class ShmemMap(Value):
    """`length` bytes at `fd_offset` of a descriptor, at `shm_offset` of shared memory region `shmid`."""

    __slots__ = ("shmid", "fd_offset", "shm_offset", "length", "flags")

    def __init__(self, shmid: int, fd_offset: int, shm_offset: int, length: int, flags: int) -> None:
        self.shmid = shmid
        self.fd_offset = fd_offset
        self.shm_offset = shm_offset
        self.length = length
        self.flags = flags


# --- the codecs ---


class Codec:
    """One kind of payload: `encode` makes bytes of a value, `decode` a value of bytes or `ProtocolError`."""

    def encode(self, value: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        raise NotImplementedError


def need(condition: bool, text: str) -> None:
    """Raise `ProtocolError(text)` unless `condition` holds."""
    if not condition:
        raise ProtocolError(text)


def need_size(data: bytes, expected: int) -> None:
    """Raise `ProtocolError` unless `data` has `expected` bytes."""
    if len(data) != expected:
        raise ProtocolError(f"{len(data)} bytes of payload instead of {expected}")


class Empty(Codec):
    """No payload: None."""

    def encode(self, value: None) -> bytes:
        need(value is None, "this message has no payload")
        return b""

    def decode(self, data: bytes) -> None:
        need_size(data, 0)


class Opaque(Codec):
    """A payload this room has no business with: bytes, as they are."""

    def encode(self, value: bytes | None) -> bytes:
        return bytes(value or b"")

    def decode(self, data: bytes) -> bytes:
        return bytes(data)


class Uuid(Opaque):
    """The 16 bytes that name a shared object."""

    def encode(self, value: bytes | None) -> bytes:
        need(value is not None and len(value) == 16, "a UUID has 16 bytes")
        return super().encode(value)

    def decode(self, data: bytes) -> bytes:
        need_size(data, 16)
        return bytes(data)


class Number(Codec):
    """One number."""

    _struct = struct.Struct("=Q")

    def encode(self, value: int) -> bytes:
        return self._struct.pack(value)

    def decode(self, data: bytes) -> int:
        need_size(data, 8)
        number: int = self._struct.unpack(data)[0]
        return number


class Fixed(Codec):
    """A C structure of fixed size: its fields are those of `kind`, in order; `check` refuses bad values."""

    def __init__(self, layout: str, kind: type[Value], check: Callable[[Any], None] | None = None) -> None:
        self._struct = struct.Struct(layout)
        self._kind = kind
        self._check = check

    def encode(self, value: Value) -> bytes:
        return self._struct.pack(*value.fields())

    def decode(self, data: bytes) -> Value:
        need_size(data, self._struct.size)
        value = self._kind(*self._struct.unpack(data))
        if self._check is not None:
            self._check(value)
        return value


class VringFdCodec(Codec):
    """A u64: bits 0-7 the vring, bit 8 "no descriptor"."""

    def encode(self, value: VringFd) -> bytes:
        need(0 <= value.index < NO_FD, f"vring {value.index} does not fit in 8 bits")
        return U64.encode(value.index | (NO_FD if value.no_fd else 0))

    def decode(self, data: bytes) -> VringFd:
        number = U64.decode(data)
        need(
            number < 2 * NO_FD,
            f"unknown bits in {number:#x}: bits 0-7 are the vring, bit 8 means no descriptor",
        )
        return VringFd(number & 0xFF, bool(number & NO_FD))


class MemoryTableCodec(Codec):
    """A count and that many regions: a tuple of `MemoryRegion`."""

    _head = struct.Struct("=I4x")
    _region = struct.Struct("=4Q")

    def encode(self, value: tuple[MemoryRegion, ...] | list[MemoryRegion]) -> bytes:
        need(
            len(value) <= MAX_TABLE_REGIONS,
            f"{len(value)} regions, at most {MAX_TABLE_REGIONS} fit in a table",
        )
        return self._head.pack(len(value)) + b"".join(self._region.pack(*region.fields()) for region in value)

    def decode(self, data: bytes) -> tuple[MemoryRegion, ...]:
        need(len(data) >= self._head.size, f"a memory table of {len(data)} bytes")
        count = self._head.unpack_from(data)[0]
        need(count <= MAX_TABLE_REGIONS, f"{count} regions, at most {MAX_TABLE_REGIONS} fit in a table")
        need_size(data, self._head.size + count * self._region.size)
        return tuple(MemoryRegion(*fields) for fields in self._region.iter_unpack(data[self._head.size :]))


class ConfigCodec(Codec):
    """Offset, size, flags, and as many bytes as the size says."""

    _head = struct.Struct("=III")

    def encode(self, value: Config) -> bytes:
        need(len(value.data) <= MAX_CONFIG_SIZE, f"{len(value.data)} bytes of configuration space")
        return self._head.pack(value.offset, len(value.data), value.flags) + value.data

    def decode(self, data: bytes) -> Config:
        need(len(data) >= self._head.size, f"a configuration message of {len(data)} bytes")
        offset, size, flags = self._head.unpack_from(data)
        need(
            size <= MAX_CONFIG_SIZE,
            f"{size} bytes of configuration space, at most {MAX_CONFIG_SIZE} are allowed",
        )
        need_size(data, self._head.size + size)
        return Config(offset, flags, bytes(data[self._head.size :]))


class ConfigReply(ConfigCodec):
    """The same, or nothing at all: the back end has no such bytes (None)."""

    def encode(self, value: Config | None) -> bytes:
        return b"" if value is None else super().encode(value)

    def decode(self, data: bytes) -> Config | None:  # type: ignore[override]
        return super().decode(data) if data else None


class InflightCodec(Codec):
    """20 bytes of fields; QEMU, libvhost-user and rust-vmm all send the 24 that C pads them to."""

    _struct = struct.Struct("=QQHH")

    def encode(self, value: Inflight) -> bytes:
        return self._struct.pack(*value.fields()) + bytes(4)

    def decode(self, data: bytes) -> Inflight:
        if len(data) != self._struct.size:
            need_size(data, self._struct.size + 4)
        return Inflight(*self._struct.unpack_from(data))


class ShmemConfigCodec(Codec):
    """The sizes of the shared memory regions: a tuple by region id, without the zeros at its end."""

    _struct = struct.Struct(f"=I4x{MAX_SHMEM_REGIONS}Q")

    def encode(self, value: tuple[int, ...]) -> bytes:
        need(len(value) <= MAX_SHMEM_REGIONS, f"{len(value)} shared memory regions")
        sizes = tuple(value) + (0,) * (MAX_SHMEM_REGIONS - len(value))
        return self._struct.pack(sum(size != 0 for size in sizes), *sizes)

    def decode(self, data: bytes) -> tuple[int, ...]:
        need_size(data, self._struct.size)
        count, *sizes = self._struct.unpack(data)
        used = sum(size != 0 for size in sizes)
        need(count == used, f"{count} shared memory regions announced, {used} have a size")
        while sizes and sizes[-1] == 0:
            sizes.pop()
        return tuple(sizes)


def _check_addr(value: VringAddr) -> None:
    need(value.flags & ~VRING_F_LOG == 0, f"unknown vring address flags {value.flags:#x}")


def _check_direction(value: DeviceState) -> None:
    need(
        value.direction in (STATE_SAVE, STATE_LOAD),
        f"unknown direction {value.direction} of the device state",
    )


EMPTY = Empty()
OPAQUE = Opaque()
UUID = Uuid()
U64 = Number()
VRING_PARAM = Fixed("=II", VringParam)
VRING_ADDR = Fixed("=II4Q", VringAddr, _check_addr)
VRING_FD = VringFdCodec()
MEMORY_TABLE = MemoryTableCodec()
MEMORY_REGION = Fixed("=8x4Q", MemoryRegion)
LOG = Fixed("=QQ", Log)
CONFIG = ConfigCodec()
CONFIG_REPLY = ConfigReply()
VRING_AREA = Fixed("=QQQ", VringArea)
INFLIGHT = InflightCodec()
DEVICE_STATE = Fixed("=II", DeviceState, _check_direction)
IOTLB = Fixed("=QQQBB6x", Iotlb)
SHMEM_MAP = Fixed("=B7xQQQQ", ShmemMap)
SHMEM_CONFIG = ShmemConfigCodec()
