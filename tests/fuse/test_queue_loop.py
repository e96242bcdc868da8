# SPDX-License-Identifier: Apache-2.0
"""When a queue wakes its guest: counted by the writes to the call descriptor, without threads."""

from __future__ import annotations

import os

import pytest

from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.abi import BY_NAME, FUSE_IN_HEADER, FUSE_OUT_HEADER
from virtiofs.fuse.loop import QueueLoop
from virtiofs.fuse.session import Session
from virtiofs.virtqueue.driver import DriverQueue, memory_needed
from virtiofs.virtqueue.memory import GuestMemory
from virtiofs.virtqueue.split import SplitQueue

SIZE = 64
MESSAGES = 32768  # where requests lie; each has a page


class Guest:
    """A driver that asks to be told of everything, and the loop that serves it."""

    def __init__(self) -> None:
        assert memory_needed(SIZE) <= MESSAGES
        self.memory = GuestMemory()
        total = MESSAGES + SIZE * 4096
        fd = os.memfd_create("guest")
        os.ftruncate(fd, total)
        self.memory.add(0, total, fd, 0)
        os.close(fd)
        self.driver = DriverQueue(self.memory, 0, SIZE, event_idx=False)
        ring = SplitQueue(
            self.memory,
            SIZE,
            self.driver.desc_address,
            self.driver.avail_address,
            self.driver.used_address,
            event_idx=False,
        )
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.loop = QueueLoop(Session(Filesystem()), ring, os.eventfd(0), os.dup(self.call))

    def add(self, name: str) -> None:
        page = MESSAGES + self.driver.in_flight * 4096
        self.memory.write(page, FUSE_IN_HEADER.pack(len=FUSE_IN_HEADER.size, opcode=BY_NAME[name].opcode))
        self.driver.add([(page, FUSE_IN_HEADER.size)], [(page + 2048, FUSE_OUT_HEADER.size)])

    def woken(self) -> int:
        """How often the guest was woken since the last time."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def taken(self) -> int:
        count = 0
        while self.driver.poll() is not None:
            count += 1
        return count


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_single_request_wakes_the_guest_at_once(guest):
    for _ in range(3):
        guest.add("statfs")
        assert guest.loop.serve_available() == 1
        assert (guest.woken(), guest.taken()) == (1, 1)


def test_many_waiting_requests_wake_the_guest_together(guest):
    for _ in range(32):
        guest.add("statfs")
    assert guest.loop.serve_available() == 32
    # Once, if all took less than the longest debt; however slow the machine is, two at least go together.
    assert 1 <= guest.woken() <= 16
    assert guest.taken() == 32


@pytest.mark.parametrize("slow", ["fsync", "syncfs", "copy_file_range"])
def test_the_guest_is_told_before_a_request_that_may_wait_for_storage(guest, slow):
    for name in ("statfs", slow):
        guest.add(name)
    assert guest.loop.serve_available() == 2
    assert (guest.woken(), guest.taken()) == (2, 2)


def test_a_guest_is_told_before_its_ring_is_found_broken(guest):
    guest.add("statfs")
    guest.add("statfs")
    guest.memory.write(guest.driver.avail_address + 6, b"\xff\xff")  # an index that no descriptor has
    assert guest.loop.serve_available() == 1
    assert "descriptor index" in guest.loop.queue.reason
    assert (guest.woken(), guest.taken()) == (1, 1)
