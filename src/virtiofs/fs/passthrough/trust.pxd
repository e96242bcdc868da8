# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Handler

cdef extern from *:
    """
    #define NO_LIMIT (365ULL * 86400 * 1000000000)
    """
    const uint64_t NO_LIMIT  # ns

cdef void trust_table(Share* share, Handler* table)
