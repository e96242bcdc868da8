# SPDX-License-Identifier: Apache-2.0
"""A session with a DAX window, for tests."""

from __future__ import annotations

import os
from pathlib import Path

from virtiofs.client.device import Device
from virtiofs.client.session import OFFER, Session
from virtiofs.client.window import FrontWindow
from virtiofs.fuse.abi import CONSTANTS, FUSE_ROOT_ID

PAGE = 4096
RANGE = 2 << 20  # what Linux maps at a time
OFFER_DAX = OFFER | CONSTANTS["FUSE_MAP_ALIGNMENT"] | CONSTANTS["FUSE_HAS_INODE_DAX"]


class Mapped:
    """A session with a window, as Linux has it: mapped in ranges of 2 MiB."""

    def __init__(self, device: Device, host: Path):
        self.device = device
        self.session = Session(device, flags=OFFER_DAX)
        self.host = host
        assert device.window is not None
        self.window: FrontWindow = device.window

    def make(self, name: str, content: bytes) -> int:
        """A file with this content, looked up: its node id."""
        (self.host / name).write_bytes(content)
        return int(self.session.lookup(FUSE_ROOT_ID, name).nodeid)

    def map(self, node: int, number: int = 0, at: int = 0, writable: bool = True) -> None:
        """Map the file's range `number` at range `at` of the window."""
        self.session.setupmapping(node, number * RANGE, RANGE, at * RANGE, writable)

    def open(self, node: int) -> int:
        return int(self.session.open(node, os.O_RDWR).fh)
