# SPDX-License-Identifier: Apache-2.0
"""One queue, served by one thread until it is told to stop.

The thread takes a chain, serves it and gives it back before it takes the next, and sleeps only when the ring
is empty.  Each completion asks the guest's event index whether to notify; a guest that is still busy with
earlier replies is not disturbed.  The kick descriptor is watched edge-triggered, so that its counter never
has to be read: one system call for each sleep.
"""

import os

import cython
from cython.cimports.libc.errno import EINTR, ENOLCK, errno
from cython.cimports.libc.stdint import int64_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
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
from cython.cimports.virtiofs.fuse.request import WAIT, allocate, release
from cython.cimports.virtiofs.fuse.session import WAITING, Session
from cython.cimports.virtiofs.fuse.waiting import MOST_WAITING, Waiting, now, set_aside, take_up
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, store_release_u32
from cython.cimports.virtiofs.virtqueue.split import SplitQueue

# How long the loop sleeps, in milliseconds, before it asks waiting requests again: doubled each time in vain.
SHORTEST_PAUSE = cython.declare(cython.int, 1)
LONGEST_PAUSE = cython.declare(cython.int, 16)


@cython.cclass
class QueueLoop:
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
        self.pause = SHORTEST_PAUSE
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
        free(self.waiting)

    def run(self) -> str:
        """Serve until `stop`.  Returns why the ring is broken, or an empty string.  Runs without the GIL."""
        with cython.nogil:
            self.serve_until_stopped()
        return self.queue.reason

    def serve_available(self) -> int:
        """Serve what the ring holds now and return without sleeping.  Returns the number of requests.

        For a caller with a loop of its own, such as a fuzzer: no thread may be in `run`.  Requests that wait
        for a lock are asked again once.  `queue.reason` says whether the ring broke.
        """
        before: uint64_t = self.requests
        with cython.nogil:
            self.ask_again(self.drain() < 0)
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
        event: epoll_event
        while True:
            if self.drain() < 0:
                self.ask_again(True)
                return -1
            if load_acquire_u32(cython.address(self.stopping)):
                self.ask_again(True)
                return 0
            if self.waiting_count:
                self.ask_again(False)
            if load_acquire_u32(cython.address(self.enabled)) and self.queue.arm():
                continue
            if (
                epoll_wait(self.poll, cython.address(event), 1, self.pause if self.waiting_count else -1) < 0
                and errno != EINTR
            ):
                self.ask_again(True)
                return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self) -> cython.int:
        """Serve what is available, unless told to stop: 0, or -1 for a broken ring."""
        length: uint32_t
        found: cython.int
        while load_acquire_u32(cython.address(self.enabled)) and not load_acquire_u32(
            cython.address(self.stopping)
        ):
            found = self.queue.pop()
            if found <= 0:
                return found
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
            if length == WAITING:
                if self.hold():
                    continue
                length = self.session.finish(cython.address(self.request), -ENOLCK)
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

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hold(self) -> cython.bint:
        """Set the current request aside.  False if there are too many already."""
        if self.waiting == cython.NULL:
            self.waiting = cython.cast(cython.pointer(Waiting), calloc(MOST_WAITING, cython.sizeof(Waiting)))
        if self.waiting == cython.NULL or self.waiting_count == MOST_WAITING:
            return False
        set_aside(
            cython.address(self.waiting[self.waiting_count]),
            cython.address(self.request),
            self.queue.chain.head,
            now() + self.wait_limit,
            self.session.interrupts,
        )
        self.waiting_count += 1
        self.pause = SHORTEST_PAUSE
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ask_again(self, give_up: cython.bint) -> cython.void:
        """Ask the handler of each waiting request again, in the order they came; `give_up`: end them all."""
        i: uint32_t
        left: uint32_t = 0
        error: cython.int
        waiting: cython.pointer(Waiting)
        time: int64_t = now()
        for i in range(self.waiting_count):
            waiting = cython.address(self.waiting[i])
            take_up(waiting, cython.address(self.request))
            if give_up or self.session.was_interrupted(waiting.header.unique, waiting.interrupts):
                error = -EINTR
            else:
                error = self.session.again(cython.address(self.request))
            if error == WAIT and time >= waiting.deadline:
                error = -ENOLCK
            if error == WAIT:
                self.waiting[left] = waiting[0]
                left += 1
            else:
                self.complete(waiting.head, self.session.finish(cython.address(self.request), error))
        if left == self.waiting_count and self.pause < LONGEST_PAUSE:
            self.pause *= 2
        self.waiting_count = left
