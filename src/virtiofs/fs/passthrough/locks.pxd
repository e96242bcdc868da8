# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport pthread_mutex_t
from virtiofs.fuse.request cimport Request

cdef extern from "<fcntl.h>" nogil:
    enum: F_OFD_SETLK, F_OFD_GETLK, F_RDLCK, F_WRLCK, F_UNLCK
    struct flock_t "flock":
        short l_type
        short l_whence
        long l_start
        long l_len
        int l_pid
    int fcntl(int fd, int command, ...)

cdef extern from "<sys/file.h>" nogil:
    enum: LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB
    int flock(int fd, int operation)

cdef void owners_init(Share* share) noexcept nogil
cdef void owner_gone(Share* share, uint64_t nodeid, uint64_t owner) noexcept nogil
cdef void owners_by_handle_gone(Share* share, uint64_t fh) noexcept nogil
cdef void all_owners_gone(Share* share) noexcept nogil
cdef int getlk(void* context, Request* request) noexcept nogil
cdef int setlk(void* context, Request* request) noexcept nogil
cdef int setlkw(void* context, Request* request) noexcept nogil
