# SPDX-License-Identifier: Apache-2.0
"""The FUSE wire format as data: structures, operations and flag bits of protocol 7.46.

This file is the one place for these facts.  The build writes `layout.pxd` from it, which gives the compiled
modules the same structures and constants; the client packs and unpacks with it; the dispatcher takes its
checks from `OPERATIONS`.  Source: include/uapi/linux/fuse.h of Linux 7.3.

All integers are in the guest's byte order; hosts and guests of different byte order are not served.
"""

import struct
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 46
FUSE_ROOT_ID = 1

_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i32": "i", "i64": "q"}


class Struct:
    """A C structure without hidden padding: `Struct("fuse_lk_in", "u64 fh, u64 owner, fuse_file_lock lk,
    ...")`.

    A field's type is u8, u16, u32, u64, i32, i64 or the name of an earlier structure; `name[n]` makes an
    array.
    """

    all: "dict[str, Struct]" = {}

    def __init__(self, name: str, fields: str):
        self.name = name
        self.fields: list[tuple[str, str, int]] = []  # type, name, array length (1: no array)
        codes = ""
        for field in filter(None, (part.strip() for part in fields.split(","))):
            type_, _, label = field.partition(" ")
            label, _, length = label.partition("[")
            count = int(length.rstrip("]")) if length else 1
            self.fields.append((type_, label, count))
            codes += (Struct.all[type_].codes if type_ in Struct.all else _FORMATS[type_]) * count
        self.codes: str = codes
        self._struct = struct.Struct("=" + codes)
        self.size = self._struct.size
        Struct.all[name] = self

    def pack(self, **values: Any) -> bytes:
        """The bytes of the structure; fields that are not named are zero, nested structures are mappings.

        Raises `TypeError` for an unknown field and `struct.error` for a value out of range.
        """
        flat = self._flatten(values)
        if values:
            raise TypeError(f"{self.name} has no field {', '.join(values)}")
        return self._struct.pack(*flat)

    def _flatten(self, values: dict[str, Any]) -> list[int]:
        flat: list[int] = []
        for type_, label, count in self.fields:
            value = values.pop(label, None)
            items = [value] if count == 1 else list(value) if value is not None else [None] * count
            for item in items:
                if type_ in Struct.all:
                    nested = dict(item) if isinstance(item, Mapping) else dict(vars(item)) if item else {}
                    flat += Struct.all[type_]._flatten(nested)
                else:
                    flat.append(item or 0)
        return flat

    def unpack(self, data: bytes | memoryview, offset: int = 0) -> SimpleNamespace:
        """The structure at `data[offset:]` as attributes.  Raises `struct.error` if it does not fit."""
        return self._build(iter(self._struct.unpack_from(data, offset)))

    def _build(self, flat: Any) -> SimpleNamespace:
        record = SimpleNamespace()
        for type_, label, count in self.fields:
            items = [
                Struct.all[type_]._build(flat) if type_ in Struct.all else next(flat) for _ in range(count)
            ]
            setattr(record, label, items[0] if count == 1 else items)
        return record


