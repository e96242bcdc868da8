# SPDX-License-Identifier: Apache-2.0
"""LOOKUP and GETATTR for a guest that looks at versions: what stands in front of them in a share that shows some.

To each reply is added which words of the guest's copy it rests on (metadata/copy.py), as they were before the host
was asked; 0 for one that changed meanwhile, or is just being changed.  So the attributes of what LOOKUP finds are asked
for once more, after their word was read.  Names that are not there are answered with node 0, as a word goes with that
answer, too.  Sessions that did not ask for versions pay one test.
"""

import cython
from cython.cimports.libc.errno import ENOENT
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.virtiofs.fs.passthrough.changes import table_device
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_GETATTR,
    FUSE_LOOKUP,
    fuse_attr_out,
    fuse_entry_out,
    fuse_getattr_in,
    versions_out,
)
from cython.cimports.virtiofs.fuse.request import VERSIONED, Handler, Request
from cython.cimports.virtiofs.metadata.copy import show_slot
from cython.cimports.virtiofs.metadata.layout import IN_PROGRESS
from cython.cimports.virtiofs.metadata.table import slot_of
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32


@cython.cfunc
def show_versions(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Have the replies of two operations in `table` say what they rest on; `share.shown` is the guest's copy."""
    share.unversioned[FUSE_LOOKUP] = table[FUSE_LOOKUP]
    share.unversioned[FUSE_GETATTR] = table[FUSE_GETATTR]
    table[FUSE_LOOKUP] = lookup
    table[FUSE_GETATTR] = getattr


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin(
    share: cython.pointer(Share),
    nodeid: uint64_t,
    slot: cython.pointer(uint32_t),
    word: cython.pointer(uint64_t),
) -> cython.void:
    """Before the host is asked about a node: its slot, and the word of it, which the guest is told of."""
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    slot[0] = 0
    word[0] = 0
    if inode == cython.NULL:
        return
    slot[0] = slot_of(share.shown.view, table_device(inode.dev), inode.ino)
    inode_unpin(cython.address(share.inodes), inode)
    word[0] = show_slot(share.shown, slot[0])
    if word[0] & IN_PROGRESS:
        word[0] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def settle(share: cython.pointer(Share), slot: uint32_t, word: uint64_t) -> uint64_t:
    """After the host has answered: the word, or 0 if it changed meanwhile, or nobody would see the host change it."""
    if not word or not load_acquire_u32(cython.address(share.metadata.header.watcher)):
        return 0
    return word if show_slot(share.shown, slot) == word else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def has_room(request: cython.pointer(Request), size: uint64_t) -> cython.bint:
    """Whether the guest looks at versions, and has room for them behind `size` bytes."""
    return request.session_flags & VERSIONED != 0 and request.out_size >= size + cython.sizeof(versions_out)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def add(request: cython.pointer(Request), versions: cython.pointer(versions_out)) -> cython.void:
    memcpy(request.reply + request.reply_size, versions, cython.sizeof(versions_out))
    request.reply_size += cython.sizeof(versions_out)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def getattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    versions: versions_out
    error: cython.int
    if not has_room(request, cython.sizeof(fuse_attr_out)):
        return share.unversioned[FUSE_GETATTR](context, request)
    memset(cython.address(versions), 0, cython.sizeof(versions_out))
    begin(share, request.header.nodeid, cython.address(versions.slot), cython.address(versions.word))
    error = share.unversioned[FUSE_GETATTR](context, request)
    if error:
        return error
    versions.word = settle(share, versions.slot, versions.word)
    add(request, cython.address(versions))
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lookup(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    entry: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    versions: versions_out
    error: cython.int
    if not has_room(request, cython.sizeof(fuse_entry_out)):
        return share.unversioned[FUSE_LOOKUP](context, request)
    memset(cython.address(versions), 0, cython.sizeof(versions_out))
    begin(
        share,
        request.header.nodeid,
        cython.address(versions.parent_slot),
        cython.address(versions.parent_word),
    )
    error = share.unversioned[FUSE_LOOKUP](context, request)
    if error and error != -ENOENT:
        return error
    if error:
        memset(entry, 0, cython.sizeof(fuse_entry_out))
        request.reply_size = cython.sizeof(fuse_entry_out)
    else:
        begin(share, entry.nodeid, cython.address(versions.slot), cython.address(versions.word))
        if versions.word and look_again(share, request):
            versions.word = 0
        versions.word = settle(share, versions.slot, versions.word)
    versions.parent_word = settle(share, versions.parent_slot, versions.parent_word)
    add(request, cython.address(versions))
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def look_again(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.int:
    """Ask for the attributes of what was found once more: 0, or an error and they are what they were."""
    entry: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    found: fuse_entry_out
    directory: uint64_t = request.header.nodeid
    memcpy(cython.address(found), entry, cython.sizeof(fuse_entry_out))
    memset(request.args, 0, cython.sizeof(fuse_getattr_in))
    request.header.nodeid = found.nodeid
    error: cython.int = share.unversioned[FUSE_GETATTR](share, request)
    request.header.nodeid = directory
    if not error:
        flags: uint32_t = found.attr.flags
        found.attr = cython.cast(cython.pointer(fuse_attr_out), request.reply).attr
        found.attr.flags |= flags
    memcpy(entry, cython.address(found), cython.sizeof(fuse_entry_out))
    request.reply_size = cython.sizeof(fuse_entry_out)
    return error
