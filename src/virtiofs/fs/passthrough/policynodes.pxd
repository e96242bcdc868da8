# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.marks cimport Policing
from virtiofs.fuse.layout cimport fuse_attr
from virtiofs.fuse.request cimport Handler, Request

cdef enum:
    LOOK = 1                 # at its attributes: unless it is hidden
    USE = 2                  # its content: unless it is denied
    CHANGE = 3               # unless it is read-only

cdef int go_on(Policing* policing, Request* request) noexcept nogil
cdef int check_node(Policing* policing, Request* request, uint64_t nodeid, uint8_t need) noexcept nogil
cdef int judge(int answer, uint8_t need) noexcept nogil
cdef int use_node(void* context, Request* request) noexcept nogil
cdef int change_node(void* context, Request* request) noexcept nogil
cdef int read_node(void* context, Request* request) noexcept nogil
cdef int go_on_with_room(void* context, Request* request, Handler serve) noexcept nogil
cdef int access(void* context, Request* request) noexcept nogil
cdef int open_(void* context, Request* request) noexcept nogil
cdef uint64_t node_of(Share* share, Request* request, uint64_t fh, bint directory) noexcept nogil
cdef int ioctl(void* context, Request* request) noexcept nogil
cdef int setupmapping(void* context, Request* request) noexcept nogil
cdef void show(Policing* policing, uint64_t verdict, fuse_attr* attr) noexcept nogil
cdef int getattr(void* context, Request* request) noexcept nogil
cdef int statx_(void* context, Request* request) noexcept nogil
cdef int setattr(void* context, Request* request) noexcept nogil
