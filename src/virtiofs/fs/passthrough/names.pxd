# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

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
