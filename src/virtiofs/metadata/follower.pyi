# SPDX-License-Identifier: Apache-2.0
from typing import NamedTuple

from virtiofs.metadata.table import Table

class Change(NamedTuple):
    sequence: int
    kind: int
    dev: int
    ino: int
    name: bytes
    child_dev: int
    child_ino: int
    origin: int
    time: int

class Follower:
    lagged: int
    def __init__(self, table: Table) -> None: ...
    def next(self, timeout: float | None = None) -> Change | None: ...
    def close(self) -> None: ...
