# SPDX-License-Identifier: Apache-2.0
"""What Linux accepts as a reply (fs/fuse/virtio_fs.c, dev.c, dir.c, readdir.c, file.c of 7.3), as assertions."""

from __future__ import annotations

import stat
from collections.abc import Collection
from types import SimpleNamespace

from virtiofs.fuse import abi
from virtiofs.fuse.abi import (
    FUSE_ATTR,
    FUSE_DIRENT,
    FUSE_ENTRY_OUT,
    FUSE_OPEN_OUT,
    FUSE_OUT_HEADER,
    Operation,
)

TYPES = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
MADE = {"mkdir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "create": stat.S_IFREG, "tmpfile": stat.S_IFREG}
ENTRIES = ("lookup", "symlink", "mknod", "mkdir", "link", "create", "tmpfile")


class Found:
    """What a reply tells the driver: node ids, and handles of files and of directories."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.files: list[int] = []
        self.directories: list[int] = []


def check(
    operation: Operation | None,
    values: dict[str, int],
    unique: int,
    room: int,
    written: bytes,
    secret: Collection[int],
) -> tuple[int, Found]:
    """Assert that `written`, what the device wrote, is a lawful reply.  Returns its errno and what it tells.

    `operation` and `values` are the request's (None: an opcode nobody knows), `room` the bytes it had for the reply,
    `secret` inode numbers that no guest may learn.
    """
    found = Found()
    silent = operation is not None and operation.flags & abi.NO_REPLY != 0
    if room < FUSE_OUT_HEADER.size or (silent and not written):
        assert not written, "a reply without room for one"
        return 0, found
    assert len(written) >= FUSE_OUT_HEADER.size, f"a reply of {len(written)} bytes"
    head = FUSE_OUT_HEADER.unpack(written)
    assert head.len == len(written) <= room
    assert head.unique == unique
    assert -512 < head.error <= 0, f"error {head.error}"
    if head.error:
        assert len(written) == FUSE_OUT_HEADER.size, "an error with a payload"
        return -head.error, found
    assert operation is not None, "an unknown operation succeeded"
    assert not silent, "a success that nobody waits for"
    payload = written[FUSE_OUT_HEADER.size :]
    fixed = operation.reply.size if operation.reply else 0
    if operation.flags & abi.REPLY_DATA:
        assert len(payload) >= fixed
        CHECKS[operation.name](payload, values, found, secret)
    else:
        assert len(payload) == fixed, f"{operation.name}: {len(payload)} bytes instead of {fixed}"
    if operation.name in ENTRIES:
        mode = entry(payload, found, secret)
        if operation.name in MADE:
            assert stat.S_IFMT(mode) == MADE[operation.name]
    elif operation.name in ("getattr", "setattr"):
        attributes(payload[16:], secret)
    elif operation.name == "write" or operation.name == "copy_file_range":
        assert abi.FUSE_WRITE_OUT.unpack(payload).size <= values.get("size", values.get("len", 0))
    elif operation.name == "copy_file_range_64":
        assert abi.FUSE_COPY_FILE_RANGE_OUT.unpack(payload).bytes_copied <= values["len"]
    elif operation.name == "statx":
        status = abi.FUSE_STATX_OUT.unpack(payload).stat
        assert stat.S_IFMT(status.mode) in TYPES and status.ino not in secret
    elif operation.name == "open":
        found.files.append(FUSE_OPEN_OUT.unpack(payload).fh)
    elif operation.name == "opendir":
        found.directories.append(FUSE_OPEN_OUT.unpack(payload).fh)
    if operation.name in ("create", "tmpfile"):
        found.files.append(FUSE_OPEN_OUT.unpack(payload, FUSE_ENTRY_OUT.size).fh)
    return 0, found


def attributes(data: bytes, secret: Collection[int]) -> int:
    """fuse_invalid_attr; returns the mode."""
    attr = FUSE_ATTR.unpack(data)
    assert stat.S_IFMT(attr.mode) in TYPES, f"mode {attr.mode:o}"
    assert attr.size < 1 << 63
    assert attr.ino not in secret, "attributes of a file outside the share"
    return int(attr.mode)


def entry(data: bytes, found: Found, secret: Collection[int]) -> int:
    """An entry: a node id that Linux takes and sound attributes; returns the mode."""
    nodeid: int = FUSE_ENTRY_OUT.unpack(data).nodeid
    assert nodeid > 1, f"node id {nodeid}"
    found.nodes.append(nodeid)
    return attributes(data[FUSE_ENTRY_OUT.size - FUSE_ATTR.size :], secret)


def records(data: bytes, values: dict[str, int], found: Found, secret: Collection[int], plus: bool) -> None:
    """READDIR and READDIRPLUS (parse_dirfile, parse_dirplusfile)."""
    assert len(data) <= values["size"]
    at = 0
    while at < len(data):
        if plus:
            nodeid = FUSE_ENTRY_OUT.unpack(data, at).nodeid
            if nodeid:
                entry(data[at : at + FUSE_ENTRY_OUT.size], found, secret)
            at += FUSE_ENTRY_OUT.size
        record: SimpleNamespace = FUSE_DIRENT.unpack(data, at)
        at += FUSE_DIRENT.size
        name = data[at : at + record.namelen]
        assert 1 <= record.namelen <= 255 and len(name) == record.namelen
        assert b"/" not in name and b"\0" not in name
        at += record.namelen + -record.namelen % 8
    assert at == len(data)


def readdir(data: bytes, values: dict[str, int], found: Found, secret: Collection[int]) -> None:
    records(data, values, found, secret, False)


def readdirplus(data: bytes, values: dict[str, int], found: Found, secret: Collection[int]) -> None:
    records(data, values, found, secret, True)


def read(data: bytes, values: dict[str, int], _found: Found, _secret: Collection[int]) -> None:
    assert len(data) <= values["size"]
    assert b"secret" not in data


def value(data: bytes, values: dict[str, int], _found: Found, _secret: Collection[int]) -> None:
    """GETXATTR and LISTXATTR: a size when none was given, else at most that many bytes."""
    assert len(data) == 8 if values["size"] == 0 else len(data) <= values["size"]


def readlink(data: bytes, _values: dict[str, int], _found: Found, _secret: Collection[int]) -> None:
    assert 1 <= len(data) < 4096


def ioctl(data: bytes, values: dict[str, int], _found: Found, _secret: Collection[int]) -> None:
    out = abi.FUSE_IOCTL_OUT.unpack(data)
    assert (out.flags, out.in_iovs, out.out_iovs) == (0, 0, 0), "a retry is for CUSE only"
    assert len(data) - abi.FUSE_IOCTL_OUT.size <= values["out_size"]


CHECKS = {
    "readdir": readdir,
    "readdirplus": readdirplus,
    "read": read,
    "getxattr": value,
    "listxattr": value,
    "readlink": readlink,
    "ioctl": ioctl,
}
