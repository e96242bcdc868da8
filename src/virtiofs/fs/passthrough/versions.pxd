# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Handler

cdef uint64_t st_dev(uint64_t dev) noexcept nogil
cdef void show_versions(Share* share, Handler* table)
