# SPDX-License-Identifier: Apache-2.0
from virtiofs.client.hiprio import Hiprio
from virtiofs.virtqueue.driver import DriverQueue

STOPPED: int
UNMOUNTED: int

class RelayQueue:
    ring: DriverQueue
    hiprio: Hiprio
    depth: int
    initialised: bool
    requests: int
    replies: int
    outcome: int
    def __init__(self, ring: DriverQueue, hiprio: Hiprio, fd: int, address: int, depth: int) -> None: ...
    @staticmethod
    def memory_needed(depth: int) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    def run(self) -> int: ...
    def stop(self) -> None: ...
    def destroy(self, timeout: float = 2.0) -> bool: ...
