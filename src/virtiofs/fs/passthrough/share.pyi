from typing import NamedTuple

from virtiofs.fs.filesystem import Filesystem

class CacheMode(NamedTuple):
    valid: float
    open_file: int
    open_directory: int
    init_flags: int
    readdirplus: bool

CACHE_MODES: dict[str, CacheMode]

class Passthrough(Filesystem):
    def __init__(
        self,
        directory: str,
        read_only: bool = False,
        valid: float | None = None,
        max_open: int = 0,
        file_handles: str = "prefer",
        cache: str = "auto",
        readdirplus: bool | None = None,
        writeback: bool = False,
        direct_io: bool = False,
        mmap: bool = False,
        noatime: bool = False,
        only: str = "",
    ) -> None: ...
    @property
    def directory(self) -> str: ...
