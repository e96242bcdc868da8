# SPDX-License-Identifier: Apache-2.0
"""One queue as the front end described it, piece by piece, and whether that can be run.

Source for sizes and alignments: virtio 1.3, sections 2.7 (split) and 2.8 (packed virtqueues).
"""

from __future__ import annotations

import os

from virtiofs.vhostuser.device import VringState
from virtiofs.vhostuser.messages import MAX_VRING_SIZE, VIRTIO_F_RING_PACKED
from virtiofs.vhostuser.payloads import VRING_F_LOG, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.vhostuser.payloads import VringAddr
    from virtiofs.vhostuser.regions import RegionTable

HOW_TO_SHARE = (
    "start the VM with a shared memory backend "
    "(QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem)"
)
NO_MEMORY = f"the front end shared no guest memory; {HOW_TO_SHARE}"

# Each area of a ring: what it is called, its field, its alignment, its bytes for each entry, its other bytes.
SPLIT_AREAS = (
    ("descriptor table", "desc", 16, 16, 0),
    ("available ring", "avail", 2, 2, 6),
    ("used ring", "used", 4, 8, 6),
)
PACKED_AREAS = (
    ("descriptor ring", "desc", 16, 16, 0),
    ("driver event area", "avail", 4, 0, 4),
    ("device event area", "used", 4, 0, 4),
)


def check_size(size: int, features: int) -> None:
    """Raise `ProtocolError` unless a ring may have `size` entries."""
    if not 1 <= size <= MAX_VRING_SIZE:
        raise ProtocolError(f"a ring of {size} entries; 1 to {MAX_VRING_SIZE} are allowed")
    if size & (size - 1) and not features & VIRTIO_F_RING_PACKED:
        raise ProtocolError(f"a split ring of {size} entries, which is no power of two")


def check_base(base: int, features: int) -> None:
    """Raise `ProtocolError` unless `base` can be the position of a ring: 16 bits if it is split."""
    if base > 0xFFFF and not features & VIRTIO_F_RING_PACKED:
        raise ProtocolError(f"base {base:#x} of a split ring does not fit in 16 bits")


def log_address(address: VringAddr | None) -> int | None:
    """Where writes to the used ring are to be logged: a guest physical address, or None for "do not"."""
    return address.log if address is not None and address.flags & VRING_F_LOG else None


class Ring:
    """What the front end said of one queue.  The three descriptors are owned; -1 for none."""

    __slots__ = ("address", "base", "call", "enabled", "err", "index", "kick", "size", "started")

    def __init__(self, index: int) -> None:
        self.index = index
        self.kick = self.call = self.err = -1
        self.enabled = False
        self.forget()

    def forget(self) -> None:
        """Back to the state before the driver set this queue up; the descriptors stay."""
        self.size = 0
        self.base = 0
        self.address: VringAddr | None = None
        self.started = False

    def replace(self, which: str, fd: int) -> None:
        """Own `fd` as the `which` descriptor and close the one before."""
        before = getattr(self, which)
        setattr(self, which, fd)
        if before >= 0:
            os.close(before)

    def areas(self, features: int, regions: RegionTable) -> tuple[int, int, int]:
        """The guest physical addresses of the three areas: desc, avail, used.

        Raises `ProtocolError` if this ring cannot run: something is missing, or an area is not aligned or not
        wholly inside one memory region.
        """
        if not regions:
            raise ProtocolError(NO_MEMORY)
        if self.size == 0 or self.address is None:
            missing = "SET_VRING_NUM" if self.size == 0 else "SET_VRING_ADDR"
            raise ProtocolError(f"queue {self.index} had no {missing} yet")
        check_size(self.size, features)
        check_base(self.base, features)
        found = []
        for name, field, alignment, per_entry, more in (
            PACKED_AREAS if features & VIRTIO_F_RING_PACKED else SPLIT_AREAS
        ):
            address = regions.guest_address(getattr(self.address, field), per_entry * self.size + more)
            if address % alignment:
                raise ProtocolError(
                    f"{name} of queue {self.index} at {address:#x}: not aligned to {alignment}"
                )
            found.append(address)
        desc, avail, used = found
        return desc, avail, used

    def state(self, features: int, regions: RegionTable) -> VringState:
        """This ring as a device is told to run it.  Raises `ProtocolError` as `areas` does."""
        desc, avail, used = self.areas(features, regions)
        return VringState(
            size=self.size,
            desc=desc,
            avail=avail,
            used=used,
            base=self.base,
            kick=self.kick,
            call=self.call,
            err=self.err,
            features=features,
            enabled=self.enabled,
            log=log_address(self.address),
        )
