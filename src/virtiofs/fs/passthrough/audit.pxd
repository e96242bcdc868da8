# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport OPCODES, Handler

cdef extern from "<time.h>" nogil:
    enum: CLOCK_REALTIME

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    struct msghdr:
        void* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* message, int flags)

cdef enum:
    PATH_CUT = 1700          # bytes of a path that are recorded

cdef struct Record:          # as RECORD in audit.py; two paths follow
    uint64_t time            # CLOCK_REALTIME, ns
    uint64_t nodeid
    uint64_t ino
    uint64_t bytes
    uint32_t opcode
    int32_t error
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint16_t sizes[2]        # of the paths
    uint16_t cut             # a bit for each path that was longer
    uint16_t unused
    uint32_t unused_too

cdef struct Auditing:
    int fd                   # a SEQPACKET socket to who writes
    bint note                # do not wait for room: count instead
    bint broken              # nobody reads any more
    uint64_t* lost           # in memory that whoever writes reads too
    uint8_t wanted[OPCODES]
    uint8_t changes[OPCODES]
    bint refusals
    void* log
    Handler inner[OPCODES]   # what `watch` stands in front of

cdef class Audit:
    cdef Auditing auditing
    cdef object log
    cdef object lost

    cdef void begin(self, Share* share, Handler* table)
