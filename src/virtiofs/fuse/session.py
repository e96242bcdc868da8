# SPDX-License-Identifier: Apache-2.0
"""A FUSE session: INIT, then requests to the handlers by table, until DESTROY.

One session belongs to one device and is used by all its queues.  A second INIT ends the first session, as a
guest that reboots sends no DESTROY.
"""

import cython
from cython.cimports.libc.errno import EFAULT, EINVAL, EIO, ENOSYS, EPROTO, EROFS
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.uio import iovec
from cython.cimports.posix.unistd import write
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_DESTROY,
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_INTERRUPT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_MAP_ALIGNMENT,
    FUSE_MAX_PAGES,
    FUSE_READ,
    FUSE_WRITE,
    VERSIONS_MAGIC,
    fuse_in_header,
    fuse_init_in,
    fuse_init_out,
    fuse_interrupt_in,
    fuse_out_header,
)
from cython.cimports.virtiofs.fuse.probes import PROBE_REPLY, PROBE_REQUEST
from cython.cimports.virtiofs.fuse.request import (
    AGAIN,
    COHERENT_DIRECT_IO,
    VERSIONED,
    VERSIONS_REGION,
    WAIT,
    Handlers,
    gather,
    operation_of,
    parse,
    scatter,
)
from cython.cimports.virtiofs.virtqueue.atomics import fetch_add_u64, load_acquire_u64, store_release_u64
from cython.cimports.virtiofs.virtqueue.split import ALL_PLAIN

from virtiofs.fuse import abi

MUTATES = cython.declare(uint32_t, abi.MUTATES)
NO_REPLY = cython.declare(uint32_t, abi.NO_REPLY)

# virtio-fs came with 7.31; the structures below are those of 7.27 and later.
OLDEST_MINOR = cython.declare(uint32_t, 27)
# Since Linux 6.6 a direct write (FOPEN_DIRECT_IO) drops the cached pages that it replaces before it is sent; since 7.0
# after it, too, so that no read beside it keeps what was there (fs/fuse/file.c, fuse_direct_io; commit b359af8275a9,
# also in late stable releases of older ones).  The first interface that only such kernels speak, Debian's 7.3 for one:
COHERENT_MINOR = cython.declare(uint32_t, 46)
PAGE = cython.declare(uint32_t, 4096)
PAGE_SHIFT = cython.declare(uint32_t, 12)
# A virtio-fs guest throttles nothing by these, but 0 would mean its small defaults.
MAX_BACKGROUND = cython.declare(uint32_t, 65535)


