# SPDX-License-Identifier: Apache-2.0
"""Files whose rule follows them to every name they have: a hash by inode number, and what holds for each.

A file is known by device, inode number and birth time, so that a number that is used again means nothing.
"""

import cython
from cython.cimports.libc.errno import ENOMEM
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.virtiofs.fs.passthrough.descriptors import birth_of, device_of, known_mount
from cython.cimports.virtiofs.fs.passthrough.host import pthread_mutex_lock, pthread_mutex_unlock, statx_t
from cython.cimports.virtiofs.fs.passthrough.inodes import Store
from cython.cimports.virtiofs.fs.passthrough.marks import Policing, Ruled
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, store_release_u32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def place_of(policing: cython.pointer(Policing), ino: uint64_t, step: uint32_t) -> cython.pointer(Ruled):
    mixed: uint64_t = ino * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    return cython.address(policing.ruled[(cython.cast(uint32_t, mixed >> 32) + step) & policing.ruled_mask])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_place_of(place: cython.pointer(Ruled), dev: uint64_t, ino: uint64_t, born: int64_t) -> cython.bint:
    """Whether this is the file's.  Where one of the two has no birth time (`birth_of`), the number is enough."""
    return place.ino == ino and place.dev == dev and (place.born == born or place.born == 0 or born == 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ruled_verdict(
    policing: cython.pointer(Policing), dev: uint64_t, ino: uint64_t, born: int64_t
) -> uint64_t:
    """The rule that follows this file, or 0."""
    step: uint32_t = 0
    verdict: uint64_t = 0
    place: cython.pointer(Ruled)
    if load_acquire_u32(cython.address(policing.ruled_count)) == 0:
        return 0
    pthread_mutex_lock(cython.address(policing.lock))
    place = place_of(policing, ino, 0)
    while place.verdict:
        if is_place_of(place, dev, ino, born):
            verdict = place.verdict
            break
        step += 1
        place = place_of(policing, ino, step)
    pthread_mutex_unlock(cython.address(policing.lock))
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ruled_number(policing: cython.pointer(Policing), ino: uint64_t) -> cython.bint:
    """Whether some file of this inode number may have a rule of its own."""
    step: uint32_t = 0
    found: cython.bint = False
    place: cython.pointer(Ruled)
    if load_acquire_u32(cython.address(policing.ruled_count)) == 0:
        return False
    pthread_mutex_lock(cython.address(policing.lock))
    place = place_of(policing, ino, 0)
    while place.verdict and not found:
        found = place.ino == ino
        step += 1
        place = place_of(policing, ino, step)
    pthread_mutex_unlock(cython.address(policing.lock))
    return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rule_file(
    policing: cython.pointer(Policing),
    store: cython.pointer(Store),
    status: cython.pointer(statx_t),
    verdict: uint64_t,
) -> cython.int:
    """From now on `verdict` follows this file: 0 or -ENOMEM."""
    step: uint32_t = 0
    error: cython.int = 0
    dev: uint64_t = device_of(status)
    born: int64_t = birth_of(store, known_mount(store, status), status)
    place: cython.pointer(Ruled)
    pthread_mutex_lock(cython.address(policing.lock))
    place = place_of(policing, status.stx_ino, 0)
    while place.verdict and not is_place_of(place, dev, status.stx_ino, born):
        step += 1
        place = place_of(policing, status.stx_ino, step)
    if place.verdict | verdict != place.verdict:
        if place.verdict == 0 and policing.ruled_count > policing.ruled_mask // 2 and not grow(policing):
            error = -ENOMEM
        else:
            step = 0
            place = place_of(policing, status.stx_ino, 0)
            while place.verdict and not is_place_of(place, dev, status.stx_ino, born):
                step += 1
                place = place_of(policing, status.stx_ino, step)
            place.ino = status.stx_ino
            place.dev = dev
            place.born = born
            place.verdict |= verdict
            # Also if it only became stricter: marks are compared when this differs.
            store_release_u32(cython.address(policing.ruled_count), policing.ruled_count + 1)
    pthread_mutex_unlock(cython.address(policing.lock))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def grow(policing: cython.pointer(Policing)) -> cython.bint:
    """Twice as many places.  Under the lock."""
    old: cython.pointer(Ruled) = policing.ruled
    count: uint32_t = policing.ruled_mask + 1
    i: uint32_t
    step: uint32_t
    place: cython.pointer(Ruled)
    new: cython.pointer(Ruled) = cython.cast(
        cython.pointer(Ruled), calloc(2 * cython.cast(cython.size_t, count), cython.sizeof(Ruled))
    )
    if new == cython.NULL:
        return False
    policing.ruled = new
    policing.ruled_mask = 2 * count - 1
    for i in range(count):
        if old[i].verdict:
            step = 0
            while place_of(policing, old[i].ino, step).verdict:
                step += 1
            place = place_of(policing, old[i].ino, step)
            place[0] = old[i]
    free(old)
    return True
