# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.account cimport Account
from virtiofs.fs.passthrough.inodes cimport Inode, Store

cdef Inode* inode_keep(Store* store, int fd, const char* name) noexcept nogil
cdef int store_count(Store* store, Account* account) noexcept nogil
cdef bint inode_opened(Store* store, uint64_t nodeid) noexcept nogil
cdef void inode_closed(Store* store, uint64_t nodeid) noexcept nogil
cdef void inode_removed(Store* store, Inode* inode) noexcept nogil
cdef bint pass_on(Store* store, Inode* inode) noexcept nogil
