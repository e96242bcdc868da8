# SPDX-License-Identifier: Apache-2.0
"""One queue, served by one thread until it is told to stop.

The thread takes a chain, serves it and gives it back before it takes the next, and sleeps only when the ring
is empty.  Each completion asks the guest's event index whether to notify; a guest that is still busy with
earlier replies is not disturbed.  Where kicks keep coming right after it fell asleep, it looks at the ring for a
moment before it sleeps (as KVM's halt polling does).  The kick descriptor is watched edge-triggered, so that its
counter never has to be read: one system call for each sleep.
"""

import os

import cython
from cython.cimports.libc.errno import EINTR, ENOLCK, errno
from cython.cimports.libc.stdint import int64_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
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
from cython.cimports.virtiofs.fuse.serving import BATCH, SAMPLED, Loop
from cython.cimports.virtiofs.fuse.session import LEFT, WAITING, Session
from cython.cimports.virtiofs.fuse.waiting import now
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, relax, store_release_u32
from cython.cimports.virtiofs.virtqueue.split import SplitQueue

# A sleep shorter than this, waking included, was hardly worth it: look at the ring for SPIN first, the next time (ns).
SHORT_SLEEP = cython.declare(int64_t, 50000)
SPIN = cython.declare(int64_t, 20000)
LONGEST_PENALTY = cython.declare(uint32_t, 4096)


@cython.cclass
class QueueLoop(Loop):
    """Serves `queue` with `session`.  `kick` and `call` are eventfds; -1 for `call` while there is none yet.
    `wait_limit`: seconds a request may wait for a lock before it is refused with ENOLCK.

    The loop takes both descriptors over and closes them when it is freed.  Raises `OSError` when the host is
    out of descriptors, `MemoryError` when it is out of memory.
    """

    def __cinit__(self, session: Session, queue: SplitQueue, kick: int, call: int, wait_limit: float = 600.0):
        event: epoll_event
        self.wake = self.poll = self.kick = self.call = -1
        self.open = True
        self.session = session
        self.queue = queue
        self.enabled = 1
        self.wait_limit = int(wait_limit * 1_000_000_000)
        self.penalty = 1
        self.kick = kick
        # There is always a descriptor to write to, so that a later one can take its number (see set_call).
        self.call = call if call >= 0 else os.eventfd(0)
        self.wake = os.eventfd(0)
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        if self.poll < 0:
            raise OSError(errno, "cannot watch a queue")
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

    def run(self) -> str:
        """Serve until `stop`.  Returns why the ring is broken, or an empty string.  Runs without the GIL."""
        with cython.nogil:
            self.serve_until_stopped()
        return self.queue.reason

    def serve_available(self) -> int:
        """Serve what the ring holds now and return without sleeping.  Returns the number of requests.

        For a caller with a loop of its own, such as a fuzzer: no thread may be in `run`.  Requests that wait
        for a lock are asked again.  `queue.reason` says whether the ring broke.
        """
        before: uint64_t = self.requests
        last: uint64_t
        broken: cython.bint = False
        with cython.nogil:
            while not broken:
                last = self.requests
                broken = self.drain() < 0
                self.ask_again(broken)
                if self.requests == last or not self.queue.available():
                    break
        return self.requests - before

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
        while True:
            if self.drain() < 0:
                self.ask_again(True)
                return -1
            if load_acquire_u32(cython.address(self.stopping)):
                self.ask_again(True)
                return 0
            if self.waiting_count:
                self.ask_again(False)
            if load_acquire_u32(cython.address(self.enabled)) and (
                (self.spinning and self.spin()) or self.queue.arm()
            ):
                continue
            if self.sleep() < 0:
                self.ask_again(True)
                return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def spin(self) -> cython.bint:
        """Look at the ring for SPIN nanoseconds: whether a chain came.

        Meanwhile the guest need not kick, and nobody has to be woken.  When none came, it was in vain: then it is
        not tried for a while, and for twice as long each time in a row.
        """
        _i: cython.int
        end: int64_t = now() + SPIN
        while not load_acquire_u32(cython.address(self.stopping)):
            for _i in range(32):
                if self.queue.available():
                    self.penalty = 1
                    return True
                relax()
            if now() >= end:
                break
        self.spinning = False
        self.patience = self.penalty
        if self.penalty < LONGEST_PENALTY:
            self.penalty *= 2
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self) -> cython.int:
        """Wait to be kicked or roused, or for the time to ask the waiting again: 0, or -1 if that failed."""
        event: epoll_event
        slept: int64_t = now()
        if epoll_wait(self.poll, cython.address(event), 1, self.pause if self.waiting_count else -1) < 0 and (
            errno != EINTR
        ):
            return -1
        slept = now() - slept
        if self.patience:
            self.patience -= 1
        elif slept < SHORT_SLEEP:
            self.spinning = True
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self) -> cython.int:
        """Serve what is available, unless told to stop: 0, or -1 for a broken ring.

        A ring that never runs empty may not keep those that wait for a lock from being asked again.
        """
        length: uint32_t
        served: uint32_t = 0
        found: cython.int
        began: int64_t = 0
        timed: cython.bint
        while load_acquire_u32(cython.address(self.enabled)) and not load_acquire_u32(
            cython.address(self.stopping)
        ):
            if self.waiting_count and served >= BATCH:
                return 0
            found = self.queue.pop()
            if found <= 0:
                return found
            served += 1
            timed = self.requests % SAMPLED == 0
            if timed:
                began = now()
            self.request.plain_in = self.queue.chain.readable_plain
            self.request.plain_out = self.queue.chain.writable_plain
            length = self.session.serve(
                cython.address(self.request),
                self.queue.chain.readable,
                self.queue.chain.readable_count,
                self.queue.chain.readable_bytes,
                self.queue.chain.writable,
                self.queue.chain.writable_count,
                self.queue.chain.writable_bytes,
            )
            if length == LEFT:
                self.queue.leave()
                continue
            self.requests += 1
            if length == WAITING:
                if self.hold(self.queue.chain.head):
                    continue
                length = self.session.finish(cython.address(self.request), -ENOLCK)
            self.count()
            if timed:
                self.time(began)
            self.complete(self.queue.chain.head, length)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(self, head: uint16_t, length: uint32_t) -> cython.void:
        """Give a chain back, and tell the guest if it asked to be told."""
        one: uint64_t = 1
        self.queue.push(head, length)
        if self.queue.notify_needed():
            write(self.call, cython.address(one), 8)
