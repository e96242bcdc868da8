from collections.abc import Callable

from virtiofs.fs.filesystem import Filesystem as Served
from virtiofs.fs.python.filesystem import Filesystem
from virtiofs.fs.python.paths import PathFilesystem

class Bridge(Served):
    def __init__(
        self,
        filesystem: Filesystem | PathFilesystem,
        log: Callable[[str], None],
        directory: str = "",
        read_only: bool = False,
        epoch: int = 0,
    ) -> None: ...
