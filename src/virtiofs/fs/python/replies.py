# SPDX-License-Identifier: Apache-2.0
"""What the methods of a file system return, and what they are told.

The fields are C numbers, so one that is out of range is refused where it is set (OverflowError, TypeError), not when
the guest has to be answered.  Types and ranges: `replies.pxd`.
"""

import os

import cython


@cython.cclass
class Attributes:
    """What stat(2) says of a file.

    `mode` with its type (`stat.S_IFREG | 0o644`), `size` in bytes, times in nanoseconds since 1970.  `ino` 0: the
    guest is shown the node id.  `blocks` of 512 bytes; -1: as many as `size` takes.  `rdev`: of device nodes, as
    `os.makedev` makes it.  `valid`: seconds for which the guest need not ask again (0: it asks each time).
    `btime_ns`: when it was made, for those with `birth_times`; 0: nobody knows.
    """

    def __init__(
        self,
        mode: int,
        size: int = 0,
        nlink: int = 1,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        ino: int = 0,
        blocks: int = -1,
        blksize: int = 4096,
        atime_ns: int = 0,
        mtime_ns: int = 0,
        ctime_ns: int = 0,
        valid: float = 1.0,
        btime_ns: int = 0,
    ):
        self.btime_ns = btime_ns
        self.mode = mode
        self.size = size
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.ino = ino
        self.blocks = blocks
        self.blksize = blksize
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.valid = valid

    @classmethod
    def of(cls, found: os.stat_result, valid: float = 1.0) -> object:
        """The attributes of a file of the host, of any kind."""
        return cls(
            found.st_mode,
            found.st_size,
            found.st_nlink,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            found.st_ino,
            found.st_blocks,
            found.st_blksize,
            found.st_atime_ns,
            found.st_mtime_ns,
            found.st_ctime_ns,
            valid,
        )

    def __repr__(self) -> str:
        return f"Attributes(mode={self.mode:#o}, size={self.size}, nlink={self.nlink}, ino={self.ino})"


@cython.cclass
class Entry:
    """A name that was found or made: the file's node id and attributes.

    `valid`: seconds for which the guest need not ask for the name again.  `node` 0 with `Entry.absent`: there is no
    such name, for as long as that.  `generation`: what tells a node id that is used again from its last use.
    """

    def __init__(self, node: int, attributes: Attributes | None, valid: float = 1.0, generation: int = 0):
        self.node = node
        self.attributes = attributes
        self.valid = valid
        self.generation = generation

    @classmethod
    def absent(cls, valid: float) -> object:
        """What `lookup` returns for a name that is not there, and will not be for `valid` seconds."""
        return cls(0, None, valid)

    def __repr__(self) -> str:
        return f"Entry({self.node}, {self.attributes!r})"


@cython.cclass
class Opened:
    """An open file or directory: the number by which later calls name it, and what the guest's kernel may do.

    `direct_io`: it keeps no data of it, each read(2) is a call.  `keep_cache`: what it kept from the last time is
    still right.  `cache_directory`: it may keep the listing.  `parallel_direct_writes`: with `direct_io`, several
    writes at a time.
    """

    def __init__(
        self,
        handle: int = 0,
        direct_io: bool = False,
        keep_cache: bool = False,
        cache_directory: bool = False,
        parallel_direct_writes: bool = False,
    ):
        self.handle = handle
        self.direct_io = direct_io
        self.keep_cache = keep_cache
        self.cache_directory = cache_directory
        self.parallel_direct_writes = parallel_direct_writes


@cython.cclass
class Statistics:
    """What statfs(2) says: `blocks`, `free` and `available` (to users) of `block_size` bytes; files; longest name."""

    def __init__(
        self,
        blocks: int = 0,
        free: int = 0,
        available: int | None = None,
        files: int = 0,
        free_files: int = 0,
        block_size: int = 4096,
        name_length: int = 255,
    ):
        self.blocks = blocks
        self.free = free
        self.available = free if available is None else available
        self.files = files
        self.free_files = free_files
        self.block_size = block_size
        self.name_length = name_length


@cython.cclass
class Changes:
    """What `setattr` is to change: each field None where it is to stay.

    `mode`: permission bits.  `size`: bytes, to cut or to fill with zeros.  Times in nanoseconds; "now" was filled in.
    """

    def __init__(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ):
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns

    def __repr__(self) -> str:
        names = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
        asked = ((name, getattr(self, name)) for name in names)
        return f"Changes({', '.join(f'{name}={value}' for name, value in asked if value is not None)})"


@cython.cclass
class Lock:
    """A lock of fcntl(2) on bytes `start` to `end`, both of them in it (2**63 - 1: to the end of the file).

    `kind`: fcntl.F_RDLCK, F_WRLCK, or F_UNLCK for none.  `pid`: whose it is, as the guest knows processes.
    """

    def __init__(self, kind: int, start: int, end: int, pid: int = 0):
        self.kind = kind
        self.start = start
        self.end = end
        self.pid = pid

    def __repr__(self) -> str:
        return f"Lock(kind={self.kind}, start={self.start}, end={self.end}, pid={self.pid})"


@cython.cclass
class Caller:
    """Who asks: user, group and process as the guest knows them (of a hostile guest: as it says)."""

    def __init__(self, uid: int, gid: int, pid: int = 0):
        self.uid = uid
        self.gid = gid
        self.pid = pid

    def __repr__(self) -> str:
        return f"Caller(uid={self.uid}, gid={self.gid}, pid={self.pid})"
