# SPDX-License-Identifier: Apache-2.0
"""/dev/fuse as a carrier: the kernel's own FUSE client, served by one thread until it is unmounted.

One read(2) takes a whole message, one write(2) gives its reply: two system calls for each request besides what the
request itself takes.  The read blocks, as nothing else has to be waited for; only while requests wait for a lock
does the descriptor become non-blocking, and poll(2) gives the time to ask them again.  `stop` makes it so, too, and
interrupts a read that sleeps already by a signal.

Data that a method of a class returned goes to the kernel from where it lies (`send_data`).  A short reply is written
from one page, as the kernel looks up each page that it copies from.

File data lies page-aligned in both buffers, since a share may do direct I/O: a WRITE's data 80 bytes behind the
message's beginning, a READ's behind the reply's header, where it is read to.

A reply whose request is gone (ENOENT) is not missed: Linux waits for an answer to whatever was read, unless the
connection is over.
"""

import os

import cython
from cython.cimports.libc.errno import EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT, ENOLCK, errno
from cython.cimports.libc.signal import SIGUSR1
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.fcntl import F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from cython.cimports.posix.signal import sigaction, sigaction_t, sigemptyset
from cython.cimports.posix.uio import iovec, writev
from cython.cimports.posix.unistd import close, read, write
from cython.cimports.virtiofs.fuse.events import (
    POLLIN,
    SYS_gettid,
    SYS_tgkill,
    getpid,
    poll,
    pollfd,
    posix_memalign,
    syscall,
)
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_INTERRUPT,
    fuse_in_header,
    fuse_out_header,
    fuse_write_in,
)
from cython.cimports.virtiofs.fuse.readers import Readers
from cython.cimports.virtiofs.fuse.request import Request
from cython.cimports.virtiofs.fuse.serving import BATCH, SAMPLED, Loop
from cython.cimports.virtiofs.fuse.session import MAX_WRITE, WAITING, Session
from cython.cimports.virtiofs.fuse.waiting import now
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, store_release_u32

