# SPDX-License-Identifier: Apache-2.0
# What the C library and the kernel offer for watching files (fanotify(7)).
from libc.stdint cimport uint64_t

cdef extern from "<sys/fanotify.h>" nogil:
    int fanotify_init(unsigned int flags, unsigned int event_flags)
    int fanotify_mark(int group, unsigned int flags, uint64_t mask, int directory, const char *path)
    unsigned int FAN_CLASS_NOTIF, FAN_CLOEXEC, FAN_NONBLOCK, FAN_MARK_ADD, FAN_MARK_REMOVE
    uint64_t FAN_MODIFY

cdef extern from *:
    """
    #ifndef FAN_REPORT_FID
    #define FAN_REPORT_FID 0x200
    #endif
    """
    unsigned int FAN_REPORT_FID
