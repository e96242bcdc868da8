# SPDX-License-Identifier: Apache-2.0
"""What a relay carries: the room a message's reply needs, what both ends may agree on, and when a reply is none.

Only looks at what it is given, which is never in shared memory but for the payload of a reply to INIT: that is copied
once.
"""

import cython
from cython.cimports.libc.errno import E2BIG, ENOSYS
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_GETXATTR,
    FUSE_INIT_EXT,
    FUSE_IOCTL,
    FUSE_LISTXATTR,
    FUSE_MAX_PAGES,
    FUSE_READ,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_READLINK,
    fuse_getxattr_out,
    fuse_init_out,
    fuse_ioctl_out,
    fuse_out_header,
)

from virtiofs.client.session import OFFER
from virtiofs.fuse import abi
from virtiofs.virtqueue import driver

# Why a relay ends, by the numbers of carried.pxd and of the ring.
REASONS = {
    **{reason: driver.REASONS[reason] for reason in (-1, -2, -3)},
    WRONG_LENGTH: "a reply's length differs from the used length",
    WRONG_UNIQUE: "a reply carries another request's number",
    WRONG_ERROR: "a reply's error is no error number, or comes with a payload",
    NOT_TAKEN: "the kernel refused a reply",
    NO_SESSION: "the device refused to begin a session",
    WRONG_VERSION: "the device speaks a version of FUSE that can not be relayed",
    NOT_READ: "/dev/fuse can not be read",
}
NAMES = {operation.opcode: operation.name for operation in abi.OPERATIONS}

# INIT flags that mean the same over /dev/fuse as in a guest, and that a relay can keep: what a guest offers, less the
# window and submounts, which only a virtiofs mount has, and locks, which a guest may keep to itself.
CARRIED = cython.declare(
    uint64_t,
    (OFFER | abi.CONSTANTS["FUSE_POSIX_LOCKS"] | abi.CONSTANTS["FUSE_FLOCK_LOCKS"])
    & ~(abi.CONSTANTS["FUSE_SUBMOUNTS"] | abi.CONSTANTS["FUSE_HAS_INODE_DAX"]),
)
OLDEST_MINOR = cython.declare(uint32_t, 31)  # virtio-fs came with it
LARGEST_ERROR = cython.declare(int32_t, 511)  # dev.c
TARGET_ROOM = cython.declare(uint32_t, 4096)  # of a symbolic link

# Room for the reply of each opcode, behind the out header; -1: an opcode that is not known here.
ROOMS = cython.declare(int64_t[64])
for _opcode in range(64):
    ROOMS[_opcode] = -1
for _operation in abi.OPERATIONS:
    ROOMS[_operation.opcode] = _operation.reply.size if _operation.reply else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def room_of(start: cython.pointer(Start), length: uint32_t) -> int64_t:
    """The room that the reply to a message of `length` bytes can need behind its header, or a negative errno."""
    opcode: uint32_t = start.header.opcode
    room: int64_t = ROOMS[opcode] if opcode < OPCODES else -1
    if opcode in (FUSE_READ, FUSE_READDIR, FUSE_READDIRPLUS):
        room = start.args[4]
    elif opcode in (FUSE_GETXATTR, FUSE_LISTXATTR):
        room = start.args[0] if start.args[0] else cython.sizeof(fuse_getxattr_out)
    elif opcode == FUSE_IOCTL:
        room = cython.sizeof(fuse_ioctl_out) + cython.cast(int64_t, start.args[7])
    elif opcode == FUSE_READLINK:
        room = TARGET_ROOM
    if room < 0:
        return -ENOSYS
    # What is lost to alignment between the message and its reply is less than a page.
    if PAGE - START + cython.cast(int64_t, length) + PAGE + cython.sizeof(fuse_out_header) + room > SLOT:
        return -E2BIG
    return room


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wrong(
    out: cython.pointer(fuse_out_header), length: uint32_t, unique: uint64_t, value: cython.pointer(int64_t)
) -> cython.int:
    """Whether the used length and the copied header belong to no reply to request `unique`: 0, or a reason and
    the `value` that is wrong.
    """
    if length < cython.sizeof(fuse_out_header):
        value[0] = length
        return WRONG_LENGTH
    if out.len != length:
        value[0] = out.len
        return WRONG_LENGTH
    if out.unique != unique:
        value[0] = out.unique
        return WRONG_UNIQUE
    if out.error and (out.error > 0 or out.error < -LARGEST_ERROR or length > cython.sizeof(fuse_out_header)):
        value[0] = out.error
        return WRONG_ERROR
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def offer(start: cython.pointer(Start)) -> uint64_t:
    """Take out of an INIT message what can not be relayed: the flags that are left."""
    flags: uint64_t = start.args[3]
    if flags & FUSE_INIT_EXT:
        flags |= cython.cast(uint64_t, start.args[4]) << 32
    flags &= CARRIED
    start.args[3] = cython.cast(uint32_t, flags)
    start.args[4] = cython.cast(uint32_t, flags >> 32)
    return flags


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def limit(
    reply: cython.pointer(cython.const[uint8_t]),
    length: uint32_t,
    offered: uint64_t,
    out: cython.pointer(fuse_init_out),
    value: cython.pointer(int64_t),
) -> cython.int:
    """Write to `out` what the kernel may take of an INIT reply: 0, or a reason and the `value` that is wrong."""
    flags: uint64_t
    if length != cython.sizeof(fuse_out_header) + cython.sizeof(fuse_init_out):
        value[0] = length
        return WRONG_VERSION
    memcpy(out, reply + cython.sizeof(fuse_out_header), cython.sizeof(fuse_init_out))
    if out.major != 7 or out.minor < OLDEST_MINOR:
        value[0] = out.minor if out.major == 7 else out.major
        return WRONG_VERSION
    flags = out.flags
    if flags & FUSE_INIT_EXT:
        flags |= cython.cast(uint64_t, out.flags2) << 32
    flags &= offered
    out.flags = cython.cast(uint32_t, flags)
    out.flags2 = cython.cast(uint32_t, flags >> 32)
    if out.max_write > PAYLOAD:
        out.max_write = PAYLOAD
    if not flags & FUSE_MAX_PAGES:
        out.max_pages = 0
    elif out.max_pages > PAYLOAD // PAGE:
        out.max_pages = PAYLOAD // PAGE
    out.map_alignment = 0
    out.max_stack_depth = 0
    out.request_timeout = 0
    memset(out.unused, 0, cython.sizeof(out.unused))
    return 0