PAGE = cython.declare(uint32_t, 4096)
MESSAGE_HEAD = cython.declare(uint32_t, cython.sizeof(fuse_in_header) + cython.sizeof(fuse_write_in))
REPLY_HEAD = cython.declare(uint32_t, cython.sizeof(fuse_out_header))
SHORT = cython.declare(uint32_t, 1024)  # bytes of a reply that is copied to have it in one page


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def nothing(number: cython.int) -> cython.void:
    """The handler of the signal that ends a read."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def send_data(
    wire: cython.p_void,
    request: cython.pointer(Request),
    data: cython.pointer(cython.const[cython.void]),
    size: uint64_t,
) -> cython.void:
    """Write a reply whose data lies anywhere (see `Send`).  It is counted first, as `complete` does."""
    to: cython.pointer(Wire) = cython.cast(cython.pointer(Wire), wire)
    out: fuse_out_header
    pieces: iovec[2]
    request.reply_size = size
    request.sent = True
    out.len = REPLY_HEAD + request.reply_size
    out.error = 0
    out.unique = request.header.unique
    pieces[0].iov_base = cython.address(out)
    pieces[0].iov_len = REPLY_HEAD
    pieces[1].iov_base = cython.cast(cython.p_void, data)
    pieces[1].iov_len = size
    to.counted.requests[request.header.opcode] += 1
    writev(to.fd, pieces, 2)


@cython.cclass
class DevFuseLoop(Loop):
    """Serves what comes from `fd`, a descriptor of /dev/fuse that is mounted or cloned, with `session`.

    `wait_limit`: seconds a request may wait for a lock before it is refused with ENOLCK.  Several loops may share
    the session, each with a descriptor of its own.  With `readers` only as few of them read as keep up; `place` is a
    number for each, from 0 on.  The loop takes `fd` over and closes it when it is freed.  Raises `MemoryError`.
    """

    def __cinit__(
        self,
        session: Session,
        fd: int,
        wait_limit: float = 600.0,
        readers: Readers | None = None,
        place: int = 0,
    ):
        memory: cython.p_void = cython.NULL
        self.session = session
        self.fd = fd
        self.wait_limit = int(wait_limit * 1_000_000_000)
        self.room = MESSAGE_HEAD + MAX_WRITE
        self.shared = readers is not None
        self.readers = readers
        self.place = place
        self.wire.fd = fd
        self.wire.counted = cython.address(self.counted)
        self.request.carrier = cython.address(self.wire)
        self.request.send = send_data
        if posix_memalign(cython.address(memory), PAGE, 2 * (PAGE + MAX_WRITE)) != 0:
            raise MemoryError
        self.memory = cython.cast(cython.pointer(uint8_t), memory)
        self.message = self.memory + PAGE - MESSAGE_HEAD
        self.reply = self.memory + PAGE + MAX_WRITE + PAGE - REPLY_HEAD

    def __dealloc__(self):
        if self.memory != cython.NULL:
            close(self.fd)
            free(self.memory)

    def run(self) -> bool:
        """Serve until `stop` (False) or until the file system is unmounted (True).  Runs without the GIL.

        SIGUSR1 gets a handler that does nothing.  Raises `OSError` when the descriptor can not be read.
        """
        action: sigaction_t
        error: cython.int
        memset(cython.address(action), 0, cython.sizeof(sigaction_t))
        action.sa_handler = nothing
        sigemptyset(cython.address(action.sa_mask))
        sigaction(SIGUSR1, cython.address(action), cython.NULL)
        store_release_u32(cython.address(self.thread), syscall(SYS_gettid))
        with cython.nogil:
            error = self.serve_until_ended()
            self.ask_again(True)
        store_release_u32(cython.address(self.thread), 0)
        if error not in (0, ENODEV, ECONNABORTED):
            raise OSError(error, f"cannot read requests: {os.strerror(error)}")
        return error != 0

    def stop(self) -> None:
        """Make `run` return once the request it is serving is done.  May be called from any thread."""
        thread: uint32_t
        store_release_u32(cython.address(self.stopping), 1)
        # In this order: a read that the signal comes too early for does not sleep.
        self.set_blocking(False)
        thread = load_acquire_u32(cython.address(self.thread))
        if self.shared:
            self.readers.ring(self.place)
        if thread:
            syscall(SYS_tgkill, getpid(), thread, SIGUSR1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_blocking(self, blocking: cython.bint) -> cython.void:
        flags: cython.int = fcntl(self.fd, F_GETFL)
        fcntl(self.fd, F_SETFL, flags & ~O_NONBLOCK if blocking else flags | O_NONBLOCK)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve_until_ended(self) -> cython.int:
        """0 when told to stop, or the errno that ended reading."""
        served: uint32_t = 0
        got: cython.Py_ssize_t
        while not load_acquire_u32(cython.address(self.stopping)):
            if self.shared and not self.readers.reads(self.place):
                self.readers.stand_by(self.place, self.fd, cython.address(self.stopping))
                continue
            got = read(self.fd, self.message, self.room)
            if got >= 0:
                if self.shared:
                    self.readers.took(self.place)
                    self.serve(got)
                    self.readers.gave(self.place, self.waiting_count != 0)
                else:
                    self.serve(got)
                served += 1
                if self.waiting_count and served >= BATCH:
                    served = 0
                    self.ask_again(False)
            elif errno == EAGAIN:
                served = 0
                self.wait()
            elif errno != EINTR and errno != ENOENT:  # ENOENT: the request ended while it was being read
                return errno
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wait(self) -> cython.void:
        """Nothing can be read now: ask those that wait again, then wait for a message, or for the next time to ask."""
        watched: pollfd
        if self.waiting_count:
            self.ask_again(False)
        if self.waiting_count == 0:
            self.set_blocking(True)
            return  # `stop` may have come in between: not to sleep before looking
        watched.fd = self.fd
        watched.events = POLLIN
        poll(cython.address(watched), 1, self.pause)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, size: uint64_t) -> cython.void:
        """Serve the message of `size` bytes that was read."""
        length: uint32_t
        began: int64_t = now() if self.requests % SAMPLED == 0 or self.trace != cython.NULL else 0
        self.readable.iov_base = self.message
        self.readable.iov_len = size
        self.writable.iov_base = self.reply
        self.writable.iov_len = REPLY_HEAD + MAX_WRITE
        length = self.session.serve(
            cython.address(self.request),
            cython.address(self.readable),
            1,
            size,
            cython.address(self.writable),
            1,
            REPLY_HEAD + MAX_WRITE,
        )
        self.requests += 1
        if length == WAITING:
            if self.hold(0):
                if self.waiting_count == 1:
                    self.set_blocking(False)
                return
            length = self.session.finish(cython.address(self.request), -ENOLCK)
        self.complete(cython.address(self.request), 0, length, began)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(
        self, request: cython.pointer(Request), head: uint16_t, length: uint32_t, began: int64_t
    ) -> cython.void:
        """Count a request, and write its reply.  An error has no consequence here: the request is over for the
        kernel, too.
        """
        reply: cython.pointer(uint8_t) = self.reply
        if not request.sent:
            self.count(request)
        if began:
            self.time(request, length, began)
        if length and not request.sent and request.header.opcode != FUSE_INTERRUPT:
            if length <= SHORT:
                reply = self.memory
                memcpy(reply, self.reply, length)
            write(self.fd, reply, length)
