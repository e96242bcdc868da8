# SPDX-License-Identifier: Apache-2.0
"""One queue, served by one thread until it is told to stop.

The thread takes a chain, serves it and gives it back before it takes the next, and sleeps only when the ring
is empty.  Each completion asks the guest's event index whether to notify; a guest that is still busy with
earlier replies is not disturbed.  The kick descriptor is watched edge-triggered, so that its counter never
has to be read: one system call for each sleep.

The thread counts what it serves, by plain additions that readers may see a moment late.  Reading the clock
twice costs 50 ns, more than some requests' share of the work, so only every 17th request is timed.
"""

import os

import cython
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
from cython.cimports.posix.unistd import close, dup2, write
from cython.cimports.virtiofs.fuse.events import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLET,
    EPOLLIN,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython.cimports.virtiofs.fuse.request import OPCODES, allocate, release
from cython.cimports.virtiofs.fuse.session import Session
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, store_release_u32
from cython.cimports.virtiofs.virtqueue.split import SplitQueue

from virtiofs.fuse import abi

NAMES = {operation.opcode: operation.name for operation in abi.OPERATIONS}


@cython.cclass
class QueueLoop:
    """Serves `queue` with `session`.  `kick` and `call` are eventfds; -1 for `call` while there is none yet.

    The loop takes both descriptors over and closes them when it is freed.  Raises `OSError` when the host is
    out of descriptors, `MemoryError` when it is out of memory.
    """

    def __cinit__(self, session: Session, queue: SplitQueue, kick: int, call: int):
        event: epoll_event
        self.wake = self.poll = self.kick = self.call = -1
        self.open = True
        self.session = session
        self.queue = queue
        self.enabled = 1
        self.kick = kick
        # There is always a descriptor to write to, so that a later one can take its number (see set_call).
        self.call = call if call >= 0 else os.eventfd(0)
        self.wake = os.eventfd(0)
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        if self.poll < 0:
            raise OSError(errno, "cannot watch a queue")
        if not allocate(cython.address(self.request)):
            raise MemoryError
        memset(cython.address(event), 0, cython.sizeof(epoll_event))
        event.events = EPOLLIN | EPOLLET
        for fd in (self.kick, self.wake):
            if epoll_ctl(self.poll, EPOLL_CTL_ADD, fd, cython.address(event)) != 0:
                raise OSError(errno, "cannot watch a queue's kick descriptor: is it an eventfd?")

    def __dealloc__(self):
        fd: cython.int
        for fd in (self.kick, self.call, self.wake, self.poll):
            if self.open and fd >= 0:
                close(fd)
        release(cython.address(self.request))

    def counters(self) -> dict[str, list[int]]:
        """What was served so far, by operation: requests, errors, then the timed requests: nanoseconds, buckets.

        Bucket n counts the requests that took less than 1024 << n ns, the last one all others.  Operations that
        nobody asked for are left out; "unknown" stands for opcodes that have no name.
        """
        found: dict = {}
        opcode: cython.int
        bucket: cython.int
        for opcode in range(OPCODES):
            if not self.counted.requests[opcode]:
                continue
            row: list = [
                self.counted.requests[opcode],
                self.counted.errors[opcode],
                self.counted.nanoseconds[opcode],
            ]
            for bucket in range(BUCKETS):
                row.append(self.counted.buckets[opcode][bucket])
            name: str = NAMES.get(opcode, "unknown")
            if name in found:
                row = [a + b for a, b in zip(found[name], row, strict=True)]
            found[name] = row
        return found

    def run(self) -> str:
        """Serve until `stop`.  Returns why the ring is broken, or an empty string.  Runs without the GIL."""
        with cython.nogil:
            self.serve_until_stopped()
        return self.queue.reason

    def stop(self) -> None:
        """Make `run` return once the request it is serving is done.  May be called from any thread."""
        store_release_u32(cython.address(self.stopping), 1)
        self.rouse()

    def rearm(self) -> None:
        """Make `run` serve again after `stop`.  Called while no thread is in `run`."""
        store_release_u32(cython.address(self.stopping), 0)

    def set_enabled(self, enabled: bool) -> None:
        """Take requests, or leave them in the ring (SET_VRING_ENABLE)."""
        store_release_u32(cython.address(self.enabled), 1 if enabled else 0)
        self.rouse()

    def set_call(self, fd: int) -> None:
        """Use another descriptor for notifications; `fd` stays the caller's.

        The new one takes the old one's number, as the thread may be about to write to it.
        """
        if dup2(fd, self.call) < 0:
            raise OSError(errno, "cannot replace a queue's call descriptor")

    @cython.cfunc
    def rouse(self) -> cython.void:
        one: uint64_t = 1
        write(self.wake, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve_until_stopped(self) -> cython.int:
        event: epoll_event
        while True:
            if self.drain() < 0:
                return -1
            if load_acquire_u32(cython.address(self.stopping)):
                return 0
            if load_acquire_u32(cython.address(self.enabled)) and self.queue.arm():
                continue
            if epoll_wait(self.poll, cython.address(event), 1, -1) < 0 and errno != EINTR:
                return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self) -> cython.int:
        """Serve what is available, unless told to stop: 0, or -1 for a broken ring."""
        length: cython.uint
        found: cython.int
        one: uint64_t = 1
        began: uint64_t = 0
        opcode: uint32_t
        timed: cython.bint
        while load_acquire_u32(cython.address(self.enabled)) and not load_acquire_u32(
            cython.address(self.stopping)
        ):
            found = self.queue.pop()
            if found <= 0:
                return found
            timed = self.requests % SAMPLED == 0
            if timed:
                began = now()
            length = self.session.serve(
                cython.address(self.request),
                self.queue.chain.readable,
                self.queue.chain.readable_count,
                self.queue.chain.readable_bytes,
                self.queue.chain.writable,
                self.queue.chain.writable_count,
                self.queue.chain.writable_bytes,
            )
            self.requests += 1
            opcode = self.request.header.opcode if self.request.header.opcode < OPCODES else 0
            self.counted.requests[opcode] += 1
            if self.request.error:
                self.counted.errors[opcode] += 1
            if timed:
                self.time(opcode, began)
            self.queue.push(self.queue.chain.head, length)
            if self.queue.notify_needed():
                write(self.call, cython.address(one), 8)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def time(self, opcode: uint32_t, began: uint64_t) -> cython.void:
        """Count how long a request took that was taken at `began`."""
        took: uint64_t = now() - began
        bound: uint64_t = 1024
        bucket: cython.int = 0
        while took >= bound and bucket < BUCKETS - 1:
            bound <<= 1
            bucket += 1
        self.counted.nanoseconds[opcode] += took
        self.counted.buckets[opcode][bucket] += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def now() -> uint64_t:
    """Nanoseconds of the monotonic clock."""
    clock: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(clock))
    return cython.cast(uint64_t, clock.tv_sec) * 1000000000 + clock.tv_nsec