FUSE_IN_HEADER = Struct(
    "fuse_in_header",
    "u32 len, u32 opcode, u64 unique, u64 nodeid, u32 uid, u32 gid, u32 pid, u16 total_extlen, u16 padding",
)
FUSE_OUT_HEADER = Struct("fuse_out_header", "u32 len, i32 error, u64 unique")
FUSE_ATTR = Struct(
    "fuse_attr",
    "u64 ino, u64 size, u64 blocks, u64 atime, u64 mtime, u64 ctime, u32 atimensec, u32 mtimensec, u32 ctimensec,"
    "u32 mode, u32 nlink, u32 uid, u32 gid, u32 rdev, u32 blksize, u32 flags",
)
FUSE_SX_TIME = Struct("fuse_sx_time", "i64 tv_sec, u32 tv_nsec, i32 reserved")
FUSE_STATX = Struct(
    "fuse_statx",
    "u32 mask, u32 blksize, u64 attributes, u32 nlink, u32 uid, u32 gid, u16 mode, u16 spare0[1], u64 ino, u64 size,"
    "u64 blocks, u64 attributes_mask, fuse_sx_time atime, fuse_sx_time btime, fuse_sx_time ctime, fuse_sx_time mtime,"
    "u32 rdev_major, u32 rdev_minor, u32 dev_major, u32 dev_minor, u64 spare2[14]",
)
FUSE_KSTATFS = Struct(
    "fuse_kstatfs",
    "u64 blocks, u64 bfree, u64 bavail, u64 files, u64 ffree, u32 bsize, u32 namelen, u32 frsize, u32 padding,"
    "u32 spare[6]",
)
FUSE_FILE_LOCK = Struct("fuse_file_lock", "u64 start, u64 end, u32 type, u32 pid")
FUSE_ENTRY_OUT = Struct(
    "fuse_entry_out",
    "u64 nodeid, u64 generation, u64 entry_valid, u64 attr_valid, u32 entry_valid_nsec, u32 attr_valid_nsec,"
    "fuse_attr attr",
)
FUSE_FORGET_IN = Struct("fuse_forget_in", "u64 nlookup")
FUSE_FORGET_ONE = Struct("fuse_forget_one", "u64 nodeid, u64 nlookup")
FUSE_BATCH_FORGET_IN = Struct("fuse_batch_forget_in", "u32 count, u32 dummy")
FUSE_GETATTR_IN = Struct("fuse_getattr_in", "u32 getattr_flags, u32 dummy, u64 fh")
FUSE_ATTR_OUT = Struct("fuse_attr_out", "u64 attr_valid, u32 attr_valid_nsec, u32 dummy, fuse_attr attr")
FUSE_STATX_IN = Struct("fuse_statx_in", "u32 getattr_flags, u32 reserved, u64 fh, u32 sx_flags, u32 sx_mask")
FUSE_STATX_OUT = Struct(
    "fuse_statx_out", "u64 attr_valid, u32 attr_valid_nsec, u32 flags, u64 spare[2], fuse_statx stat"
)
FUSE_MKNOD_IN = Struct("fuse_mknod_in", "u32 mode, u32 rdev, u32 umask, u32 padding")
FUSE_MKDIR_IN = Struct("fuse_mkdir_in", "u32 mode, u32 umask")
FUSE_RENAME_IN = Struct("fuse_rename_in", "u64 newdir")
FUSE_RENAME2_IN = Struct("fuse_rename2_in", "u64 newdir, u32 flags, u32 padding")
FUSE_LINK_IN = Struct("fuse_link_in", "u64 oldnodeid")
FUSE_SETATTR_IN = Struct(
    "fuse_setattr_in",
    "u32 valid, u32 padding, u64 fh, u64 size, u64 lock_owner, u64 atime, u64 mtime, u64 ctime, u32 atimensec,"
    "u32 mtimensec, u32 ctimensec, u32 mode, u32 unused4, u32 uid, u32 gid, u32 unused5",
)
FUSE_OPEN_IN = Struct("fuse_open_in", "u32 flags, u32 open_flags")
FUSE_CREATE_IN = Struct("fuse_create_in", "u32 flags, u32 mode, u32 umask, u32 open_flags")
FUSE_OPEN_OUT = Struct("fuse_open_out", "u64 fh, u32 open_flags, i32 backing_id")
FUSE_CREATE_OUT = Struct("fuse_create_out", "fuse_entry_out entry, fuse_open_out open")
FUSE_RELEASE_IN = Struct("fuse_release_in", "u64 fh, u32 flags, u32 release_flags, u64 lock_owner")
FUSE_FLUSH_IN = Struct("fuse_flush_in", "u64 fh, u32 unused, u32 padding, u64 lock_owner")
FUSE_READ_IN = Struct(
    "fuse_read_in", "u64 fh, u64 offset, u32 size, u32 read_flags, u64 lock_owner, u32 flags, u32 padding"
)
FUSE_WRITE_IN = Struct(
    "fuse_write_in", "u64 fh, u64 offset, u32 size, u32 write_flags, u64 lock_owner, u32 flags, u32 padding"
)
FUSE_WRITE_OUT = Struct("fuse_write_out", "u32 size, u32 padding")
FUSE_FSYNC_IN = Struct("fuse_fsync_in", "u64 fh, u32 fsync_flags, u32 padding")
FUSE_SETXATTR_IN = Struct("fuse_setxattr_in", "u32 size, u32 flags, u32 setxattr_flags, u32 padding")
FUSE_GETXATTR_IN = Struct("fuse_getxattr_in", "u32 size, u32 padding")
FUSE_GETXATTR_OUT = Struct("fuse_getxattr_out", "u32 size, u32 padding")
FUSE_LK_IN = Struct("fuse_lk_in", "u64 fh, u64 owner, fuse_file_lock lk, u32 lk_flags, u32 padding")
FUSE_LK_OUT = Struct("fuse_lk_out", "fuse_file_lock lk")
FUSE_ACCESS_IN = Struct("fuse_access_in", "u32 mask, u32 padding")
FUSE_INTERRUPT_IN = Struct("fuse_interrupt_in", "u64 unique")
FUSE_BMAP_IN = Struct("fuse_bmap_in", "u64 block, u32 blocksize, u32 padding")
FUSE_BMAP_OUT = Struct("fuse_bmap_out", "u64 block")
FUSE_IOCTL_IN = Struct("fuse_ioctl_in", "u64 fh, u32 flags, u32 cmd, u64 arg, u32 in_size, u32 out_size")
FUSE_IOCTL_OUT = Struct("fuse_ioctl_out", "i32 result, u32 flags, u32 in_iovs, u32 out_iovs")
FUSE_POLL_IN = Struct("fuse_poll_in", "u64 fh, u64 kh, u32 flags, u32 events")
FUSE_POLL_OUT = Struct("fuse_poll_out", "u32 revents, u32 padding")
FUSE_FALLOCATE_IN = Struct("fuse_fallocate_in", "u64 fh, u64 offset, u64 length, u32 mode, u32 padding")
FUSE_LSEEK_IN = Struct("fuse_lseek_in", "u64 fh, u64 offset, u32 whence, u32 padding")
FUSE_LSEEK_OUT = Struct("fuse_lseek_out", "u64 offset")
FUSE_COPY_FILE_RANGE_IN = Struct(
    "fuse_copy_file_range_in",
    "u64 fh_in, u64 off_in, u64 nodeid_out, u64 fh_out, u64 off_out, u64 len, u64 flags",
)
FUSE_COPY_FILE_RANGE_OUT = Struct("fuse_copy_file_range_out", "u64 bytes_copied")
FUSE_SETUPMAPPING_IN = Struct("fuse_setupmapping_in", "u64 fh, u64 foffset, u64 len, u64 flags, u64 moffset")
FUSE_REMOVEMAPPING_IN = Struct("fuse_removemapping_in", "u32 count")
FUSE_REMOVEMAPPING_ONE = Struct("fuse_removemapping_one", "u64 moffset, u64 len")
FUSE_SYNCFS_IN = Struct("fuse_syncfs_in", "u64 padding")
FUSE_DIRENT = Struct("fuse_dirent", "u64 ino, u64 off, u32 namelen, u32 type")
FUSE_DIRENTPLUS = Struct("fuse_direntplus", "fuse_entry_out entry_out, fuse_dirent dirent")
FUSE_INIT_IN = Struct(
    "fuse_init_in", "u32 major, u32 minor, u32 max_readahead, u32 flags, u32 flags2, u32 unused[11]"
)
FUSE_INIT_OUT = Struct(
    "fuse_init_out",
    "u32 major, u32 minor, u32 max_readahead, u32 flags, u16 max_background, u16 congestion_threshold, u32 max_write,"
    "u32 time_gran, u16 max_pages, u16 map_alignment, u32 flags2, u32 max_stack_depth, u16 request_timeout,"
    "u16 unused[11]",
)
FUSE_SECCTX_HEADER = Struct("fuse_secctx_header", "u32 size, u32 nr_secctx")
FUSE_SECCTX = Struct("fuse_secctx", "u32 size, u32 padding")
FUSE_EXT_HEADER = Struct("fuse_ext_header", "u32 size, u32 type")
# What a file system tells the kernel unasked: a fuse_out_header with `unique` 0 and the code as `error`, then these.
FUSE_NOTIFY_POLL_WAKEUP_OUT = Struct("fuse_notify_poll_wakeup_out", "u64 kh")
FUSE_NOTIFY_INVAL_INODE_OUT = Struct("fuse_notify_inval_inode_out", "u64 ino, i64 off, i64 len")
FUSE_NOTIFY_INVAL_ENTRY_OUT = Struct("fuse_notify_inval_entry_out", "u64 parent, u32 namelen, u32 flags")
FUSE_NOTIFY_STORE_OUT = Struct("fuse_notify_store_out", "u64 nodeid, u64 offset, u32 size, u32 padding")
FUSE_NOTIFY_DELETE_OUT = Struct("fuse_notify_delete_out", "u64 parent, u64 child, u32 namelen, u32 padding")
# Ours: what follows the reply to LOOKUP and GETATTR where that was agreed (docs/metadata-region.md).
VERSIONS_OUT = Struct("versions_out", "u32 parent_slot, u32 slot, u64 parent_word, u64 word")

