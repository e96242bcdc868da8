# SPDX-License-Identifier: Apache-2.0
"""A policy at work on listings: what is hidden is taken out of the reply before the guest gets it."""

import cython
from cython.cimports.libc.errno import EBADF
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memmove
from cython.cimports.virtiofs.fs.passthrough.marks import (
    ASK,
    HIDE,
    Mark,
    Policing,
    directory_mark,
    mark_of,
)
from cython.cimports.virtiofs.fs.passthrough.policynames import admit, meet, verdict_of_there
from cython.cimports.virtiofs.fs.passthrough.policynodes import (
    USE,
    check_node,
    go_on,
    go_on_with_room,
    node_of,
)
from cython.cimports.virtiofs.fs.passthrough.ruled import ruled_number
from cython.cimports.virtiofs.fs.passthrough.unopened import unopened
from cython.cimports.virtiofs.fs.policy.matcher import Verdict, name_verdict
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_READDIRPLUS,
    fuse_dirent,
    fuse_entry_out,
    fuse_read_in,
)
from cython.cimports.virtiofs.fuse.request import Request

DT_DIRECTORY = cython.declare(uint32_t, 4)
DT_UNKNOWN = cython.declare(uint32_t, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readdir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    mark: cython.pointer(Mark)
    error: cython.int = 0
    fh: uint64_t = cython.cast(cython.pointer(fuse_read_in), request.args).fh
    if unopened(request, fh, True):
        error = check_node(policing, request, request.header.nodeid, USE)
        if error:
            return error
        mark = mark_of(policing, request.header.nodeid)
        if mark != cython.NULL and mark.verdict & ASK and not request.no_wait:
            return go_on_with_room(policing, request, answer_listing)
    return answer_listing(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def answer_listing(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """List until something is left that may be shown, or the directory ends: an empty reply would mean its end."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    args: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    mark: cython.pointer(Mark)
    error: cython.int
    nodeid: uint64_t = node_of(policing.share, request, args.fh, True)
    if nodeid == 0:
        return -EBADF
    error = directory_mark(policing, nodeid, cython.address(mark))
    if error:
        return error
    while True:
        error = go_on(policing, request)
        if error or request.reply_size == 0:
            return error
        args.offset = sift(policing, request, nodeid, mark.state)
        if request.reply_size:
            return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def sift(
    policing: cython.pointer(Policing), request: cython.pointer(Request), parent: uint64_t, state: uint32_t
) -> uint64_t:
    """Take what is hidden out of a listing in `request.reply`: the cookie to go on from."""
    plus: cython.bint = request.header.opcode == FUSE_READDIRPLUS
    head: uint32_t = cython.sizeof(fuse_entry_out) if plus else 0
    at: uint32_t = 0
    kept: uint32_t = 0
    size: uint32_t
    offset: uint64_t = 0
    record: cython.pointer(uint8_t)
    dirent: fuse_dirent
    while at < request.reply_size:
        record = request.reply + at
        memcpy(cython.address(dirent), record + head, cython.sizeof(fuse_dirent))
        size = (head + cython.sizeof(fuse_dirent) + dirent.namelen + 7) & ~cython.cast(uint32_t, 7)
        offset = dirent.off
        if shown(
            policing,
            parent,
            state,
            cython.cast(cython.p_char, record + head + cython.sizeof(fuse_dirent)),
            cython.address(dirent),
            cython.cast(cython.pointer(fuse_entry_out), record) if plus else cython.NULL,
        ):
            if kept != at:
                memmove(request.reply + kept, record, size)
            kept += size
        at += size
    request.reply_size = kept
    return offset


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def shown(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    state: uint32_t,
    name: cython.p_char,
    dirent: cython.pointer(fuse_dirent),
    entry: cython.pointer(fuse_entry_out),
) -> cython.bint:
    """Whether an entry may be listed; where it comes with an inode, that is admitted or given back.

    `name` is followed by bytes of the next record, so it is copied before the host is asked about it.
    """
    verdict: Verdict
    there: uint64_t = 0
    directory: cython.bint = dirent.type == DT_DIRECTORY
    copy: cython.char[256]
    if name[0] == ord(".") and (dirent.namelen == 1 or (dirent.namelen == 2 and name[1] == ord("."))):
        return True
    if dirent.namelen > 255:
        return False
    memcpy(copy, name, dirent.namelen)
    copy[dirent.namelen] = 0
    name_verdict(policing.tables, state, copy, dirent.namelen, cython.address(verdict))
    if entry != cython.NULL and entry.nodeid:
        return admit(policing, parent, state, copy, dirent.namelen, cython.address(verdict), entry) == 0
    if (
        dirent.type == DT_UNKNOWN
        and (verdict.file ^ verdict.directory) & HIDE
        and verdict_of_there(
            policing, parent, copy, cython.address(verdict), cython.address(there), cython.address(directory)
        )
    ):
        return False
    there |= verdict.directory if directory else verdict.file
    if not directory:
        if ruled_number(policing, dirent.ino):
            verdict_of_there(
                policing,
                parent,
                copy,
                cython.address(verdict),
                cython.address(there),
                cython.address(directory),
            )
        if there & HIDE:
            meet(policing, parent, copy, there)
    return not there & HIDE
