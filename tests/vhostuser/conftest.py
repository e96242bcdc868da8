# SPDX-License-Identifier: Apache-2.0
"""What the tests of vhost-user share: descriptors, which they count, and a front end."""

from __future__ import annotations

import gc
import os

import pytest
from recording_device import Direct, FdSource, RecordingDevice, open_fds


@pytest.fixture(scope="module", autouse=True)
def no_garbage_of_other_tests() -> None:
    """What earlier modules left to the collector must not vanish, and close descriptors, while we count."""
    gc.collect()


@pytest.fixture
def fd():
    source = FdSource()
    yield source
    for made in source.made:
        os.close(made)


@pytest.fixture
def peer(fd):
    """A negotiated front end; afterwards no descriptor but the test's own may be left."""
    before = open_fds()
    peer = Direct(RecordingDevice())
    peer.negotiate()
    yield peer
    peer.backend.close()
    assert not peer.device.running
    assert len(open_fds()) == len(before) + len(fd.made)
