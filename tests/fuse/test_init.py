# SPDX-License-Identifier: Apache-2.0
"""INIT: what a guest offers and what it gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse.abi import CONSTANTS, FUSE_INIT_IN, FUSE_INIT_OUT, FUSE_KERNEL_MINOR_VERSION

ALL = (1 << 64) - 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[devices.RunningDevice]:
    with devices.start_ours(tmp_path_factory.mktemp("share")) as running:
        yield running


def init(device: Device, **fields: int):
    reply = device.request("init", 0, FUSE_INIT_IN.pack(major=7, **fields), 64)
    assert reply.error == 0
    return FUSE_INIT_OUT.unpack(reply.payload)


def test_the_answer_is_never_more_than_the_guest_offered(served):
    with Device.connect(served.socket) as device:
        for offer in (0, CONSTANTS["FUSE_ASYNC_READ"], CONSTANTS["FUSE_MAX_PAGES"], ALL & 0xBFFFFFFF):
            answer = init(device, minor=38, flags=offer & 0xFFFFFFFF)
            assert answer.flags & ~offer == 0
            assert answer.flags2 == 0, "flags2 needs FUSE_INIT_EXT"


def test_a_current_linux_gets_large_requests_and_readdirplus(served):
    with Device.connect(served.socket) as device:
        answer = init(
            device, minor=FUSE_KERNEL_MINOR_VERSION, flags=0x7FFFFFFB, flags2=0x5FF, max_readahead=131072
        )
    assert (answer.major, answer.minor) == (7, FUSE_KERNEL_MINOR_VERSION)
    assert (answer.max_write, answer.max_pages, answer.max_readahead) == (1 << 20, 256, 131072)
    for name in ("MAX_PAGES", "DO_READDIRPLUS", "READDIRPLUS_AUTO", "PARALLEL_DIROPS", "INIT_EXT"):
        assert answer.flags & CONSTANTS["FUSE_" + name], name
    for name in ("POSIX_LOCKS", "FLOCK_LOCKS", "SUBMOUNTS", "HAS_IOCTL_DIR"):
        assert answer.flags & CONSTANTS["FUSE_" + name], name
    # The guest writes through.
    for name in ("WRITEBACK_CACHE", "EXPORT_SUPPORT"):
        assert not answer.flags & CONSTANTS["FUSE_" + name], name
    assert answer.flags2 & CONSTANTS["FUSE_CREATE_SUPP_GROUP"] >> 32
    assert answer.request_timeout == 0, "the guest would abort a slow request"


def test_the_short_form_of_before_7_36_is_understood(served):
    with Device.connect(served.socket) as device:
        short = FUSE_INIT_IN.pack(major=7, minor=31, max_readahead=4096, flags=0xFFFFFFFF)[:16]
        reply = device.request("init", 0, short, 64)
        assert reply.error == 0
        assert FUSE_INIT_OUT.unpack(reply.payload).flags2 == 0


def test_a_second_init_ends_the_first_session(served):
    """A guest that reboots sends no DESTROY."""
    (served.directory / "f").touch()
    with Device.connect(served.socket) as device:
        first = Session(device)
        node = first.lookup(1, "f").nodeid
        handle = first.open(node).fh
        second = Session(device)
        for act in (lambda: second.getattr(node), lambda: second.read(node, handle, 0, 1)):
            with pytest.raises(OSError):
                act()
        assert second.lookup(1, "f").nodeid != node