@cython.cclass
class Session:
    """Serves requests with `handlers`, whatever carries them."""

    def __cinit__(self, handlers: Handlers):
        self.handlers = handlers

    def resume(self, minor: int, flags: int) -> None:
        """Go on with a session that another process began: what INIT negotiated there."""
        self.minor = minor
        self.flags = flags
        self.initialised = True

    def end(self) -> None:
        """Forget the session and all that the guest holds, as after DESTROY."""
        with cython.nogil:
            self.destroy()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(
        self,
        request: cython.pointer(Request),
        readable: cython.pointer(iovec),
        readable_count: uint32_t,
        readable_size: uint64_t,
        writable: cython.pointer(iovec),
        writable_count: uint32_t,
        writable_size: uint64_t,
    ) -> uint32_t:
        """Serve one request and write its reply.  Returns the bytes written, 0 where no reply is due, WAITING, LEFT, or
        BLOCKED (only if `request.no_wait` is set).

        The pieces are the caller's and are used up.  What is not plain (see `Request`) holds the data of READ and
        WRITE, which goes to system calls, or the request is refused.
        """
        error: cython.int
        operation: cython.pointer(cython.const[Operation]) = cython.NULL
        request.data = readable
        request.data_count = readable_count
        memset(cython.address(request.header), 0, cython.sizeof(fuse_in_header))
        if request.plain_in >= cython.sizeof(fuse_in_header):
            gather(
                cython.address(request.header),
                cython.address(request.data),
                cython.address(request.data_count),
                cython.sizeof(fuse_in_header),
            )
        PROBE_REQUEST(request.header.opcode, request.header.unique, request.header.nodeid, request.header.len)
        request.out = writable
        request.out_count = writable_count
        request.out_size = writable_size
        request.reply_size = 0
        request.in_place = False
        request.sent = False
        request.error = 0
        request.parsed = False
        request.session_flags = self.flags
        if (
            readable_size < cython.sizeof(fuse_in_header)
            or request.header.len < cython.sizeof(fuse_in_header)
            or request.header.len > readable_size
        ):
            error = -EINVAL
        else:
            operation = operation_of(request.header.opcode)
            if operation == cython.NULL:
                error = -ENOSYS
            elif not touchable(request, operation):
                error = -EFAULT
            elif operation.flags & NO_REPLY:
                request.error = self.handle(request, operation)
                return 0
            elif writable_size < cython.sizeof(fuse_out_header) or request.plain_out < cython.sizeof(
                fuse_out_header
            ):
                return 0  # nobody could learn the result, so nothing is done
            else:
                error = 0
        if writable_size < cython.sizeof(fuse_out_header) or request.plain_out < cython.sizeof(
            fuse_out_header
        ):
            return 0
        reserve(request)
        if not error:
            error = self.handle(request, operation)
            if error > 0:
                return WAITING if error == WAIT else LEFT if error == AGAIN else BLOCKED
        return self.finish(request, error)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def finish(self, request: cython.pointer(Request), error: cython.int) -> uint32_t:
        """Write the reply into the room that `request` has for it.  Returns the bytes written."""
        out: fuse_out_header
        head: cython.pointer(iovec) = request.head
        request.error = error
        if request.sent:
            return cython.sizeof(fuse_out_header) + request.reply_size
        if error:
            request.reply_size = 0
        PROBE_REPLY(request.header.opcode, request.header.unique, error, request.reply_size)
        if request.reply_size and not request.in_place:
            scatter(
                request.reply,
                cython.address(request.out),
                cython.address(request.out_count),
                request.reply_size,
            )
        out.len = cython.sizeof(fuse_out_header) + request.reply_size
        out.error = error
        out.unique = request.header.unique
        scatter(
            cython.address(out),
            cython.address(head),
            cython.address(request.head_count),
            cython.sizeof(fuse_out_header),
        )
        return out.len

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def again(self, request: cython.pointer(Request)) -> cython.int:
        """Call the handler of a request that was not finished once more: 0, a negative errno, or WAIT."""
        request.reply_size = 0
        request.in_place = False
        request.sent = False
        request.session_flags = self.flags
        if not self.initialised:
            return -EIO  # the session ended meanwhile
        return self.handlers.table[request.header.opcode](self.handlers.context, request)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def interrupt(self, unique: uint64_t) -> cython.void:
        """Remember that the request `unique` is to be given up, for the queue where it waits."""
        position: uint64_t = fetch_add_u64(cython.address(self.interrupts), 1)
        store_release_u64(cython.address(self.interrupted[position % INTERRUPTS]), unique)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def was_interrupted(self, unique: uint64_t) -> cython.bint:
        """Whether `interrupt(unique)` was called lately; it may come before the request that it is about."""
        i: cython.int
        if load_acquire_u64(cython.address(self.interrupts)) == 0:
            return False
        for i in range(INTERRUPTS):
            if load_acquire_u64(cython.address(self.interrupted[i])) == unique:
                return True
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def handle(
        self, request: cython.pointer(Request), operation: cython.pointer(cython.const[Operation])
    ) -> cython.int:
        """Check the request against the table and call its handler: 0 or a negative errno."""
        error: cython.int
        opcode: uint32_t = request.header.opcode
        if not self.initialised and opcode != FUSE_INIT:
            return -EIO
        error = parse(request, operation)
        if error:
            return error
        request.parsed = True
        # Before anything is done: a reply that has no room could not tell of it.
        if request.out_size < operation.reply_size:
            return -EINVAL
        if opcode == FUSE_INIT:
            return self.init(request)
        if opcode == FUSE_DESTROY:
            return self.destroy()
        if opcode == FUSE_INTERRUPT:
            self.interrupt(cython.cast(cython.pointer(fuse_interrupt_in), request.args).unique)
            if self.handlers.interrupted != cython.NULL:
                self.handlers.interrupted(
                    self.handlers.context,
                    cython.cast(cython.pointer(fuse_interrupt_in), request.args).unique,
                )
            return 0
        if operation.flags & MUTATES and self.handlers.read_only:
            return -EROFS
        if self.handlers.table[opcode] == cython.NULL:
            return -ENOSYS
        return self.handlers.table[opcode](self.handlers.context, request)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def init(self, request: cython.pointer(Request)) -> cython.int:
        """Negotiate (fuse.h, FUSE_INIT).  A newer major version gets ours and sends a second INIT."""
        asked: fuse_init_in
        answer: fuse_init_out
        flags: uint64_t
        one: uint64_t = 1
        memcpy(cython.address(asked), request.args, cython.sizeof(fuse_init_in))
        memset(cython.address(answer), 0, cython.sizeof(fuse_init_out))
        answer.major = 7
        answer.minor = FUSE_KERNEL_MINOR_VERSION
        request.reply_size = cython.sizeof(fuse_init_out)
        if asked.major > 7:
            memcpy(request.reply, cython.address(answer), cython.sizeof(fuse_init_out))
            return 0
        if asked.major < 7 or asked.minor < OLDEST_MINOR:
            return -EPROTO
        self.destroy()
        flags = asked.flags
        if flags & FUSE_INIT_EXT:
            flags |= cython.cast(uint64_t, asked.flags2) << 32
        flags &= self.handlers.init_flags | FUSE_INIT_EXT | FUSE_MAX_PAGES
        answer.max_readahead = asked.max_readahead
        answer.flags = cython.cast(uint32_t, flags)
        answer.flags2 = cython.cast(uint32_t, flags >> 32)
        answer.max_background = MAX_BACKGROUND
        answer.congestion_threshold = MAX_BACKGROUND // 4 * 3
        answer.max_write = MAX_WRITE
        answer.max_pages = MAX_WRITE // PAGE
        answer.time_gran = 1
        answer.map_alignment = PAGE_SHIFT if flags & FUSE_MAP_ALIGNMENT else 0
        if self.handlers.version_bits and asked.unused[0] == VERSIONS_MAGIC:
            flags |= VERSIONED
            answer.unused[0] = VERSIONS_MAGIC & 0xFFFF
            answer.unused[1] = VERSIONS_MAGIC >> 16
            answer.unused[2] = VERSIONS_REGION
            answer.unused[3] = self.handlers.version_bits
            write(self.handlers.version_event, cython.address(one), 8)
        if asked.minor >= COHERENT_MINOR:
            flags |= COHERENT_DIRECT_IO
        memcpy(request.reply, cython.address(answer), cython.sizeof(fuse_init_out))
        self.minor = asked.minor if asked.minor < FUSE_KERNEL_MINOR_VERSION else FUSE_KERNEL_MINOR_VERSION
        self.flags = flags
        self.initialised = True
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def destroy(self) -> cython.int:
        self.initialised = False
        self.flags = 0
        if self.handlers.reset != cython.NULL:
            self.handlers.reset(self.handlers.context)
        return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touchable(
    request: cython.pointer(Request), operation: cython.pointer(cython.const[Operation])
) -> cython.bint:
    """Whether all that an operation copies itself lies in plain memory."""
    if request.plain_in != ALL_PLAIN and (
        request.header.opcode != FUSE_WRITE
        or request.plain_in < cython.sizeof(fuse_in_header) + operation.args_size
    ):
        return False
    return request.plain_out == ALL_PLAIN or request.header.opcode == FUSE_READ


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reserve(request: cython.pointer(Request)) -> cython.void:
    """Take the first 16 writable bytes out of `request.out` into `request.head`."""
    left: uint64_t = cython.sizeof(fuse_out_header)
    piece: cython.pointer(iovec)
    head: cython.pointer(iovec) = request.head
    request.head_count = 0
    request.out_size -= left
    while left:
        piece = request.out
        head.iov_base = piece.iov_base
        if piece.iov_len > left:
            head.iov_len = left
            piece.iov_base = cython.cast(cython.p_char, piece.iov_base) + left
            piece.iov_len -= left
            left = 0
        else:
            head.iov_len = piece.iov_len
            left -= piece.iov_len
            request.out += 1
            request.out_count -= 1
        head += 1
        request.head_count += 1
