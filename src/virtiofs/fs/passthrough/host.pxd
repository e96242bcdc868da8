# SPDX-License-Identifier: Apache-2.0
"""The host's system calls and structures that Cython does not declare itself."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport dev_t, gid_t, mode_t, off_t, uid_t
from posix.uio cimport iovec

cdef extern from "<errno.h>" nogil:
    enum: ENOTSUP, EOPNOTSUPP, ESTALE, EOVERFLOW, ENODATA, ELOOP, ENOTTY

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK, O_DIRECTORY
        O_NOFOLLOW, O_CLOEXEC, O_PATH, O_TMPFILE, O_NOATIME, O_DSYNC, O_SYNC, O_NOCTTY, O_DIRECT
        AT_FDCWD, AT_EACCESS, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_REMOVEDIR, AT_NO_AUTOMOUNT
    struct file_handle:
        unsigned int handle_bytes
        int handle_type
        unsigned char f_handle[0]
    int open(const char* path, int flags, ...)
    int openat(int dirfd, const char* path, int flags, ...)
    int name_to_handle_at(int dirfd, const char* path, file_handle* handle, int* mount_id, int flags)
    int open_by_handle_at(int mount_fd, file_handle* handle, int flags)
    int fallocate(int fd, int mode, off_t offset, off_t length)

cdef extern from "<sys/stat.h>" nogil:
    enum:
        S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK, S_ISUID, S_ISGID
        STATX_ATTR_APPEND, STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, STATX_NLINK, STATX_ALL
        AT_STATX_SYNC_AS_STAT
        UTIME_NOW, UTIME_OMIT
    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    struct statx_t "statx":
        uint32_t stx_mask
        uint32_t stx_blksize
        uint64_t stx_attributes
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint16_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        uint64_t stx_attributes_mask
        statx_timestamp stx_atime
        statx_timestamp stx_btime
        statx_timestamp stx_ctime
        statx_timestamp stx_mtime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor
        uint64_t stx_mnt_id
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int statx(int dirfd, const char* path, int flags, unsigned int mask, statx_t* buffer)
    int fchmod(int fd, mode_t mode)
    int fchmodat(int dirfd, const char* path, mode_t mode, int flags)
    int mkdirat(int dirfd, const char* path, mode_t mode)
    int mknodat(int dirfd, const char* path, mode_t mode, dev_t dev)
    int utimensat(int dirfd, const char* path, const timespec* times, int flags)
    int futimens(int fd, const timespec* times)
    mode_t umask(mode_t mask)

cdef extern from "<sys/statfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
        long f_bsize
        uint64_t f_blocks
        uint64_t f_bfree
        uint64_t f_bavail
        uint64_t f_files
        uint64_t f_ffree
        long f_namelen
        long f_frsize
    int fstatfs(int fd, statfs_t* buffer)

cdef extern from "<sys/sysmacros.h>" nogil:
    dev_t makedev(unsigned int major, unsigned int minor)

cdef extern from "<stdio.h>" nogil:
    int renameat2(int olddir, const char* old, int newdir, const char* new, unsigned int flags)
    enum: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT

cdef extern from "<unistd.h>" nogil:
    enum: R_OK, W_OK
    int faccessat(int dirfd, const char* path, int mode, int flags)
    int close(int fd)
    int dup(int fd)
    int dup3(int fd, int target, int flags)
    int fchdir(int fd)
    int fchownat(int dirfd, const char* path, uid_t owner, gid_t group, int flags)
    int ftruncate(int fd, off_t length)
    int fsync(int fd)
    int fdatasync(int fd)
    int syncfs(int fd)
    int linkat(int olddir, const char* old, int newdir, const char* new, int flags)
    int symlinkat(const char* target, int dirfd, const char* path)
    int unlinkat(int dirfd, const char* path, int flags)
    ssize_t readlinkat(int dirfd, const char* path, char* buffer, size_t size)
    off_t lseek(int fd, off_t offset, int whence)
    ssize_t copy_file_range(int in_fd, off_t* in_offset, int out_fd, off_t* out_offset, size_t length, unsigned int flags)
    long syscall(long number, ...)
    enum: SEEK_SET, SEEK_DATA, SEEK_HOLE

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec* pieces, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec* pieces, int count, off_t offset, int flags)
    enum: RWF_APPEND, RWF_DSYNC, RWF_NOWAIT

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_getdents64, SYS_setresuid, SYS_setresgid, SYS_setgroups, SYS_capget, SYS_capset

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t getxattr(const char* path, const char* name, void* value, size_t size)
    ssize_t listxattr(const char* path, char* list, size_t size)
    int setxattr(const char* path, const char* name, const void* value, size_t size, int flags)
    int removexattr(const char* path, const char* name)

cdef extern from "<sched.h>" nogil:
    int sched_yield()
    int unshare(int flags)
    enum: CLONE_FS

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
