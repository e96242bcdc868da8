# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.inodes cimport Inode
from virtiofs.fuse.request cimport Request

cdef int open_inode(Share* share, Request* request, Inode* inode, uint32_t flags, uint32_t open_flags_) noexcept nogil

cdef int open_(void* context, Request* request) noexcept nogil
cdef int create(void* context, Request* request) noexcept nogil
cdef int tmpfile(void* context, Request* request) noexcept nogil
