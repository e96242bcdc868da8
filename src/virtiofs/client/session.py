# SPDX-License-Identifier: Apache-2.0
"""A FUSE session with a device: every operation as a method, every reply checked as Linux checks it.

The methods are thin: `Session.call` packs a request from its row of the ABI table, sends it, checks the reply
(`verify`) and unpacks it.  An error reply is an `OSError` with its errno; a reply Linux would refuse is a
`ReplyError`.  Names are `str` or `bytes`; records are namespaces with the fields of the C structures.

Nothing is cached or counted here: each entry that a method returns is one lookup the caller owes a `forget`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

from virtiofs.client.device import HIPRIO, Caller, Device, Layout, Pending, Reply
from virtiofs.client.versions import Versions
from virtiofs.fuse.abi import (
    BY_NAME,
    CONSTANTS,
    FUSE_BATCH_FORGET_IN,
    FUSE_DIRENT,
    FUSE_DIRENTPLUS,
    FUSE_FORGET_ONE,
    FUSE_GETXATTR_OUT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_OUT_HEADER,
    FUSE_REMOVEMAPPING_IN,
    FUSE_REMOVEMAPPING_ONE,
    FUSE_ROOT_ID,
    FUSE_SETXATTR_IN,
    NO_REPLY,
    REPLY_DATA,
    VERSIONS_OUT,
    Operation,
)

VERSIONS_MAGIC = CONSTANTS["VERSIONS_MAGIC"]
CARRY_VERSIONS = ("lookup", "getattr")  # the operations whose replies say what they rest on

Name = str | bytes
Record = SimpleNamespace

# What Linux 7.3 offers to a device without a DAX window, minus what only /dev/fuse can do.
OFFER = 0
for _flag in (
    *("ASYNC_READ", "ATOMIC_O_TRUNC", "EXPORT_SUPPORT", "BIG_WRITES", "DONT_MASK", "HAS_IOCTL_DIR"),
    *(
        "AUTO_INVAL_DATA",
        "DO_READDIRPLUS",
        "READDIRPLUS_AUTO",
        "ASYNC_DIO",
        "WRITEBACK_CACHE",
        "NO_OPEN_SUPPORT",
    ),
    *("PARALLEL_DIROPS", "HANDLE_KILLPRIV", "POSIX_ACL", "ABORT_ERROR", "MAX_PAGES", "CACHE_SYMLINKS"),
    *(
        "NO_OPENDIR_SUPPORT",
        "EXPLICIT_INVAL_DATA",
        "SUBMOUNTS",
        "HANDLE_KILLPRIV_V2",
        "SETXATTR_EXT",
        "INIT_EXT",
    ),
    *("HAS_INODE_DAX", "CREATE_SUPP_GROUP", "HAS_EXPIRE_ONLY", "DIRECT_IO_ALLOW_MMAP", "NO_EXPORT_SUPPORT"),
    "ALLOW_IDMAP",
):
    OFFER |= CONSTANTS["FUSE_" + _flag]

MAX_ERRNO = 511
NO_HANDLE = 0xFFFFFFFFFFFFFFFF  # where a request for a mapping names no handle
PAGE = 4096
DEFAULT_PAGES = 32  # of a request, where MAX_PAGES was not agreed
HEADER_PIECES = 4  # in header, arguments, out header, results
STATX_BASIC_AND_BTIME = 0xFFF
NS = 1_000_000_000

# Bits of SETATTR's `valid`, by the argument of `setattr` that sets them.
_ATTRIBUTES = {name: CONSTANTS["FATTR_" + name.upper()] for name in ("mode", "uid", "gid", "size", "fh")}
_TIMES = {
    "atime": (CONSTANTS["FATTR_ATIME"], CONSTANTS["FATTR_ATIME_NOW"]),
    "mtime": (CONSTANTS["FATTR_MTIME"], CONSTANTS["FATTR_MTIME_NOW"]),
    "ctime": (CONSTANTS["FATTR_CTIME"], 0),
}


class ReplyError(Exception):
    """A reply that breaks the protocol: Linux would turn it into EIO and complain in its log."""


class DirectoryEntry(NamedTuple):
    """One record of READDIR or READDIRPLUS; `entry` is None where the reply has no node for it."""

    name: bytes
    ino: int
    cookie: int  # where the next read continues
    type: int  # DT_*
    entry: Record | None = None


def verify(reply: Reply, unique: int, operation: Operation, room: int) -> None:
    """Check a reply as `virtio_fs_verify_response` of Linux 7.3 does.  Raises `ReplyError`.

    `room`: bytes there were behind the out header.
    """
    header = FUSE_OUT_HEADER.size
    what = operation.name
    if reply.used_length < header or reply.used_length != reply.length:
        raise ReplyError(f"{what}: header says {reply.length} bytes, the used ring {reply.used_length}")
    if reply.unique != unique:
        raise ReplyError(f"{what}: answers request {reply.unique} instead of {unique}")
    if not -MAX_ERRNO <= reply.error <= 0:
        raise ReplyError(f"{what}: error {reply.error} is not in -{MAX_ERRNO} to 0")
    payload = reply.used_length - header
    if reply.error and payload:
        raise ReplyError(f"{what}: error {reply.error} comes with {payload} bytes")
    if not reply.error and (payload > room or (payload != room and not operation.flags & REPLY_DATA)):
        raise ReplyError(f"{what}: {payload} bytes instead of {room}")


class Session:
    """A FUSE session over one queue of a device (None: the first); INIT is done when the constructor returns.

    `flags`: INIT flags to offer.  `caller`: in whose name requests are made; change it at any time. `init`
    holds the device's INIT reply, `flags` what both sides agreed on, `max_data` and `max_write` the most
    bytes of data that one request may carry to the client and to the device.
    Where the device shows versions (see `Device.connect`), they are in `versions`, and each reply to LOOKUP and
    GETATTR says in its own `versions` (versions_out) what it rests on.
    Raises `OSError` and `ReplyError`.  For one thread at a time, as its queue.
    """

    def __init__(
        self,
        device: Device,
        queue: int | None = None,
        flags: int = OFFER,
        minor: int = FUSE_KERNEL_MINOR_VERSION,
        max_readahead: int = 128 << 10,
    ):
        self.device = device
        self.queue = device.first_request if queue is None else queue
        self.caller = Caller()
        self.layout: Layout | None = None
        self.versions: Versions | None = None
        wish: dict[str, Any] = {"unused": [VERSIONS_MAGIC, *(0,) * 10]} if device.shows_versions else {}
        self.init: Record = self.call(
            "init",
            major=FUSE_KERNEL_VERSION,
            minor=minor,
            max_readahead=max_readahead,
            flags=flags & 0xFFFFFFFF,
            flags2=flags >> 32,
            **wish,
        )
        if self.init.major != FUSE_KERNEL_VERSION:
            raise ReplyError(f"the device speaks FUSE {self.init.major}.{self.init.minor}")
        extended = self.init.flags & CONSTANTS["FUSE_INIT_EXT"]
        self.flags: int = flags & (self.init.flags | (self.init.flags2 << 32 if extended else 0))
        pages = self.init.max_pages if self.has("MAX_PAGES") else DEFAULT_PAGES
        # As Linux: the chain of a request fits the ring even without an indirect table.
        pages = min(pages, device.queues[self.queue].size - HEADER_PIECES)
        self.max_data: int = pages * PAGE
        self.max_write: int = min(max(self.init.max_write, PAGE), self.max_data)
        if device.shows_versions:
            self.versions = self._agreed_versions(self.init.unused)

    def has(self, flag: str) -> bool:
        """Whether both sides agreed on an INIT flag, named as in the header without `FUSE_`."""
        return bool(self.flags & CONSTANTS["FUSE_" + flag])

    def _agreed_versions(self, words: list[int]) -> Versions | None:
        """The versions that the device's INIT reply speaks of.  Raises `ReplyError` for others than it shows."""
        if words[0] | words[1] << 16 != VERSIONS_MAGIC:
            return None
        versions = self.device.wait_for_versions()
        if versions is None or versions.slots != 1 << words[3]:
            raise ReplyError(f"the device speaks of 2**{words[3]} versions, and shows others, or none")
        return versions

    def _room(self, operation: Operation) -> int:
        """Bytes of the reply's payload as the table has it."""
        room = operation.reply.size if operation.reply else 0
        return room + VERSIONS_OUT.size if self.versions and operation.name in CARRY_VERSIONS else room

    # --- any operation ---

    def begin(
        self,
        name: str,
        nodeid: int = 0,
        names: Iterable[Name] = (),
        tail: bytes = b"",
        room: int | None = None,
        extensions: bytes = b"",
        arguments: bytes | None = None,
        **fields: int,
    ) -> Pending:
        """Send an operation of the ABI table and do not wait.

        `fields`: of its structure.  `names`: the strings behind that.  `tail`: bytes behind those.  `room`:
        for the payload of the reply; by default what the table says.  `arguments`: the structure as bytes,
        where the table's full size would be wrong.
        """
        operation = BY_NAME[name]
        if arguments is None:
            arguments = operation.args.pack(**fields) if operation.args else b""
        body = arguments + b"".join(os.fsencode(n) + b"\0" for n in names) + tail
        if room is None:
            room = self._room(operation)
        queue = HIPRIO if operation.flags & NO_REPLY else self.queue
        return self.device.begin(name, nodeid, body, room, queue, self.caller, self.layout, extensions)

    def finish(self, pending: Pending, name: str, room: int | None = None) -> Any:
        """Wait for a reply and check it: a record, bytes for replies of variable length, or None."""
        operation = BY_NAME[name]
        reply = self.device.finish(pending)
        if operation.flags & NO_REPLY or reply is None:
            if pending.used_length:
                raise ReplyError(f"{name}: the device says it wrote {pending.used_length} bytes into nothing")
            return None
        if room is None:
            room = self._room(operation)
        verify(reply, pending.unique, operation, room)
        if reply.error:
            raise OSError(-reply.error, f"{os.strerror(-reply.error)}: {pending.what}")
        if operation.flags & REPLY_DATA:
            return reply.payload
        if operation.reply is None:
            return None
        record = operation.reply.unpack(reply.payload)
        if self.versions and operation.name in CARRY_VERSIONS:
            record.versions = VERSIONS_OUT.unpack(reply.payload, operation.reply.size)
        return record

    def call(
        self,
        name: str,
        nodeid: int = 0,
        names: Iterable[Name] = (),
        tail: bytes = b"",
        room: int | None = None,
        extensions: bytes = b"",
        arguments: bytes | None = None,
        **fields: int,
    ) -> Any:
        """`begin` and `finish`."""
        pending = self.begin(name, nodeid, names, tail, room, extensions, arguments, **fields)
        return self.finish(pending, name, room)

    # --- nodes ---

    def lookup(self, parent: int, name: Name) -> Record:
        """The entry of `name` in the directory `parent` (fuse_entry_out).  One lookup the caller owes
        back."""
        entry: Record = self.call("lookup", parent, [name])
        return entry

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        """Give `nlookup` lookups of a node back."""
        self.call("forget", nodeid, nlookup=nlookup)

    def batch_forget(self, nodes: Iterable[tuple[int, int]]) -> None:
        """Give lookups of several nodes back: pairs of node id and count."""
        records = [FUSE_FORGET_ONE.pack(nodeid=nodeid, nlookup=nlookup) for nodeid, nlookup in nodes]
        arguments = FUSE_BATCH_FORGET_IN.pack(count=len(records))
        self.call("batch_forget", 0, tail=b"".join(records), arguments=arguments)

    def getattr(self, nodeid: int, fh: int | None = None) -> Record:
        """The attributes of a node (fuse_attr), by handle if one is given."""
        attr: Record = self.attributes(nodeid, fh).attr
        return attr

    def attributes(self, nodeid: int, fh: int | None = None) -> Record:
        """The whole reply to GETATTR (fuse_attr_out), with its validity."""
        record: Record = self.call("getattr", nodeid, **_by_handle(fh))
        return record

    def setattr(self, nodeid: int, valid: int = 0, **values: int | str) -> Record:
        """Change attributes: any of mode, uid, gid, size, fh, and atime, mtime, ctime in ns or as "now".

        `valid`: further FATTR_* bits.  Returns the attributes after it.
        """
        fields: dict[str, Any] = {}
        for name, value in values.items():
            if name in _TIMES:
                given, now = _TIMES[name]
                valid |= given | (now if value == "now" else 0)
                if value != "now":
                    fields[name], fields[name + "nsec"] = divmod(int(value), NS)
                    fields[name] &= (1 << 64) - 1
            else:
                valid |= _ATTRIBUTES[name]
                fields[name] = int(value)
        attr: Record = self.call("setattr", nodeid, valid=valid, **fields).attr
        return attr

    def statx(self, nodeid: int, mask: int = STATX_BASIC_AND_BTIME, fh: int | None = None) -> Record:
        """The extended attributes of a node (fuse_statx)."""
        record: Record = self.call("statx", nodeid, sx_mask=mask, **_by_handle(fh)).stat
        return record

    def access(self, nodeid: int, mask: int) -> None:
        """Ask whether the caller may (os.R_OK, ...)."""
        self.call("access", nodeid, mask=mask)

    def statfs(self, nodeid: int = FUSE_ROOT_ID) -> Record:
        """The state of the file system (fuse_kstatfs)."""
        record: Record = self.call("statfs", nodeid)
        return record

    # --- names ---

    def readlink(self, nodeid: int) -> bytes:
        """What a symbolic link holds."""
        target: bytes = self.call("readlink", nodeid, room=PAGE - 1)
        return target

    def symlink(self, parent: int, name: Name, target: Name, **more: Any) -> Record:
        """Make a symbolic link; its entry."""
        entry: Record = self.call("symlink", parent, [name, target], **more)
        return entry

    def mknod(self, parent: int, name: Name, mode: int, rdev: int = 0, umask: int = 0, **more: Any) -> Record:
        """Make a node of the type in `mode`; its entry."""
        entry: Record = self.call("mknod", parent, [name], mode=mode, rdev=rdev, umask=umask, **more)
        return entry

    def mkdir(self, parent: int, name: Name, mode: int = 0o777, umask: int = 0, **more: Any) -> Record:
        """Make a directory; its entry."""
        entry: Record = self.call("mkdir", parent, [name], mode=mode, umask=umask, **more)
        return entry

    def unlink(self, parent: int, name: Name) -> None:
        """Remove a name that is not a directory's."""
        self.call("unlink", parent, [name])

    def rmdir(self, parent: int, name: Name) -> None:
        """Remove an empty directory."""
        self.call("rmdir", parent, [name])

    def rename(
        self, parent: int, name: Name, newparent: int, newname: Name, flags: int | None = None
    ) -> None:
        """Rename; with `flags` (RENAME_*, also 0) as RENAME2, without as RENAME."""
        if flags is None:
            self.call("rename", parent, [name, newname], newdir=newparent)
        else:
            self.call("rename2", parent, [name, newname], newdir=newparent, flags=flags)

    def link(self, nodeid: int, newparent: int, newname: Name) -> Record:
        """Give a node one more name; its entry."""
        entry: Record = self.call("link", newparent, [newname], oldnodeid=nodeid)
        return entry

    # --- files ---

    def open(self, nodeid: int, flags: int = os.O_RDONLY, open_flags: int = 0) -> Record:
        """Open a file: its handle `fh` and FOPEN_* flags (fuse_open_out)."""
        record: Record = self.call("open", nodeid, flags=flags, open_flags=open_flags)
        return record

    def create(
        self, parent: int, name: Name, flags: int = os.O_RDWR, mode: int = 0o644, umask: int = 0, **more: Any
    ) -> tuple[Record, Record]:
        """Make and open a file: its entry and handle.  O_CREAT is added to `flags`."""
        made = self.call("create", parent, [name], flags=flags | os.O_CREAT, mode=mode, umask=umask, **more)
        return made.entry, made.open

    def tmpfile(
        self, parent: int, flags: int = os.O_RDWR, mode: int = 0o600, umask: int = 0, **more: Any
    ) -> tuple[Record, Record]:
        """Make and open a file without a name (O_TMPFILE); "/" stands for the name, as Linux sends it."""
        made = self.call("tmpfile", parent, ["/"], flags=flags | os.O_TMPFILE, mode=mode, umask=umask, **more)
        return made.entry, made.open

    def read(self, nodeid: int, fh: int, offset: int, size: int, flags: int = os.O_RDONLY) -> bytes:
        """At most `size` bytes from `offset`; fewer at the end of the file."""
        data: bytes = self.call("read", nodeid, room=size, fh=fh, offset=offset, size=size, flags=flags)
        return data

    def write(
        self, nodeid: int, fh: int, offset: int, data: bytes, flags: int = os.O_RDWR, write_flags: int = 0
    ) -> int:
        """Write `data` at `offset`; the number of bytes that were taken."""
        record = self.call(
            "write",
            nodeid,
            tail=data,
            fh=fh,
            offset=offset,
            size=len(data),
            flags=flags,
            write_flags=write_flags,
        )
        if record.size > len(data):
            raise ReplyError(f"write: {record.size} bytes were written of {len(data)}")
        return int(record.size)

    def flush(self, nodeid: int, fh: int, lock_owner: int = 0) -> None:
        """What each close(2) sends."""
        self.call("flush", nodeid, fh=fh, lock_owner=lock_owner)

    def release(self, nodeid: int, fh: int, flags: int = os.O_RDWR) -> None:
        """Close a handle of a file."""
        self.call("release", nodeid, fh=fh, flags=flags)

    def fsync(self, nodeid: int, fh: int, datasync: bool = False) -> None:
        """Write a file to stable storage."""
        self.call("fsync", nodeid, fh=fh, fsync_flags=int(datasync))

    def fallocate(self, nodeid: int, fh: int, offset: int, length: int, mode: int = 0) -> None:
        """Allocate, or with FALLOC_FL_* in `mode` punch or zero a range."""
        self.call("fallocate", nodeid, fh=fh, offset=offset, length=length, mode=mode)

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """The next data or hole from `offset` (os.SEEK_DATA, os.SEEK_HOLE)."""
        return int(self.call("lseek", nodeid, fh=fh, offset=offset, whence=whence).offset)

    def copy_file_range(
        self, nodeid: int, fh: int, offset: int, to_nodeid: int, to_fh: int, to_offset: int, length: int
    ) -> int:
        """Copy between two open files; bytes copied.  Tries the 64-bit form first, as Linux does."""
        fields: dict[str, Any] = {
            "fh_in": fh,
            "off_in": offset,
            "nodeid_out": to_nodeid,
            "fh_out": to_fh,
            "off_out": to_offset,
            "len": length,
        }
        try:
            return int(self.call("copy_file_range_64", nodeid, **fields).bytes_copied)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        return int(self.call("copy_file_range", nodeid, **fields).size)

    # --- directories ---

    def opendir(self, nodeid: int, flags: int = os.O_DIRECTORY) -> Record:
        """Open a directory: its handle `fh` and FOPEN_* flags (fuse_open_out)."""
        record: Record = self.call("opendir", nodeid, flags=flags)
        return record

    def readdir(self, nodeid: int, fh: int, cookie: int = 0, size: int = PAGE) -> list[DirectoryEntry]:
        """The entries that fit into `size` bytes after `cookie` (0: the start); none at the end."""
        data = self.call("readdir", nodeid, room=size, fh=fh, offset=cookie, size=size)
        return parse_directory(data, plus=False)

    def readdirplus(self, nodeid: int, fh: int, cookie: int = 0, size: int = PAGE) -> list[DirectoryEntry]:
        """As `readdir`, with the entries' nodes: each non-zero node id is a lookup the caller owes back."""
        data = self.call("readdirplus", nodeid, room=size, fh=fh, offset=cookie, size=size)
        return parse_directory(data, plus=True)

    def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a handle of a directory."""
        self.call("releasedir", nodeid, fh=fh)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool = False) -> None:
        """Write a directory to stable storage."""
        self.call("fsyncdir", nodeid, fh=fh, fsync_flags=int(datasync))

    # --- mappings ---

    def setupmapping(
        self, nodeid: int, foffset: int, length: int, moffset: int, writable: bool = True, fh: int = NO_HANDLE
    ) -> None:
        """Map `length` bytes of a file from `foffset` at `moffset` of the window; Linux names no handle."""
        flags = CONSTANTS["FUSE_SETUPMAPPING_FLAG_READ"]
        flags |= CONSTANTS["FUSE_SETUPMAPPING_FLAG_WRITE"] if writable else 0
        self.call("setupmapping", nodeid, fh=fh, foffset=foffset, len=length, flags=flags, moffset=moffset)

    def removemapping(self, nodeid: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Take ranges of the window back: pairs of offset and length."""
        records = [FUSE_REMOVEMAPPING_ONE.pack(moffset=start, len=length) for start, length in ranges]
        arguments = FUSE_REMOVEMAPPING_IN.pack(count=len(records))
        self.call("removemapping", nodeid, tail=b"".join(records), arguments=arguments)

    # --- extended attributes ---

    def setxattr(
        self, nodeid: int, name: Name, value: bytes, flags: int = 0, setxattr_flags: int = 0
    ) -> None:
        """Set an extended attribute (os.XATTR_CREATE, os.XATTR_REPLACE)."""
        arguments = FUSE_SETXATTR_IN.pack(size=len(value), flags=flags, setxattr_flags=setxattr_flags)
        if not self.has("SETXATTR_EXT"):
            arguments = arguments[:8]
        self.call("setxattr", nodeid, [name], tail=value, arguments=arguments)

    def getxattr(self, nodeid: int, name: Name, size: int = 65536) -> bytes:
        """The value of an extended attribute of at most `size` bytes."""
        value: bytes = self.call("getxattr", nodeid, [name], room=size, size=size)
        return value

    def getxattr_size(self, nodeid: int, name: Name) -> int:
        """How long the value is."""
        return self._size(self.call("getxattr", nodeid, [name], room=FUSE_GETXATTR_OUT.size))

    def listxattr(self, nodeid: int, size: int = 65536) -> list[bytes]:
        """The names of the extended attributes."""
        names: bytes = self.call("listxattr", nodeid, room=size, size=size)
        if names and not names.endswith(b"\0"):
            raise ReplyError("listxattr: the last name has no end")
        return names.split(b"\0")[:-1]

    def listxattr_size(self, nodeid: int) -> int:
        """How many bytes the names take."""
        return self._size(self.call("listxattr", nodeid, room=FUSE_GETXATTR_OUT.size))

    @staticmethod
    def _size(payload: bytes) -> int:
        if len(payload) != FUSE_GETXATTR_OUT.size:
            raise ReplyError(f"a size came in {len(payload)} bytes instead of {FUSE_GETXATTR_OUT.size}")
        return int(FUSE_GETXATTR_OUT.unpack(payload).size)

    def removexattr(self, nodeid: int, name: Name) -> None:
        """Remove an extended attribute."""
        self.call("removexattr", nodeid, [name])

    # --- the file system ---

    def syncfs(self, nodeid: int = FUSE_ROOT_ID) -> None:
        """Write everything to stable storage."""
        self.call("syncfs", nodeid)

    def destroy(self) -> None:
        """End the session: the device forgets every node and handle."""
        self.call("destroy")


