# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.host cimport pthread_mutex_t
from virtiofs.fs.passthrough.inodes cimport Store

cdef struct Handle:          # 64 bytes
    uint64_t word            # see slots.py
    uint64_t nodeid
    int64_t position         # of a directory: the cookie its descriptor stands at; -1 if unknown
    int32_t fd
    uint32_t flags           # as given at OPEN
    uint32_t next            # next free
    uint32_t lock            # 1 while a thread reads the directory
    uint8_t directory
    uint8_t silent           # 1: its file system can not say whether a read would block
    uint8_t unused[14]

cdef struct Handles:
    pthread_mutex_t lock
    Handle* handles
    uint32_t* high
    uint32_t limit
    uint32_t free
    uint32_t live
    Store* inodes            # told which of them are open

cdef void handles_init(Handles* store, Handle* handles, uint32_t* high, uint32_t limit, Store* inodes) noexcept nogil
cdef int handle_open(Handles* store, int fd, uint64_t nodeid, uint32_t flags, bint directory,
                     uint64_t* fh) noexcept nogil
cdef Handle* handle_pin(Handles* store, uint64_t fh, bint directory) noexcept nogil
cdef void handle_unpin(Handles* store, Handle* handle) noexcept nogil
cdef int handle_release(Handles* store, uint64_t fh, bint directory) noexcept nogil
cdef void handle_release_all(Handles* store) noexcept nogil
