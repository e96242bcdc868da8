# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from virtiofs.virtqueue.driver import DriverQueue

# Request bytes, lengths of the readable and of the writable pieces, expected used length (-1: any), and the error.
Prepared = (
    tuple[bytes, Sequence[int], Sequence[int], int] | tuple[bytes, Sequence[int], Sequence[int], int, int]
)

def shuffled(number: int, count: int) -> int: ...

class Load:
    queue: DriverQueue
    depth: int
    lane_count: int
    lane_size: int
    kicks: int
    wakes: int
    def __init__(
        self,
        queue: DriverQueue,
        requests: Sequence[Prepared],
        depth: int,
        address: int,
        beside: Sequence[Prepared] = (),
        beside_depth: int = 1,
    ) -> None: ...
    @staticmethod
    def memory_needed(
        requests: Sequence[Prepared], depth: int, beside: Sequence[Prepared] = (), beside_depth: int = 1
    ) -> int: ...
    def number(
        self,
        step: int,
        position: int,
        start: int = 0,
        by: int = 1,
        count: int = ...,
        shuffled: bool = False,
    ) -> None: ...
    def digits(self, step: int, position: int, width: int, count: int = ..., start: int = 0) -> None: ...
    def copy(self, step: int, position: int, source: int, source_position: int, length: int = 8) -> None: ...
    def forget_entries(self, step: int, position: int) -> None: ...
    def run(self, rounds: int, polled: bool = False, timeout: float = 10.0, first: int = 0) -> int: ...
    @property
    def rounds_beside(self) -> int: ...
    def latency(self, share: float, beside: bool = False) -> float: ...
    def round(self, lane: int = 0) -> int: ...
    def reply(self, lane: int = 0, step: int = 0) -> bytes: ...