# Constants, with the names of the header.
CONSTANTS = {
    # INIT flags; bits 32 and up travel in flags2.
    "FUSE_ASYNC_READ": 1 << 0,
    "FUSE_POSIX_LOCKS": 1 << 1,
    "FUSE_ATOMIC_O_TRUNC": 1 << 3,
    "FUSE_EXPORT_SUPPORT": 1 << 4,
    "FUSE_BIG_WRITES": 1 << 5,
    "FUSE_DONT_MASK": 1 << 6,
    "FUSE_FLOCK_LOCKS": 1 << 10,
    "FUSE_HAS_IOCTL_DIR": 1 << 11,
    "FUSE_AUTO_INVAL_DATA": 1 << 12,
    "FUSE_DO_READDIRPLUS": 1 << 13,
    "FUSE_READDIRPLUS_AUTO": 1 << 14,
    "FUSE_ASYNC_DIO": 1 << 15,
    "FUSE_WRITEBACK_CACHE": 1 << 16,
    "FUSE_NO_OPEN_SUPPORT": 1 << 17,
    "FUSE_PARALLEL_DIROPS": 1 << 18,
    "FUSE_HANDLE_KILLPRIV": 1 << 19,
    "FUSE_POSIX_ACL": 1 << 20,
    "FUSE_ABORT_ERROR": 1 << 21,
    "FUSE_MAX_PAGES": 1 << 22,
    "FUSE_CACHE_SYMLINKS": 1 << 23,
    "FUSE_NO_OPENDIR_SUPPORT": 1 << 24,
    "FUSE_EXPLICIT_INVAL_DATA": 1 << 25,
    "FUSE_MAP_ALIGNMENT": 1 << 26,
    "FUSE_SUBMOUNTS": 1 << 27,
    "FUSE_HANDLE_KILLPRIV_V2": 1 << 28,
    "FUSE_SETXATTR_EXT": 1 << 29,
    "FUSE_INIT_EXT": 1 << 30,
    "FUSE_SECURITY_CTX": 1 << 32,
    "FUSE_HAS_INODE_DAX": 1 << 33,
    "FUSE_CREATE_SUPP_GROUP": 1 << 34,
    "FUSE_HAS_EXPIRE_ONLY": 1 << 35,
    "FUSE_DIRECT_IO_ALLOW_MMAP": 1 << 36,
    "FUSE_NO_EXPORT_SUPPORT": 1 << 38,
    "FUSE_ALLOW_IDMAP": 1 << 40,
    # what the fields called *_flags and valid hold
    "FOPEN_DIRECT_IO": 1 << 0,
    "FOPEN_KEEP_CACHE": 1 << 1,
    "FOPEN_CACHE_DIR": 1 << 3,
    "FOPEN_NOFLUSH": 1 << 5,
    "FOPEN_PARALLEL_DIRECT_WRITES": 1 << 6,
    "FUSE_GETATTR_FH": 1 << 0,
    "FUSE_OPEN_KILL_SUIDGID": 1 << 0,
    "FUSE_WRITE_CACHE": 1 << 0,
    "FUSE_WRITE_KILL_SUIDGID": 1 << 2,
    "FUSE_FSYNC_FDATASYNC": 1 << 0,
    "FUSE_LK_FLOCK": 1 << 0,
    "FUSE_RELEASE_FLOCK_UNLOCK": 1 << 1,
    "FUSE_POLL_SCHEDULE_NOTIFY": 1 << 0,
    "FUSE_IOCTL_DIR": 1 << 4,
    "FUSE_ATTR_SUBMOUNT": 1 << 0,
    "FUSE_ATTR_DAX": 1 << 1,
    "FUSE_SETUPMAPPING_FLAG_WRITE": 1 << 0,
    "FUSE_SETUPMAPPING_FLAG_READ": 1 << 1,
    "FUSE_SETXATTR_ACL_KILL_SGID": 1 << 0,
    "FATTR_MODE": 1 << 0,
    "FATTR_UID": 1 << 1,
    "FATTR_GID": 1 << 2,
    "FATTR_SIZE": 1 << 3,
    "FATTR_ATIME": 1 << 4,
    "FATTR_MTIME": 1 << 5,
    "FATTR_FH": 1 << 6,
    "FATTR_ATIME_NOW": 1 << 7,
    "FATTR_MTIME_NOW": 1 << 8,
    "FATTR_CTIME": 1 << 10,
    "FATTR_KILL_SUIDGID": 1 << 11,
    # Ours: in `unused` of fuse_init_in, and in the first two of fuse_init_out, by who wants and has versions.
    "VERSIONS_MAGIC": 0x76657231,
    "FUSE_EXPIRE_ONLY": 1 << 0,
    "FUSE_NOTIFY_POLL": 1,
    "FUSE_NOTIFY_INVAL_INODE": 2,
    "FUSE_NOTIFY_INVAL_ENTRY": 3,
    "FUSE_NOTIFY_STORE": 4,
    "FUSE_NOTIFY_DELETE": 6,
    "FUSE_NOTIFY_INC_EPOCH": 8,
    "FUSE_MAX_NR_SECCTX": 31,
    "FUSE_EXT_GROUPS": 32,
}

