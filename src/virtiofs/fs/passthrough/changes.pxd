# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.inodes cimport Inode
from virtiofs.fuse.request cimport Handler
from virtiofs.metadata.journal cimport Change
from virtiofs.metadata.table cimport begin_, end_, slot_of

cdef extern from "<sys/stat.h>" nogil:
    enum: AT_STATX_DONT_SYNC, STATX_INO, STATX_NLINK, STATX_TYPE

cdef enum:
    MOST_TOUCHED = 4         # by RENAME: two directories, what is moved, what is replaced

cdef extern from "<sys/sysmacros.h>" nogil:
    uint64_t makedev(unsigned int major, unsigned int minor)

cdef struct Touched:
    uint64_t slot
    int entry                # what `begin_` returned
    Change change

cdef struct Touches:         # what one request is about to change
    int count
    Touched of[MOST_TOUCHED]

cdef void tell_of_changes(Share* share, Handler* table)
cdef uint64_t table_device(uint64_t dev) noexcept nogil
