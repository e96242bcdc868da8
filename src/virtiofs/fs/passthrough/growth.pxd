# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport statx_t

cdef enum:
    ROOM = 65536
    LITTLE_ROOM = 24576

cdef extern from "<linux/fiemap.h>" nogil:
    enum:
        FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_UNKNOWN, FIEMAP_EXTENT_ENCODED, FIEMAP_EXTENT_UNWRITTEN
    struct fiemap_extent:
        uint64_t fe_logical
        uint64_t fe_length
        uint32_t fe_flags
    struct fiemap:
        uint64_t fm_start
        uint64_t fm_length
        uint32_t fm_flags
        uint32_t fm_mapped_extents
        uint32_t fm_extent_count
        fiemap_extent* fm_extents

cdef extern from "<linux/fs.h>" nogil:
    unsigned long FS_IOC_FIEMAP

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    EXTENTS = 16

cdef struct Extents:         # struct fiemap with room for some extents
    fiemap head
    fiemap_extent extents[EXTENTS]

cdef struct Growth:          # what a request changes, while it is served
    Share* share
    uint64_t reserved
    int64_t bytes            # how much it came to
    uint64_t one             # inode numbers whose lanes are held
    uint64_t two

cdef void begin(Growth* growth, Share* share, uint64_t one, uint64_t two) noexcept nogil
cdef void end(Growth* growth) noexcept nogil
cdef int set_aside(Growth* growth, uint64_t size) noexcept nogil
cdef int set_aside_range(Growth* growth, int fd, statx_t* status, uint64_t offset, uint64_t size) noexcept nogil
cdef int look(int fd, statx_t* status) noexcept nogil
cdef void add_change(Growth* growth, int fd, statx_t* before) noexcept nogil
