# SPDX-License-Identifier: Apache-2.0
"""Requests as they pass, written as records of fixed size into a ring of shared memory, for whoever looks.

Nobody waits for a reader: who is too slow loses records, and can tell how many by their numbers (records.py).  Any
number of threads write.  Each claims a record by one addition, and its number, stored last, says that it is whole.  A
writer that sleeps in the middle while the others go once around the ring may mix two records; that is one wrong line.

The ring lies in memory that its readers have, too, so it is only ever written here, and nothing in it is
believed: how many records there are is a constant.
"""

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.mman import MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from cython.cimports.virtiofs.fuse.layout import fuse_entry_out, fuse_read_in
from cython.cimports.virtiofs.fuse.request import OPCODES, Request, operation_of
from cython.cimports.virtiofs.virtqueue.atomics import fence, fetch_add_u64, store_release_u64, store_u64

from virtiofs.fuse import abi


def set_of(names: str) -> int:
    """The opcodes of these operations, as bits."""
    return sum(1 << abi.BY_NAME[name].opcode for name in names.split())


RING_BYTES = TRACE_HEAD + TRACE_RECORDS * cython.sizeof(Record)
MAGIC = cython.declare(uint64_t, 0x3145434152545F56)  # "V_TRACE1"
ANSWERS_NODE = cython.declare(uint64_t, set_of("lookup symlink mknod mkdir link create tmpfile"))
HAS_OFFSET = cython.declare(uint64_t, set_of("read write readdir readdirplus"))
HAS_TARGET = cython.declare(uint64_t, set_of("rename rename2 link"))


@cython.cclass
class Ring:
    """The ring in `fd`, a file of RING_BYTES, which stays the caller's.  Raises `OSError` if it can not be mapped.

    It stays mapped as long as anybody who may write has a reference.
    """

    def __cinit__(self, fd: int):
        where: cython.p_void = mmap(cython.NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if where == MAP_FAILED:
            raise OSError(errno, "cannot map a trace")
        self.trace = cython.cast(cython.pointer(Trace), where)
        self.trace.magic = MAGIC
        self.trace.records = TRACE_RECORDS
        self.trace.record_size = cython.sizeof(Record)

    def __dealloc__(self):
        if self.trace != cython.NULL:
            munmap(self.trace, RING_BYTES)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def put(
    trace: cython.pointer(Trace),
    request: cython.pointer(Request),
    queue: uint16_t,
    length: uint32_t,
    began: int64_t,
    took: int64_t,
) -> cython.void:
    """Write down a request that was served, with a reply of `length` bytes."""
    opcode: uint32_t = request.header.opcode
    bit: uint64_t = cython.cast(uint64_t, 1) << opcode if opcode < OPCODES else 0
    number: uint64_t = fetch_add_u64(cython.address(trace.next), 1)
    record: cython.pointer(Record) = cython.cast(
        cython.pointer(Record), cython.cast(cython.pointer(uint8_t), trace) + TRACE_HEAD
    ) + (number & (TRACE_RECORDS - 1))
    i: cython.int
    size: uint32_t
    room: uint32_t = TRACE_NAMES
    store_u64(cython.address(record.sequence), 0)
    fence()
    record.unique = request.header.unique
    record.nodeid = request.header.nodeid
    record.opcode = opcode
    record.uid = request.header.uid
    record.gid = request.header.gid
    record.pid = request.header.pid
    record.length_in = request.header.len
    record.length_out = length
    record.error = request.error
    record.queue = queue
    record.began = began
    record.took = took
    record.child = record.target = record.offset = 0
    record.size = 0
    record.name_sizes[0] = record.name_sizes[1] = 0
    if request.parsed:
        for i in range(operation_of(opcode).names):
            size = min(request.name_sizes[i], room)
            memcpy(record.names + (TRACE_NAMES - room), request.names[i], size)
            record.name_sizes[i] = request.name_sizes[i]
            room -= size
        if bit & HAS_OFFSET:
            record.offset = cython.cast(cython.pointer(fuse_read_in), request.args).offset
            record.size = cython.cast(cython.pointer(fuse_read_in), request.args).size
        elif bit & HAS_TARGET:
            record.target = cython.cast(cython.pointer(uint64_t), request.args)[0]
        if (
            bit & ANSWERS_NODE
            and not request.error
            and not request.in_place
            and request.reply_size >= cython.sizeof(fuse_entry_out)
        ):
            record.child = cython.cast(cython.pointer(fuse_entry_out), request.reply).nodeid
    store_release_u64(cython.address(record.sequence), number + 1)
