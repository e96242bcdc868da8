# SPDX-License-Identifier: Apache-2.0
"""A policy at work: what stands in front of the operations of a share that has one.

docs/policy.md has the rules, `verdicts.py` what is known of each inode.  Here every operation is of one
of three kinds: those on a node are let through by its mark (LOOK, USE, CHANGE), those on a name by what holds for
the name, and what comes with a handle was let through when that was opened.  What is not in the table is taken away:
only operations that were looked at with this in mind are there.

A request that is allowed by what is known never enters the interpreter.  Without a policy none of this is in its way.
"""

import cython
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.policylistings import readdir
from cython.cimports.virtiofs.fs.passthrough.policynames import link, lookup, make, remove, rename, tmpfile
from cython.cimports.virtiofs.fs.passthrough.policynodes import (
    access,
    change_node,
    getattr,
    ioctl,
    lseek,
    open_,
    read,
    read_node,
    setattr,
    setupmapping,
    statx_,
    use_node,
)
from cython.cimports.virtiofs.fs.passthrough.verdicts import policing_of
from cython.cimports.virtiofs.fuse.request import OPCODES, Handler

from virtiofs.fuse import abi

# Operations that pass as they are: those by handle, and those about nothing that has a name.
PASS = ("forget", "batch_forget", "statfs", "release", "releasedir", "flush", "fsync", "fsyncdir", "write", "fallocate",
        "copy_file_range", "copy_file_range_64", "syncfs", "removemapping")  # fmt: skip


@cython.cfunc
def enforce(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Put the policy in front of the handlers in `table`; those that have no kind are taken away."""
    guards: Handler[64]
    opcode: cython.int
    for opcode in range(OPCODES):
        guards[opcode] = cython.NULL
    guards[opcode_of("lookup")] = lookup
    guards[opcode_of("getattr")] = getattr
    guards[opcode_of("statx")] = statx_
    guards[opcode_of("setattr")] = setattr
    guards[opcode_of("readlink")] = guards[opcode_of("getxattr")] = guards[opcode_of("listxattr")] = read_node
    guards[opcode_of("setxattr")] = guards[opcode_of("removexattr")] = change_node
    guards[opcode_of("opendir")] = use_node
    guards[opcode_of("getlk")] = guards[opcode_of("setlk")] = guards[opcode_of("setlkw")] = use_node
    guards[opcode_of("access")] = access
    guards[opcode_of("open")] = open_
    guards[opcode_of("read")] = read
    guards[opcode_of("lseek")] = lseek
    guards[opcode_of("ioctl")] = ioctl
    guards[opcode_of("setupmapping")] = setupmapping
    guards[opcode_of("readdir")] = guards[opcode_of("readdirplus")] = readdir
    guards[opcode_of("symlink")] = guards[opcode_of("mknod")] = guards[opcode_of("mkdir")] = make
    guards[opcode_of("create")] = make
    guards[opcode_of("tmpfile")] = tmpfile
    guards[opcode_of("link")] = link
    guards[opcode_of("unlink")] = guards[opcode_of("rmdir")] = remove
    guards[opcode_of("rename")] = guards[opcode_of("rename2")] = rename
    for opcode in range(OPCODES):
        policing_of(share).inner[opcode] = table[opcode]
        if table[opcode] != cython.NULL and not passes(opcode):
            table[opcode] = guards[opcode]


@cython.cfunc
def opcode_of(name: str) -> cython.int:
    return abi.BY_NAME[name].opcode


@cython.cfunc
def passes(opcode: cython.int) -> cython.bint:
    return opcode in [abi.BY_NAME[name].opcode for name in PASS]
