from virtiofs.fs.filesystem import Filesystem

class Passthrough(Filesystem):
    def __init__(
        self,
        directory: str,
        read_only: bool = False,
        valid: float = 1.0,
        max_open: int = 0,
        file_handles: str = "prefer",
        shared_locks: bool = True,
        wait_limit: float = 600.0,
        announce_submounts: bool = True,
        proc: int = -1,
    ) -> None: ...
    @property
    def directory(self) -> str: ...
