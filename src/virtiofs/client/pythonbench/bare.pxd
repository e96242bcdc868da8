# SPDX-License-Identifier: Apache-2.0
from virtiofs.fuse.request cimport Handlers

cdef enum:
    SIZE = 1 << 20
    EMPTY = 2
    DATA = 3
    CALLS = 4

cdef class Bare(Handlers):
    pass
