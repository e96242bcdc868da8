# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.marks cimport Policing
from virtiofs.fs.policy.matcher cimport Verdict
from virtiofs.fuse.layout cimport fuse_entry_out
from virtiofs.fuse.request cimport Request

cdef void meet(Policing* policing, uint64_t parent, const char* name, uint64_t verdict) noexcept nogil
cdef int verdict_of_there(Policing* policing, uint64_t parent, const char* name, Verdict* verdict, uint64_t* bits,
                          bint* directory) noexcept nogil
cdef int admit(Policing* policing, uint64_t parent, uint32_t state, const char* name, uint32_t size, Verdict* verdict,
               fuse_entry_out* entry) noexcept nogil
cdef int lookup(void* context, Request* request) noexcept nogil
cdef int make(void* context, Request* request) noexcept nogil
cdef int tmpfile(void* context, Request* request) noexcept nogil
cdef int link(void* context, Request* request) noexcept nogil
cdef int remove(void* context, Request* request) noexcept nogil
cdef int rename(void* context, Request* request) noexcept nogil
