# SPDX-License-Identifier: Apache-2.0
"""A daemon of ours, and sessions with it, for attackers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[devices.RunningDevice]:
    """A writable share, `share` in a directory that also holds `secret`, which no guest may reach."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    (outside / "share").mkdir()
    with devices.start_ours(outside / "share") as running:
        yield running


@pytest.fixture
def session(served: devices.RunningDevice) -> Iterator[Session]:
    with Device.connect(served.socket) as device:
        yield Session(device)
    assert served.alive, "the daemon died:\n" + "\n".join(served.log)
