# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF023  (the fields of a queue stand in the order one thinks of them)
"""What a back end drives: the `Device` that the daemon implements, and how a queue is described to it.

Descriptors.  Those of memory, log, in-flight buffer, device state and back-end channel become the device's,
also when its method raises.  Kick, call and err descriptors stay the back end's: the device borrows them
until the queue stops or another one is set, and duplicates (or sends to its worker) what it wants to keep
longer.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import ProtocolError, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtiofs.vhostuser.payloads import Inflight, Log, MemoryRegion

# What every device can offer: nothing of it needs more than the abstract methods of `Device`.
BASE_PROTOCOL_FEATURES = (
    m.PROTOCOL_F_MQ
    | m.PROTOCOL_F_REPLY_ACK
    | m.PROTOCOL_F_CONFIG
    | m.PROTOCOL_F_RESET_DEVICE
    | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | m.PROTOCOL_F_STATUS
)


class VringState(Value):
    """A queue as it is to be run.  A snapshot: the device may keep it.

    `desc`, `avail`, `used` are guest physical addresses, aligned, each area inside one memory region (packed
    rings: descriptor ring, driver and device event areas).  `size` is a power of two for split rings, at most
    32768.  `base` is the next available index (packed: both indexes and wrap bits, as on the wire).  `kick`,
    `call`, `err` are borrowed descriptors, -1 for none.  While `enabled` is false no request may be taken.
    `log` is the guest physical address under which writes to the used ring are logged, None for "do not".
    """

    __slots__ = ("size", "desc", "avail", "used", "base", "kick", "call", "err", "features", "enabled", "log")

    def __init__(
        self,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        kick: int,
        call: int,
        err: int,
        features: int,
        enabled: bool,
        log: int | None = None,
    ) -> None:
        self.size = size
        self.desc = desc
        self.avail = avail
        self.used = used
        self.base = base
        self.kick = kick
        self.call = call
        self.err = err
        self.features = features
        self.enabled = enabled
        self.log = log


class Device(ABC):
    """What a back end drives.  Methods may raise `OSError` or `ProtocolError`: then the request is refused.

    Queue methods are called for started queues only.  Whose descriptors are whose stands at the head of this
    file.
    """

    features: int = m.VIRTIO_F_VERSION_1
    """Virtio feature bits offered; the bit of the protocol features is added by the back end."""
    protocol_features: int = BASE_PROTOCOL_FEATURES
    """Protocol features offered, out of `KNOWN_PROTOCOL_FEATURES`; constant for the connection."""
    queue_count: int = 1
    """How many queues there are, at most 256."""

    @abstractmethod
    def config(self) -> bytes:
        """The whole configuration space, at most 256 bytes."""

    @abstractmethod
    def map_memory(self, regions: list[MemoryRegion], fds: list[int]) -> None:
        """Forget all guest memory and use these regions, each with its descriptor.  No queue runs meanwhile.

        The descriptors are the device's.  If this raises, no memory is left.
        """

    @abstractmethod
    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Use one more region; queues go on running.  The descriptor is the device's."""

    @abstractmethod
    def remove_memory(self, region: MemoryRegion) -> None:
        """Forget this region (one that was given before).  Queues whose rings lie elsewhere go on running."""

    @abstractmethod
    def start_queue(self, index: int, vring: VringState) -> None:
        """Run a queue: look at its available ring at once, without waiting for a kick."""

    @abstractmethod
    def stop_queue(self, index: int) -> int:
        """Finish the requests in flight, stop taking others, and return the next base (see `VringState`)."""

    @abstractmethod
    def set_call(self, index: int, fd: int) -> None:
        """Signal used requests through this descriptor from now on; -1: the driver polls."""

    @abstractmethod
    def set_err(self, index: int, fd: int) -> None:
        """Signal a broken ring through this descriptor from now on; -1: nobody listens."""

    @abstractmethod
    def set_enabled(self, index: int, enabled: bool) -> None:
        """Begin (then look at the available ring at once) or cease to take requests."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the driver: its session, its DAX mappings.  All queues were stopped before.

        Not every front end says so: QEMU 7.2 stops the queues of a rebooting guest, and starts them again, and
        that is all (seen).  There the INIT request of the next driver is the first sign.
        """

    @abstractmethod
    def disconnected(self) -> None:
        """The front end is gone: forget the driver and the memory.  All queues were stopped before."""

    def set_backend_channel(self, fd: int) -> None:
        """Speak to the front end through this socket, instead of one given before (BACKEND_REQ)."""
        os.close(fd)
        raise ProtocolError("this device has no use for a back-end channel")

    def set_log(self, log: Log, fd: int) -> None:
        """Log written pages here, instead of in a log given before (LOG_SHMFD)."""
        os.close(fd)
        raise ProtocolError("this device keeps no log")

    def set_log_eventfd(self, fd: int) -> None:
        """Signal this descriptor after logging (LOG_SHMFD)."""
        os.close(fd)
        raise ProtocolError("this device keeps no log")

    def set_logging(self, enabled: bool) -> None:
        """Log the pages that are written, or cease to: VHOST_F_LOG_ALL changed while queues run or not."""
        raise ProtocolError("this device keeps no log")

    def set_ring_log(self, index: int, log: int | None) -> None:
        """Log the writes to the used ring of a running queue; see `VringState.log`."""
        raise ProtocolError("this device keeps no log")

    def get_inflight(self, queues: int, size: int) -> tuple[Inflight, int]:
        """Make a zeroed buffer for `queues` queues of `size` entries; the descriptor becomes the caller's."""
        raise ProtocolError("this device keeps no record of requests in flight")

    def set_inflight(self, inflight: Inflight, fd: int) -> None:
        """Record requests in flight here; what stands there may be a dead predecessor's (INFLIGHT_SHMFD)."""
        os.close(fd)
        raise ProtocolError("this device keeps no record of requests in flight")

    def set_state_fd(self, direction: int, fd: int) -> int:
        """Write (STATE_SAVE) or read (STATE_LOAD) the device's state through a pipe.

        Returns -1, or a descriptor the front end is to use instead, which becomes the caller's.
        """
        os.close(fd)
        raise ProtocolError("this device cannot save its state")

    def check_state(self) -> None:
        """Return when the whole state was written or read; raise if that failed."""
        raise ProtocolError("this device cannot save its state")

    def shmem_sizes(self) -> Sequence[int]:
        """The sizes in bytes of the shared memory regions, by id; constant for the connection."""
        return ()
