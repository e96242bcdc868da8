# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fs.passthrough.inodes cimport HandleBuffer, Inode, Store

cdef uint64_t device_of(statx_t* status) noexcept nogil
cdef int64_t birth_of(Store* store, uint32_t mount, statx_t* status) noexcept nogil
cdef uint32_t known_mount(Store* store, statx_t* status) noexcept nogil
cdef bint is_submount(Store* store, Inode* parent, statx_t* status) noexcept nogil
cdef uint32_t mount_of(Store* store, statx_t* status, int fd) noexcept nogil
cdef bint take_handle(int fd, HandleBuffer* handle) noexcept nogil
cdef int handle_at(int fd, const char* name, int flags, HandleBuffer* handle) noexcept nogil
cdef void keep_handle(Inode* inode, HandleBuffer* handle, uint8_t trust) noexcept nogil
cdef int open_by_handle(Store* store, Inode* inode, int flags) noexcept nogil
cdef int reopen(Store* store, int fd, int flags) noexcept nogil
cdef void join_pool(Store* store, Inode* inode, int fd, uint8_t readable) noexcept nogil
cdef int leave_pool(Store* store, Inode* inode) noexcept nogil
cdef int evict(Store* store) noexcept nogil
cdef int inode_descriptor(Store* store, Inode* inode) noexcept nogil
cdef int take_descriptor(Store* store, Inode* inode, int fd, uint8_t readable) noexcept nogil
