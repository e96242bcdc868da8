# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.inodes cimport Store

cdef list nodes_of(Store* store, uint64_t dev, uint64_t ino)
cdef list every_node(Store* store)
cdef bint is_removed(Store* store, uint64_t nodeid) noexcept nogil
