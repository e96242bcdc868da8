import os
from typing import Self

class Attributes:
    mode: int
    size: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    ino: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    valid: float
    btime_ns: int
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
    ) -> None: ...
    @classmethod
    def of(cls, found: os.stat_result, valid: float = 1.0) -> Self: ...

class Entry:
    node: int
    attributes: Attributes
    valid: float
    generation: int
    def __init__(
        self, node: int, attributes: Attributes | None, valid: float = 1.0, generation: int = 0
    ) -> None: ...
    @classmethod
    def absent(cls, valid: float) -> Self: ...

class Opened:
    handle: int
    direct_io: bool
    keep_cache: bool
    cache_directory: bool
    parallel_direct_writes: bool
    def __init__(
        self,
        handle: int = 0,
        direct_io: bool = False,
        keep_cache: bool = False,
        cache_directory: bool = False,
        parallel_direct_writes: bool = False,
    ) -> None: ...

class Statistics:
    blocks: int
    free: int
    available: int
    files: int
    free_files: int
    block_size: int
    name_length: int
    def __init__(
        self,
        blocks: int = 0,
        free: int = 0,
        available: int | None = None,
        files: int = 0,
        free_files: int = 0,
        block_size: int = 4096,
        name_length: int = 255,
    ) -> None: ...

class Changes:
    @property
    def mode(self) -> int | None: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def atime_ns(self) -> int | None: ...
    @property
    def mtime_ns(self) -> int | None: ...
    def __init__(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None: ...

class Lock:
    @property
    def kind(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def pid(self) -> int: ...
    def __init__(self, kind: int, start: int, end: int, pid: int = 0) -> None: ...

class Caller:
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    def __init__(self, uid: int, gid: int, pid: int = 0) -> None: ...
