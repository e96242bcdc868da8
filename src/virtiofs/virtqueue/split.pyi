from virtiofs.virtqueue.memory import GuestMemory

MAX_QUEUE_SIZE: int
REASONS: dict[int, str]

class SplitQueue:
    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int = 0,
        event_idx: bool = True,
        indirect: bool = True,
    ) -> None: ...
    @property
    def base(self) -> int: ...
    @property
    def broken(self) -> int: ...
    @property
    def reason(self) -> str: ...
