from collections.abc import Callable, Collection
from mmap import mmap
from struct import Struct

RECORD: Struct
REFUSALS: str
PATHS: tuple[int, ...]

class Audit:
    def __init__(
        self,
        fd: int,
        operations: Collection[str],
        note: bool,
        lost: mmap,
        log: Callable[[str], None],
    ) -> None: ...
