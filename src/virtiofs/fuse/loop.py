# SPDX-License-Identifier: Apache-2.0
"""One queue, served by one thread until it is told to stop.

The thread takes a chain, serves it and gives it back before it takes the next, and sleeps only when the ring is
empty.  Whether to notify is the guest's event index's to say: a guest that is still busy with earlier replies is not
disturbed.  One that has more requests in the ring is told of several replies together.  Where kicks keep coming right
after it fell asleep, it looks at the ring for a moment before it sleeps (docs/performance.md says how long, and what
that may cost).  The kick descriptor is watched edge-triggered, so that its counter never has to be read: one system
call for each sleep.

What would have to wait for a disk goes to the threads of a pool, if there is one; they give those chains back
themselves (see pool.py).
"""

import os

import cython
from cython.cimports.libc.errno import EINTR, ENOLCK, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
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
from cython.cimports.virtiofs.fuse.pool import (
    Finish,
    Job,
    Pool,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.virtiofs.fuse.request import OPCODES, Request
from cython.cimports.virtiofs.fuse.serving import BATCH, SAMPLED, Loop
from cython.cimports.virtiofs.fuse.session import BLOCKED, LEFT, WAITING, Session
from cython.cimports.virtiofs.fuse.waiting import now
from cython.cimports.virtiofs.virtqueue.atomics import (
    load_acquire_u16,
    load_acquire_u32,
    load_u32,
    relax,
    store_release_u32,
)
from cython.cimports.virtiofs.virtqueue.split import SplitQueue

from virtiofs.fuse import abi

# How long the loop looks at the ring before it sleeps (ns): as KVM's halt_poll_ns, doubled while that is too short for
# what comes, and given up after a sleep that no such look could have spared.
SHORTEST_SPAN = cython.declare(int64_t, 25000)
LONGEST_SPAN = cython.declare(int64_t, 100000)
# A chain that comes this soon after a look in vain came because the processor was given up (ns).
AT_ONCE = cython.declare(int64_t, 10000)
# Of all time, one part in so many may be spent looking in vain; and what may be saved up for that (ns).
SHARE = cython.declare(int64_t, 8)
MOST_ALLOWANCE = cython.declare(int64_t, 10000000)
# How long, at most, a guest that has more requests in the ring is left asleep over a finished one (ns), but for the one
# that is served when that time is over; those that may wait for storage are not begun before it is told.
LONGEST_DEBT = cython.declare(int64_t, 20000)
SLOW_NAMES = ("fsync", "fsyncdir", "syncfs", "flush", "fallocate", "copy_file_range", "copy_file_range_64")
SLOW = cython.declare(uint64_t, sum(1 << abi.BY_NAME[name].opcode for name in SLOW_NAMES))
# Asked before the walls are up: inside them there is no /sys to tell.
PROCESSORS = os.cpu_count() or 1
NEVER = cython.declare(uint32_t, 0xFFFFFFFF)  # as `patience`: where there is one processor only
LONGEST_PENALTY = cython.declare(uint32_t, 1024)


@cython.cclass
class QueueLoop(Loop):
    """Serves `queue` with `session`.  `kick` and `call` are eventfds; -1 for `call` while there is none yet.
    `wait_limit`: seconds a request may wait for a lock before it is refused with ENOLCK.  `pool`: who does what would
    block; without one the loop does it all itself.

    The loop takes both descriptors over and closes them when it is freed.  Raises `OSError` when the host is
    out of descriptors, `MemoryError` when it is out of memory.
    """

    def __cinit__(
        self,
        session: Session,
        queue: SplitQueue,
        kick: int,
        call: int,
        wait_limit: float = 600.0,
        pool: Pool = None,
    ):
        event: epoll_event
        pthread_mutex_init(cython.address(self.shared), cython.NULL)
        self.wake = self.poll = self.kick = self.call = -1
        self.open = True
        self.session = session
        self.queue = queue
        self.enabled = 1
        self.wait_limit = int(wait_limit * 1_000_000_000)
        self.penalty = 1
        self.patience = 0 if PROCESSORS > 1 else NEVER
        self.allowance = MOST_ALLOWANCE
        self.kick = kick
        # There is always a descriptor to write to, so that a later one can take its number (see set_call).
        self.call = call if call >= 0 else os.eventfd(0)
        self.wake = os.eventfd(0)
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        if self.poll < 0:
            raise OSError(errno, "cannot watch a queue")
        self.pool = pool
        self.request.no_wait = pool is not None
        memset(cython.address(event), 0, cython.sizeof(epoll_event))
        event.events = EPOLLIN | EPOLLET
        for fd in (self.kick, self.wake):
            event.data.u64 = fd
            if epoll_ctl(self.poll, EPOLL_CTL_ADD, fd, cython.address(event)) != 0:
                raise OSError(errno, "cannot watch a queue's kick descriptor: is it an eventfd?")

    def __dealloc__(self):
        fd: cython.int
        for fd in (self.kick, self.call, self.wake, self.poll):
            if self.open and fd >= 0:
                close(fd)
        pthread_mutex_destroy(cython.address(self.shared))

    def run(self) -> str:
        """Serve until `stop`.  Returns why the ring is broken, or an empty string.  Runs without the GIL.

        On return nothing is in flight: what waited for a lock was ended, what the pool had is done.
        """
        with cython.nogil:
            self.serve_until_stopped()
            self.ask_again(True)
            self.wait_for_jobs()
        return self.queue.reason

    @property
    def depth(self) -> int:
        """Chains in the ring that were not yet taken; 0 while none is to be."""
        return self.queue.depth() if load_acquire_u32(cython.address(self.enabled)) else 0

    def serve_available(self) -> int:
        """Serve what the ring holds now and return when that is done.  Returns the number of requests.

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
            self.wait_for_jobs()
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
                return -1
            if load_acquire_u32(cython.address(self.stopping)):
                return 0
            if self.waiting_count:
                self.ask_again(False)
            if load_acquire_u32(cython.address(self.enabled)) and (
                (self.span and self.spin()) or self.queue.arm()
            ):
                continue
            if self.sleep() < 0:
                return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def spin(self) -> cython.bint:
        """Look at the ring for `span` nanoseconds: whether a chain came.

        Meanwhile the guest need not kick, and nobody has to be woken.
        """
        _i: cython.int
        index: cython.pointer(uint8_t) = self.queue.avail + 2
        seen: uint16_t = self.queue.next_avail
        end: int64_t = now() + self.span
        self.looks += 1
        while not load_acquire_u32(cython.address(self.stopping)):
            for _i in range(32):
                if load_acquire_u16(index) != seen:
                    self.penalty = 1
                    return True
                relax()
            if now() >= end:
                break
        self.vain = True
        self.vain_looks += 1
        self.allowance -= self.span
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self) -> cython.int:
        """Wait to be kicked or roused, or for the time to ask the waiting again: 0, or -1 if that failed."""
        event: epoll_event
        began: int64_t = now()
        found: cython.int = epoll_wait(
            self.poll, cython.address(event), 1, self.pause if self.waiting_count else -1
        )
        if found < 0 and errno != EINTR:
            return -1
        self.sleeps += 1
        if found > 0 and event.data.u64 == cython.cast(uint64_t, self.kick):
            self.kicks += 1
        self.learn(began)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def learn(self, began: int64_t) -> cython.void:
        """After a sleep that began then: how long to look at the ring before the next.

        A chain that comes at once after a look in vain means that the guest can not run while we look, as on one
        processor.  Then, and where even the longest is too short, it is not tried for a while, and for twice as long
        each time in a row.
        """
        time: int64_t = now()
        self.allowance += (time - self.accounted) // SHARE
        if self.allowance > MOST_ALLOWANCE:
            self.allowance = MOST_ALLOWANCE
        self.accounted = time
        if self.patience:
            if self.patience != NEVER:
                self.patience -= 1
        elif time - began > LONGEST_SPAN:
            self.span = 0
        elif self.vain and (self.span == LONGEST_SPAN or time - began < AT_ONCE):
            self.span = 0
            self.patience = self.penalty
            if self.penalty < LONGEST_PENALTY:
                self.penalty *= 2
        elif self.span < LONGEST_SPAN:
            self.span = 2 * self.span if self.span else SHORTEST_SPAN
        self.vain = False
        if self.allowance < self.span:
            self.span = 0

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
        began: int64_t
        while load_acquire_u32(cython.address(self.enabled)) and not load_acquire_u32(
            cython.address(self.stopping)
        ):
            if self.waiting_count and served >= BATCH:
                break
            found = self.queue.pop()
            if self.owing and (found <= 0 or self.takes_long()):
                self.notify()
            if found <= 0:
                return found
            served += 1
            began = now() if self.requests % SAMPLED == 0 or self.trace != cython.NULL else 0
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
            elif length == BLOCKED:
                if self.hand_over(began):
                    continue
                if self.owing:
                    self.notify()
                length = self.serve_waiting()
            self.give_back(cython.address(self.request), self.queue.chain.head, length, began)
            if not self.may_owe():
                self.notify()
        if self.owing:
            self.notify()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def may_owe(self) -> cython.bint:
        """Whether telling the guest of the chain that was just given back can wait for the next one.

        The guest sees the chain if it looks; this is about waking it.  A guest with one request in flight is told at
        once, and one with many for several together, up to LONGEST_DEBT after the first.
        """
        if not self.queue.available():
            return False
        if not self.owing:
            self.owing = True
            self.owing_since = now()
            return True
        return now() - self.owing_since < LONGEST_DEBT

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hand_over(self, began: int64_t) -> cython.bint:
        """Have the pool do the current request.  False if it can not."""
        return self.pool.take(
            cython.address(self.request),
            self.queue.chain.head,
            began,
            cython.cast(Finish, perform),
            cython.cast(cython.pointer(PyObject), self),
            cython.address(self.outstanding),
        )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def takes_long(self) -> cython.bint:
        """Whether the chain just taken seems to hold a request that waits for storage.

        Only a guess, by guest memory that may change: the request itself is copied and checked later.
        """
        opcode: uint32_t
        if not self.queue.chain.readable_count or self.queue.chain.readable[0].iov_len < 8:
            return False
        opcode = load_u32(cython.cast(cython.pointer(uint8_t), self.queue.chain.readable[0].iov_base) + 4)
        return opcode < OPCODES and SLOW >> opcode & 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve_waiting(self) -> uint32_t:
        """Serve the current request, which would block, all the same.  Returns the bytes written."""
        length: uint32_t
        self.request.no_wait = False
        length = self.session.finish(
            cython.address(self.request), self.session.again(cython.address(self.request))
        )
        self.request.no_wait = True
        return length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wait_for_jobs(self) -> cython.void:
        """Wait until the pool has done what it has of this queue."""
        if self.pool is not None:
            self.pool.wait_for(cython.address(self.outstanding))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give_back(
        self, request: cython.pointer(Request), head: uint16_t, length: uint32_t, began: int64_t
    ) -> cython.void:
        """Count a request and give its chain back, without telling the guest.

        The queue's own thread needs the lock only while the pool has jobs of it: nobody but that thread adds any.
        """
        shared: cython.bint = load_acquire_u32(cython.address(self.outstanding)) != 0
        if shared:
            pthread_mutex_lock(cython.address(self.shared))
        self.count(request)
        if began:
            self.time(request, length, began)
        self.queue.push(head, length)
        if shared:
            pthread_mutex_unlock(cython.address(self.shared))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(
        self, request: cython.pointer(Request), head: uint16_t, length: uint32_t, began: int64_t
    ) -> cython.void:
        """Count a request, give its chain back, and tell the guest if it asked to be told.  On any thread."""
        self.give_back(request, head, length, began)
        self.tell()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def notify(self) -> cython.void:
        """Tell the guest of all that this thread gave back since the last time."""
        self.owing = False
        self.tell()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def tell(self) -> cython.void:
        """Tell the guest of all that was given back since it was last told, if it asked to be.  On any thread."""
        one: uint64_t = 1
        needed: cython.bint
        shared: cython.bint = load_acquire_u32(cython.address(self.outstanding)) != 0
        if shared:
            pthread_mutex_lock(cython.address(self.shared))
        needed = self.queue.notify_needed()
        self.notifications += needed
        if shared:
            pthread_mutex_unlock(cython.address(self.shared))
        if needed:
            write(self.call, cython.address(one), 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def perform(loop: QueueLoop, job: cython.pointer(Job)) -> cython.void:
    """Do a job of a queue, on a thread of the pool.  It counts as outstanding until this returns."""
    request: cython.pointer(Request) = cython.address(job.request)
    length: uint32_t = loop.session.finish(request, loop.session.again(request))
    loop.complete(request, job.head, length, job.began)
