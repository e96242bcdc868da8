# SPDX-License-Identifier: Apache-2.0
"""The last, partial page of a file.

QEMU maps nothing that passes the end of a file, not even within its last page (seen), and a guest reads zeros where
the window is empty.  So this page is a private one with a copy, mapped where the guest expects it.  Bytes that the
guest stored there go to the file, and bytes that others wrote to the file go there, whenever `sync` is called: before
each request that looks at the file or changes it, and when it is synced or closed.  Only bytes that changed are
written, so nobody's concurrent writes beside them are lost; in between, others do not see stores to this one page.
"""

from __future__ import annotations

import os

PAGE = 4096


class Tail:
    """The page at byte `start` of the file `fd`, which stays the caller's."""

    def __init__(self, fd: int, start: int):
        self.start = start
        self.fd = os.memfd_create("virtiofs-tail", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, PAGE)
            self._known = os.pread(fd, PAGE, start).ljust(PAGE, b"\0")
            os.pwrite(self.fd, self._known, 0)
        except BaseException:
            os.close(self.fd)
            raise

    def sync(self, fd: int) -> None:
        """Make the file and the page the same, as far as the file `fd` reaches.  Raises `OSError`."""
        there = os.pread(fd, PAGE, self.start)
        here = os.pread(self.fd, PAGE, 0)
        if here == self._known and there == self._known[: len(there)]:
            return
        known = self._known[: len(there)]
        for first, last in differences(known, here[: len(there)]):
            os.pwrite(fd, here[first:last], self.start + first)
        # What is beyond the end is not the file's; it reads as zeros should the file grow.
        there = there.ljust(PAGE, b"\0")
        merged = bytearray(here)
        merged[len(known) :] = bytes(PAGE - len(known))
        for first, last in differences(self._known, there):
            for i in range(first, last):
                if here[i] == self._known[i] or i >= len(known):
                    merged[i] = there[i]
        for first, last in differences(here, bytes(merged)):
            os.pwrite(self.fd, merged[first:last], first)
        self._known = bytes(merged)

    def close(self) -> None:
        os.close(self.fd)


def differences(one: bytes, other: bytes) -> list[tuple[int, int]]:
    """Where two byte strings of one length differ: first and one past the last of each run."""
    runs = []
    start = -1
    if one == other:
        return []
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b and start < 0:
            start = i
        elif a == b and start >= 0:
            runs.append((start, i))
            start = -1
    if start >= 0:
        runs.append((start, len(one)))
    return runs
