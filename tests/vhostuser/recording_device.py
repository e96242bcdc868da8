# SPDX-License-Identifier: Apache-2.0
"""A device that runs no queue but remembers what it was told, and objects to what none should be told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.backend import KNOWN_PROTOCOL_FEATURES, BackEnd, Device, VringState
from virtiofs.vhostuser.payloads import (
    Inflight,
    Log,
    MemoryRegion,
    ProtocolError,
    VringAddr,
    VringFd,
    VringParam,
)

FEATURES = (
    m.VIRTIO_F_VERSION_1
    | m.VIRTIO_RING_F_INDIRECT_DESC
    | m.VIRTIO_RING_F_EVENT_IDX
    | m.VIRTIO_F_RING_PACKED
    | m.VHOST_F_LOG_ALL
)
CONFIG = b"tag".ljust(36, b"\0") + (2).to_bytes(4, "little")


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


class RecordingDevice(Device):
    """`calls` holds (method, arguments); a method named in `failing` raises `OSError`."""

    def __init__(
        self, features: int = FEATURES, protocol_features: int = KNOWN_PROTOCOL_FEATURES, queue_count: int = 3
    ) -> None:
        self.features = features
        self.protocol_features = protocol_features
        self.queue_count = queue_count
        self.calls: list[tuple[Any, ...]] = []
        self.failing: set[str] = set()
        self.memory: list[tuple[MemoryRegion, int]] = []
        self.running: dict[int, VringState] = {}
        self.next_base: dict[int, int] = {}
        self.channel = -1
        self.gone = False

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def _record(self, name: str, *arguments: Any) -> None:
        assert not self.gone, f"{name} after disconnected"
        self.calls.append((name, *arguments))
        if name in self.failing:
            raise OSError(12, f"{name} failed")

    def config(self) -> bytes:
        return CONFIG

    def _forget_memory(self) -> None:
        for _, fd in self.memory:
            os.close(fd)
        self.memory = []

    def map_memory(self, regions: list[MemoryRegion], fds: list[int]) -> None:
        assert not self.running, "memory replaced under a running queue"
        self._forget_memory()
        try:
            self._record("map_memory", tuple(regions))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        self.memory = list(zip(regions, fds, strict=True))

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        try:
            self._record("add_memory", region)
        except OSError:
            os.close(fd)
            raise
        self.memory.append((region, fd))

    def remove_memory(self, region: MemoryRegion) -> None:
        known = [entry for entry in self.memory if entry[0] == region]
        assert len(known) == 1
        self.memory.remove(known[0])
        os.close(known[0][1])
        for vring in self.running.values():
            self._check_inside(vring)
        self._record("remove_memory", region)

    def _check_inside(self, vring: VringState) -> None:
        packed = bool(vring.features & m.VIRTIO_F_RING_PACKED)
        sizes = (
            (vring.desc, 16 * vring.size, 16),
            (vring.avail, 4 if packed else 2 * vring.size + 6, 4 if packed else 2),
            (vring.used, 4 if packed else 8 * vring.size + 6, 4),
        )
        for address, size, alignment in sizes:
            assert address % alignment == 0
            assert any(
                region.guest_phys <= address and address + size <= region.guest_phys + region.size
                for region, _ in self.memory
            ), f"{address:#x}+{size:#x} is outside the guest's memory"

    def start_queue(self, index: int, vring: VringState) -> None:
        assert index not in self.running, "started twice"
        assert 0 <= index < self.queue_count
        assert 1 <= vring.size <= 32768
        assert vring.features & m.VIRTIO_F_RING_PACKED or vring.size & (vring.size - 1) == 0
        for fd in (vring.kick, vring.call, vring.err):
            assert fd == -1 or os.fstat(fd)
        assert vring.kick >= 0
        self._check_inside(vring)
        self._record("start_queue", index, vring)
        self.running[index] = vring

    def stop_queue(self, index: int) -> int:
        vring = self.running.pop(index)
        os.fstat(vring.kick)
        self._record("stop_queue", index)
        return self.next_base.get(index, vring.base)

    def set_call(self, index: int, fd: int) -> None:
        assert index in self.running
        assert fd == -1 or os.fstat(fd)
        self._record("set_call", index, fd)

    def set_err(self, index: int, fd: int) -> None:
        assert index in self.running
        assert fd == -1 or os.fstat(fd)
        self._record("set_err", index, fd)

    def set_enabled(self, index: int, enabled: bool) -> None:
        assert index in self.running
        self._record("set_enabled", index, enabled)

    def reset(self) -> None:
        assert not self.running
        self._record("reset")

    def disconnected(self) -> None:
        assert not self.running
        self._forget_memory()
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1
        self._record("disconnected")
        self.gone = True

    def set_backend_channel(self, fd: int) -> None:
        if self.channel >= 0:
            os.close(self.channel)
        self.channel = fd
        self._record("set_backend_channel")

    def set_log(self, log: Log, fd: int) -> None:
        os.close(fd)
        self._record("set_log", log)

    def set_log_eventfd(self, fd: int) -> None:
        os.close(fd)
        self._record("set_log_eventfd")

    def set_logging(self, enabled: bool) -> None:
        self._record("set_logging", enabled)

    def set_ring_log(self, index: int, log: int | None) -> None:
        assert index in self.running
        self._record("set_ring_log", index, log)

    def get_inflight(self, queues: int, size: int) -> tuple[Inflight, int]:
        self._record("get_inflight", queues, size)
        return Inflight(4096, 0, queues, size), os.memfd_create("inflight")

    def set_inflight(self, inflight: Inflight, fd: int) -> None:
        os.close(fd)
        self._record("set_inflight", inflight)

    def set_state_fd(self, direction: int, fd: int) -> int:
        os.close(fd)
        self._record("set_state_fd", direction)
        return -1 if direction else os.memfd_create("state")

    def check_state(self) -> None:
        self._record("check_state")

    def shmem_sizes(self) -> Sequence[int]:
        return (1 << 26, 0, 4096)


class Direct:
    """A front end without a socket: messages go straight into a `BackEnd`."""

    def __init__(self, device: Device) -> None:
        self.log: list[str] = []
        self.device = device
        self.backend = BackEnd(device, self.log.append)

    def send(
        self, request: int, value: Any = None, fds: Sequence[int] = (), flags: int = m.VERSION | m.NEED_REPLY
    ) -> tuple[Any, list[int]] | None:
        """The value and descriptors of the reply, or None if there was none.  `fds` are duplicated."""
        data = m.encode(request, value, flags)
        return self.send_raw(m.decode_header(data[: m.HEADER_SIZE]), data[m.HEADER_SIZE :], fds)

    def send_raw(
        self, header: m.Header, payload: bytes, fds: Sequence[int] = ()
    ) -> tuple[Any, list[int]] | None:
        reply, reply_fds = self.backend.handle(header, payload, [os.dup(fd) for fd in fds])
        if reply is None:
            assert not reply_fds
            return None
        answer = m.decode_header(reply[: m.HEADER_SIZE])
        assert answer.request == header.request
        assert answer.flags == m.REPLY_FLAGS
        assert answer.size == len(reply) - m.HEADER_SIZE
        return decode_reply(header.request, reply[m.HEADER_SIZE :]), reply_fds

    def ask(self, request: int, value: Any = None, fds: Sequence[int] = ()) -> Any:
        """The value of the reply, which must come, to a request without NEED_REPLY."""
        answer = self.send(request, value, fds, m.VERSION)
        assert answer is not None
        return answer[0]

    def acknowledged(self, request: int, value: Any = None, fds: Sequence[int] = ()) -> int:
        """What the acknowledgement said: 0 is success."""
        answer = self.send(request, value, fds)
        assert answer is not None
        result: int = answer[0]
        return result

    def negotiate(self, features: int = m.VIRTIO_F_VERSION_1 | m.VHOST_USER_F_PROTOCOL_FEATURES) -> None:
        offered = self.ask(m.GET_PROTOCOL_FEATURES)
        self.send(m.SET_PROTOCOL_FEATURES, offered)
        assert self.acknowledged(m.SET_FEATURES, features) == 0


def decode_reply(request: int, payload: bytes) -> Any:
    """A reply's value; a request the device does not know is answered with a number whatever its reply is."""
    try:
        return m.decode_payload(request, payload, reply=True)
    except ProtocolError:
        return m.decode_payload(m.GET_FEATURES, payload, reply=True)


# --- what a front end does with it ---

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
