# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.python.calls cimport Calls
from virtiofs.fuse.request cimport Request

cdef int open_(Calls calls, Request* request) except? -1
cdef int create(Calls calls, Request* request) except? -1
cdef int tmpfile(Calls calls, Request* request) except? -1
cdef int read(Calls calls, Request* request) except? -1
cdef int write(Calls calls, Request* request) except? -1
cdef int flush(Calls calls, Request* request) except? -1
cdef int release(Calls calls, Request* request) except? -1
cdef int fsync(Calls calls, Request* request) except? -1
cdef int fallocate(Calls calls, Request* request) except? -1
cdef int bmap(Calls calls, Request* request) except? -1
cdef int lseek(Calls calls, Request* request) except? -1
cdef int syncfs(Calls calls, Request* request) except? -1
cdef int copy_file_range(Calls calls, Request* request) except? -1
cdef int ioctl(Calls calls, Request* request) except? -1
cdef int poll(Calls calls, Request* request) except? -1
