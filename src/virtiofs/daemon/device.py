# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device as the vhost-user back end sees it: every demand goes to the worker.

Source: virtio 1.3, section 5.11 (file system device).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from virtiofs.daemon import channel
from virtiofs.daemon.log import Log
from virtiofs.fuse.notification import MOST_BYTES
from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.device import Device, VringState
from virtiofs.vhostuser.payloads import MemoryRegion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.vhostuser.backend import BackEnd

MAX_TAG = 36
VIRTIO_FS_F_NOTIFICATION = 1 << 0
NOTIFICATION_QUEUE = 1  # where that was taken
WINDOW_FEATURES = m.PROTOCOL_F_BACKEND_REQ | m.PROTOCOL_F_BACKEND_SEND_FD | m.PROTOCOL_F_SHMEM_MAP


def check_tag(tag: str) -> bytes:
    """The tag's bytes for the configuration space.  Raises `ValueError` if it is not 1 to 36 bytes without newline."""
    data = tag.encode()
    if not 1 <= len(data) <= MAX_TAG or b"\n" in data or b"\0" in data:
        raise ValueError(f"a tag has 1 to {MAX_TAG} bytes and no newline: {tag!r}")
    return data


class ShareDevice(Device):
    """A share as a device with one high-priority queue and `queues` request queues.

    `worker` is the supervisor's end of a worker's channel, `front_end` the process id of the VMM (0:
    unknown).  `window_size`: bytes of the DAX window, 0 for none.  `back_end` is what drives this device, once
    there is one.  `patience`: seconds for an answer of the worker, which waits for what a queue has begun (None: for
    ever).  `table`: the share's changes enter a metadata table; such a device has versions and a notification queue.
    `replaceable`: another worker may take the place of this one (`replace_worker`).
    """

    features = m.VIRTIO_F_VERSION_1 | m.VIRTIO_RING_F_EVENT_IDX | m.VIRTIO_RING_F_INDIRECT_DESC

    def __init__(
        self,
        tag: bytes,
        queues: int,
        worker: socket.socket,
        log: Log,
        window_size: int = 0,
        patience: float | None = None,
        table: bool = False,
        replaceable: bool = False,
    ):
        self._patience = patience
        self._memory: dict[MemoryRegion, int] | None = {} if replaceable else None
        self.queue_count = 1 + queues
        self.back_end: BackEnd | None = None
        self._window_size = window_size
        self._tag = tag
        self._worker = worker
        self._log = log
        self._abandoned = False
        self._versions_size = self._ask("versions_size") if table else 0
        if table:
            # The driver says which of them is the notification queue, by taking the feature or not.
            self.queue_count += 1
            self.features |= VIRTIO_FS_F_NOTIFICATION
        if window_size or table:
            self.protocol_features |= WINDOW_FEATURES
            # With it QEMU 11.1 dies (SIGSEGV) when a guest is reset while files are mapped (seen).
            self.protocol_features &= ~m.PROTOCOL_F_CONFIGURE_MEM_SLOTS

    def _ask(self, do: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
        self._log.debug(f"worker: {do} {arguments}")
        return channel.ask(self._worker, {"do": do, **arguments}, fds, self._patience)

    def replace_worker(self, worker: socket.socket) -> None:
        """Go on with another worker, which serves another file system, while no queue runs.  Raises `WorkerError`."""
        assert self._memory is not None
        state = self._ask("session")
        self._worker = worker
        self._ask("resume", **state)
        for region, fd in self._memory.items():
            self._add(region, fd)

    def abandon(self) -> None:
        """Ask the worker nothing more: it is to end, and stops its queues itself."""
        self._abandoned = True

    def config(self) -> bytes:
        if not self._versions_size:
            return struct.pack("<36sI", self._tag, self.queue_count - 1)
        return struct.pack("<36sII", self._tag, self.queue_count - 2, MOST_BYTES)

    def _add(self, region: MemoryRegion, fd: int) -> None:
        self._ask("add_memory", [fd], guest=region.guest_phys, size=region.size, offset=region.mmap_offset)

    def _keep(self, region: MemoryRegion, fd: int) -> None:
        """Keep the descriptor of a region for a worker that may come, or close it."""
        if self._memory is None:
            os.close(fd)
        else:
            self._memory[region] = fd

    def _forget_memory(self) -> None:
        if self._memory is not None:
            channel.close_all(list(self._memory.values()))
            self._memory.clear()

    def map_memory(self, regions: list[MemoryRegion], fds: list[int]) -> None:
        self._forget_memory()
        described = [[region.guest_phys, region.size, region.mmap_offset] for region in regions]
        try:
            self._ask("map_memory", fds, regions=described)
        except BaseException:
            channel.close_all(fds)
            raise
        for region, fd in zip(regions, fds, strict=True):
            self._keep(region, fd)

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        try:
            self._add(region, fd)
        except BaseException:
            os.close(fd)
            raise
        self._keep(region, fd)

    def remove_memory(self, region: MemoryRegion) -> None:
        self._ask("remove_memory", guest=region.guest_phys, size=region.size)
        if self._memory is not None and region in self._memory:
            os.close(self._memory.pop(region))

    def start_queue(self, index: int, vring: VringState) -> None:
        self._ask(
            "start_queue",
            [fd for fd in (vring.kick, vring.call, vring.err) if fd >= 0],
            index=index,
            size=vring.size,
            desc=vring.desc,
            avail=vring.avail,
            used=vring.used,
            base=vring.base,
            event_idx=bool(vring.features & m.VIRTIO_RING_F_EVENT_IDX),
            indirect=bool(vring.features & m.VIRTIO_RING_F_INDIRECT_DESC),
            enabled=vring.enabled,
            notifications=index == NOTIFICATION_QUEUE and bool(vring.features & VIRTIO_FS_F_NOTIFICATION),
            call=vring.call >= 0,
            err=vring.err >= 0,
        )

    def stop_queue(self, index: int) -> int:
        if self._abandoned:
            return 0
        base = self._ask("stop_queue", index=index)
        if not isinstance(base, int) or not 0 <= base <= 0xFFFF:
            raise channel.WorkerError(f"the worker does not say where queue {index} stands")
        return base

    def set_call(self, index: int, fd: int) -> None:
        self._ask("set_call", [fd] if fd >= 0 else [], index=index)

    def set_err(self, index: int, fd: int) -> None:
        self._ask("set_err", [fd] if fd >= 0 else [], index=index)

    def set_enabled(self, index: int, enabled: bool) -> None:
        self._ask("set_enabled", index=index, enabled=enabled)

    def reset(self) -> None:
        self._ask("reset")

    def shmem_sizes(self) -> Sequence[int]:
        """Region 0 is the window (virtio 1.3, section 5.11.6.2), region 1 the guest's versions."""
        if self._versions_size:
            return self._window_size, self._versions_size
        return (self._window_size,) if self._window_size else ()

    def set_backend_channel(self, fd: int) -> None:
        """The worker speaks there.  A front end that did not take SHMEM_MAP knows the older messages, if any."""
        assert self.back_end is not None
        taken = self.back_end.protocol_features
        older = not taken & m.PROTOCOL_F_SHMEM_MAP
        # QEMU takes this feature, crosvm does not.
        barriers = bool(taken & m.PROTOCOL_F_BACKEND_SEND_FD)
        try:
            self._ask("connect_back", [fd], older=older, barriers=barriers)
        finally:
            os.close(fd)

    def disconnected(self) -> None:
        """The worker ends with its connection."""
        self._forget_memory()
