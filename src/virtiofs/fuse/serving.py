# SPDX-License-Identifier: Apache-2.0
"""What every loop does that serves requests one after the other, wherever they come from: counting them, and setting
aside those that wait (waiting.py).

A loop counts by plain additions that readers may see a moment late.  Reading the clock twice costs 50 ns, more than
some requests' share of the work, so only every 17th request is timed; all are while somebody traces them.
"""

import cython
from cython.cimports.libc.errno import EINTR, EIO, ENOLCK
from cython.cimports.libc.stdint import int64_t, uint16_t, uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.virtiofs.fuse.request import OPCODES, WAIT, Request, allocate, release
from cython.cimports.virtiofs.fuse.tracing import Ring, put
from cython.cimports.virtiofs.fuse.waiting import MOST_WAITING, Waiting, now, set_aside, take_up

from virtiofs.fuse import abi

NAMES = {operation.opcode: operation.name for operation in abi.OPERATIONS}

UNKNOWN = "unknown"
COLUMNS = 3 + BUCKETS  # of a row of `Loop.counters`

# How long a loop sleeps, in milliseconds, before it asks waiting requests again: doubled each time in vain.
SHORTEST_PAUSE = cython.declare(cython.int, 1)
LONGEST_PAUSE = cython.declare(cython.int, 16)


@cython.cclass
class Loop:
    """Serves requests of `session`; a subclass takes them from somewhere and gives their replies back (`complete`).

    `wait_limit`: nanoseconds a request may wait for a lock before it is refused with ENOLCK.  Raises `MemoryError`.
    """

    def __cinit__(self, *args, **kwargs):
        self.pause = SHORTEST_PAUSE
        if not allocate(cython.address(self.request)):
            raise MemoryError

    def __dealloc__(self):
        release(cython.address(self.request))
        free(self.waiting)

    def counters(self) -> dict[str, list[int]]:
        """What was served so far, by operation: requests, errors, then the timed requests: nanoseconds, buckets.

        Bucket n counts the requests that took less than 1024 << n ns, the last one all others.  Operations that
        nobody asked for are left out; UNKNOWN stands for opcodes that have no name.
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
            name: str = NAMES.get(opcode, UNKNOWN)
            if name in found:
                row = [a + b for a, b in zip(found[name], row, strict=True)]
            found[name] = row
        return found

    def trace_to(self, ring: Ring | None, index: int) -> None:
        """Write each request into `ring` from now on, as one of queue `index`; None: no more.  From any thread.

        A thread may be about to write: the last ring stays mapped as long as this loop lives.
        """
        self.index = index
        if ring is not None:
            if self.ring is not None and self.ring is not ring:
                raise ValueError("a loop has one ring in its life")
            self.ring = ring
        self.trace = cython.NULL if ring is None else ring.trace

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def count(self, request: cython.pointer(Request)) -> cython.void:
        """Count a request that was served; one that had to wait counts when that is over."""
        opcode: uint32_t = request.header.opcode if request.header.opcode < OPCODES else 0
        self.counted.requests[opcode] += 1
        if request.error:
            self.counted.errors[opcode] += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def time(self, request: cython.pointer(Request), length: uint32_t, began: int64_t) -> cython.void:
        """Count how long a request took, which was taken at `began`, and write it down if somebody wants that."""
        opcode: uint32_t = request.header.opcode if request.header.opcode < OPCODES else 0
        took: int64_t = now() - began
        bound: int64_t = 1024
        bucket: cython.int = 0
        while took >= bound and bucket < BUCKETS - 1:
            bound <<= 1
            bucket += 1
        self.counted.nanoseconds[opcode] += took
        self.counted.buckets[opcode][bucket] += 1
        if self.trace != cython.NULL:
            put(self.trace, request, self.index, length, began, took)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hold(self, head: uint16_t) -> cython.bint:
        """Set the current request aside, known to `complete` as `head`.  False if there are too many already."""
        if self.waiting == cython.NULL:
            self.waiting = cython.cast(cython.pointer(Waiting), calloc(MOST_WAITING, cython.sizeof(Waiting)))
        if self.waiting == cython.NULL or self.waiting_count == MOST_WAITING:
            return False
        set_aside(
            cython.address(self.waiting[self.waiting_count]),
            cython.address(self.request),
            head,
            now() + self.wait_limit,
        )
        self.waiting_count += 1
        self.pause = SHORTEST_PAUSE
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(
        self, request: cython.pointer(Request), head: uint16_t, length: uint32_t, began: int64_t
    ) -> cython.void:
        """Count a request, its time as well unless `began` is 0, and give back what `head` stands for, with a reply of
        `length` bytes.
        """

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ask_again(self, give_up: cython.bint) -> cython.void:
        """Ask the handler of each waiting request again, in the order they came; `give_up`: end them all, with EIO.

        EINTR is for INTERRUPT alone: Linux makes ERESTARTSYS of it for a lock, on the word that a signal is pending.
        Without one a program gets that as errno 512.
        """
        i: uint32_t
        left: uint32_t = 0
        error: cython.int
        length: uint32_t
        waiting: cython.pointer(Waiting)
        began: int64_t
        time: int64_t = now()
        for i in range(self.waiting_count):
            waiting = cython.address(self.waiting[i])
            take_up(waiting, cython.address(self.request))
            if self.session.was_interrupted(waiting.header.unique):
                error = -EINTR
            elif give_up:
                error = -EIO
            else:
                error = self.session.again(cython.address(self.request))
            if error == WAIT and time >= waiting.deadline:
                error = -ENOLCK
            if error == WAIT:
                self.waiting[left] = waiting[0]
                left += 1
            else:
                length = self.session.finish(cython.address(self.request), error)
                if self.trace != cython.NULL:  # the time it waited is no time of ours, and not counted
                    began = waiting.deadline - self.wait_limit
                    put(self.trace, cython.address(self.request), self.index, length, began, time - began)
                self.complete(cython.address(self.request), waiting.head, length, 0)
        if left == self.waiting_count and self.pause < LONGEST_PAUSE:
            self.pause *= 2
        self.waiting_count = left