# What may follow the fixed structure of a request, in this order.
NAME = "name"  # one component of a path: 1 to 255 bytes, no "/", not "." or ".."
ANY_NAME = "any"  # a string whose content means nothing (TMPFILE sends "/")
TARGET = "target"  # what a symbolic link holds: 1 to 4095 bytes
XATTR = "xattr"  # the name of an extended attribute: 1 to 255 bytes

# What an operation is, for the dispatcher.
MUTATES = 1 << 0  # changes the tree: refused with EROFS on a read-only share
NO_REPLY = 1 << 1  # the guest leaves no room for a reply and waits for none
EXTENSIONS = 1 << 2  # may carry FUSE_SECURITY_CTX and group records at its end
TAIL = 1 << 3  # bytes follow the names: a value, a list of records
DATA = 1 << 4  # file data follows: left in guest memory for the host call to take it from there
REPLY_DATA = 1 << 5  # the reply's payload is of variable length


class Operation(NamedTuple):
    """One operation of the protocol: what its request holds and what the success reply holds."""

    opcode: int
    name: str
    args: Struct | None = None
    names: tuple[str, ...] = ()
    reply: Struct | None = None
    flags: int = 0


OPERATIONS = (
    Operation(1, "lookup", names=(NAME,), reply=FUSE_ENTRY_OUT),
    Operation(2, "forget", FUSE_FORGET_IN, flags=NO_REPLY),
    Operation(3, "getattr", FUSE_GETATTR_IN, reply=FUSE_ATTR_OUT),
    Operation(4, "setattr", FUSE_SETATTR_IN, reply=FUSE_ATTR_OUT, flags=MUTATES),
    Operation(5, "readlink", flags=REPLY_DATA),
    Operation(6, "symlink", names=(NAME, TARGET), reply=FUSE_ENTRY_OUT, flags=MUTATES | EXTENSIONS),
    Operation(8, "mknod", FUSE_MKNOD_IN, (NAME,), FUSE_ENTRY_OUT, MUTATES | EXTENSIONS),
    Operation(9, "mkdir", FUSE_MKDIR_IN, (NAME,), FUSE_ENTRY_OUT, MUTATES | EXTENSIONS),
    Operation(10, "unlink", names=(NAME,), flags=MUTATES),
    Operation(11, "rmdir", names=(NAME,), flags=MUTATES),
    Operation(12, "rename", FUSE_RENAME_IN, (NAME, NAME), flags=MUTATES),
    Operation(13, "link", FUSE_LINK_IN, (NAME,), FUSE_ENTRY_OUT, MUTATES),
    Operation(14, "open", FUSE_OPEN_IN, reply=FUSE_OPEN_OUT),
    Operation(15, "read", FUSE_READ_IN, flags=REPLY_DATA),
    Operation(16, "write", FUSE_WRITE_IN, reply=FUSE_WRITE_OUT, flags=MUTATES | DATA),
    Operation(17, "statfs", reply=FUSE_KSTATFS),
    Operation(18, "release", FUSE_RELEASE_IN),
    Operation(20, "fsync", FUSE_FSYNC_IN),
    Operation(21, "setxattr", FUSE_SETXATTR_IN, (XATTR,), flags=MUTATES | TAIL),
    Operation(22, "getxattr", FUSE_GETXATTR_IN, (XATTR,), flags=REPLY_DATA),
    Operation(23, "listxattr", FUSE_GETXATTR_IN, flags=REPLY_DATA),
    Operation(24, "removexattr", names=(XATTR,), flags=MUTATES),
    Operation(25, "flush", FUSE_FLUSH_IN),
    Operation(26, "init", FUSE_INIT_IN, reply=FUSE_INIT_OUT),
    Operation(27, "opendir", FUSE_OPEN_IN, reply=FUSE_OPEN_OUT),
    Operation(28, "readdir", FUSE_READ_IN, flags=REPLY_DATA),
    Operation(29, "releasedir", FUSE_RELEASE_IN),
    Operation(30, "fsyncdir", FUSE_FSYNC_IN),
    Operation(31, "getlk", FUSE_LK_IN, reply=FUSE_LK_OUT),
    Operation(32, "setlk", FUSE_LK_IN),
    Operation(33, "setlkw", FUSE_LK_IN),
    Operation(34, "access", FUSE_ACCESS_IN),
    Operation(35, "create", FUSE_CREATE_IN, (NAME,), FUSE_CREATE_OUT, MUTATES | EXTENSIONS),
    Operation(36, "interrupt", FUSE_INTERRUPT_IN),
    Operation(37, "bmap", FUSE_BMAP_IN, reply=FUSE_BMAP_OUT),
    Operation(38, "destroy"),
    Operation(39, "ioctl", FUSE_IOCTL_IN, reply=FUSE_IOCTL_OUT, flags=TAIL | REPLY_DATA),
    Operation(40, "poll", FUSE_POLL_IN, reply=FUSE_POLL_OUT),
    Operation(42, "batch_forget", FUSE_BATCH_FORGET_IN, flags=NO_REPLY | TAIL),
    Operation(43, "fallocate", FUSE_FALLOCATE_IN, flags=MUTATES),
    Operation(44, "readdirplus", FUSE_READ_IN, flags=REPLY_DATA),
    Operation(45, "rename2", FUSE_RENAME2_IN, (NAME, NAME), flags=MUTATES),
    Operation(46, "lseek", FUSE_LSEEK_IN, reply=FUSE_LSEEK_OUT),
    Operation(47, "copy_file_range", FUSE_COPY_FILE_RANGE_IN, reply=FUSE_WRITE_OUT, flags=MUTATES),
    Operation(48, "setupmapping", FUSE_SETUPMAPPING_IN),
    Operation(49, "removemapping", FUSE_REMOVEMAPPING_IN, flags=TAIL),
    Operation(50, "syncfs", FUSE_SYNCFS_IN),
    Operation(51, "tmpfile", FUSE_CREATE_IN, (ANY_NAME,), FUSE_CREATE_OUT, MUTATES | EXTENSIONS),
    Operation(52, "statx", FUSE_STATX_IN, reply=FUSE_STATX_OUT),
    Operation(
        53, "copy_file_range_64", FUSE_COPY_FILE_RANGE_IN, reply=FUSE_COPY_FILE_RANGE_OUT, flags=MUTATES
    ),
)

