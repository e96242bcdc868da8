# SPDX-License-Identifier: Apache-2.0
"""Life and death of a numbered record that many threads use: one 64-bit word, changed by compare-and-swap
only.

    bits 32-63   generation: raised when the record is given to something new, so that an old number is
    noticed bit 30       LIVE: the guest may name it bit 29       EVICTING: its descriptor is being taken
    away; wait a moment bits 0-28    references: one for being live, one for each request that uses it

A guest decides when a record stops being live (FORGET, RELEASE); it is freed when the last request lets go of
it.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.host import sched_yield
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u64,
    fetch_add_u64,
    fetch_sub_u64,
    load_acquire_u64,
)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_pin(word: cython.pointer(uint64_t), generation: uint32_t) -> cython.bint:
    """Take a reference, if the record is live and of this generation."""
    old: uint64_t
    while True:
        old = load_acquire_u64(word)
        if not old & SLOT_LIVE or old >> 32 != generation:
            return False
        if old & SLOT_EVICTING or old & SLOT_REFERENCES == SLOT_REFERENCES:
            sched_yield()
        elif cas_u64(word, old, old + 1):
            return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_unpin(word: cython.pointer(uint64_t)) -> cython.bint:
    """Let go of a reference.  True if it was the last: then the caller frees the record."""
    return fetch_sub_u64(word, 1) & SLOT_REFERENCES == 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_open(word: cython.pointer(uint64_t)) -> cython.void:
    """Make a free record live.  Its fields must be complete."""
    fetch_add_u64(word, SLOT_LIVE | 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_close(word: cython.pointer(uint64_t)) -> cython.void:
    """End a live record; the caller then drops the reference that being live was worth.

    The caller must see to it that this happens once.
    """
    fetch_sub_u64(word, SLOT_LIVE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_renew(word: cython.pointer(uint64_t)) -> cython.void:
    """Give a dead record its next generation."""
    fetch_add_u64(word, cython.cast(uint64_t, 1) << 32)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_begin_evict(word: cython.pointer(uint64_t)) -> cython.bint:
    """Keep new users out, if there are none now."""
    old: uint64_t = load_acquire_u64(word)
    if old & (SLOT_LIVE | SLOT_EVICTING | SLOT_REFERENCES) != SLOT_LIVE | 1:
        return False
    return cas_u64(word, old, old | SLOT_EVICTING)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_end_evict(word: cython.pointer(uint64_t)) -> cython.void:
    fetch_sub_u64(word, SLOT_EVICTING)
