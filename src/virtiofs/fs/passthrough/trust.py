# SPDX-License-Identifier: Apache-2.0
"""How long a client may trust what it is told, where it is told of every change: without limit, or for a moment.

A share whose client gets notifications (daemon/invalidation.py) has these functions behind its operations.  They write
into each reply how long it is valid:

- while nobody enters the host's changes into the table, `UNWATCHED`;
- while a change is in progress, not at all: nobody knows which state was seen;
- for `MOTION` after a change, `MOMENT`: the reply may have been made before it, and reach the client after the
  notification;
- else without limit, as a notification follows each later change.

A name is its directory's, the attributes are the inode's own.  That a name is not there is an answer, too (node 0).
"""

import cython
from cython.cimports.libc.errno import ENOENT
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.passthrough.changes import table_device
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_CREATE,
    FUSE_GETATTR,
    FUSE_LINK,
    FUSE_LOOKUP,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_READDIRPLUS,
    FUSE_SETATTR,
    FUSE_STATX,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    fuse_attr_out,
    fuse_direntplus,
    fuse_entry_out,
)
from cython.cimports.virtiofs.fuse.request import Handler, Request
from cython.cimports.virtiofs.metadata.journal import View, boot_time
from cython.cimports.virtiofs.metadata.layout import IN_PROGRESS
from cython.cimports.virtiofs.metadata.table import slot_of, word_of
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_u64

NANOSECONDS = cython.declare(uint64_t, 1000000000)
MOTION = cython.declare(uint64_t, 1000000000)
UNWATCHED = cython.declare(uint64_t, 1000000000)
MOMENT = cython.declare(uint64_t, 100000000)

MAKING = (FUSE_MKNOD, FUSE_MKDIR, FUSE_SYMLINK, FUSE_LINK, FUSE_CREATE, FUSE_TMPFILE)
ABOUT_ONE = (FUSE_GETATTR, FUSE_SETATTR, FUSE_STATX)


@cython.cfunc
def trust_table(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Have the replies of the operations in `table` be valid for as long as `share.metadata` makes it safe."""
    opcode: cython.int
    for opcode in (FUSE_LOOKUP, FUSE_READDIRPLUS, *MAKING, *ABOUT_ONE):
        share.untrusted[opcode] = table[opcode]
    table[FUSE_LOOKUP] = lookup
    table[FUSE_READDIRPLUS] = readdirplus
    for opcode in MAKING:
        table[opcode] = make
    for opcode in ABOUT_ONE:
        table[opcode] = about_one


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def validity(share: cython.pointer(Share), nodeid: uint64_t) -> uint64_t:
    """How long what was just learned of a node is valid, in nanoseconds."""
    view: cython.pointer(View) = share.metadata
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    slot: uint64_t
    changed: uint64_t
    if inode == cython.NULL:
        return 0
    slot = slot_of(view, table_device(inode.dev), inode.ino)
    inode_unpin(cython.address(share.inodes), inode)
    if word_of(view, slot) & IN_PROGRESS:
        return 0
    if not load_acquire_u32(cython.address(view.header.watcher)):
        return UNWATCHED
    changed = load_u64(cython.address(view.slots[slot].changed_at))
    if load_u64(cython.address(view.header.everything_at)) > changed:
        changed = load_u64(cython.address(view.header.everything_at))
    return NO_LIMIT if changed == 0 or boot_time() - changed > MOTION else MOMENT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def trust_entry(
    share: cython.pointer(Share), entry: cython.pointer(fuse_entry_out), directory: uint64_t
) -> cython.void:
    """Write into an entry how long it is valid; `directory`: how long the names beside it are."""
    valid: uint64_t = directory if directory < share.names_valid else share.names_valid
    entry.entry_valid = valid // NANOSECONDS
    entry.entry_valid_nsec = valid % NANOSECONDS
    valid = validity(share, entry.nodeid) if entry.nodeid else 0
    entry.attr_valid = valid // NANOSECONDS
    entry.attr_valid_nsec = valid % NANOSECONDS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def go_on(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.int:
    """Do what was asked for."""
    return share.untrusted[request.header.opcode](share, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lookup(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    entry: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    error: cython.int = go_on(share, request)
    if error == -ENOENT:
        memset(entry, 0, cython.sizeof(fuse_entry_out))
        request.reply_size = cython.sizeof(fuse_entry_out)
        error = 0
    if not error:
        trust_entry(share, entry, validity(share, request.header.nodeid))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    error: cython.int = go_on(share, request)
    if not error:
        trust_entry(
            share,
            cython.cast(cython.pointer(fuse_entry_out), request.reply),
            validity(share, request.header.nodeid),
        )
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def about_one(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    # The reply to STATX begins with the same two fields.
    out: cython.pointer(fuse_attr_out) = cython.cast(cython.pointer(fuse_attr_out), request.reply)
    valid: uint64_t
    error: cython.int = go_on(share, request)
    if not error:
        valid = validity(share, request.header.nodeid)
        out.attr_valid = valid // NANOSECONDS
        out.attr_valid_nsec = valid % NANOSECONDS
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readdirplus(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    found: cython.pointer(fuse_direntplus)
    at: uint32_t = 0
    directory: uint64_t
    error: cython.int = go_on(share, request)
    if error or request.in_place:
        return error
    directory = validity(share, request.header.nodeid)
    while at + cython.sizeof(fuse_direntplus) <= request.reply_size:
        found = cython.cast(
            cython.pointer(fuse_direntplus), cython.cast(cython.pointer(uint8_t), request.reply) + at
        )
        if found.entry_out.nodeid:
            trust_entry(share, cython.address(found.entry_out), directory)
        at += (cython.sizeof(fuse_direntplus) + found.dirent.namelen + 7) // 8 * 8
    return 0
