# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.python.calls cimport Calls
from virtiofs.fuse.request cimport Request

cdef int getattr_(Calls calls, Request* request) except? -1
cdef int setattr_(Calls calls, Request* request) except? -1
cdef int statx(Calls calls, Request* request) except? -1
cdef int access(Calls calls, Request* request) except? -1
cdef int statfs(Calls calls, Request* request) except? -1
cdef int setxattr(Calls calls, Request* request) except? -1
cdef int getxattr(Calls calls, Request* request) except? -1
cdef int listxattr(Calls calls, Request* request) except? -1
cdef int removexattr(Calls calls, Request* request) except? -1
