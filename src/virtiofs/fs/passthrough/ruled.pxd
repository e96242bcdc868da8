# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint64_t
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fs.passthrough.inodes cimport Store
from virtiofs.fs.passthrough.marks cimport Policing

cdef uint64_t ruled_verdict(Policing* policing, uint64_t dev, uint64_t ino, int64_t born) noexcept nogil
cdef bint ruled_number(Policing* policing, uint64_t ino) noexcept nogil
cdef int rule_file(Policing* policing, Store* store, statx_t* status, uint64_t verdict) noexcept nogil
