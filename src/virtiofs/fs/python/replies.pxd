# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef class Attributes:
    cdef public uint32_t mode
    cdef public uint64_t size
    cdef public uint32_t nlink
    cdef public uint32_t uid
    cdef public uint32_t gid
    cdef public uint32_t rdev
    cdef public uint64_t ino
    cdef public int64_t blocks
    cdef public uint32_t blksize
    cdef public int64_t atime_ns
    cdef public int64_t mtime_ns
    cdef public int64_t ctime_ns
    cdef public double valid
    cdef public int64_t btime_ns

cdef class Entry:
    cdef public uint64_t node
    cdef public Attributes attributes
    cdef public double valid
    cdef public uint64_t generation

cdef class Opened:
    cdef public uint64_t handle
    cdef public bint direct_io
    cdef public bint keep_cache
    cdef public bint cache_directory
    cdef public bint parallel_direct_writes

cdef class Statistics:
    cdef public uint64_t blocks
    cdef public uint64_t free
    cdef public uint64_t available
    cdef public uint64_t files
    cdef public uint64_t free_files
    cdef public uint32_t block_size
    cdef public uint32_t name_length

cdef class Changes:
    cdef readonly object mode
    cdef readonly object uid
    cdef readonly object gid
    cdef readonly object size
    cdef readonly object atime_ns
    cdef readonly object mtime_ns

cdef class Lock:
    cdef readonly uint32_t kind
    cdef readonly uint64_t start
    cdef readonly uint64_t end
    cdef readonly uint32_t pid

cdef class Caller:
    cdef readonly uint32_t uid
    cdef readonly uint32_t gid
    cdef readonly uint32_t pid
