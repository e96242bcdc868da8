# SPDX-License-Identifier: Apache-2.0
"""A request: from pieces of guest memory to checked values, and the handlers that take it.

The guest may rewrite its memory while a request is handled, so everything that is looked at is copied out
first: the header, the fixed structure, names, values, records.  Only file data stays where it is, for the
host call to take it from there.  The checks come from `abi.OPERATIONS`; the oracle of `parse` is: a request
either obeys its table entry or is refused with an errno, and nothing outside the private copy is read.
"""

import cython
from cython.cimports.libc.errno import EINVAL, ENAMETOOLONG, ERANGE
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memchr, memcpy, memset
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_EXT_GROUPS,
    FUSE_MAX_NR_SECCTX,
    FUSE_SECURITY_CTX,
    fuse_ext_header,
    fuse_secctx,
    fuse_secctx_header,
)
from cython.cimports.virtiofs.virtqueue.split import ALL_PLAIN

from virtiofs.fuse import abi

# The flags of abi.py, as C constants.
FLAG_EXTENSIONS = cython.declare(uint32_t, abi.EXTENSIONS)
FLAG_TAIL = cython.declare(uint32_t, abi.TAIL)
FLAG_DATA = cython.declare(uint32_t, abi.DATA)

operations = cython.declare(Operation[OPCODES])


@cython.cfunc
def build_table() -> cython.void:
    """Fill `operations` from abi.py."""
    kinds: dict = {
        abi.NAME: KIND_NAME,
        abi.ANY_NAME: KIND_ANY,
        abi.TARGET: KIND_TARGET,
        abi.XATTR: KIND_XATTR,
    }
    i: cython.int
    entry: cython.pointer(Operation)
    memset(operations, 0, cython.sizeof(operations))
    for operation in abi.OPERATIONS:
        entry = cython.address(operations[cython.cast(cython.int, operation.opcode)])
        entry.known = True
        entry.args_size = operation.args.size if operation.args else 0
        entry.reply_size = operation.reply.size if operation.reply else 0
        entry.names = len(operation.names)
        for i in range(entry.names):
            entry.kinds[i] = kinds[operation.names[i]]
        entry.flags = operation.flags
        assert entry.args_size <= ARGS_ROOM and entry.names <= MAX_NAMES
    for name, size, flag in abi.SHORT_ARGS:
        entry = cython.address(operations[cython.cast(cython.int, abi.BY_NAME[name].opcode)])
        entry.short_size = size
        entry.short_unless = abi.CONSTANTS[flag] if flag else 0


build_table()


