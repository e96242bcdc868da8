# SPDX-License-Identifier: Apache-2.0
from virtiofs.fuse.request cimport Handlers

cdef class Filesystem(Handlers):
    cdef public double wait_limit
    cdef public int pool_threads
    cdef public bint pool_yields
    cdef public bint few_readers
    cdef public bint one_thread
    cdef public object metadata
