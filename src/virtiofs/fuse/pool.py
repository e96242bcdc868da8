# SPDX-License-Identifier: Apache-2.0
"""Threads for requests that would block, so that a queue goes on with the others.

A handler that is asked not to wait (`request.no_wait`) and would have to, for a disk or a server, returns
WOULD_BLOCK and has changed nothing.  The queue then hands the request over as a *job*: a private copy of header,
structure and names and of the list of pieces, as all are used again for the next chain; the data stays in guest memory.
A thread of the pool calls the handler again, now free to wait, writes the reply, and gives the chain back itself, so
nobody has to be woken for that.

Whoever ends what a job uses (a queue, guest memory) first waits until the queue has none.  A queue's count of
its jobs is raised by the queue's own thread only: while that thread finds it to be 0, nobody else is near the
ring, and it needs no lock.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.fuse.request import ARGS_ROOM, Operation, Request, operation_of
from cython.cimports.virtiofs.virtqueue.atomics import store_release_u32


@cython.cclass
class Pool:
    """Jobs of any number of queues, done by the threads that `enter`; without one, none is taken.

    `threads`, `idle`: how many there are, and wait for work.  `jobs`: not done yet.  `taken`, `refused`: jobs ever
    taken, and sent back because there were too many (the queue then does them itself).
    """

    def __cinit__(self):
        pthread_mutex_init(cython.address(self.lock), cython.NULL)
        pthread_cond_init(cython.address(self.offered), cython.NULL)
        pthread_cond_init(cython.address(self.finished), cython.NULL)

    def __dealloc__(self):
        # Nobody is here any more: each thread in `run`, and each queue, has a reference.
        pthread_cond_destroy(cython.address(self.finished))
        pthread_cond_destroy(cython.address(self.offered))
        pthread_mutex_destroy(cython.address(self.lock))

    def enter(self) -> None:
        """Count the calling thread as one of the pool's: it goes on to `run`."""
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self.threads += 1
            pthread_mutex_unlock(cython.address(self.lock))

    def run(self) -> None:
        """Do jobs until `end`, without the GIL."""
        with cython.nogil:
            self.work()

    def end(self) -> None:
        """Make every `run` return once all jobs are done.  From now on none is taken."""
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self.ending = True
            pthread_cond_broadcast(cython.address(self.offered))
            pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(
        self,
        request: cython.pointer(Request),
        head: uint16_t,
        began: int64_t,
        finish: Finish,
        queue: cython.pointer(PyObject),
        outstanding: cython.pointer(uint32_t),
    ) -> cython.bint:
        """Make a job of a request.  False, and nothing happened, if that can not be."""
        job: cython.pointer(Job)
        pieces: uint64_t = cython.cast(uint64_t, request.data_count) + request.out_count
        rest: uint64_t = size_of_rest(request)
        if pieces > MOST_PIECES or rest > MOST_REST:
            return False
        job = cython.cast(
            cython.pointer(Job), malloc(cython.sizeof(Job) + pieces * cython.sizeof(iovec) + rest)
        )
        if job == cython.NULL:
            return False
        copy(job, request, rest)
        job.head = head
        job.began = began
        job.finish = finish
        job.queue = queue
        job.outstanding = outstanding
        job.next = cython.NULL
        pthread_mutex_lock(cython.address(self.lock))
        if self.ending or not self.threads or self.jobs >= MOST_JOBS:
            self.refused += 1
            pthread_mutex_unlock(cython.address(self.lock))
            free(job)
            return False
        if self.first == cython.NULL:
            self.first = job
        else:
            self.last.next = job
        self.last = job
        self.jobs += 1
        self.taken += 1
        store_release_u32(outstanding, outstanding[0] + 1)
        self.call_one()
        pthread_mutex_unlock(cython.address(self.lock))
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def call_one(self) -> cython.void:
        """Wake a thread that is idle, under the lock, unless one is waking up: that one calls the next.

        Waking costs microseconds, which a queue should not spend for each of many jobs.
        """
        if self.idle and not self.called:
            self.called = True
            pthread_cond_signal(cython.address(self.offered))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def work(self) -> cython.void:
        job: cython.pointer(Job)
        pthread_mutex_lock(cython.address(self.lock))
        while True:
            while self.first == cython.NULL and not self.ending:
                self.idle += 1
                pthread_cond_wait(cython.address(self.offered), cython.address(self.lock))
                self.idle -= 1
                self.called = False
            job = self.first
            if job == cython.NULL:
                break
            self.first = job.next
            if self.first != cython.NULL:
                self.call_one()
            pthread_mutex_unlock(cython.address(self.lock))
            job.finish(job.queue, job)
            pthread_mutex_lock(cython.address(self.lock))
            self.jobs -= 1
            # Once the lock is let go the queue may be gone.
            store_release_u32(job.outstanding, job.outstanding[0] - 1)
            if job.outstanding[0] == 0:
                pthread_cond_broadcast(cython.address(self.finished))
            free(job)
        self.threads -= 1
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wait_for(self, outstanding: cython.pointer(uint32_t)) -> cython.void:
        """Wait until a queue has no job."""
        pthread_mutex_lock(cython.address(self.lock))
        while outstanding[0]:
            pthread_cond_wait(cython.address(self.finished), cython.address(self.lock))
        pthread_mutex_unlock(cython.address(self.lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def size_of_rest(request: cython.pointer(Request)) -> uint64_t:
    """How many bytes of `request.rest` are names or a value: none, for most that wait for a disk."""
    operation: cython.pointer(cython.const[Operation]) = operation_of(request.header.opcode)
    if request.tail_size:
        return request.tail + request.tail_size - request.rest
    if not operation.names:
        return 0
    last: cython.int = operation.names - 1
    end: cython.pointer(cython.const[cython.char]) = request.names[last] + request.name_sizes[last] + 1
    return cython.cast(cython.pointer(uint8_t), end) - request.rest


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy(job: cython.pointer(Job), request: cython.pointer(Request), rest: uint64_t) -> cython.void:
    """Give the job a request of its own, in which the handler may wait, with the first `rest` bytes behind its
    structure.
    """
    i: cython.int
    own: cython.pointer(Request) = cython.address(job.request)
    memcpy(own, request, cython.sizeof(Request))
    memcpy(job.args, request.args, ARGS_ROOM)
    memcpy(job.pieces, request.data, request.data_count * cython.sizeof(iovec))
    own.data = job.pieces
    own.out = cython.cast(cython.pointer(iovec), job.pieces) + request.data_count
    memcpy(own.out, request.out, request.out_count * cython.sizeof(iovec))
    own.args = job.args
    own.reply = job.reply
    own.rest = cython.NULL
    if rest:
        own.rest = cython.cast(cython.pointer(uint8_t), own.out + request.out_count)
        memcpy(own.rest, request.rest, rest)
        for i in range(operation_of(request.header.opcode).names):
            own.names[i] = cython.cast(cython.p_char, own.rest) + (
                cython.cast(cython.pointer(uint8_t), request.names[i]) - request.rest
            )
        own.tail = own.rest + rest - request.tail_size
    own.context_name = cython.NULL
    own.context = cython.NULL
    own.no_wait = False
