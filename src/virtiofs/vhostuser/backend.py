# SPDX-License-Identifier: Apache-2.0
"""The device's end of vhost-user: what it remembers, what it checks, what it answers.

`BackEnd.handle` takes one message and returns the reply; all that the message means for memory and queues
goes to a `Device`.  No byte of guest memory is read here and no socket is touched.

Rules that are easy to get wrong, with their sources (QEMU documentation 11.1, "Vhost-user Protocol"):

1. A ring starts when SET_VRING_KICK comes, not at the first kick ("Ring states").
2. With the protocol features negotiated a ring starts disabled and obeys SET_VRING_ENABLE; without them every
   ring is enabled by SET_FEATURES.  SET_FEATURES also comes while rings run, to switch logging: that neither
   stops nor disables them.
3. GET_VRING_BASE stops a ring.  RESET_DEVICE and status 0 stop and disable all, and keep what was negotiated.
4. SET_VRING_CALL comes at any time, also for rings that never start.
5. SET_VRING_ADDR is repeated for a running ring, to log its used ring: that does not stop it.
6. What is refused is logged, and answered with a number other than 0 if the front end asked for an answer.
   The connection stays: under QEMU a closed one is the end of the guest's I/O.  Only a request whose reply
   has no way to say no ends it.

Descriptors: `handle` owns those it is given, whatever happens, and passes on or closes each (`device.py`).
"""

from __future__ import annotations

import os

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.device import BASE_PROTOCOL_FEATURES
from virtiofs.vhostuser.device import Device as Device
from virtiofs.vhostuser.device import VringState as VringState
from virtiofs.vhostuser.payloads import (
    CONFIG_F_MIGRATION,
    STATE_NO_FD,
    STATE_PHASE_STOPPED,
    Config,
    Inflight,
    ProtocolError,
    VringParam,
)
from virtiofs.vhostuser.regions import MAX_MEM_SLOTS, OFFSET_END, RegionTable
from virtiofs.vhostuser.rings import HOW_TO_SHARE, Ring, check_base, check_size, log_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from virtiofs.vhostuser.payloads import DeviceState, Log, MemoryRegion, VringAddr, VringFd
    from virtiofs.vhostuser.transport import Connection

# What this state machine knows; the part above the base needs the optional methods of `Device`.
KNOWN_PROTOCOL_FEATURES = (
    BASE_PROTOCOL_FEATURES
    | m.PROTOCOL_F_BACKEND_REQ
    | m.PROTOCOL_F_BACKEND_SEND_FD
    | m.PROTOCOL_F_LOG_SHMFD
    | m.PROTOCOL_F_INFLIGHT_SHMFD
    | m.PROTOCOL_F_DEVICE_STATE
    | m.PROTOCOL_F_SHMEM_MAP
)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


# How a request that is always answered says no.  Those that are not here cannot.
REFUSALS: dict[int, Any] = {
    m.SET_LOG_BASE: 1,
    m.GET_CONFIG: None,
    m.GET_INFLIGHT_FD: Inflight(0, 0, 0, 0),
    m.SET_DEVICE_STATE_FD: STATE_NO_FD | 1,
    m.CHECK_DEVICE_STATE: 1,
}


