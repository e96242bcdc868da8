# SPDX-License-Identifier: Apache-2.0
from virtiofs.fuse.request cimport Request

cdef int readdir(void* context, Request* request) noexcept nogil
