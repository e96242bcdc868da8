# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fuse.layout cimport fuse_setattr_in
from virtiofs.fuse.request cimport Request

cdef enum:
    RECORD_ROOM = 128

cdef struct Owner:
    uint32_t uid
    uint32_t gid
    uint32_t mode            # permission and set-id bits
    uint32_t type            # S_IFMT bits
    uint32_t major
    uint32_t minor

cdef const char* OWNER_NAME

cdef int as_guest_sees(Share* share, int fd, statx_t* status) noexcept nogil
cdef int store_new(Share* share, Request* request, int directory, int fd, uint32_t type, uint32_t mode,
                   uint32_t rdev) noexcept nogil
cdef int store_change(Share* share, const fuse_setattr_in* args, int fd) noexcept nogil
cdef int strip_stored(Share* share, int fd) noexcept nogil
cdef bint is_owner_name(const char* name) noexcept nogil
