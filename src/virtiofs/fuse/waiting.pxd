# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from posix.uio cimport iovec
from virtiofs.fuse.layout cimport fuse_in_header
from virtiofs.fuse.request cimport ARGS_ROOM, HEAD_PIECES, Request

cdef enum:
    MOST_WAITING = 128       # requests of one queue that wait at a time

cdef struct Waiting:
    uint16_t head            # of the chain
    fuse_in_header header
    uint8_t args[ARGS_ROOM]
    iovec room[HEAD_PIECES]
    uint32_t room_count
    int64_t deadline         # CLOCK_MONOTONIC, ns

cdef int64_t now() noexcept nogil
cdef void set_aside(Waiting* waiting, Request* request, uint16_t head, int64_t deadline) noexcept nogil
cdef void take_up(Waiting* waiting, Request* request) noexcept nogil
