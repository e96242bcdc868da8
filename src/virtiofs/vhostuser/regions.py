# SPDX-License-Identifier: Apache-2.0
"""The guest memory a front end told us of, as numbers: nothing is mapped here.

Each region has two addresses.  Guest physical ones stand inside the rings; the front end's own (user
addresses) stand in SET_VRING_ADDR, and only there.  This table turns the second into the first.

Guest physical ranges may not overlap: a guest address must mean one byte.  User ranges may: a VMM can show
the guest the same memory twice, and then either answer is right.
"""

from __future__ import annotations

from virtiofs.vhostuser.payloads import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from virtiofs.vhostuser.payloads import MemoryRegion

# GET_MAX_MEM_SLOTS, as rust-vmm answers; QEMU heeds it for RAM only, and shows each mapping of a DAX window
# as one more region, so what is accepted is more.
MAX_MEM_SLOTS = 509
MAX_REGIONS = 2 * 1024

ADDRESS_END = 1 << 64
OFFSET_END = 1 << 63  # off_t


def _describe(region: MemoryRegion) -> str:
    return f"memory region {region.guest_phys:#x}+{region.size:#x}"


def _same(one: MemoryRegion, other: MemoryRegion) -> bool:
    """Whether REM_MEM_REG means this region; QEMU leaves the mmap offset 0 there, so it does not count."""
    return (one.guest_phys, one.user_addr, one.size) == (other.guest_phys, other.user_addr, other.size)


class RegionTable:
    """The regions in force, in the order they came.  Every error is a `ProtocolError` and changes nothing."""

    __slots__ = ("_regions",)

    def __init__(self, regions: Iterable[MemoryRegion] = ()) -> None:
        self._regions: list[MemoryRegion] = []
        for region in regions:
            self.add(region)

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[MemoryRegion]:
        return iter(self._regions)

    def check(self, region: MemoryRegion) -> None:
        """Refuse a region that is empty, wraps around, overlaps another one, or is one too many."""
        if region.size == 0:
            raise ProtocolError(f"{_describe(region)} is empty")
        if max(region.guest_phys, region.user_addr) + region.size > ADDRESS_END:
            raise ProtocolError(f"{_describe(region)} goes past the end of the address space")
        if region.mmap_offset + region.size > OFFSET_END:
            raise ProtocolError(
                f"{_describe(region)} goes past the end of any file (offset {region.mmap_offset:#x})"
            )
        if len(self._regions) >= MAX_REGIONS:
            raise ProtocolError(f"more than {MAX_REGIONS} memory regions")
        for other in self._regions:
            if (
                region.guest_phys < other.guest_phys + other.size
                and other.guest_phys < region.guest_phys + region.size
            ):
                raise ProtocolError(f"{_describe(region)} overlaps {_describe(other)}")

    def add(self, region: MemoryRegion) -> None:
        self.check(region)
        self._regions.append(region)

    def find(self, wanted: MemoryRegion) -> MemoryRegion:
        """The region with the guest address, user address and size of `wanted`."""
        for region in self._regions:
            if _same(region, wanted):
                return region
        raise ProtocolError(f"{_describe(wanted)} at user address {wanted.user_addr:#x} is not known")

    def remove(self, region: MemoryRegion) -> None:
        self._regions.remove(self.find(region))

    def guest_address(self, user_addr: int, length: int) -> int:
        """The guest physical address of `length` bytes at `user_addr`, all in one region."""
        region = self.holding(user_addr, length)
        return region.guest_phys + user_addr - region.user_addr

    def holding(self, user_addr: int, length: int) -> MemoryRegion:
        """The region in which all of `length` bytes at `user_addr` lie."""
        for region in self._regions:
            offset = user_addr - region.user_addr
            if offset >= 0 and offset + length <= region.size:
                return region
        raise ProtocolError(
            f"user address {user_addr:#x}+{length:#x} is not in one of {len(self._regions)} memory regions; "
            "is all of the guest's memory shared?"
        )
