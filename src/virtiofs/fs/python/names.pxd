# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.python.calls cimport Calls
from virtiofs.fuse.request cimport Request

cdef int lookup(Calls calls, Request* request) except? -1
cdef int forget(Calls calls, Request* request) except? -1
cdef int batch_forget(Calls calls, Request* request) except? -1
cdef int readlink(Calls calls, Request* request) except? -1
cdef int symlink(Calls calls, Request* request) except? -1
cdef int mknod(Calls calls, Request* request) except? -1
cdef int mkdir(Calls calls, Request* request) except? -1
cdef int unlink(Calls calls, Request* request) except? -1
cdef int rmdir(Calls calls, Request* request) except? -1
cdef int rename(Calls calls, Request* request) except? -1
cdef int rename2(Calls calls, Request* request) except? -1
cdef int link(Calls calls, Request* request) except? -1
