# SPDX-License-Identifier: Apache-2.0
"""Devices for the tests of the client: a fresh one for each test, as many of them stop, reset or break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import devices


@pytest.fixture
def fresh(kind: str, tmp_path: Path) -> Iterator[devices.RunningDevice]:
    """A daemon for this test alone, serving an empty directory."""
    reason = devices.available(kind)
    if reason:
        pytest.skip(reason)
    share = tmp_path / "share"
    share.mkdir()
    with devices.start(kind, share) as device:
        yield device
