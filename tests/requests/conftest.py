# SPDX-License-Identifier: Apache-2.0
"""Requests as no program of a guest can send them: behaviours of the protocol, spoken through `place.session`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from places import DevicePlace, MakePlace, on_device


@pytest.fixture(scope="module")
def make_place(running: devices.RunningDevice) -> Iterator[MakePlace]:
    os.umask(0o022)
    with on_device(running) as make:
        yield make


@pytest.fixture
def tmp_path(running: devices.RunningDevice) -> Iterator[Path]:
    """A directory outside the share that belongs to whoever the test acts as."""
    with devices.share_for(running.kind) as path:
        yield path


@pytest.fixture
def place(make_place: MakePlace) -> Iterator[DevicePlace]:
    """An empty directory of the share for one test; the daemon must have outlived the test."""
    with make_place() as place:
        yield place
