# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fuse.layout cimport fuse_attr
from virtiofs.fuse.request cimport Handler

cdef void serve_mappings(Share* share, Handler* table)
cdef void tell_of_file(Share* share, uint64_t session_flags, uint64_t nodeid, statx_t* status, fuse_attr* attr) noexcept nogil
cdef void forget_mappings(Share* share) noexcept nogil