def _by_handle(fh: int | None) -> dict[str, Any]:
    """The fields that ask for a handle's file instead of a node's."""
    return {} if fh is None else {"getattr_flags": CONSTANTS["FUSE_GETATTR_FH"], "fh": fh}


def parse_directory(data: bytes, plus: bool) -> list[DirectoryEntry]:
    """The records of a READDIR or READDIRPLUS reply.

    Raises `ReplyError` for what makes Linux return EIO: a record cut short, an empty name, "/" in a name.
    """
    layout = FUSE_DIRENTPLUS if plus else FUSE_DIRENT
    entries: list[DirectoryEntry] = []
    at = 0
    while at < len(data):
        if at + layout.size > len(data):
            raise ReplyError(f"a directory record at byte {at} of {len(data)} is cut short")
        record = layout.unpack(data, at)
        head = record.dirent if plus else record
        end = at + layout.size + head.namelen
        name = data[at + layout.size : end]
        if len(name) != head.namelen or not name or len(name) > PAGE - 1 or b"/" in name or b"\0" in name:
            raise ReplyError(f"a directory record at byte {at} of {len(data)} has the name {name!r}")
        entry = record.entry_out if plus and record.entry_out.nodeid else None
        entries.append(DirectoryEntry(name, head.ino, head.off, head.type, entry))
        at = (end + 7) // 8 * 8
    return entries
