# SPDX-License-Identifier: Apache-2.0
from virtiofs.fuse.request cimport Request

cdef int open_(void* context, Request* request) noexcept nogil
cdef int create(void* context, Request* request) noexcept nogil
cdef int tmpfile(void* context, Request* request) noexcept nogil
