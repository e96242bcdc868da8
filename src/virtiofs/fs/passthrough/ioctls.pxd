# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long command, ...)

cdef extern from "<linux/fs.h>" nogil:
    enum:
        FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
        FS_COMPR_FL, FS_SYNC_FL, FS_NODUMP_FL, FS_NOATIME_FL, FS_NOCOMP_FL, FS_DIRSYNC_FL, FS_NOCOW_FL
        FS_XFLAG_SYNC, FS_XFLAG_NOATIME, FS_XFLAG_NODUMP
    struct fsxattr:
        uint32_t fsx_xflags
        uint32_t fsx_extsize
        uint32_t fsx_nextents
        uint32_t fsx_projid
        uint32_t fsx_cowextsize
        unsigned char fsx_pad[8]

cdef int ioctl_(void* context, Request* request) noexcept nogil