class BackEnd:
    """One connection's state: what was negotiated, the memory (`regions`) and the queues (`rings`).

    `log` takes one line for each trouble.  The caller's loop is `while back_end.step(connection): pass` (or its
    own receive, `handle` and send), and at the end, also after an exception, `close`.
    """

    def __init__(self, device: Device, log: Callable[[str], None]) -> None:
        unknown = device.protocol_features & ~KNOWN_PROTOCOL_FEATURES
        if unknown:
            raise ValueError(f"protocol features {unknown:#x} are not implemented")
        self._device = device
        self._log = log
        self._offered_protocol = device.protocol_features
        self._offered = device.features | m.VHOST_USER_F_PROTOCOL_FEATURES
        self._outgoing: list[int] = []
        self._closed = False
        self._last_trouble = ""
        self._files: dict[MemoryRegion, tuple[int, int]] = {}
        self._unchecked: Ring | None = None
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.regions = RegionTable()
        self.rings = [Ring(index) for index in range(device.queue_count)]

    # --- one message ---

    def step(self, connection: Connection) -> bool:
        """Receive one message from `connection` and answer it.  False: the front end is gone.

        Raises `ProtocolError` when the connection is of no use any more.
        """
        received = connection.receive()
        if received is None:
            return False
        reply, fds = self.handle(*received)
        try:
            if reply is not None:
                connection.send(reply, fds)
        except ConnectionError:
            return False
        finally:
            _close_all(fds)
        if self._unchecked is not None:
            self._warn_of_private_memory(connection)
        return True

    def handle(self, header: m.Header, payload: bytes, fds: Sequence[int]) -> tuple[bytes | None, list[int]]:
        """Obey one message.  Returns the reply (or None) and its descriptors, which the caller closes.

        Raises `ProtocolError` when the connection cannot go on: call `close` and close it.
        """
        incoming = list(fds)
        self._outgoing = []
        try:
            if header.is_reply:
                raise ProtocolError(f"a reply to {m.name(header.request)} that was never asked")
            if self._closed:
                raise ProtocolError("the connection is closed")
            try:
                return self._answer(header, self._obey(header.request, payload, incoming)), self._outgoing
            except (ProtocolError, OSError) as error:
                _close_all(self._outgoing)
                reason = str(error)
                self._tell(reason, f"refused {m.name(header.request)}: {reason}")
                return self._refusal(header, reason), []
        finally:
            _close_all(incoming)

    def while_stopped(self, act: Callable[[], None]) -> None:
        """Do something to the device while no queue runs; those that did are started again.

        Raises what stopping, `act` and starting do.  Queues that were stopped then stay so.
        """
        running = self._running()
        for ring in running:
            self._stop(ring)
        act()
        for ring in running:
            self._start(ring)

    def close(self) -> None:
        """The connection is over: stop the queues, close every descriptor, tell the device.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stop_each(self.rings)
        for ring in self.rings:
            for which in ("kick", "call", "err"):
                ring.replace(which, -1)
        self.regions = RegionTable()
        self._device.disconnected()

    def _tell(self, trouble: str, line: str) -> None:
        """Log `line`, unless `trouble` is what was told last: QEMU runs into the same once for each queue."""
        if trouble != self._last_trouble:
            self._log(line)
        self._last_trouble = trouble

    def _offered_message(self, request: int) -> m.Message | None:
        """The row of a request this back end obeys; None for any other, which is then unknown to it."""
        message = m.message(request)
        if message is None or request not in HANDLERS or message.needs & ~self._offered_protocol:
            return None
        return message

    def _obey(self, request: int, payload: bytes, fds: list[int]) -> Any:
        message = self._offered_message(request)
        if message is None:
            raise ProtocolError(f"this device does not offer {m.name(request)}")
        least, most = message.fds
        if not least <= len(fds) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise ProtocolError(f"{len(fds)} descriptors came with it instead of {wanted}")
        return HANDLERS[request](self, message.payload.decode(payload), fds)

    def _answer(self, header: m.Header, value: Any) -> bytes | None:
        message = self._offered_message(header.request)
        if message is not None and message.always_answered:
            return m.encode(header.request, value, m.REPLY_FLAGS)
        return self._acknowledge(header, 0)

    def _refusal(self, header: m.Header, reason: str) -> bytes | None:
        message = self._offered_message(header.request)
        if message is None or not message.always_answered:
            return self._acknowledge(header, 1)
        if header.request not in REFUSALS:
            raise ProtocolError(f"{message.name} has no reply that says no: {reason}")
        return m.encode(header.request, REFUSALS[header.request], m.REPLY_FLAGS)

    def _acknowledge(self, header: m.Header, result: int) -> bytes | None:
        if header.need_reply and self.protocol_features & m.PROTOCOL_F_REPLY_ACK:
            return m.encode_acknowledgement(header.request, result)
        return None

    # --- negotiation ---

    def _get_features(self, _value: None, _fds: list[int]) -> int:
        return self._offered

    def _set_features(self, value: int, _fds: list[int]) -> None:
        self._last_trouble = ""  # a driver starts: tell its troubles again
        unknown = value & ~self._offered
        if unknown:
            raise ProtocolError(f"features {unknown:#x} were not offered")
        changed = value ^ self.features
        if changed & ~m.VHOST_F_LOG_ALL and self._running():
            raise ProtocolError("only VHOST_F_LOG_ALL can change while queues run")
        if changed & m.VHOST_F_LOG_ALL:
            self._device.set_logging(bool(value & m.VHOST_F_LOG_ALL))
        self.features = value
        if not value & m.VHOST_USER_F_PROTOCOL_FEATURES:
            for ring in self.rings:
                self._enable(ring, True)

    def _get_protocol_features(self, _value: None, _fds: list[int]) -> int:
        return self._offered_protocol

    def _set_protocol_features(self, value: int, _fds: list[int]) -> None:
        unknown = value & ~self._offered_protocol
        if unknown:
            raise ProtocolError(f"protocol features {unknown:#x} were not offered")
        self.protocol_features = value

    def _get_queue_num(self, _value: None, _fds: list[int]) -> int:
        return len(self.rings)

    def _set_owner(self, _value: None, _fds: list[int]) -> None:
        """The session begins; it began with the connection."""

    def _reset_owner(self, _value: None, _fds: list[int]) -> None:
        """Deprecated: the protocol text allows to ignore it, and front ends meant different things by it."""

    # --- device ---

    def _get_config(self, value: Config, _fds: list[int]) -> Config:
        space = self._device.config()
        size = len(value.data)
        if size == 0 or value.offset + size > len(space):
            raise ProtocolError(
                f"bytes {value.offset} to {value.offset + size} of a configuration space of {len(space)}"
            )
        return Config(value.offset, value.flags, space[value.offset : value.offset + size])

    def _set_config(self, value: Config, _fds: list[int]) -> None:
        """A migration may bring the destination what the source had; a driver may write nothing."""
        size = len(value.data)
        same = self._device.config()[value.offset : value.offset + size] == value.data
        if value.flags != CONFIG_F_MIGRATION or not same:
            raise ProtocolError("the configuration space is read-only")

    def _reset_device(self, _value: None, _fds: list[int]) -> None:
        self._stop_each(self.rings)
        for ring in self.rings:
            ring.replace("kick", -1)
            ring.forget()
            ring.enabled = not self.features & m.VHOST_USER_F_PROTOCOL_FEATURES
        self.status = 0
        self._device.reset()

    def _set_status(self, value: int, fds: list[int]) -> None:
        if value > 0xFF:
            raise ProtocolError(f"status {value:#x} does not fit in a byte")
        if value == 0:
            self._reset_device(None, fds)
        self.status = value

    def _get_status(self, _value: None, _fds: list[int]) -> int:
        return self.status

    def _set_backend_req_fd(self, _value: None, fds: list[int]) -> None:
        self._device.set_backend_channel(fds.pop())

    def _get_shmem_config(self, _value: None, _fds: list[int]) -> tuple[int, ...]:
        return tuple(self._device.shmem_sizes())

    # --- memory ---

    def _set_mem_table(self, value: tuple[MemoryRegion, ...], fds: list[int]) -> None:
        if len(fds) != len(value):
            raise ProtocolError(f"{len(fds)} descriptors came with {len(value)} regions")
        regions = RegionTable(value)
        if self._device.shmem_sizes() and self._keeps_rings(value, fds):
            self._change_mem_table(value, fds)
            return
        running = self._running()
        self._stop_each(running)
        self.regions, self._files = RegionTable(), {}
        files = {region: _identity(fd) for region, fd in zip(value, fds, strict=True)}
        given, fds[:] = fds[:], []
        self._device.map_memory(list(value), given)
        self.regions, self._files = regions, files
        self._start_again(running)

    def _keeps_rings(self, value: tuple[MemoryRegion, ...], fds: list[int]) -> bool:
        """Whether a queue runs, and the rings of all that do lie in regions that stay."""
        kept = {(region, _identity(fd)) for region, fd in zip(value, fds, strict=True)}
        running = [ring.address for ring in self._running() if ring.address is not None]
        return bool(running) and all(
            (region, self._files[region]) in kept
            for address in running
            for region in (
                self.regions.holding(area, 1) for area in (address.desc, address.avail, address.used)
            )
        )

    def _change_mem_table(self, value: tuple[MemoryRegion, ...], fds: list[int]) -> None:
        """A new table for a device with shared memory, of which each mapping brings one: only what differs matters.

        Queues are not stopped for a mapping, as a thread of theirs waits for it.
        """
        given, fds[:] = fds[:], []
        new = {(region, _identity(fd)): fd for region, fd in zip(value, given, strict=True)}
        try:
            for region in list(self.regions):
                if (region, self._files[region]) not in new:
                    self._rem_mem_reg(region, [])
            for (region, _), fd in new.items():
                if region not in self._files:
                    self._add_mem_reg(region, [os.dup(fd)])
        finally:
            _close_all(given)

    def _get_max_mem_slots(self, _value: None, _fds: list[int]) -> int:
        return MAX_MEM_SLOTS

    def _add_mem_reg(self, value: MemoryRegion, fds: list[int]) -> None:
        self.regions.check(value)
        file = _identity(fds[0])
        self._device.add_memory(value, fds.pop())
        self.regions.add(value)
        self._files[value] = file

    def _rem_mem_reg(self, value: MemoryRegion, _fds: list[int]) -> None:
        region = self.regions.find(value)
        self.regions.remove(region)
        del self._files[region]
        for ring in self._running():
            try:
                ring.areas(self.features, self.regions)
            except ProtocolError as error:
                self._log(f"queue {ring.index} stopped, its memory was removed: {error}")
                self._stop_each([ring])
        self._device.remove_memory(region)

    def _warn_of_private_memory(self, connection: Connection) -> None:
        """Say so if the front end keeps guest memory to itself and yet passes its file (QEMU: share=off).

        QEMU 7.2 does that.  The driver's writes then stay in QEMU's own copy of the pages, every queue looks
        empty for ever, and the guest hangs without a word.
        """
        ring, self._unchecked = self._unchecked, None
        if ring is None or not ring.started or ring.address is None:
            return
        region = self.regions.holding(ring.address.desc, 1)
        if connection.maps_privately(region.user_addr, self._files[region]):
            text = f"the front end maps guest memory privately, so its queues look empty; {HOW_TO_SHARE}"
            self._tell(text, text)

    # --- rings ---

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise ProtocolError(f"there is no queue {index}, only {len(self.rings)}")
        return self.rings[index]

    def _idle_ring(self, index: int) -> Ring:
        ring = self._ring(index)
        if ring.started:
            raise ProtocolError(f"queue {index} runs; stop it first with GET_VRING_BASE")
        return ring

    def _running(self) -> list[Ring]:
        return [ring for ring in self.rings if ring.started]

    def _set_vring_num(self, value: VringParam, _fds: list[int]) -> None:
        ring = self._idle_ring(value.index)
        check_size(value.num, self.features)
        ring.size = value.num

    def _set_vring_base(self, value: VringParam, _fds: list[int]) -> None:
        ring = self._idle_ring(value.index)
        check_base(value.num, self.features)
        ring.base = value.num

    def _set_vring_addr(self, value: VringAddr, _fds: list[int]) -> None:
        ring = self._ring(value.index)
        if log_address(value) is not None and not self._offered_protocol & m.PROTOCOL_F_LOG_SHMFD:
            raise ProtocolError("this device keeps no log")
        before = ring.address
        areas_before = ring.areas(self.features, self.regions) if ring.started else None
        ring.address = value
        try:
            moved = ring.areas(self.features, self.regions) != areas_before
            if ring.started and not moved and log_address(value) != log_address(before):
                self._device.set_ring_log(ring.index, log_address(value))
        except (ProtocolError, OSError):
            ring.address = before
            raise
        if ring.started and moved:
            self._stop(ring)
            self._start(ring)

    def _get_vring_base(self, value: VringParam, _fds: list[int]) -> VringParam:
        ring = self._ring(value.index)
        self._stop(ring)
        ring.replace("kick", -1)
        return VringParam(value.index, ring.base)

    def _set_vring_kick(self, value: VringFd, fds: list[int]) -> None:
        ring = self._ring(value.index)
        if value.no_fd:
            raise ProtocolError(
                "queues without a kick descriptor would have to be polled, which is not supported"
            )
        _need_fd(value, fds)
        ring.areas(self.features, self.regions)
        self._stop(ring)
        ring.replace("kick", fds.pop())
        self._start(ring)
        self._unchecked = ring

    def _set_vring_call(self, value: VringFd, fds: list[int]) -> None:
        self._set_signal(value, fds, "call", self._device.set_call)

    def _set_vring_err(self, value: VringFd, fds: list[int]) -> None:
        self._set_signal(value, fds, "err", self._device.set_err)

    def _set_signal(
        self, value: VringFd, fds: list[int], which: str, tell: Callable[[int, int], None]
    ) -> None:
        ring = self._ring(value.index)
        _need_fd(value, fds)
        fd = fds[0] if fds else -1
        if ring.started:
            tell(ring.index, fd)
        ring.replace(which, fd)
        fds.clear()

    def _set_vring_enable(self, value: VringParam, _fds: list[int]) -> None:
        ring = self._ring(value.index)
        if value.num not in (0, 1):
            raise ProtocolError(f"a queue is enabled by 1 or disabled by 0, not by {value.num}")
        self._enable(ring, bool(value.num))

    def _enable(self, ring: Ring, enabled: bool) -> None:
        if ring.started and ring.enabled != enabled:
            self._device.set_enabled(ring.index, enabled)
        ring.enabled = enabled

    def _start(self, ring: Ring) -> None:
        self._device.start_queue(ring.index, ring.state(self.features, self.regions))
        ring.started = True

    def _stop(self, ring: Ring) -> None:
        if ring.started:
            ring.started = False
            ring.base = self._device.stop_queue(ring.index)

    def _stop_each(self, rings: list[Ring]) -> None:
        """Stop each of `rings` that runs, also when another one will not."""
        for ring in rings:
            try:
                self._stop(ring)
            except (ProtocolError, OSError) as error:
                self._log(f"queue {ring.index} did not stop properly: {error}")

    def _start_again(self, rings: list[Ring]) -> None:
        """Start each of `rings` that can be; raise for those that cannot."""
        refused = []
        for ring in rings:
            try:
                self._start(ring)
            except (ProtocolError, OSError) as error:
                refused.append(f"queue {ring.index} cannot run again: {error}")
        if refused:
            raise ProtocolError("; ".join(refused))

    # --- what only some devices offer ---

    def _set_log_base(self, value: Log, fds: list[int]) -> int:
        if value.mmap_size == 0 or value.mmap_offset + value.mmap_size > OFFSET_END:
            raise ProtocolError(f"a log of {value.mmap_size} bytes at {value.mmap_offset:#x}")
        self._device.set_log(value, fds.pop())
        return 0

    def _set_log_fd(self, _value: None, fds: list[int]) -> None:
        self._device.set_log_eventfd(fds.pop())

    def _get_inflight_fd(self, value: Inflight, _fds: list[int]) -> Inflight:
        self._check_inflight(value)
        inflight, fd = self._device.get_inflight(value.num_queues, value.queue_size)
        self._outgoing.append(fd)
        return inflight

    def _set_inflight_fd(self, value: Inflight, fds: list[int]) -> None:
        self._check_inflight(value)
        if value.mmap_size == 0 or value.mmap_offset + value.mmap_size > OFFSET_END:
            raise ProtocolError(f"an in-flight buffer of {value.mmap_size} bytes at {value.mmap_offset:#x}")
        self._device.set_inflight(value, fds.pop())

    def _check_inflight(self, value: Inflight) -> None:
        if not 1 <= value.num_queues <= len(self.rings):
            raise ProtocolError(f"an in-flight buffer for {value.num_queues} of {len(self.rings)} queues")
        check_size(value.queue_size, self.features)

    def _set_device_state_fd(self, value: DeviceState, fds: list[int]) -> int:
        if value.phase != STATE_PHASE_STOPPED:
            raise ProtocolError(f"phase {value.phase} of a migration is not known")
        if self._running():
            raise ProtocolError("the device's state moves while queues run; stop them first")
        fd = self._device.set_state_fd(value.direction, fds.pop())
        if fd < 0:
            return STATE_NO_FD
        self._outgoing.append(fd)
        return 0

    def _check_device_state(self, _value: None, _fds: list[int]) -> int:
        self._device.check_state()
        return 0


def _identity(fd: int) -> tuple[int, int]:
    """What tells one file from all others: device and inode."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _need_fd(value: VringFd, fds: list[int]) -> None:
    if len(fds) != (0 if value.no_fd else 1):
        raise ProtocolError(f"{len(fds)} descriptors came with it, bit 8 is {int(value.no_fd)}")


