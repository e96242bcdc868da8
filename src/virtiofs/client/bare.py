# SPDX-License-Identifier: Apache-2.0
"""The system call itself, without any daemon, for the rows that it is compared with: 1 MiB by preadv and pwritev.

At that size the interpreter around the call does not show; at 4 KiB it would, so there is no such row.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from virtiofs.client.figures import MIB, Measurement

NAMES = {"read": "bare preadv", "write": "bare pwritev"}
_FILES = {"read": ("data", os.O_RDONLY), "write": ("written", os.O_RDWR)}


def measure(kind: str, directory: Path, seconds: float) -> Measurement:
    """About `seconds` of sequential calls on the file that the workload of that `kind` goes through."""
    name, flags = _FILES[kind]
    fd = os.open(directory / name, flags)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            buffer.write(os.urandom(MIB))
            size = os.fstat(fd).st_size
            call = os.preadv if kind == "read" else os.pwritev
            call(fd, [buffer], 0)
            latencies = []
            used = time.process_time()
            begin = before = time.perf_counter()
            offset = 0
            while before - begin < seconds:
                if call(fd, [buffer], offset) != MIB:
                    raise OSError(f"{NAMES[kind]} of {name} moved less than asked")
                offset = (offset + MIB) % size
                now = time.perf_counter()
                latencies.append(now - before)
                before = now
            used = time.process_time() - used
    finally:
        os.close(fd)
    latencies.sort()
    count = len(latencies)
    p50, p99 = latencies[count // 2], latencies[min(count * 99 // 100, count - 1)]
    return Measurement(count, before - begin, p50, p99, used / count, 0.0, 0.0, 0.0, count * MIB)
