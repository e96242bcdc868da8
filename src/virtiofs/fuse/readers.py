# SPDX-License-Identifier: Apache-2.0
"""How many of a mount's threads read requests: as few as keep up.

Linux gives a request to the thread that has waited longest.  With eight that wait, each request wakes another, on
another processor or at least with cold caches, while the one before is put to sleep: half as much again for a short
request.  So only the first `wanted` threads read.  The next one *stands by*: each millisecond, while there are
requests, it looks whether one lies there that nobody takes for a while, as all readers are in methods that wait, and
if so becomes a reader.  The last reader stands by again once it was not needed for some time.

While nothing happens nobody looks: whoever takes the next request calls the one that stands by.  If nothing
happens as all readers are in methods, that one waits for requests itself.
"""

import os

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.posix.unistd import close, read, usleep, write
from cython.cimports.virtiofs.fuse.events import POLLIN, poll, pollfd
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u32,
    fence_after_change,
    fetch_add_u64,
    load_acquire_u32,
    load_acquire_u64,
    store_release_u32,
)

# Milliseconds between two looks, and looks in vain until there are no more.
LOOK = cython.declare(cython.int, 1)
QUIET = cython.declare(cython.int, 16)
# How long a request lies there that is not being taken (microseconds).
UNTAKEN = cython.declare(cython.int, 100)
# Requests in a row for which a reader was not needed before it stands by.
SPARE = cython.declare(uint32_t, 64)


@cython.cclass
class Readers:
    """Places 0 to `count - 1`, each for one thread.  Raises `OSError` if there are no descriptors left."""

    def __cinit__(self, count: int):
        i: cython.int
        if not 1 <= count <= MOST_READERS:
            raise ValueError(f"1 to {MOST_READERS} threads read, not {count}")
        for i in range(MOST_READERS):
            self.places[i].bell = -1
        self.wanted = 1
        for i in range(count):
            self.places[i].bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.count = i + 1

    def __dealloc__(self):
        i: cython.int
        for i in range(self.count):
            close(self.places[i].bell)

    def reading(self) -> int:
        """How many read now."""
        return load_acquire_u32(cython.address(self.wanted))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ring(self, place: uint32_t) -> cython.void:
        """Wake the thread of a place if it stands by."""
        one: uint64_t = 1
        if place < self.count:
            write(self.places[place].bell, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reads(self, place: uint32_t) -> cython.bint:
        return place < load_acquire_u32(cython.address(self.wanted))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def took(self, place: uint32_t) -> cython.void:
        """A reader has a request."""
        store_release_u32(cython.address(self.places[place].busy), 1)
        fetch_add_u64(cython.address(self.places[place].taken), 1)
        fence_after_change()
        # Seen by us, or the one that falls asleep sees what we took.
        if load_acquire_u32(cython.address(self.asleep)) and cas_u32(cython.address(self.asleep), 1, 0):
            self.ring(load_acquire_u32(cython.address(self.wanted)))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gave(self, place: uint32_t, keep: cython.bint) -> cython.void:
        """A reader is done with a request; `keep`: it has to go on reading."""
        i: uint32_t
        free: cython.bint = False
        own: cython.pointer(Place) = cython.address(self.places[place])
        store_release_u32(cython.address(own.busy), 0)
        if place == 0 or place + 1 != load_acquire_u32(cython.address(self.wanted)):
            return
        for i in range(place):
            if not load_acquire_u32(cython.address(self.places[i].busy)):
                free = True
                break
        own.spare = own.spare + 1 if free else 0
        if own.spare >= SPARE and not keep:
            own.spare = 0
            cas_u32(cython.address(self.wanted), place + 1, place)
            self.ring(place + 1)  # which is not the next any more

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def all_taken(self) -> uint64_t:
        i: uint32_t
        total: uint64_t = 0
        for i in range(self.count):
            total += load_acquire_u64(cython.address(self.places[i].taken))
        return total

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def all_busy(self, place: uint32_t) -> cython.bint:
        i: uint32_t
        for i in range(place):
            if not load_acquire_u32(cython.address(self.places[i].busy)):
                return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def stand_by(self, place: uint32_t, fd: cython.int, stopping: cython.pointer(cython.int)) -> cython.void:
        """Return when the thread of `place` is to read from `fd`, or `stopping` is set and the bell was rung."""
        watched: pollfd[2]
        counter: uint64_t = 0
        total: uint64_t = self.all_taken()
        now: uint64_t
        quiet: cython.int = 0
        both: cython.bint
        pause: cython.int
        watched[0].fd = self.places[place].bell
        watched[0].events = POLLIN
        watched[1].fd = fd
        watched[1].events = POLLIN
        while not load_acquire_u32(stopping) and not self.reads(place):
            both = False
            pause = -1
            if place == load_acquire_u32(cython.address(self.wanted)):
                pause = LOOK
                if quiet >= QUIET:
                    pause = -1
                    both = self.all_busy(place)
                    if not both:
                        cas_u32(cython.address(self.asleep), 0, 1)
                        fence_after_change()
                        if self.all_taken() != total or self.all_busy(place):
                            pause = 0
            watched[0].revents = watched[1].revents = 0
            poll(watched, 2 if both else 1, pause)
            if pause <= 0 and place == load_acquire_u32(cython.address(self.wanted)):
                store_release_u32(cython.address(self.asleep), 0)
            if watched[0].revents:
                read(watched[0].fd, cython.address(counter), 8)
            if place != load_acquire_u32(cython.address(self.wanted)):
                continue
            now = self.all_taken()
            quiet = quiet + 1 if now == total else 0
            total = now
            if poll(cython.address(watched[1]), 1, 0) > 0:
                usleep(UNTAKEN)
                if self.all_taken() == total and poll(cython.address(watched[1]), 1, 0) > 0:
                    cas_u32(cython.address(self.wanted), place, place + 1)
                    self.ring(place + 1)  # which is the next now
