# SPDX-License-Identifier: Apache-2.0
from virtiofs.virtqueue.driver import DriverQueue

class Hiprio:
    ring: DriverQueue
    def __init__(self, ring: DriverQueue, address: int) -> None: ...
    @staticmethod
    def memory_needed(size: int) -> int: ...