BY_NAME = {operation.name: operation for operation in OPERATIONS}

# Structures that grew: (operation, size before, INIT flag that announces the full size; 0: told by the length alone).
SHORT_ARGS = (
    ("setxattr", 8, "FUSE_SETXATTR_EXT"),
    ("init", 16, ""),
)


def declarations() -> str:
    """The text of `layout.pxd`: every structure and constant of this file as Cython declarations."""
    c_types = {"u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t"}
    c_types |= {"i32": "int32_t", "i64": "int64_t"}
    lines = ["# Written by setup.py from abi.py; do not edit.", "from libc.stdint cimport *", ""]
    for layout in Struct.all.values():
        lines.append(f"cdef struct {layout.name}:")
        for type_, label, count in layout.fields:
            lines.append(f"    {c_types.get(type_, type_)} {label}" + (f"[{count}]" if count > 1 else ""))
        lines.append("")
    lines.append("cdef enum:")
    lines.append(f"    FUSE_KERNEL_MINOR_VERSION = {FUSE_KERNEL_MINOR_VERSION}")
    lines.append(f"    FUSE_ROOT_ID = {FUSE_ROOT_ID}")
    lines += [f"    FUSE_{operation.name.upper()} = {operation.opcode}" for operation in OPERATIONS]
    lines += [f"    {name} = {value}" for name, value in CONSTANTS.items() if value < 1 << 31]
    lines += ["", "cdef extern from *:", '    """']
    lines += [f"    #define {name} {value}ULL" for name, value in CONSTANTS.items() if value >= 1 << 31]
    lines.append('    """')
    lines += [f"    const uint64_t {name}" for name, value in CONSTANTS.items() if value >= 1 << 31]
    return "\n".join(lines) + "\n"
