# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.handles cimport Handle
from virtiofs.fs.passthrough.inodes cimport Inode
from virtiofs.fuse.request cimport Request

cdef struct File:
    Handle* handle           # what the guest opened; else NULL
    Inode* inode             # what it did not open; else NULL
    int fd
    uint32_t flags           # as given at OPEN
    uint8_t* silent          # see Handle
    bint ours                # `fd` is for this one request

cdef bint unopened(Request* request, uint64_t fh, bint directory) noexcept nogil
cdef int file_pin(Share* share, Request* request, uint64_t fh, bint directory, File* file) noexcept nogil
cdef void file_unpin(Share* share, File* file) noexcept nogil
