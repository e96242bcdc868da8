# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from virtiofs.virtqueue.driver cimport DriverQueue, Piece

# One prepared request; offsets are relative to a lane's memory.
cdef struct Step:
    uint32_t first         # of its pieces in the load's array
    uint32_t readable      # pieces
    uint32_t writable
    uint64_t header        # offset of the in header
    uint64_t reply         # offset of the out header
    int64_t expected       # used length, or -1 for any
    int32_t error          # what the reply carries, 0 or a negative errno
    uint32_t first_edit
    uint32_t edit_count

# What is written into a request before it is sent.
cdef struct Edit:
    int kind
    uint64_t where         # offsets in the lane
    uint64_t length
    uint64_t source
    uint64_t start
    uint64_t by
    uint64_t count

cdef struct Program:
    uint32_t first         # step
    uint32_t steps
    uint64_t next          # round to begin
    uint64_t end
    uint64_t finished
    uint64_t wanted

cdef struct Lane:
    uint32_t program
    uint32_t step
    uint64_t round
    uint64_t unique
    uint64_t started       # ns
    uint64_t last_length   # of its last reply, without the out header

cdef class Load:
    cdef readonly DriverQueue queue
    cdef readonly uint32_t depth
    cdef readonly uint32_t lane_count
    cdef readonly uint64_t lane_size
    cdef uint64_t address
    cdef uint8_t* host
    cdef uint32_t step_count
    cdef Step* steps
    cdef Piece* pieces
    cdef Piece* placed
    cdef Lane* lanes
    cdef uint32_t* ready          # lanes with a request to send, a stack
    cdef uint32_t* owners         # head -> lane
    cdef uint64_t* histograms
    cdef Edit* edits
    cdef list wanted_edits
    cdef Program[2] programs
    cdef uint64_t unique
    cdef readonly uint64_t kicks
    cdef readonly uint64_t wakes
    cdef uint32_t bad_length
    cdef int32_t bad_error
    cdef uint64_t bad_round
    cdef uint32_t bad_step

    cdef void apply(self, Edit* edit, uint8_t* base, uint64_t number, uint64_t length) noexcept nogil
    cdef int64_t send(self, uint32_t index) noexcept nogil
    cdef int check(self, uint32_t index) noexcept nogil
    cdef bint begin_round(self, uint32_t index) noexcept nogil
    cdef bint advance(self, uint32_t index, uint64_t seen) noexcept nogil
    cdef int loop(self, bint polled, uint64_t timeout) noexcept nogil
