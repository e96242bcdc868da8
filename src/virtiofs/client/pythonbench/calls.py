# SPDX-License-Identifier: Apache-2.0
"""The calls of a program that are measured, many times in a row: compiled, so that next to nothing of a figure is
theirs.  Each function raises `OSError` for a call that fails or does not do all of its work.
"""

import os

import cython
from cython.cimports.libc.errno import EIO, errno
from cython.cimports.libc.stdint import int64_t, uint8_t
from cython.cimports.posix.stat import fstat, struct_stat
from cython.cimports.posix.unistd import pread, pwrite


@cython.cfunc
@cython.exceptval(-1)
def failed(number: cython.int) -> cython.int:
    raise OSError(number or EIO, os.strerror(number or EIO))


def fstats(fd: cython.int, count: int64_t) -> None:
    found: struct_stat
    error: cython.int = 0
    _i: int64_t
    with cython.nogil:
        for _i in range(count):
            if fstat(fd, cython.address(found)) != 0:
                error = 1
                break
    if error:
        failed(errno)


def stats(directory: cython.int, name: bytes, count: int64_t) -> None:
    found: struct_stat
    path: cython.p_char = name
    error: cython.int = 0
    _i: int64_t
    with cython.nogil:
        for _i in range(count):
            if fstatat(directory, path, cython.address(found), 0) != 0:
                error = 1
                break
    if error:
        failed(errno)


def reads(fd: cython.int, buffer: bytearray, expected: cython.Py_ssize_t, count: int64_t) -> None:
    """Read from the file's beginning as much as fits, which is `expected` bytes."""
    view: uint8_t[::1] = buffer
    into: cython.pointer(uint8_t) = cython.address(view[0])
    size: cython.Py_ssize_t = view.shape[0]
    got: cython.Py_ssize_t = expected
    _i: int64_t
    with cython.nogil:
        for _i in range(count):
            got = pread(fd, into, size, 0)
            if got != expected:
                break
    if got != expected:
        failed(errno if got < 0 else 0)


def writes(fd: cython.int, data: bytes, offset: int64_t, count: int64_t) -> None:
    start: cython.p_char = data
    size: cython.Py_ssize_t = len(data)
    put: cython.Py_ssize_t = size
    _i: int64_t
    with cython.nogil:
        for _i in range(count):
            put = pwrite(fd, start, size, offset)
            if put != size:
                break
    if put != size:
        failed(errno if put < 0 else 0)
