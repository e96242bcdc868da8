# SPDX-License-Identifier: Apache-2.0
"""Notifications: what a file system tells its client without having been asked (fuse.h, FUSE_NOTIFY_*).

One is an out header with `unique` 0 and the code in place of the error, and a body.  Over /dev/fuse it is written like
a reply; over virtio it travels in the notification queue, if the driver has one (virtio 1.3, section 5.11.6.1).
"""

from __future__ import annotations

from typing import NamedTuple

from virtiofs.fuse.abi import (
    CONSTANTS,
    FUSE_NOTIFY_DELETE_OUT,
    FUSE_NOTIFY_INVAL_ENTRY_OUT,
    FUSE_NOTIFY_INVAL_INODE_OUT,
    FUSE_OUT_HEADER,
)

INVAL_INODE = CONSTANTS["FUSE_NOTIFY_INVAL_INODE"]
INVAL_ENTRY = CONSTANTS["FUSE_NOTIFY_INVAL_ENTRY"]
DELETE = CONSTANTS["FUSE_NOTIFY_DELETE"]
INC_EPOCH = CONSTANTS["FUSE_NOTIFY_INC_EPOCH"]
EXPIRE_ONLY = CONSTANTS["FUSE_EXPIRE_ONLY"]
# The longest: a header, a DELETE, a name of 255 bytes and its end.
MOST_BYTES = FUSE_OUT_HEADER.size + FUSE_NOTIFY_DELETE_OUT.size + 256


class NotificationError(ValueError):
    """What came is no notification; the text says why."""


class Notification(NamedTuple):
    """What was told.  `node` is the inode, or the directory of `name`; `child` what a deleted name led to.

    `data`: an INVAL_INODE is about the file's data, too.
    """

    code: int
    node: int = 0
    name: bytes = b""
    child: int = 0
    data: bool = False
    expire_only: bool = False


def encode(told: Notification) -> bytes:
    """The bytes of a notification."""
    name = told.name + b"\0" if told.name else b""
    body = b""
    if told.code == INVAL_INODE:
        # An offset below zero means attributes only, a length of zero up to the end (fuse_reverse_inval_inode).
        body = FUSE_NOTIFY_INVAL_INODE_OUT.pack(ino=told.node, off=0 if told.data else -1, len=0)
    elif told.code == INVAL_ENTRY:
        flags = EXPIRE_ONLY if told.expire_only else 0
        body = FUSE_NOTIFY_INVAL_ENTRY_OUT.pack(parent=told.node, namelen=len(told.name), flags=flags)
    elif told.code == DELETE:
        body = FUSE_NOTIFY_DELETE_OUT.pack(parent=told.node, child=told.child, namelen=len(told.name))
    size = FUSE_OUT_HEADER.size + len(body) + len(name)
    return FUSE_OUT_HEADER.pack(len=size, error=told.code, unique=0) + body + name


def decode(data: bytes) -> Notification:
    """What `encode` made.  Raises `NotificationError` for anything else: a device may send what it likes."""
    header = FUSE_OUT_HEADER.size
    if len(data) < header:
        raise NotificationError(f"{len(data)} bytes hold no header")
    head = FUSE_OUT_HEADER.unpack(data)
    if head.len != len(data) or head.unique:
        raise NotificationError(f"its header says {head.len} of {len(data)} bytes, and request {head.unique}")
    body = {
        INVAL_INODE: FUSE_NOTIFY_INVAL_INODE_OUT,
        INVAL_ENTRY: FUSE_NOTIFY_INVAL_ENTRY_OUT,
        DELETE: FUSE_NOTIFY_DELETE_OUT,
        INC_EPOCH: None,
    }
    if head.error not in body:
        raise NotificationError(f"code {head.error} is not known")
    layout = body[head.error]
    start = header + (layout.size if layout else 0)
    if len(data) < start:
        raise NotificationError(f"{len(data)} bytes are too few for code {head.error}")
    if layout is None or layout is FUSE_NOTIFY_INVAL_INODE_OUT:
        if len(data) != start:
            raise NotificationError(f"{len(data) - start} bytes too many for code {head.error}")
        if layout is None:
            return Notification(INC_EPOCH)
        inode = layout.unpack(data, header)
        return Notification(INVAL_INODE, inode.ino, data=inode.off >= 0)
    record = layout.unpack(data, header)
    name = data[start:-1]
    if not 1 <= len(name) <= 255 or len(name) != record.namelen or data[-1] or b"\0" in name or b"/" in name:
        raise NotificationError(f"a name of {record.namelen} bytes does not fit {data[start:]!r}")
    if layout is FUSE_NOTIFY_DELETE_OUT:
        return Notification(DELETE, record.parent, name, record.child)
    return Notification(
        INVAL_ENTRY, record.parent, name, expire_only=bool(record.flags & CONSTANTS["FUSE_EXPIRE_ONLY"])
    )
