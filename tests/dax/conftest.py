# SPDX-License-Identifier: Apache-2.0
"""A daemon of ours with a DAX window, and a driver end that plays a front end with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from mapping import Mapped

import devices
from virtiofs.client.device import Device, WindowOptions


@pytest.fixture(scope="module")
def daemon() -> Iterator[devices.RunningDevice]:
    with devices.share_for("ours") as share, devices.start_ours(share, ["--dax-window", "8M"]) as running:
        yield running


@pytest.fixture
def connect(daemon: devices.RunningDevice) -> Iterator[Callable[..., Mapped]]:
    """Connect to the daemon as a front end with a window."""
    made: list[Device] = []
    said = len(daemon.log)

    def connect(options: WindowOptions | None = None, queues: int = 1) -> Mapped:
        made.append(
            Device.connect(daemon.socket, queues=queues, window=options or WindowOptions(), timeout=20)
        )
        return Mapped(made[-1], daemon.directory)

    yield connect
    for device in made:
        troubles = device.window.troubles if device.window else []
        device.close()
        assert troubles == []
    assert daemon.alive, "the daemon died:\n" + "\n".join(daemon.log)
    assert daemon.log[said:] == []


@pytest.fixture
def mapped(connect: Callable[..., Mapped]) -> Mapped:
    return connect()
