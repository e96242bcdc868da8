# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.filesystem cimport Filesystem
from virtiofs.fs.passthrough.account cimport Quota
from virtiofs.fs.passthrough.audit cimport Audit
from virtiofs.fs.passthrough.context cimport Ownership, Share
from virtiofs.fs.passthrough.policy cimport Policies
from virtiofs.metadata.copy cimport Copy

cdef class Passthrough(Filesystem):
    cdef Share share
    cdef void* records
    cdef uint64_t records_size
    cdef readonly str directory
    cdef Quota quota
    cdef readonly Policies policies
    cdef Audit audit
    cdef Copy copy               # what `share.shown` leads into
    cdef object window           # what the share's pointer leads to

    cdef void free(self)
    cdef int map_records(self, uint64_t inodes, uint64_t handles) except? -1
    cdef void fill_table(self, bint shared_locks)
    cdef int init_owners(self, uint32_t ownership, object users, object groups, bint keep) except? -1
    cdef void look_at_ourselves(self)
    cdef int keep_quota(self, Quota quota) except? -1
    cdef int check_storing(self, str directory) except? -1
