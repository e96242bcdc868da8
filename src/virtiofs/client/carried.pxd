# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from virtiofs.fuse.layout cimport fuse_in_header, fuse_init_out, fuse_out_header

cdef enum:
    OPCODES = 64
    PAGE = 4096
    START = 80                    # bytes of a message that are read into private memory: WRITE up to its data
    PAYLOAD = 1 << 20             # bytes of file data in one message at most
    BODY = PAYLOAD + 2 * PAGE     # bytes behind START that a message may have
    SLOT = PAYLOAD + 4 * PAGE

cdef enum:                        # why a relay ends: `REASONS` says it in words
    WRONG_LENGTH = -20
    WRONG_UNIQUE = -21
    WRONG_ERROR = -22
    NOT_TAKEN = -23
    NO_SESSION = -24
    WRONG_VERSION = -25
    NOT_READ = -26

# What the start of a message holds; not in shared memory, so the device cannot change it after we looked.
cdef struct Start:
    fuse_in_header header
    uint32_t args[10]

cdef int64_t room_of(Start *start, uint32_t length) noexcept nogil
cdef uint64_t offer(Start *start) noexcept nogil
cdef int wrong(fuse_out_header *out, uint32_t length, uint64_t unique, int64_t *value) noexcept nogil
cdef int limit(const uint8_t *reply, uint32_t length, uint64_t offered, fuse_init_out *out,
               int64_t *value) noexcept nogil
