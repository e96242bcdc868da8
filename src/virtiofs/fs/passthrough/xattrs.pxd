# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef int set_context(Share* share, Request* request, int fd) noexcept nogil

cdef int getxattr_(void* context, Request* request) noexcept nogil
cdef int listxattr_(void* context, Request* request) noexcept nogil
cdef int setxattr_(void* context, Request* request) noexcept nogil
cdef int removexattr_(void* context, Request* request) noexcept nogil
