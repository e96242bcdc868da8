# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Handler

cdef void show_versions(Share* share, Handler* table)
