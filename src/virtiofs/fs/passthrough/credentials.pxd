# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport MAX_GROUPS, Request

cdef extern from "<errno.h>" nogil:
    int* __errno_location()

cdef struct User:            # a guest's user with the host's ids, while a thread acts as one
    uint32_t uid
    uint32_t gid
    uint32_t groups_count
    uint32_t groups[MAX_GROUPS]
    uint32_t umask

cdef int become(Share* share, Request* request, uint32_t umask, User* user) noexcept nogil
cdef void become_self(Share* share, User* user) noexcept nogil
cdef void read_permitted(Share* share) noexcept nogil
cdef void keep_set_ids(Share* share, bint keep) noexcept nogil
cdef int guard(Share* share, int fd, bint kill) noexcept nogil
cdef bint may_not_keep(Request* request) noexcept nogil
