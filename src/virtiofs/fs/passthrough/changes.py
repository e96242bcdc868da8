# SPDX-License-Identifier: Apache-2.0
"""What stands in front of the operations of a share with a metadata table: it is told what they change.

A change begins in the table before the host is asked, and ends after it answered, also if with an error: how far
it came is not looked at (metadata/table.py has the rule of readers).  What may be changed is

- the inode of the handle or node that a request names;
- the names of a directory where one is made, removed or moved, and with them the directory's times and links;
- the inode behind a name that is removed, moved or replaced: its links and times.  Which one that is, is looked up
  before.  If the host puts another there in between, that one's change is missed by us, not by whoever did it.

Reading changes nothing here: access times are not part of the promise.  Nor are blocks that the host's file system
allots or takes back on its own, nor what a guest stores through a DAX window, of which nobody hears.
An operation without a rule is taken away, so that none is forgotten.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_SYMLINK_NOFOLLOW,
    O_TRUNC,
    RENAME_EXCHANGE,
    S_IFDIR,
    S_IFMT,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fs.passthrough.ioctls import FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_FH,
    FATTR_SIZE,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_CREATE,
    FUSE_FALLOCATE,
    FUSE_IOCTL_DIR,
    FUSE_RENAME2,
    fuse_copy_file_range_in,
    fuse_create_in,
    fuse_entry_out,
    fuse_fallocate_in,
    fuse_ioctl_in,
    fuse_link_in,
    fuse_open_in,
    fuse_rename2_in,
    fuse_rename_in,
    fuse_setattr_in,
    fuse_write_in,
)
from cython.cimports.virtiofs.fuse.request import OPCODES, Handler, Request
from cython.cimports.virtiofs.metadata.copy import renew_slot
from cython.cimports.virtiofs.metadata.layout import ATTRIBUTES, DATA, ENTRY, GONE

from virtiofs.fuse import abi

# What an operation changes.
NOTHING = cython.declare(uint8_t, 1)
FILE = cython.declare(uint8_t, 2)  # data of the file that a handle leads to
NODE = cython.declare(uint8_t, 3)  # attributes of the node
SIZE = cython.declare(uint8_t, 4)  # those, perhaps with the size, perhaps of the handle's file
OPENED = cython.declare(uint8_t, 5)  # the node's data, if it is truncated
FLAGS = cython.declare(uint8_t, 6)  # attributes of the handle's file, if the command is one that sets some
MADE = cython.declare(uint8_t, 7)  # a name in the node; what it led to, if it is truncated
LINKED = cython.declare(uint8_t, 8)  # a name in the node, and links of another node
REMOVED = cython.declare(uint8_t, 9)  # a name in the node, and links of what it led to
MOVED = cython.declare(uint8_t, 10)  # two names, and what they led to

RULES = {
    **dict.fromkeys(("lookup", "forget", "batch_forget", "getattr", "statx", "readlink", "access"), NOTHING),
    **dict.fromkeys(("read", "lseek", "flush", "fsync", "release", "statfs", "syncfs"), NOTHING),
    **dict.fromkeys(("opendir", "readdir", "readdirplus", "releasedir", "fsyncdir"), NOTHING),
    **dict.fromkeys(("getxattr", "listxattr", "getlk", "setlk", "setlkw"), NOTHING),
    **dict.fromkeys(("write", "fallocate", "copy_file_range", "copy_file_range_64"), FILE),
    **dict.fromkeys(("setxattr", "removexattr"), NODE),
    "setattr": SIZE,
    "open": OPENED,
    "ioctl": FLAGS,
    **dict.fromkeys(("create", "mknod", "mkdir", "symlink"), MADE),
    "tmpfile": NOTHING,  # nobody can know the inode, and its directory says nothing of it
    "link": LINKED,
    **dict.fromkeys(("unlink", "rmdir"), REMOVED),
    **dict.fromkeys(("rename", "rename2"), MOVED),
}
rules = cython.declare(uint8_t[OPCODES])


@cython.cfunc
def build_rules() -> cython.void:
    for name, rule in RULES.items():
        rules[cython.cast(cython.int, abi.BY_NAME[name].opcode)] = rule


build_rules()


@cython.cfunc
def tell_of_changes(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Put `front` in front of those handlers in `table` that change something."""
    opcode: cython.int
    for opcode in range(OPCODES):
        if table[opcode] == cython.NULL or rules[opcode] == NOTHING:
            continue
        share.untold[opcode] = table[opcode]
        table[opcode] = front if rules[opcode] else cython.cast(Handler, cython.NULL)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_device(dev: uint64_t) -> uint64_t:
    """The device of an inode as the table knows it: st_dev."""
    return makedev(dev >> 32, cython.cast(uint32_t, dev))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touch(
    share: cython.pointer(Share),
    touches: cython.pointer(Touches),
    dev: uint64_t,
    ino: uint64_t,
    kind: uint16_t,
) -> cython.pointer(Change):
    """Begin a change."""
    touched: cython.pointer(Touched) = cython.address(touches.of[touches.count])
    touches.count += 1
    memset(cython.address(touched.change), 0, cython.sizeof(Change))
    touched.change.kind = kind
    touched.change.dev = dev
    touched.change.ino = ino
    touched.slot = slot_of(share.metadata, dev, ino)
    touched.entry = begin_(share.metadata, touched.slot)
    if share.shown != cython.NULL:
        renew_slot(share.shown, touched.slot)
    return cython.address(touched.change)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touch_node(
    share: cython.pointer(Share), touches: cython.pointer(Touches), nodeid: uint64_t, kind: uint16_t
) -> cython.pointer(Change):
    """Begin a change of a node; NULL if there is no such node, which the operation itself will say."""
    change: cython.pointer(Change)
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    if inode == cython.NULL:
        return cython.NULL
    change = touch(share, touches, table_device(inode.dev), inode.ino, kind)
    inode_unpin(cython.address(share.inodes), inode)
    return change


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touch_file(
    share: cython.pointer(Share),
    touches: cython.pointer(Touches),
    fh: uint64_t,
    directory: cython.bint,
    kind: uint16_t,
) -> cython.void:
    """Begin a change of what a handle leads to, whatever node the guest names beside it."""
    handle: cython.pointer(Handle) = handle_pin(cython.address(share.handles), fh, directory)
    if handle != cython.NULL:
        touch_node(share, touches, handle.nodeid, kind)
        handle_unpin(cython.address(share.handles), handle)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touch_name(
    share: cython.pointer(Share),
    touches: cython.pointer(Touches),
    request: cython.pointer(Request),
    which: cython.int,
    directory: uint64_t,
    kind: uint16_t,
) -> cython.pointer(Change):
    """Begin a change of one of the request's names, in a directory's node."""
    change: cython.pointer(Change) = touch_node(share, touches, directory, kind)
    if change != cython.NULL:
        change.name = request.names[which]
        change.name_size = request.name_sizes[which]
    return change


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find(
    share: cython.pointer(Share),
    directory: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    status: cython.pointer(statx_t),
) -> cython.bint:
    """What a name leads to, if to anything."""
    fd: cython.int
    found: cython.bint
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), directory)
    if parent == cython.NULL:
        return False
    fd = inode_descriptor(cython.address(share.inodes), parent)
    found = (
        fd >= 0
        and statx(
            fd, name, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_NLINK | STATX_INO, status
        )
        == 0
    )
    inode_unpin(cython.address(share.inodes), parent)
    return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def touch_found(
    share: cython.pointer(Share),
    touches: cython.pointer(Touches),
    status: cython.pointer(statx_t),
    kind: uint16_t,
) -> cython.void:
    touch(share, touches, makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino, kind)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def leads_to(change: cython.pointer(Change), status: cython.pointer(statx_t)) -> cython.void:
    """Note what a name leads to."""
    if change != cython.NULL:
        change.child_dev = makedev(status.stx_dev_major, status.stx_dev_minor)
        change.child_ino = status.stx_ino


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def front(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Begin what the request may change, have it served, and end it."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    opcode: uint32_t = request.header.opcode
    rule: uint8_t = rules[opcode]
    touches: Touches
    error: cython.int
    i: cython.int
    touches.count = 0
    if rule == FILE:
        touch_file(share, cython.address(touches), handle_of(request), False, DATA)
    elif rule == NODE:
        touch_node(share, cython.address(touches), request.header.nodeid, ATTRIBUTES)
    elif rule == SIZE:
        begin_setattr(share, cython.address(touches), request)
    elif rule == OPENED:
        if cython.cast(cython.pointer(fuse_open_in), request.args).flags & O_TRUNC:
            touch_node(share, cython.address(touches), request.header.nodeid, DATA)
    elif rule == FLAGS:
        begin_ioctl(share, cython.address(touches), request)
    elif rule == MADE:
        begin_make(share, cython.address(touches), request)
    elif rule == LINKED:
        begin_link(share, cython.address(touches), request)
    elif rule == REMOVED:
        begin_remove(share, cython.address(touches), request)
    else:
        begin_move(share, cython.address(touches), request)
    error = share.untold[opcode](context, request)
    if error > 0:  # it will be asked again
        for i in range(touches.count):
            touches.of[i].change.kind = 0
    elif error == 0 and rule == MADE:
        note_made(share, cython.address(touches), request)
    for i in range(touches.count):
        end_(share.metadata, touches.of[i].entry, cython.address(touches.of[i].change))
        if share.shown != cython.NULL:
            renew_slot(share.shown, touches.of[i].slot)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_of(request: cython.pointer(Request)) -> uint64_t:
    """The handle by which a request changes data."""
    if request.header.opcode == FUSE_FALLOCATE:
        return cython.cast(cython.pointer(fuse_fallocate_in), request.args).fh
    if request.header.opcode in (FUSE_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE_64):
        return cython.cast(cython.pointer(fuse_copy_file_range_in), request.args).fh_out
    return cython.cast(cython.pointer(fuse_write_in), request.args).fh


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_setattr(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    args: cython.pointer(fuse_setattr_in) = cython.cast(cython.pointer(fuse_setattr_in), request.args)
    kind: uint16_t = DATA if args.valid & FATTR_SIZE else ATTRIBUTES
    touch_node(share, touches, request.header.nodeid, kind)
    if args.valid & FATTR_FH:
        touch_file(share, touches, args.fh, False, kind)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_ioctl(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    args: cython.pointer(fuse_ioctl_in) = cython.cast(cython.pointer(fuse_ioctl_in), request.args)
    if args.cmd == FS_IOC_SETFLAGS or args.cmd == FS_IOC_FSSETXATTR:
        touch_node(share, touches, request.header.nodeid, ATTRIBUTES)
        touch_file(share, touches, args.fh, args.flags & FUSE_IOCTL_DIR != 0, ATTRIBUTES)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_make(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    there: statx_t
    touch_name(share, touches, request, 0, request.header.nodeid, ENTRY)
    if (
        request.header.opcode == FUSE_CREATE
        and cython.cast(cython.pointer(fuse_create_in), request.args).flags & O_TRUNC
        and find(share, request.header.nodeid, request.names[0], cython.address(there))
    ):
        touch_found(share, touches, cython.address(there), DATA)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def note_made(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    """What the new name leads to.

    If CREATE truncated what another put there after we had looked, that is noted now.
    """
    change: cython.pointer(Change) = cython.address(touches.of[0].change)
    truncated: cython.pointer(Change) = cython.address(touches.of[1].change)
    inode: cython.pointer(Inode)
    if touches.count == 0:
        return
    inode = inode_pin(
        cython.address(share.inodes), cython.cast(cython.pointer(fuse_entry_out), request.reply).nodeid
    )
    if inode == cython.NULL:
        return
    change.child_dev = table_device(inode.dev)
    change.child_ino = inode.ino
    inode_unpin(cython.address(share.inodes), inode)
    if (
        request.header.opcode == FUSE_CREATE
        and cython.cast(cython.pointer(fuse_create_in), request.args).flags & O_TRUNC
        and (touches.count == 1 or truncated.ino != change.child_ino or truncated.dev != change.child_dev)
    ):
        touch(share, touches, change.child_dev, change.child_ino, DATA)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_link(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    args: cython.pointer(fuse_link_in) = cython.cast(cython.pointer(fuse_link_in), request.args)
    linked: cython.pointer(Change) = touch_node(share, touches, args.oldnodeid, ATTRIBUTES)
    change: cython.pointer(Change) = touch_name(share, touches, request, 0, request.header.nodeid, ENTRY)
    if linked != cython.NULL and change != cython.NULL:
        change.child_dev = linked.dev
        change.child_ino = linked.ino


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_remove(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    there: statx_t
    change: cython.pointer(Change) = touch_name(share, touches, request, 0, request.header.nodeid, GONE)
    if find(share, request.header.nodeid, request.names[0], cython.address(there)):
        touch_found(share, touches, cython.address(there), ATTRIBUTES)
        if there.stx_nlink <= 1 or there.stx_mode & S_IFMT == S_IFDIR:
            leads_to(change, cython.address(there))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_move(
    share: cython.pointer(Share), touches: cython.pointer(Touches), request: cython.pointer(Request)
) -> cython.void:
    there: statx_t
    target: uint64_t = cython.cast(cython.pointer(fuse_rename_in), request.args).newdir
    swap: cython.bint = (
        request.header.opcode == FUSE_RENAME2
        and cython.cast(cython.pointer(fuse_rename2_in), request.args).flags & RENAME_EXCHANGE
    )
    old: cython.pointer(Change) = touch_name(share, touches, request, 0, request.header.nodeid, ENTRY)
    new: cython.pointer(Change) = touch_name(share, touches, request, 1, target, ENTRY)
    if find(share, request.header.nodeid, request.names[0], cython.address(there)):
        touch_found(share, touches, cython.address(there), ATTRIBUTES)
        leads_to(new, cython.address(there))
    if find(share, target, request.names[1], cython.address(there)):
        touch_found(share, touches, cython.address(there), ATTRIBUTES)
        if swap:
            leads_to(old, cython.address(there))
