# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for somebody else: a lock that another guest, or a program of the host, holds.

No thread waits with them.  A queue sets such a request aside, goes on with the others, and asks its handler again from
time to time: soon at first, then less often.  What it keeps is a private copy of header and structure and the few
bytes of guest memory where the reply's header goes; a reply with a payload cannot wait.

A wait ends with the lock, with INTERRUPT, with the session, with the queue, or when its time is over.  Linux sends no
INTERRUPT over virtio, so a guest's program that is killed while it waits for a lock stays until then: that is why
there is an end.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint16_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
from cython.cimports.virtiofs.fuse.layout import fuse_in_header
from cython.cimports.virtiofs.fuse.request import ARGS_ROOM, Request


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def now() -> int64_t:
    """The monotonic clock, in nanoseconds."""
    time: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(time))
    return cython.cast(int64_t, time.tv_sec) * 1000000000 + time.tv_nsec


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_aside(
    waiting: cython.pointer(Waiting),
    request: cython.pointer(Request),
    head: uint16_t,
    deadline: int64_t,
) -> cython.void:
    """Keep what is needed to ask the request's handler again."""
    waiting.head = head
    waiting.deadline = deadline
    memcpy(cython.address(waiting.header), cython.address(request.header), cython.sizeof(fuse_in_header))
    memcpy(waiting.args, request.args, ARGS_ROOM)
    memcpy(waiting.room, request.head, cython.sizeof(request.head))
    waiting.room_count = request.head_count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_up(waiting: cython.pointer(Waiting), request: cython.pointer(Request)) -> cython.void:
    """Make `request` what it was when it was set aside, without names, data or room for a payload."""
    memcpy(cython.address(request.header), cython.address(waiting.header), cython.sizeof(fuse_in_header))
    memcpy(request.args, waiting.args, ARGS_ROOM)
    memcpy(request.head, waiting.room, cython.sizeof(request.head))
    request.head_count = waiting.room_count
    request.parsed = True
    request.sent = False
    request.tail_size = 0
    request.groups_count = 0
    request.data_count = 0
    request.data_size = 0
    request.out_count = 0
    request.out_size = 0
