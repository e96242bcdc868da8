# SPDX-License-Identifier: Apache-2.0
"""The reading end of a trace (tracing.py): records out of shared memory that a worker writes.

The worker may be in a guest's hand, so nothing here is trusted to make sense.  The oracle: whatever the memory holds,
`read` returns at most a ring of records and a count of lost ones.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import NamedTuple

from virtiofs.fuse import abi

HEAD = 4096
RECORDS = 16384
NEXT = 64  # where the number of records ever written stands
LAYOUT = struct.Struct("=QQQQQqqQIIiIIIIIHHHH152s")
RING_BYTES = HEAD + RECORDS * LAYOUT.size
# How long a record that was begun may stay unfinished before it is given up.
PATIENCE_SECONDS = 1.0
OPERATIONS = {operation.opcode: operation.name for operation in abi.OPERATIONS}


class Record(NamedTuple):
    """One request that was served.  Times are nanoseconds, `began` on the monotonic clock; `error` is 0 or an errno."""

    unique: int
    nodeid: int
    child: int  # the node id that was answered, or 0
    target: int  # RENAME: the new directory; LINK: the file
    began: int
    took: int
    offset: int
    size: int
    opcode: int
    error: int
    uid: int
    gid: int
    pid: int
    length_in: int
    length_out: int
    queue: int
    names: tuple[bytes, ...]
    cut: bool  # the names did not fit

    @property
    def operation(self) -> str:
        return OPERATIONS.get(self.opcode, f"opcode {self.opcode}")


def decode(data: bytes) -> Record:
    """A record from its 256 bytes."""
    values = LAYOUT.unpack(data)
    sizes, text = values[17:19], values[20]
    names: list[bytes] = []
    position = 0
    for size in sizes:
        if size:
            names.append(text[position : position + size])
            position += size
    return Record._make([*values[1:10], -values[10], *values[11:17], tuple(names), position > len(text)])


class Reader:
    """What is written into the ring in `fd` from now on.  The descriptor stays the caller's.

    Raises `OSError` and `ValueError` for a file that is no ring.
    """

    def __init__(self, fd: int):
        self._memory = mmap.mmap(fd, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._next = self._claimed()
        self._stuck = 0.0  # since when the next record is not finished

    def close(self) -> None:
        self._memory.close()

    def _claimed(self) -> int:
        return int.from_bytes(self._memory[NEXT : NEXT + 8], "little")

    def read(self) -> tuple[list[Record], int]:
        """The records since the last call, in order, and how many were lost."""
        end = self._claimed()
        if end < self._next:
            self._next = end  # nobody who counts does that
        lost = max(0, end - self._next - RECORDS)
        self._next += lost
        found: list[Record] = []
        while self._next < end:
            at = HEAD + self._next % RECORDS * LAYOUT.size
            data = self._memory[at : at + LAYOUT.size]
            before = int.from_bytes(data[:8], "little")
            after = int.from_bytes(self._memory[at : at + 8], "little")
            if before == after == self._next + 1:
                found.append(decode(data))
            elif max(before, after) <= self._next and self._wait():
                break
            else:
                lost += 1
            self._stuck = 0.0
            self._next += 1
        return found, lost

    def _wait(self) -> bool:
        """Whether to wait some more for a record that somebody is writing."""
        now = time.monotonic()
        self._stuck = self._stuck or now
        return now - self._stuck < PATIENCE_SECONDS
