# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t, uint64_t
from virtiofs.fs.python.replies cimport Attributes, Caller, Entry
from virtiofs.fuse.layout cimport fuse_attr, fuse_entry_out, fuse_open_out
from virtiofs.fuse.request cimport Request

cdef void set_epoch(uint64_t number) noexcept
cdef bint is_stale(uint64_t node) noexcept nogil
cdef uint64_t node_of(uint64_t number) except? 0
cdef bytes name_of(Request* request, int i)
cdef Caller caller_of(Request* request)
cdef void put_time(uint64_t* seconds, uint32_t* rest, int64_t ns) noexcept
cdef int put_valid(uint64_t* seconds, uint32_t* rest, double valid) except? -1
cdef int put_attr(fuse_attr* out, Attributes attributes, uint64_t node) except? -1
cdef int put_entry(fuse_entry_out* out, Entry entry) except? -1
cdef int put_opened(fuse_open_out* out, object found) except? -1
cdef int put_data(Request* request, object data, uint64_t most, bint alone=*) except? -1
cdef Entry is_entry(object found, str asked)
cdef int reply_entry(Request* request, object found, str asked, bint made) except? -1
cdef int reply_attributes(Request* request, object found, str asked) except? -1
