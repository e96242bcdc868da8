# SPDX-License-Identifier: Apache-2.0
"""A policy at work on nodes: whether what is known of an inode allows what a request asks of it."""

import cython
from cython.cimports.libc.errno import EACCES, EBADF, ENOMEM, EPERM, EROFS
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import ESTALE, O_ACCMODE, O_RDONLY, O_TRUNC, W_OK
from cython.cimports.virtiofs.fs.passthrough.marks import (
    ASK,
    DENY,
    HIDE,
    NOT_YET,
    READ_ONLY,
    STRICT,
    Mark,
    Policing,
    answer_node,
    compare_ruled,
    known_mark,
    mark_of,
    show_owner,
)
from cython.cimports.virtiofs.fs.passthrough.unopened import unopened
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_FH,
    FATTR_GID,
    FATTR_UID,
    FUSE_ATTR_DAX,
    FUSE_GETATTR_FH,
    FUSE_IOCTL_DIR,
    fuse_access_in,
    fuse_attr,
    fuse_attr_out,
    fuse_getattr_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_setattr_in,
    fuse_statx_out,
)
from cython.cimports.virtiofs.fuse.request import REPLY_ROOM, WOULD_BLOCK, Handler, Request, scatter
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_acquire_u64


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def go_on(policing: cython.pointer(Policing), request: cython.pointer(Request)) -> cython.int:
    """Do what was asked for."""
    return policing.inner[request.header.opcode](policing.share, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_node(
    policing: cython.pointer(Policing), request: cython.pointer(Request), nodeid: uint64_t, need: uint8_t
) -> cython.int:
    """Whether a node may be used so: 0, a negative errno, or WOULD_BLOCK."""
    mark: cython.pointer(Mark) = known_mark(policing, nodeid)
    verdict: uint64_t
    if mark == cython.NULL:
        return -ESTALE
    if mark.compared != load_acquire_u32(cython.address(policing.ruled_count)) and compare_ruled(
        policing, nodeid, mark
    ):
        return -ESTALE
    verdict = load_acquire_u64(cython.address(mark.verdict)) & STRICT
    return refuse_node(policing, request, mark, verdict, need) if verdict else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def refuse_node(
    policing: cython.pointer(Policing),
    request: cython.pointer(Request),
    mark: cython.pointer(Mark),
    verdict: uint64_t,
    need: uint8_t,
) -> cython.int:
    """What a verdict that is not plain allows of a node.

    ESTALE for what is hidden: the guest's kernel walks the path again, and finds nothing.
    """
    answer: cython.int
    if verdict & HIDE:
        return -ESTALE
    if need == LOOK:
        return 0
    if verdict & DENY:
        return -EACCES
    if verdict & READ_ONLY and need == CHANGE:
        return -EROFS
    if not verdict & ASK:
        return 0
    answer = answer_node(policing, request, mark)
    if answer == NOT_YET:
        return WOULD_BLOCK
    return judge(answer, need)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def judge(answer: cython.int, need: uint8_t) -> cython.int:
    """What an answer of the policy's function allows."""
    if answer < 0:
        return answer
    if answer & DENY:
        return -EACCES
    return -EROFS if answer & READ_ONLY and need == CHANGE else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def use_node(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    error: cython.int = check_node(policing, request, request.header.nodeid, USE)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_node(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    error: cython.int = check_node(policing, request, request.header.nodeid, CHANGE)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_node(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    mark: cython.pointer(Mark)
    error: cython.int = check_node(policing, request, request.header.nodeid, USE)
    if error:
        return error
    mark = mark_of(policing, request.header.nodeid)
    if mark != cython.NULL and mark.verdict & ASK and not request.no_wait:
        return go_on_with_room(policing.share, request, policing.inner[request.header.opcode])
    return go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def go_on_with_room(context: cython.p_void, request: cython.pointer(Request), serve: Handler) -> cython.int:
    """Have `serve` answer with `context`, for a reply that has no room elsewhere: in a thread of the pool."""
    error: cython.int
    own: cython.pointer(uint8_t) = request.reply
    room: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), malloc(REPLY_ROOM))
    if room == cython.NULL:
        return -ENOMEM
    request.reply = room
    error = serve(context, request)
    if not error and not request.in_place:
        scatter(room, cython.address(request.out), cython.address(request.out_count), request.reply_size)
        request.in_place = True
    request.reply = own
    free(room)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def access(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    mask: uint32_t = cython.cast(cython.pointer(fuse_access_in), request.args).mask
    need: uint8_t = CHANGE if mask & W_OK else USE if mask else LOOK
    error: cython.int = check_node(policing, request, request.header.nodeid, need)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    flags: uint32_t = cython.cast(cython.pointer(fuse_open_in), request.args).flags
    need: uint8_t = CHANGE if flags & O_ACCMODE != O_RDONLY or flags & O_TRUNC else USE
    error: cython.int = check_node(policing, request, request.header.nodeid, need)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def node_of(
    share: cython.pointer(Share), request: cython.pointer(Request), fh: uint64_t, directory: cython.bint
) -> uint64_t:
    """The node that a handle is about, whatever node the request names; 0 for a handle that there is not."""
    nodeid: uint64_t = 0
    handle: cython.pointer(Handle)
    if unopened(request, fh, directory):
        return request.header.nodeid
    handle = handle_pin(cython.address(share.handles), fh, directory)
    if handle != cython.NULL:
        nodeid = handle.nodeid
        handle_unpin(cython.address(share.handles), handle)
    return nodeid


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ioctl(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """File flags can be set through a handle that is open for reading."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    args: cython.pointer(fuse_ioctl_in) = cython.cast(cython.pointer(fuse_ioctl_in), request.args)
    nodeid: uint64_t = node_of(policing.share, request, args.fh, args.flags & FUSE_IOCTL_DIR != 0)
    error: cython.int = -EBADF
    if nodeid:
        error = check_node(policing, request, nodeid, CHANGE if args.in_size else USE)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setupmapping(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A mapping outlives every verdict, and most front ends map for writing: only what is plainly allowed is mapped."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    mark: cython.pointer(Mark)
    error: cython.int = check_node(policing, request, request.header.nodeid, LOOK)
    if error:
        return error
    mark = mark_of(policing, request.header.nodeid)
    if mark == cython.NULL or mark.verdict & STRICT:
        return -EACCES
    return go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def show(
    policing: cython.pointer(Policing), verdict: uint64_t, attr: cython.pointer(fuse_attr)
) -> cython.void:
    """Attributes as the guest is to see them."""
    show_owner(policing, verdict, cython.address(attr.uid), cython.address(attr.gid))
    if verdict & STRICT:
        attr.flags &= ~cython.cast(uint32_t, FUSE_ATTR_DAX)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def show_node(policing: cython.pointer(Policing), request: cython.pointer(Request)) -> cython.void:
    """The same, in the reply of GETATTR or SETATTR."""
    mark: cython.pointer(Mark) = mark_of(policing, request.header.nodeid)
    if mark != cython.NULL and mark.verdict:
        show(
            policing,
            mark.verdict,
            cython.address(cython.cast(cython.pointer(fuse_attr_out), request.reply).attr),
        )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def getattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Also of what was hidden after it was opened: Linux asks by the handle before it reads."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    args: cython.pointer(fuse_getattr_in) = cython.cast(cython.pointer(fuse_getattr_in), request.args)
    error: cython.int = check_node(policing, request, request.header.nodeid, LOOK)
    if (
        error
        and args.getattr_flags & FUSE_GETATTR_FH
        and not unopened(request, args.fh, False)
        and node_of(policing.share, request, args.fh, False) == request.header.nodeid
    ):
        error = 0
    if not error:
        error = go_on(policing, request)
    if not error:
        show_node(policing, request)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def statx_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    out: cython.pointer(fuse_statx_out) = cython.cast(cython.pointer(fuse_statx_out), request.reply)
    mark: cython.pointer(Mark)
    error: cython.int = check_node(policing, request, request.header.nodeid, LOOK)
    if not error:
        error = go_on(policing, request)
    if not error:
        mark = mark_of(policing, request.header.nodeid)
        if mark != cython.NULL:
            show_owner(policing, mark.verdict, cython.address(out.stat.uid), cython.address(out.stat.gid))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Also by a handle, of whatever file that is.  An owner that is shown can not be given away."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    args: cython.pointer(fuse_setattr_in) = cython.cast(cython.pointer(fuse_setattr_in), request.args)
    mark: cython.pointer(Mark)
    uid: uint32_t = args.uid
    gid: uint32_t = args.gid
    nodeid: uint64_t
    error: cython.int = check_node(policing, request, request.header.nodeid, CHANGE)
    if error:
        return error
    if args.valid & FATTR_FH:
        nodeid = node_of(policing.share, request, args.fh, False)
        if nodeid and nodeid != request.header.nodeid:
            error = check_node(policing, request, nodeid, CHANGE)
            if error:
                return error
    mark = mark_of(policing, request.header.nodeid)
    if mark != cython.NULL and args.valid & (FATTR_UID | FATTR_GID):
        show_owner(policing, mark.verdict, cython.address(uid), cython.address(gid))
        if (args.valid & FATTR_UID and uid != args.uid) or (args.valid & FATTR_GID and gid != args.gid):
            return -EPERM
        if mark.verdict & policing.has_uid:
            args.valid &= ~cython.cast(uint32_t, FATTR_UID)
        if mark.verdict & policing.has_gid:
            args.valid &= ~cython.cast(uint32_t, FATTR_GID)
    error = go_on(policing, request)
    if not error:
        show_node(policing, request)
    return error