HANDLERS: dict[int, Callable[[BackEnd, Any, list[int]], Any]] = {
    m.GET_FEATURES: BackEnd._get_features,
    m.SET_FEATURES: BackEnd._set_features,
    m.SET_OWNER: BackEnd._set_owner,
    m.RESET_OWNER: BackEnd._reset_owner,
    m.SET_MEM_TABLE: BackEnd._set_mem_table,
    m.SET_LOG_BASE: BackEnd._set_log_base,
    m.SET_LOG_FD: BackEnd._set_log_fd,
    m.SET_VRING_NUM: BackEnd._set_vring_num,
    m.SET_VRING_ADDR: BackEnd._set_vring_addr,
    m.SET_VRING_BASE: BackEnd._set_vring_base,
    m.GET_VRING_BASE: BackEnd._get_vring_base,
    m.SET_VRING_KICK: BackEnd._set_vring_kick,
    m.SET_VRING_CALL: BackEnd._set_vring_call,
    m.SET_VRING_ERR: BackEnd._set_vring_err,
    m.GET_PROTOCOL_FEATURES: BackEnd._get_protocol_features,
    m.SET_PROTOCOL_FEATURES: BackEnd._set_protocol_features,
    m.GET_QUEUE_NUM: BackEnd._get_queue_num,
    m.SET_VRING_ENABLE: BackEnd._set_vring_enable,
    m.SET_BACKEND_REQ_FD: BackEnd._set_backend_req_fd,
    m.GET_CONFIG: BackEnd._get_config,
    m.SET_CONFIG: BackEnd._set_config,
    m.GET_INFLIGHT_FD: BackEnd._get_inflight_fd,
    m.SET_INFLIGHT_FD: BackEnd._set_inflight_fd,
    m.RESET_DEVICE: BackEnd._reset_device,
    m.GET_MAX_MEM_SLOTS: BackEnd._get_max_mem_slots,
    m.ADD_MEM_REG: BackEnd._add_mem_reg,
    m.REM_MEM_REG: BackEnd._rem_mem_reg,
    m.SET_STATUS: BackEnd._set_status,
    m.GET_STATUS: BackEnd._get_status,
    m.SET_DEVICE_STATE_FD: BackEnd._set_device_state_fd,
    m.CHECK_DEVICE_STATE: BackEnd._check_device_state,
    m.GET_SHMEM_CONFIG: BackEnd._get_shmem_config,
}
