# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport statx_t
from virtiofs.fs.passthrough.inodes cimport Inode
from virtiofs.metadata.journal cimport View
from virtiofs.metadata.table cimport slot_of, word_of

cdef extern from "<time.h>" nogil:
    enum: CLOCK_REALTIME

cdef uint64_t entry_validity(Share* share, Inode* parent) noexcept nogil
cdef uint64_t attr_validity(Share* share, const statx_t* status) noexcept nogil
