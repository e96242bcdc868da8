# SPDX-License-Identifier: Apache-2.0
"""The verdicts of names that were asked for lately: a table that is read without a lock.

A name can be in two places.  Each has a count that is odd while it is written; who finds another count after reading
than before has read nothing.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy
from cython.cimports.virtiofs.fs.policy.matcher import (
    KNOWN_NAMES,
    NAME_ROOM,
    NO_STATE,
    Known,
    Tables,
    Verdict,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u32,
    fence,
    load_acquire_u32,
    load_u32,
    store_release_u32,
    store_u32,
)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def hash_of(name: cython.pointer(cython.const[cython.char]), size: uint32_t) -> uint32_t:
    mixed: uint64_t = size
    part: uint64_t = 0
    at: uint32_t = 0
    while at + 8 <= size:
        memcpy(cython.address(part), name + at, 8)
        mixed = (mixed ^ part) * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
        mixed ^= mixed >> 29
        at += 8
    part = 0
    memcpy(cython.address(part), name + at, size - at)
    mixed = (mixed ^ part) * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    return mixed >> 32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def place_of(state: uint32_t, name: cython.pointer(cython.const[cython.char]), size: uint32_t) -> uint32_t:
    """The first of the two places where a name can be."""
    return (hash_of(name, size) ^ state * cython.cast(uint32_t, 0x9E3779B1)) & (KNOWN_NAMES - 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def recall(
    tables: cython.pointer(Tables),
    place: uint32_t,
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    verdict: cython.pointer(Verdict),
    below: cython.pointer(uint32_t),
) -> cython.bint:
    """What is kept of a name, if anything.  Whoever writes it meanwhile makes it not so."""
    way: uint32_t
    lock: uint32_t
    known: cython.pointer(Known)
    for way in range(2):
        known = cython.address(tables.known[place ^ way])
        lock = load_acquire_u32(cython.address(known.lock))
        if lock & 1 or lock == 0 or known.state != state or known.size != size or size > NAME_ROOM:
            continue
        if memcmp(known.name, name, size) != 0:
            continue
        verdict.file = known.file
        verdict.directory = known.directory
        below[0] = known.below
        fence()
        return load_u32(cython.address(known.lock)) == lock
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def remember(
    tables: cython.pointer(Tables),
    place: uint32_t,
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    verdict: cython.pointer(Verdict),
    below: uint32_t,
) -> cython.void:
    """Keep a verdict, in the place of the two that was written less often; not if somebody is writing there."""
    known: cython.pointer(Known) = cython.address(tables.known[place])
    other: cython.pointer(Known) = cython.address(tables.known[place ^ 1])
    lock: uint32_t
    if below != NO_STATE and other.size == size and memcmp(other.name, name, size) == 0:
        known = other  # it is there already, without the state
    elif load_u32(cython.address(other.lock)) < load_u32(cython.address(known.lock)):
        known = other
    lock = load_u32(cython.address(known.lock))
    if size > NAME_ROOM or lock & 1 or not cas_u32(cython.address(known.lock), lock, lock + 1):
        return
    fence()
    store_u32(cython.address(known.state), state)
    known.size = size
    known.file = verdict.file
    known.directory = verdict.directory
    known.below = below
    memcpy(known.name, name, size)
    # 0 is what was never written.
    store_release_u32(cython.address(known.lock), lock + 2 if lock + 2 else 2)
