# SPDX-License-Identifier: Apache-2.0
from virtiofs.virtqueue.memory import GuestMemory

REASONS: dict[int, str]

class DriverError(Exception): ...
class QueueFull(Exception): ...

def memory_needed(size: int, indirect: int = 0) -> int: ...

class DriverQueue:
    memory: GuestMemory
    size: int
    event_idx: bool
    table_entries: int
    desc_address: int
    avail_address: int
    used_address: int
    kick_fd: int
    call_fd: int
    free_count: int
    next_avail: int
    next_used: int
    def __init__(
        self,
        memory: GuestMemory,
        base: int,
        size: int,
        event_idx: bool = True,
        indirect: int = 0,
        kick_fd: int = -1,
        call_fd: int = -1,
        first: int = 0,
    ) -> None: ...
    @property
    def in_flight(self) -> int: ...
    def add(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> int: ...
    def kick_needed(self) -> bool: ...
    def kick(self) -> None: ...
    def poll(self) -> tuple[int, int] | None: ...
    def wait(self, timeout: float) -> tuple[int, int] | None: ...
