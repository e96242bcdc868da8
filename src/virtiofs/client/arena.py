# SPDX-License-Identifier: Apache-2.0
"""Which parts of the guest memory of a device are in use: a first-fit allocator of addresses.

It never touches the memory itself, so what a device does to it can not harm the account.
"""

import bisect
import threading

PAGE = 4096


class Arena:
    """The free bytes of `ranges`, pairs of (address, length).  Safe for threads."""

    def __init__(self, ranges: list[tuple[int, int]]):
        self._free = sorted((start, start + length) for start, length in ranges if length > 0)
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Free bytes."""
        with self._lock:
            return sum(end - start for start, end in self._free)

    def take(self, length: int, align: int = 16) -> int:
        """The address of `length` free bytes, a multiple of `align`.  Raises `MemoryError` when there are
        none."""
        with self._lock:
            for i, (start, end) in enumerate(self._free):
                address = (start + align - 1) // align * align
                if address + length <= end:
                    rest = [(start, address), (address + length, end)]
                    self._free[i : i + 1] = [(low, high) for low, high in rest if low < high]
                    return address
        raise MemoryError(
            f"no {length} bytes left in the guest memory of the device; connect with more memory"
        )

    def give(self, address: int, length: int) -> None:
        """Return what `take` gave."""
        if length == 0:
            return
        with self._lock:
            start, end = address, address + length
            i = bisect.bisect(self._free, (start, end))
            if i < len(self._free) and self._free[i][0] == end:
                end = self._free.pop(i)[1]
            if i > 0 and self._free[i - 1][1] == start:
                start = self._free.pop(i - 1)[0]
                i -= 1
            self._free.insert(i, (start, end))
