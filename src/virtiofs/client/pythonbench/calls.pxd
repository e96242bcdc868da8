# SPDX-License-Identifier: Apache-2.0
from posix.stat cimport struct_stat

cdef extern from "<sys/stat.h>" nogil:
    int fstatat(int directory, const char* path, struct_stat* found, int flags)
