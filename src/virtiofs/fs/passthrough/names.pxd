# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef int dress(Share* share, Request* request, int directory, int fd, uint32_t type, uint32_t mode,
               uint32_t rdev) noexcept nogil

cdef int lookup(void* context, Request* request) noexcept nogil
cdef int forget(void* context, Request* request) noexcept nogil
cdef int batch_forget(void* context, Request* request) noexcept nogil
cdef int readlink(void* context, Request* request) noexcept nogil
cdef int symlink(void* context, Request* request) noexcept nogil
cdef int mknod(void* context, Request* request) noexcept nogil
cdef int mkdir(void* context, Request* request) noexcept nogil
cdef int unlink(void* context, Request* request) noexcept nogil
cdef int rmdir(void* context, Request* request) noexcept nogil
cdef int rename(void* context, Request* request) noexcept nogil
cdef int rename2(void* context, Request* request) noexcept nogil
cdef int link(void* context, Request* request) noexcept nogil
