# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Handler

cdef void count_growth(Share* share, Handler* table)
