# SPDX-License-Identifier: Apache-2.0
"""The driver's end of vhost-user: what a VMM says to a device, for our own client and tests.

One call of a method is one exchange: what the protocol lets a back end confirm is confirmed before the method
returns, so an error names the request that was refused.
"""

from __future__ import annotations

import os
import threading

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import Config, MemoryRegion, ProtocolError, VringAddr, VringFd, VringParam

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from virtiofs.vhostuser.transport import Connection

REPLY_SECONDS = 30.0

WANTED_FEATURES = m.VIRTIO_F_VERSION_1 | m.VIRTIO_RING_F_INDIRECT_DESC | m.VIRTIO_RING_F_EVENT_IDX
WANTED_PROTOCOL_FEATURES = (
    m.PROTOCOL_F_MQ
    | m.PROTOCOL_F_REPLY_ACK
    | m.PROTOCOL_F_CONFIG
    | m.PROTOCOL_F_RESET_DEVICE
    | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | m.PROTOCOL_F_STATUS
)


class FrontEndError(Exception):
    """The back end refused a request, answered nonsense, or did not answer; the text is one line."""


class FrontEnd:
    """One device, over a connection that is ours from now on.

    Call `negotiate`, `set_memory`, then for each queue `setup_vring` and `enable`.  Every method raises
    `FrontEndError`; after one that is not a refusal the connection is of no use.  Descriptors that are passed
    in stay the caller's and may be closed after the call.

    `reply_seconds` is how long any one answer may take.
    """

    def __init__(self, connection: Connection, reply_seconds: float = REPLY_SECONDS) -> None:
        self._connection = connection
        self._reply_seconds = reply_seconds
        # Held during an exchange; by a front end that also serves a back-end channel, while it obeys a message there.
        self.busy = threading.RLock()
        self.offered_features = 0
        self.offered_protocol_features = 0
        self.features = 0
        self.protocol_features = 0
        self.queue_count: int | None = None
        self.regions: list[MemoryRegion] = []

    def close(self) -> None:
        """End the connection; the device forgets us."""
        self._connection.close()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the session ---

    def negotiate(
        self, features: int = WANTED_FEATURES, protocol_features: int = WANTED_PROTOCOL_FEATURES
    ) -> None:
        """Take of what the device offers what is wanted here, and become its owner.

        What was taken stands in `features` and `protocol_features`; `queue_count` is what the device said, or
        None if it has no say in that (no MQ).
        """
        self.offered_features = self._number(m.GET_FEATURES)
        if self.offered_features & m.VHOST_USER_F_PROTOCOL_FEATURES:
            features |= m.VHOST_USER_F_PROTOCOL_FEATURES
            self.offered_protocol_features = self._number(m.GET_PROTOCOL_FEATURES)
            taken = self.offered_protocol_features & protocol_features
            self.command(m.SET_PROTOCOL_FEATURES, taken)
            self.protocol_features = taken
            if taken & m.PROTOCOL_F_MQ:
                self.queue_count = self._number(m.GET_QUEUE_NUM)
        self.command(m.SET_OWNER)
        self.set_features(self.offered_features & features)

    def set_features(self, features: int) -> None:
        """Acknowledge these feature bits (and no others)."""
        self.command(m.SET_FEATURES, features)
        self.features = features

    def reset_device(self) -> None:
        """Stop all queues and forget the driver; what was negotiated stays.  Needs RESET_DEVICE."""
        self._need(m.PROTOCOL_F_RESET_DEVICE, m.RESET_DEVICE)
        self.command(m.RESET_DEVICE)

    def set_status(self, status: int) -> None:
        """Set the virtio device status byte; 0 resets.  Needs STATUS."""
        self._need(m.PROTOCOL_F_STATUS, m.SET_STATUS)
        self.command(m.SET_STATUS, status)

    def get_status(self) -> int:
        """The virtio device status byte.  Needs STATUS."""
        self._need(m.PROTOCOL_F_STATUS, m.GET_STATUS)
        return self._number(m.GET_STATUS)

    def get_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space from `offset`.  Needs CONFIG."""
        self._need(m.PROTOCOL_F_CONFIG, m.GET_CONFIG)
        value, _ = self.query(m.GET_CONFIG, Config(offset, 0, bytes(size)))
        if value is None:
            raise FrontEndError(f"the back end has no {size} bytes of configuration space at {offset}")
        if len(value.data) != size or value.offset != offset:
            raise FrontEndError(f"GET_CONFIG was answered with other bytes than asked: {value!r}")
        data: bytes = value.data
        return data

    def set_backend_channel(self, fd: int) -> None:
        """Give the device a socket for requests of its own.  Needs BACKEND_REQ."""
        self._need(m.PROTOCOL_F_BACKEND_REQ, m.SET_BACKEND_REQ_FD)
        self.command(m.SET_BACKEND_REQ_FD, None, [fd])

    def shmem_sizes(self) -> tuple[int, ...]:
        """The sizes of the device's shared memory regions, by id.  Needs SHMEM_MAP."""
        self._need(m.PROTOCOL_F_SHMEM_MAP, m.GET_SHMEM_CONFIG)
        sizes, _ = self.query(m.GET_SHMEM_CONFIG)
        found: tuple[int, ...] = sizes
        return found

    # --- memory ---

    def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Share exactly these regions, `regions[i]` being a piece of `fds[i]`, instead of those before.

        With CONFIGURE_MEM_SLOTS regions that stay are left alone; otherwise there may be 8, and running
        queues stop for a moment.
        """
        if len(regions) != len(fds):
            raise ValueError(f"{len(regions)} regions with {len(fds)} descriptors")
        if not self.protocol_features & m.PROTOCOL_F_CONFIGURE_MEM_SLOTS:
            self.command(m.SET_MEM_TABLE, list(regions), fds)
            self.regions = list(regions)
            return
        for region in [region for region in self.regions if region not in regions]:
            self.remove_memory(region)
        for region, fd in zip(regions, fds, strict=True):
            if region not in self.regions:
                self.add_memory(region, fd)

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Share one more region.  Needs CONFIGURE_MEM_SLOTS."""
        self._need(m.PROTOCOL_F_CONFIGURE_MEM_SLOTS, m.ADD_MEM_REG)
        self.command(m.ADD_MEM_REG, region, [fd])
        self.regions.append(region)

    def remove_memory(self, region: MemoryRegion) -> None:
        """Take one region back.  Needs CONFIGURE_MEM_SLOTS."""
        self._need(m.PROTOCOL_F_CONFIGURE_MEM_SLOTS, m.REM_MEM_REG)
        self.command(m.REM_MEM_REG, region)
        self.regions.remove(region)

    # --- queues ---

    def setup_vring(
        self,
        index: int,
        num: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        kick_fd: int,
        call_fd: int,
        err_fd: int | None = None,
    ) -> None:
        """Describe a queue of `num` entries and start it; with the protocol features it still is disabled.

        `desc`, `avail` and `used` are user addresses: those of `MemoryRegion.user_addr`.
        """
        self.command(m.SET_VRING_NUM, VringParam(index, num))
        self.command(m.SET_VRING_BASE, VringParam(index, base))
        self.command(m.SET_VRING_ADDR, VringAddr(index, 0, desc=desc, used=used, avail=avail))
        self.set_call(index, call_fd)
        if err_fd is not None:
            self.command(m.SET_VRING_ERR, VringFd(index), [err_fd])
        self.command(m.SET_VRING_KICK, VringFd(index), [kick_fd])

    def set_call(self, index: int, call_fd: int | None) -> None:
        """Let the device signal used requests through this descriptor; None: not at all."""
        self.command(m.SET_VRING_CALL, VringFd(index, call_fd is None), [] if call_fd is None else [call_fd])

    def enable(self, index: int, on: bool) -> None:
        """Let the device take requests from a queue, or not."""
        self.command(m.SET_VRING_ENABLE, VringParam(index, int(on)))

    def stop_vring(self, index: int) -> int:
        """Stop a queue.  Returns the base to start it with again."""
        value, _ = self.query(m.GET_VRING_BASE, VringParam(index, 0))
        if value.index != index:
            raise FrontEndError(f"the back end stopped queue {value.index} instead of {index}")
        base: int = value.num
        return base

    # --- any request ---

    def command(self, request: int, value: Any = None, fds: Sequence[int] = ()) -> None:
        """Send a request that has no reply of its own, and wait for its acknowledgement if there is one."""
        with self.busy:
            if not self.protocol_features & m.PROTOCOL_F_REPLY_ACK:
                self._send(request, value, m.VERSION, fds)
                return
            self._send(request, value, m.VERSION | m.NEED_REPLY, fds)
            result, _ = self._receive(request, 0)
        if result:
            raise FrontEndError(f"the back end refused {m.name(request)} (result {result:#x})")

    def query(self, request: int, value: Any = None, fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Send a request that has a reply.  Returns its value and its descriptors, which are the caller's."""
        with self.busy:
            self._send(request, value, m.VERSION, fds)
            return self._receive(request, m.FRONT_END[request].reply_fds[1])

    def _number(self, request: int) -> int:
        value, _ = self.query(request)
        number: int = value
        return number

    def _need(self, feature: int, request: int) -> None:
        if not self.protocol_features & feature:
            raise FrontEndError(f"the back end did not offer {m.name(request)}, or it was not negotiated")

    def _send(self, request: int, value: Any, flags: int, fds: Sequence[int]) -> None:
        try:
            self._connection.send(m.encode(request, value, flags), fds)
        except (ProtocolError, OSError) as error:
            raise FrontEndError(f"cannot send {m.name(request)}: {error}") from error

    def _receive(self, request: int, most_fds: int) -> tuple[Any, list[int]]:
        name = m.name(request)
        try:
            received = self._connection.receive(self._reply_seconds)
        except TimeoutError:
            raise FrontEndError(f"the back end did not answer {name} in {self._reply_seconds:g} s") from None
        except (ProtocolError, OSError) as error:
            raise FrontEndError(f"no answer to {name}: {error}") from error
        if received is None:
            raise FrontEndError(f"the back end closed the connection instead of answering {name}")
        header, payload, fds = received
        try:
            if header.request != request or header.flags != m.REPLY_FLAGS:
                raise ProtocolError(
                    f"{name} was answered with {m.name(header.request)}, flags {header.flags:#x}"
                )
            if len(fds) > most_fds:
                raise ProtocolError(f"{len(fds)} descriptors came with the answer to {name}")
            return m.decode_payload(request, payload, reply=True), fds
        except ProtocolError as error:
            for fd in fds:
                os.close(fd)
            raise FrontEndError(str(error)) from None
