# SPDX-License-Identifier: Apache-2.0
"""Steps of operations on file locks.

A lock that somebody else has is EAGAIN; where a program waits for it (SETLKW), the request is set aside and asked
again (fuse/waiting.py), so no thread waits with it.  Locks end with FLUSH, which every close(2) sends, and those of
flock(2) with RELEASE: Linux sends no request of its own for either.
"""

import fcntl

import cython
from cython.cimports.libc.errno import EINVAL
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.python.calls import Calls
from cython.cimports.virtiofs.fs.python.replies import Lock
from cython.cimports.virtiofs.fuse.layout import FUSE_LK_FLOCK, fuse_lk_in, fuse_lk_out
from cython.cimports.virtiofs.fuse.request import Request

KINDS = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
WHOLE = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
TO_THE_END = (1 << 63) - 1


@cython.cfunc
def lock_of(request: cython.pointer(Request)) -> Lock:
    asked: cython.pointer(fuse_lk_in) = cython.cast(cython.pointer(fuse_lk_in), request.args)
    if asked.lk.type not in KINDS or asked.lk.start > asked.lk.end or asked.lk.end >> 63:
        raise OSError(EINVAL, "no lock")
    return Lock(asked.lk.type, asked.lk.start, asked.lk.end, asked.lk.pid)


@cython.cfunc
@cython.exceptval(-1)
def getlk(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_lk_in) = cython.cast(cython.pointer(fuse_lk_in), request.args)
    out: cython.pointer(fuse_lk_out) = cython.cast(cython.pointer(fuse_lk_out), request.reply)
    found: object = calls.result(
        calls.fs.getlk(request.header.nodeid, asked.fh, asked.owner, lock_of(request))
    )
    memset(out, 0, cython.sizeof(fuse_lk_out))
    out.lk.type = fcntl.F_UNLCK
    if found is not None:
        if not isinstance(found, Lock):
            raise TypeError(f"getlk returns a Lock or None, not {found!r}")
        other: Lock = found
        if other.kind not in KINDS or other.start > other.end or other.end >> 63:
            raise ValueError(f"no lock: {other!r}")
        out.lk.type = other.kind
        out.lk.start = other.start
        out.lk.end = other.end
        out.lk.pid = other.pid
    request.reply_size = cython.sizeof(fuse_lk_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def setlk(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    """SETLK, and SETLKW, where `Bridge.serve` makes the request wait for EAGAIN."""
    asked: cython.pointer(fuse_lk_in) = cython.cast(cython.pointer(fuse_lk_in), request.args)
    node: uint64_t = request.header.nodeid
    lock: Lock = lock_of(request)
    if asked.lk_flags & FUSE_LK_FLOCK:
        calls.result(calls.fs.flock(node, asked.fh, asked.owner, WHOLE[lock.kind]))
    else:
        calls.result(calls.fs.setlk(node, asked.fh, asked.owner, lock))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def unlock(calls: Calls, node: uint64_t, handle: uint64_t, owner: uint64_t) -> cython.int:
    """A descriptor is closed, which ends what fcntl(2) locked for its owner."""
    calls.result(calls.fs.setlk(node, handle, owner, Lock(fcntl.F_UNLCK, 0, TO_THE_END)))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def unlock_file(calls: Calls, node: uint64_t, handle: uint64_t, owner: uint64_t) -> cython.int:
    calls.result(calls.fs.flock(node, handle, owner, fcntl.LOCK_UN))
    return 0
