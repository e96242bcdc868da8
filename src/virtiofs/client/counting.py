# SPDX-License-Identifier: Apache-2.0
"""System calls of other processes, counted by the kernel (perf_event_open(2), tracepoint raw_syscalls:sys_enter).

Counting costs the counted little and stops them nowhere, unlike ptrace; it needs root (or CAP_PERFMON) and tracefs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
from collections.abc import Iterable
from pathlib import Path

NUMBERS = {"x86_64": 298, "aarch64": 241}  # of perf_event_open
EVENT = "events/raw_syscalls/sys_enter/id"
PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
PERF_TYPE_TRACEPOINT = 2
ATTRIBUTES_SIZE = 112  # PERF_ATTR_SIZE_VER5
DISABLED = 1 << 0
INHERIT = 1 << 1
FLAG_FD_CLOEXEC = 1 << 3
ENABLE, DISABLE = 0x2400, 0x2401  # PERF_EVENT_IOC_*


def _event_number() -> int | None:
    for place in PLACES:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(place, EVENT).read_text())
    return None


class SystemCalls:
    """Counts the system calls of all threads of `processes`, and of threads they start, while it is on.

    Raises `OSError` where the kernel does not count them for us.  A context manager: on inside; then `count`.
    """

    def __init__(self, processes: Iterable[int]):
        self.count = 0
        self._fds: list[int] = []
        event, number = _event_number(), NUMBERS.get(platform.machine())
        if event is None or number is None:
            raise OSError("no tracepoint raw_syscalls:sys_enter (is tracefs mounted, and are we root?)")
        fields = {0: PERF_TYPE_TRACEPOINT, 4: ATTRIBUTES_SIZE, 8: event, 40: DISABLED | INHERIT}
        attributes = ctypes.create_string_buffer(ATTRIBUTES_SIZE)
        for at, value in fields.items():
            ctypes.memmove(ctypes.addressof(attributes) + at, value.to_bytes(8, "little"), 4 if at < 8 else 8)
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            for pid in processes:
                for task in map(int, os.listdir(f"/proc/{pid}/task")):
                    fd = libc.syscall(number, attributes, task, -1, -1, ctypes.c_ulong(FLAG_FD_CLOEXEC))
                    if fd < 0:
                        raise OSError(
                            ctypes.get_errno(), f"perf_event_open: {os.strerror(ctypes.get_errno())}"
                        )
                    self._fds.append(fd)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> SystemCalls:
        for fd in self._fds:
            fcntl.ioctl(fd, ENABLE, 0)
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            fcntl.ioctl(fd, DISABLE, 0)
        self.count = sum(int.from_bytes(os.read(fd, 8), "little") for fd in self._fds)
        self._close()

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
