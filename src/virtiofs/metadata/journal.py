# SPDX-License-Identifier: Apache-2.0
"""The ring of changes: written by every member at the end of a change, read by those who follow.

A writer draws a ticket, which says which record is its own, and takes that record by compare-and-swap of its
`sequence` from whatever an earlier lap published to "ticket, written by member m"; when the record is complete
it publishes "ticket".  If the record can not be taken, because its writer of an earlier lap is still at it or we were
overtaken by a whole lap ourselves, the writer changes the word `everything` instead: no one ever waits for another.

A reader copies a record and looks at `sequence` before and after, as with a seqlock.  The record it wants holds
its ticket (read it), a lower one or a writer (not yet: sleep), or a higher one (the reader was lapped: all it
knows is out of date).  A ticket that never comes, since its owner died or could not take the record, is always
followed by a change of `everything`, by the owner or by whoever tidies up after it; so no reader is stuck.

Sleeping is Dekker's handshake: the reader says that it sleeps, full fence, looks once more, sleeps if `wake` is
still what it was before; the writer publishes, full fence, looks for sleepers and raises `wake`.  One of the two
sees the other.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import timespec
from cython.cimports.virtiofs.metadata.layout import (
    MEMBERS,
    NAME,
    RECORDS,
    TICKET_SHIFT,
    VERSION_SHIFT,
    WRITER_MASK,
    Record,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u64,
    fence,
    fence_after_change,
    fetch_add_u32,
    fetch_add_u64,
    fetch_and_u64,
    fetch_or_u64,
    load_acquire_u64,
    load_u64,
    store_release_u64,
    store_u64,
)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def boot_time() -> uint64_t:
    """Nanoseconds of CLOCK_BOOTTIME: one clock for all processes, which nobody sets."""
    time: timespec
    clock_gettime(CLOCK_BOOTTIME, cython.address(time))
    return cython.cast(uint64_t, time.tv_sec) * 1000000000 + time.tv_nsec


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def any_member(mask: cython.pointer(uint64_t)) -> cython.bint:
    i: cython.int
    found: uint64_t = 0
    for i in range(MEMBERS // 64):
        found |= load_u64(mask + i)
    return found != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mark_member(mask: cython.pointer(uint64_t), member: uint32_t, on: cython.bint) -> cython.void:
    bit: uint64_t = cython.cast(uint64_t, 1) << (member % 64)
    if on:
        fetch_or_u64(mask + member // 64, bit)
    else:
        fetch_and_u64(mask + member // 64, ~bit)
    fence_after_change()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wake_sleepers(view: cython.pointer(View)) -> cython.void:
    fence()
    if any_member(view.header.sleepers):
        wake_all(view)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wake_all(view: cython.pointer(View)) -> cython.void:
    fetch_add_u32(cython.address(view.header.wake), 1)
    syscall(SYS_futex, cython.address(view.header.wake), FUTEX_WAKE, 0x7FFFFFFF, cython.NULL, cython.NULL, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_everything(view: cython.pointer(View)) -> cython.void:
    """Say that nothing which anybody knew before holds."""
    store_u64(cython.address(view.header.everything_at), boot_time())
    fetch_add_u64(cython.address(view.header.everything), cython.cast(uint64_t, 1) << VERSION_SHIFT)
    wake_sleepers(view)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def journal_write(
    view: cython.pointer(View), change: cython.pointer(Change), word: uint64_t, time: uint64_t
) -> cython.void:
    ticket: uint64_t = fetch_add_u64(cython.address(view.header.head), 1)
    record: cython.pointer(Record) = view.records + (ticket & view.record_mask)
    sequence: cython.pointer(uint64_t) = cython.address(record.sequence)
    old: uint64_t = load_acquire_u64(sequence)
    if (
        old & WRITER_MASK
        or old >> TICKET_SHIFT > ticket
        or not cas_u64(sequence, old, (ticket + 1) << TICKET_SHIFT | (view.member + 1))
    ):
        change_everything(view)
        return
    fence_after_change()  # nothing of what follows is seen before the record is known to be in the making
    record.dev = change.dev
    record.ino = change.ino
    record.child_dev = change.child_dev
    record.child_ino = change.child_ino
    record.time = time
    record.word = word
    record.kind = change.kind
    record.origin = view.member
    record.name_size = change.name_size
    memcpy(record.name, change.name, change.name_size)
    store_release_u64(sequence, (ticket + 1) << TICKET_SHIFT)
    wake_sleepers(view)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def journal_read(view: cython.pointer(View), ticket: uint64_t, copy: cython.pointer(Record)) -> cython.int:
    """Copy the record of `ticket`: 1; 0 if it is not there yet, -1 if it was overwritten."""
    record: cython.pointer(Record) = view.records + (ticket & view.record_mask)
    sequence: uint64_t = load_acquire_u64(cython.address(record.sequence))
    if sequence >> TICKET_SHIFT > ticket + 1:
        return -1
    if sequence != (ticket + 1) << TICKET_SHIFT:
        return 0
    memcpy(copy, record, cython.sizeof(Record))
    fence()
    if load_u64(cython.address(record.sequence)) != sequence:
        return -1
    if copy.name_size > NAME:
        copy.name_size = NAME
    return 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def journal_void(view: cython.pointer(View), member: uint32_t) -> cython.bint:
    """Publish what a dead member was writing as void.  Whether there was any."""
    i: uint64_t
    sequence: uint64_t
    found: cython.bint = False
    for i in range(RECORDS):
        sequence = load_acquire_u64(cython.address(view.records[i].sequence))
        if sequence & WRITER_MASK == member + 1:
            view.records[i].kind = 0
            store_release_u64(
                cython.address(view.records[i].sequence), sequence & ~cython.cast(uint64_t, WRITER_MASK)
            )
            found = True
    return found
