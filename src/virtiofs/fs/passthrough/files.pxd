# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef int read_(void* context, Request* request) noexcept nogil
cdef int write_(void* context, Request* request) noexcept nogil
cdef int flush(void* context, Request* request) noexcept nogil
cdef int release_(void* context, Request* request) noexcept nogil
cdef int fsync_(void* context, Request* request) noexcept nogil
cdef int fallocate_(void* context, Request* request) noexcept nogil
cdef int lseek_(void* context, Request* request) noexcept nogil
cdef int copy_file_range_(void* context, Request* request) noexcept nogil
cdef int copy_file_range_64(void* context, Request* request) noexcept nogil
cdef int syncfs_(void* context, Request* request) noexcept nogil