@cython.cclass
class Handlers:
    """What serves requests: a function for each opcode it knows; an absent one means ENOSYS.

    `table[opcode]` takes the context and a parsed request and returns 0 or a negative errno, without the GIL,
    from any number of threads at once.  `reset` drops all that a guest holds (inodes, handles): it is called
    at INIT and DESTROY and when the device is reset.  `init_flags` are the INIT flags it can live with.
    `interrupted`, if there is one, is told of each INTERRUPT.

    A handler that would have to wait for somebody else returns WAIT and is called again later, with the same
    header and structure and nothing else (see waiting.py); only operations without names or data may.

    Where `request.no_wait` is set, a handler that would have to wait for a disk may return WOULD_BLOCK before it
    has changed anything.  It is called again with the same request and without `no_wait`, on another thread (see
    pool.py); all may whose replies are data, written in place, or at most RESULT_ROOM bytes.
    """

    def __cinit__(self, *args, **kwargs):
        memset(self.table, 0, cython.sizeof(self.table))
        self.reset = cython.NULL
        self.interrupted = cython.NULL
        self.context = cython.NULL

    def implemented(self) -> list[str]:
        """The names of the operations that have a handler."""
        return [
            op.name for op in abi.OPERATIONS if self.table[cython.cast(cython.int, op.opcode)] != cython.NULL
        ]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def operation_of(opcode: uint32_t) -> cython.pointer(cython.const[Operation]):
    """The table entry of an opcode, or NULL."""
    if opcode < OPCODES and operations[opcode].known:
        return cython.address(operations[opcode])
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def allocate(request: cython.pointer(Request)) -> cython.bint:
    """Give a request its buffers, which serve one request after another.  False if there is no memory."""
    memset(request, 0, cython.sizeof(Request))
    request.plain_in = request.plain_out = ALL_PLAIN
    request.args = cython.cast(cython.pointer(uint8_t), calloc(1, ARGS_ROOM))
    request.rest = cython.cast(cython.pointer(uint8_t), malloc(REST_ROOM))
    request.reply = cython.cast(cython.pointer(uint8_t), malloc(REPLY_ROOM))
    return request.args != cython.NULL and request.rest != cython.NULL and request.reply != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def release(request: cython.pointer(Request)) -> cython.void:
    free(request.args)
    free(request.rest)
    free(request.reply)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def gather(
    target: cython.p_void,
    pieces: cython.pointer(cython.pointer(iovec)),
    count: cython.pointer(uint32_t),
    size: uint64_t,
) -> uint64_t:
    """Copy up to `size` bytes out of the pieces, and step over them.  Returns how many bytes there were."""
    done: uint64_t = 0
    part: uint64_t
    piece: cython.pointer(iovec)
    while done < size and count[0]:
        piece = pieces[0]
        part = piece.iov_len
        if part > size - done:
            part = size - done
        memcpy(cython.cast(cython.pointer(uint8_t), target) + done, piece.iov_base, part)
        done += part
        if part == piece.iov_len:
            pieces[0] += 1
            count[0] -= 1
        else:
            piece.iov_base = cython.cast(cython.pointer(uint8_t), piece.iov_base) + part
            piece.iov_len -= part
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def scatter(
    source: cython.pointer(cython.const[cython.void]),
    pieces: cython.pointer(cython.pointer(iovec)),
    count: cython.pointer(uint32_t),
    size: uint64_t,
) -> uint64_t:
    """Copy up to `size` bytes into the pieces, and step over them.  Returns how many fitted."""
    done: uint64_t = 0
    part: uint64_t
    piece: cython.pointer(iovec)
    while done < size and count[0]:
        piece = pieces[0]
        part = piece.iov_len
        if part > size - done:
            part = size - done
        memcpy(piece.iov_base, cython.cast(cython.pointer(cython.const[uint8_t]), source) + done, part)
        done += part
        if part == piece.iov_len:
            pieces[0] += 1
            count[0] -= 1
        else:
            piece.iov_base = cython.cast(cython.pointer(uint8_t), piece.iov_base) + part
            piece.iov_len -= part
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def parse(request: cython.pointer(Request), operation: cython.pointer(cython.const[Operation])) -> cython.int:
    """Copy and check what follows the header; `request.data` holds the pieces behind it.  0 or a negative
    errno.

    On return `args`, `names`, `tail`, `groups` are private and checked, and `data` is what the operation may
    read from the carrier's memory (nothing, for most).
    """
    rest: uint64_t = request.header.len - cython.sizeof(fuse_in_header)
    size: uint64_t = operation.args_size
    end: uint64_t
    position: uint64_t = 0
    i: cython.int
    error: cython.int
    nul: cython.pointer(cython.const[cython.char])
    name: cython.pointer(cython.const[cython.char])
    if operation.short_size and (
        not request.session_flags & operation.short_unless if operation.short_unless else rest < size
    ):
        memset(request.args, 0, size)
        size = operation.short_size
    if rest < size:
        return -EINVAL
    gather(request.args, cython.address(request.data), cython.address(request.data_count), size)
    rest -= size
    request.groups_count = 0
    request.context_name = cython.NULL
    request.tail_size = 0
    if operation.flags & FLAG_DATA:
        request.data_size = rest
        return trim(request)
    request.data_size = 0
    if rest > REST_ROOM:
        return -EINVAL
    gather(request.rest, cython.address(request.data), cython.address(request.data_count), rest)
    request.data_count = 0
    end = rest
    if operation.flags & FLAG_EXTENSIONS and request.header.total_extlen:
        size = cython.cast(uint64_t, request.header.total_extlen) * 8
        if size > end:
            return -EINVAL
        end -= size
        error = parse_extensions(request, request.rest + end, size)
        if error:
            return error
    for i in range(operation.names):
        name = cython.cast(cython.pointer(cython.const[cython.char]), request.rest + position)
        nul = cython.cast(cython.pointer(cython.const[cython.char]), memchr(name, 0, end - position))
        if nul == cython.NULL:
            return -EINVAL
        request.names[i] = name
        request.name_sizes[i] = nul - name
        error = check_name(name, request.name_sizes[i], operation.kinds[i])
        if error:
            return error
        position += request.name_sizes[i] + 1
    if operation.flags & FLAG_TAIL:
        request.tail = request.rest + position
        request.tail_size = end - position
    elif operation.names and position != end:
        return -EINVAL  # a NUL inside a name, or bytes that belong to nothing
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def trim(request: cython.pointer(Request)) -> cython.int:
    """Cut the data pieces to `data_size` bytes.  0, or -EINVAL if there are fewer."""
    left: uint64_t = request.data_size
    i: uint32_t = 0
    while left and i < request.data_count:
        if request.data[i].iov_len > left:
            request.data[i].iov_len = left
        left -= request.data[i].iov_len
        i += 1
    request.data_count = i
    return -EINVAL if left else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_name(
    name: cython.pointer(cython.const[cython.char]), size: uint32_t, kind: cython.int
) -> cython.int:
    """Whether a name may reach the host: one component, never "." or "..", never a path.  0 or a negative errno."""
    if kind == KIND_ANY:
        return 0
    if size == 0:
        return -EINVAL
    if kind == KIND_TARGET:
        return -ENAMETOOLONG if size > 4095 else 0
    if size > 255:
        return -ERANGE if kind == KIND_XATTR else -ENAMETOOLONG
    if kind == KIND_XATTR:
        return 0
    if memchr(name, ord("/"), size) != cython.NULL:
        return -EINVAL
    if name[0] == ord(".") and (size == 1 or (size == 2 and name[1] == ord("."))):
        return -EINVAL
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def parse_extensions(
    request: cython.pointer(Request), records: cython.pointer(uint8_t), size: uint64_t
) -> cython.int:
    """Check the records behind a creation request; take the groups and the first security context out of them.

    Returns 0 or -EINVAL.  Source: struct fuse_ext_header; a security context record is told by its type, which
    is then a count up to 31.
    """
    header: fuse_ext_header
    seen_groups: cython.bint = False
    seen_context: cython.bint = False
    while size:
        if size < cython.sizeof(fuse_ext_header):
            return -EINVAL
        memcpy(cython.address(header), records, cython.sizeof(fuse_ext_header))
        if header.size < cython.sizeof(fuse_ext_header) or header.size > size or header.size % 8:
            return -EINVAL
        if header.type <= FUSE_MAX_NR_SECCTX:
            if seen_context or not valid_contexts(records, header.size, header.type):
                return -EINVAL
            seen_context = True
            if header.type and request.session_flags & FUSE_SECURITY_CTX:
                take_context(request, records + cython.sizeof(fuse_secctx_header))
        elif header.type == FUSE_EXT_GROUPS:
            if seen_groups or header.size < 16:
                return -EINVAL
            seen_groups = True
            memcpy(cython.address(request.groups_count), records + 8, 4)
            if request.groups_count > MAX_GROUPS or 12 + 4 * request.groups_count > header.size:
                request.groups_count = 0
                return -EINVAL
            memcpy(request.groups, records + 12, 4 * request.groups_count)
        else:
            return -EINVAL
        records += header.size
        size -= header.size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_context(request: cython.pointer(Request), record: cython.pointer(uint8_t)) -> cython.void:
    """Note where name and value of a valid security context are."""
    context: fuse_secctx
    memcpy(cython.address(context), record, cython.sizeof(fuse_secctx))
    request.context_name = cython.cast(
        cython.pointer(cython.const[cython.char]), record + cython.sizeof(fuse_secctx)
    )
    request.context = cython.cast(cython.pointer(uint8_t), memchr(request.context_name, 0, REST_ROOM)) + 1
    request.context_size = context.size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def valid_contexts(records: cython.pointer(uint8_t), size: uint32_t, count: uint32_t) -> cython.bint:
    """Whether `count` security contexts fill a record of `size` bytes as struct fuse_secctx says."""
    context: fuse_secctx
    position: uint64_t = cython.sizeof(fuse_secctx_header)
    nul: cython.pointer(uint8_t)
    _i: uint32_t
    for _i in range(count):
        if position + cython.sizeof(fuse_secctx) > size:
            return False
        memcpy(cython.address(context), records + position, cython.sizeof(fuse_secctx))
        position += cython.sizeof(fuse_secctx)
        nul = cython.cast(cython.pointer(uint8_t), memchr(records + position, 0, size - position))
        if nul == cython.NULL:
            return False
        position = (nul - records) + 1 + cython.cast(uint64_t, context.size)
        position = (position + 7) & ~cython.cast(uint64_t, 7)
        if position > size:
            return False
    return True
