# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fs.passthrough.inodes cimport Inode
from virtiofs.fuse.layout cimport fuse_attr, fuse_entry_out
from virtiofs.fuse.request cimport Request

cdef void fill_attr(fuse_attr* attr, const statx_t* status) noexcept nogil
cdef int fill_entry(Share* share, fuse_entry_out* entry, uint64_t nodeid, statx_t* status,
                    uint64_t session_flags, Inode* parent) noexcept nogil

cdef int getattr(void* context, Request* request) noexcept nogil
cdef int setattr(void* context, Request* request) noexcept nogil
cdef int statx_(void* context, Request* request) noexcept nogil
cdef int access(void* context, Request* request) noexcept nogil
cdef int statfs(void* context, Request* request) noexcept nogil
