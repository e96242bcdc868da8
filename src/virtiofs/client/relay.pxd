# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from virtiofs.client.carried cimport Start
from virtiofs.client.hiprio cimport Hiprio
from virtiofs.virtqueue.driver cimport DriverQueue

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLEXCLUSIVE

# A request in flight.
cdef struct Slot:
    bint busy
    uint32_t opcode
    uint64_t unique
    uint64_t reply                # offset of the out header in the slot's memory

cdef class RelayQueue:
    cdef readonly DriverQueue ring
    cdef readonly Hiprio hiprio
    cdef readonly uint32_t depth
    cdef readonly bint initialised       # this queue carried INIT
    cdef readonly uint64_t requests      # read from the kernel
    cdef readonly uint64_t replies       # written to it
    cdef readonly int outcome
    cdef int fd
    cdef int wake
    cdef int poll_all                    # the FUSE descriptor, the ring's call, wake
    cdef int poll_replies                # the same without the FUSE descriptor: while no slot is free
    cdef uint32_t stopping
    cdef uint64_t address
    cdef uint8_t *host
    cdef Slot *slots
    cdef uint32_t *owners                # head -> slot
    cdef uint32_t *free
    cdef uint32_t free_count
    cdef uint64_t offered                # INIT flags that the device was offered
    cdef uint32_t failed_opcode
    cdef int64_t failed_value
    cdef bint spinning
    cdef uint32_t patience
    cdef uint32_t penalty
    cdef Start start

    cdef int serve(self) noexcept nogil
    cdef int take_replies(self) noexcept nogil
    cdef int take_request(self) noexcept nogil
    cdef int forward(self, uint32_t slot, uint32_t length, uint32_t room) noexcept nogil
    cdef int after_hiprio(self, int found) noexcept nogil
    cdef int forget(self, uint8_t *host, uint32_t length) noexcept nogil
    cdef int answer(self, uint32_t slot, uint32_t length) noexcept nogil
    cdef void refuse(self, uint64_t unique, int error) noexcept nogil
    cdef void refuse_all(self) noexcept nogil
    cdef int fail(self, int reason, uint32_t opcode, int64_t value) noexcept nogil
    cdef bint spin(self) noexcept nogil
    cdef void sleep(self) noexcept nogil
