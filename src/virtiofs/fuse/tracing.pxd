# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from virtiofs.fuse.request cimport Request

cdef enum:
    TRACE_HEAD = 4096        # bytes before the records
    TRACE_RECORDS = 16384    # in a ring; a power of two
    TRACE_NAMES = 152        # bytes of names in a record; what is longer is cut

cdef struct Trace:           # the first page of a ring
    uint64_t magic
    uint64_t records
    uint64_t record_size
    uint64_t unused[5]
    uint64_t next            # records ever claimed; the only word that all writers share

cdef struct Record:          # 256 bytes; records.py reads it
    uint64_t sequence        # its number, from 1; 0 while it is being written
    uint64_t unique
    uint64_t nodeid
    uint64_t child           # node id that was answered, or 0
    uint64_t target          # RENAME: the new directory; LINK: the file
    int64_t began            # CLOCK_MONOTONIC, ns
    int64_t took             # ns
    uint64_t offset          # READ, WRITE, READDIR
    uint32_t size
    uint32_t opcode
    int32_t error
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint32_t length_in
    uint32_t length_out
    uint16_t queue
    uint16_t name_sizes[2]   # as asked, before they are cut
    uint16_t unused
    char names[TRACE_NAMES]

cdef class Ring:
    cdef Trace* trace

cdef void put(Trace* trace, Request* request, uint16_t queue, uint32_t length, int64_t began, int64_t took) noexcept nogil
