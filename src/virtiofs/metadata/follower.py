# SPDX-License-Identifier: Apache-2.0
"""Who follows the journal of a table: one change after another, asleep in between.  See `journal.py`."""

import time
from typing import NamedTuple

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.posix.time import timespec
from cython.cimports.virtiofs.metadata.journal import (
    FUTEX_WAIT,
    SYS_futex,
    View,
    boot_time,
    journal_read,
    mark_member,
    syscall,
    wake_all,
)
from cython.cimports.virtiofs.metadata.layout import EVERYTHING, NOBODY, TICKET_SHIFT, WRITER_MASK, Record
from cython.cimports.virtiofs.metadata.table import Table
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_acquire_u64

LONGEST = 3600.0


class Change(NamedTuple):
    """One change of the tree.  `kind`: `layout.ATTRIBUTES`, `DATA`, `ENTRY`, `GONE` or `EVERYTHING`.

    `dev, ino`: the inode, of the directory for names.  `child_dev, child_ino`: what the name leads to, or, for
    `GONE`, what was removed with its last name; 0 if that is unknown, or nothing.  `origin`: the member that made it;
    `time`: ns of CLOCK_BOOTTIME; `sequence`: its number in the journal, of what comes next for `EVERYTHING`, which
    says that changes were missed or could not be named.
    """

    sequence: int
    kind: int
    dev: int
    ino: int
    name: bytes
    child_dev: int
    child_ino: int
    origin: int
    time: int


@cython.cclass
class Follower:
    """Reads the changes that are made from now on.  One thread reads; any may `close`.

    A table that nobody follows writes no journal, so each change pays about 0.1 us for the first follower.
    """

    def __cinit__(self, table: Table):
        self.table = table
        self.lagged = 0
        self.open = True
        table.following += 1
        mark_member(table.view.header.followers, table.view.member, True)
        self.everything = load_acquire_u64(cython.address(table.view.header.everything))
        self.position = load_acquire_u64(cython.address(table.view.header.head))

    def __dealloc__(self):
        if self.open and self.table is not None:
            self.leave()

    @cython.cfunc
    @cython.exceptval(check=False)
    def leave(self) -> cython.void:
        self.open = False
        self.table.following -= 1
        if not self.table.following and self.table.fd != -2:
            mark_member(self.table.view.header.followers, self.table.view.member, False)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self) -> cython.int:
        """1: `self.record` is the next change; -1: start again; 0: there is none."""
        word: uint64_t
        found: cython.int
        while True:
            word = load_acquire_u64(cython.address(self.table.view.header.everything))
            if word != self.everything:
                found = -1
            else:
                found = journal_read(
                    cython.address(self.table.view), self.position, cython.address(self.record)
                )
            if found < 0:
                # In this order: who changes `everything` after we looked will be noticed the next time.
                self.everything = word
                self.position = load_acquire_u64(cython.address(self.table.view.header.head))
                return -1
            if not found:
                return 0
            self.position += 1
            if self.record.kind:  # what a dead member left behind is void
                return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self, nanoseconds: cython.long) -> cython.void:
        """Wait for somebody to raise `wake`, but not longer than that."""
        limit: timespec
        wake: uint32_t = load_acquire_u32(cython.address(self.table.view.header.wake))
        sequence: uint64_t
        # Whatever happens from here on raises `wake`; what happened before is looked for once more.
        if not self.open or self.table.fd == -2:
            return
        if load_acquire_u64(cython.address(self.table.view.header.everything)) != self.everything:
            return
        sequence = load_acquire_u64(
            cython.address(self.table.view.records[self.position & self.table.view.record_mask].sequence)
        )
        if sequence >> TICKET_SHIFT > self.position and sequence & WRITER_MASK == 0:
            return
        limit.tv_sec = nanoseconds // 1000000000
        limit.tv_nsec = nanoseconds % 1000000000
        syscall(
            SYS_futex,
            cython.address(self.table.view.header.wake),
            FUTEX_WAIT,
            wake,
            cython.address(limit),
            cython.NULL,
            0,
        )

    def next(self, timeout: float | None = None) -> Change | None:
        """The next change; None if there is none within `timeout` seconds (None: for ever), or after `close`.

        A change of kind `EVERYTHING` comes instead of any number that were missed.
        """
        table: Table = self.table
        view: cython.pointer(View) = cython.address(table.view)
        found: cython.int
        left: cython.long
        deadline: float = time.monotonic() + (LONGEST if timeout is None else min(timeout, LONGEST))
        while self.open and table.fd != -2:
            found = self.look()
            if found > 0:
                record: cython.pointer(Record) = cython.address(self.record)
                return Change(
                    self.position - 1,
                    record.kind,
                    record.dev,
                    record.ino,
                    cython.cast(cython.p_char, record.name)[: record.name_size],
                    record.child_dev,
                    record.child_ino,
                    record.origin,
                    record.time,
                )
            if found < 0:
                self.lagged += 1
                return Change(self.position, EVERYTHING, 0, 0, b"", 0, 0, NOBODY, boot_time())
            left = max(0, int((deadline - time.monotonic()) * 1e9))
            if left == 0:
                if timeout is None:
                    deadline = time.monotonic() + LONGEST
                    continue
                return None
            table.sleeping += 1
            mark_member(view.header.sleepers, view.member, True)
            try:
                with cython.nogil:
                    self.sleep(left)
            finally:
                table.sleeping -= 1
                if not table.sleeping and table.fd != -2:
                    mark_member(view.header.sleepers, view.member, False)
        return None

    def close(self) -> None:
        """Follow no more; a `next` in another thread returns None."""
        if self.open:
            self.leave()
            if self.table.fd != -2:
                wake_all(cython.address(self.table.view))
