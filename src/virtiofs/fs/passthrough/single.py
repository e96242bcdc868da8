# SPDX-License-Identifier: Apache-2.0
"""A share of a single file: the guest sees a directory that holds this file under its own name, and nothing else.

The directory is the file's own on the host, so that a file which is replaced there (as editors do) is
followed.  One function stands in front of every operation: on the root the only name is the file's, and
nothing in it or of it can be changed.  The root is the only directory a guest can get (should the host put
another under the name, it is not shown), and the file the only other node; only operations that were looked at
with this in mind are let through at all.
"""

import cython
from cython.cimports.libc.errno import ENOENT, EOPNOTSUPP, EPERM
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcmp
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.host import S_IFMT, S_IFREG
from cython.cimports.virtiofs.fs.passthrough.inodes import inode_forget
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_LOOKUP,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_ROOT_ID,
    fuse_entry_out,
    fuse_rename_in,
)
from cython.cimports.virtiofs.fuse.request import OPCODES, Handler, Request

from virtiofs.fuse import abi

# What an operation may do when the node it names is the root.
PASS = cython.declare(uint8_t, 1)  # as anywhere
NAME = cython.declare(uint8_t, 2)  # only with the file's name
REFUSE = cython.declare(uint8_t, 3)  # nothing: EPERM
HIDE = cython.declare(uint8_t, 4)  # nothing: EOPNOTSUPP

RULES = {
    "lookup": NAME,
    **dict.fromkeys(
        ("forget", "getattr", "open", "read", "statfs", "release", "fsync", "flush", "opendir", "readdir"),
        PASS,
    ),
    **dict.fromkeys(("releasedir", "fsyncdir", "access", "batch_forget", "lseek"), PASS),
    # By handle, and the root has none for data.
    **dict.fromkeys(("write", "fallocate", "copy_file_range", "copy_file_range_64", "syncfs", "statx"), PASS),
    **dict.fromkeys(("setattr", "symlink", "mknod", "mkdir", "unlink", "rmdir", "rename", "rename2"), REFUSE),
    **dict.fromkeys(("link", "create", "tmpfile"), REFUSE),
    **dict.fromkeys(("setxattr", "getxattr", "listxattr", "removexattr"), HIDE),
    **dict.fromkeys(("getlk", "setlk", "setlkw"), HIDE),
    **dict.fromkeys(("setupmapping", "removemapping"), PASS),
    "readlink": PASS,
}
rules = cython.declare(uint8_t[OPCODES])


@cython.cfunc
def build_rules() -> cython.void:
    for name, rule in RULES.items():
        rules[cython.cast(cython.int, abi.BY_NAME[name].opcode)] = rule


build_rules()


@cython.cfunc
def show_only(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Put the guard in front of the handlers in `table`; those without a rule are taken away."""
    opcode: cython.int
    for opcode in range(OPCODES):
        if table[opcode] == cython.NULL:
            continue
        share.inner[opcode] = table[opcode]
        table[opcode] = cython.NULL
        if rules[opcode]:
            table[opcode] = guard


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def guard(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    opcode: uint32_t = request.header.opcode
    rule: uint8_t = rules[opcode]
    error: cython.int
    entry: cython.pointer(fuse_entry_out)
    if (
        opcode in (FUSE_RENAME, FUSE_RENAME2)
        and cython.cast(cython.pointer(fuse_rename_in), request.args).newdir == FUSE_ROOT_ID
    ):
        return -EPERM
    if request.header.nodeid == FUSE_ROOT_ID:
        if rule == REFUSE:
            return -EPERM
        if rule == HIDE:
            return -EOPNOTSUPP
        if rule == NAME and (
            request.name_sizes[0] != share.only_size
            or memcmp(request.names[0], share.only, share.only_size) != 0
        ):
            return -ENOENT
    error = share.inner[opcode](context, request)
    if opcode == FUSE_LOOKUP and not error:
        entry = cython.cast(cython.pointer(fuse_entry_out), request.reply)
        if entry.attr.mode & S_IFMT != S_IFREG:
            inode_forget(cython.address(share.inodes), entry.nodeid, 1)
            return -ENOENT
    return error
