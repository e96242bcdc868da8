# SPDX-License-Identifier: Apache-2.0
"""The host's system calls of fanotify(7), inotify(7) and file handles."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<fcntl.h>" nogil:
    struct file_handle:
        unsigned int handle_bytes
    enum: O_PATH, O_CLOEXEC, O_RDONLY, AT_FDCWD, AT_EMPTY_PATH, MAX_HANDLE_SZ
    int name_to_handle_at(int directory, const char* path, file_handle* handle, int* mount, int flags)
    int open_by_handle_at(int mount, file_handle* handle, int flags)

cdef extern from "<sys/fanotify.h>" nogil:
    int fanotify_init(unsigned int flags, unsigned int event_flags)
    int fanotify_mark(int group, unsigned int flags, uint64_t mask, int directory, const char* path)

cdef extern from "<sys/inotify.h>" nogil:
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char* path, uint32_t mask)
    int inotify_rm_watch(int fd, int watch)
