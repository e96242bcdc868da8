# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef struct linux_dirent64:
    uint64_t d_ino
    int64_t d_off
    uint16_t d_reclen
    uint8_t d_type

cdef int opendir(void* context, Request* request) noexcept nogil
cdef int readdir(void* context, Request* request) noexcept nogil
cdef int readdirplus(void* context, Request* request) noexcept nogil
cdef int releasedir(void* context, Request* request) noexcept nogil
cdef int fsyncdir(void* context, Request* request) noexcept nogil
