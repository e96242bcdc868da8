from virtiofs.fs.filesystem import Filesystem

class Passthrough(Filesystem):
    def __init__(
        self,
        directory: str,
        read_only: bool = False,
        valid: float = 1.0,
        max_open: int = 0,
        file_handles: str = "prefer",
        proc: int = -1,
    ) -> None: ...
    @property
    def directory(self) -> str: ...
