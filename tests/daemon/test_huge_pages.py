# SPDX-License-Identifier: Apache-2.0
"""Guests whose memory is of huge pages (hugetlbfs): where regions begin and end, and what they spare us."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.virtqueue.memory import GuestMemory

PAGE, HUGE = 4096, 2 << 20
SIZE = 8 * HUGE
create = os.memfd_create


def huge_file(name: str, size: int = SIZE) -> int:
    """A file of huge pages that are all there: touching one can not fail."""
    try:
        fd = create(name, os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError as error:
        pytest.skip(f"this kernel has no huge pages of 2 MiB: {error.strerror}")
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        pytest.skip(f"fewer than {size // HUGE} huge pages are free: sysctl vm.nr_overcommit_hugepages=16")
    return fd


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, SIZE), (HUGE, HUGE), (PAGE, HUGE - PAGE), (HUGE - PAGE, 2 * PAGE), (3 * HUGE + PAGE, 2 * HUGE)],
)
def test_a_region_may_begin_and_end_anywhere_in_huge_pages(offset, size):
    fd = huge_file("guest")
    memory = GuestMemory()
    memory.add(1 << 32, size, fd, offset)
    os.close(fd)
    first, last = 1 << 32, (1 << 32) + size - 4
    memory.write(first, b"here")
    memory.write(last, b"ends")
    assert memory.read(first, 4) == b"here"
    assert memory.read(last, 4) == b"ends"
    assert not memory.contains(last, 5) and not memory.contains(first - 1, 1)
    memory.remove(1 << 32, size)
    assert not memory.contains(first, 1)


def test_a_region_that_needs_more_than_its_file_has_is_refused():
    fd = huge_file("guest", HUGE)
    with pytest.raises(ValueError, match="its file has"):
        GuestMemory().add(0, HUGE, fd, PAGE)
    os.close(fd)


def test_each_huge_page_is_met_once_however_many_pages_of_it_are_used():
    fd = huge_file("guest")
    memory = GuestMemory()
    memory.add(0, SIZE, fd)
    os.close(fd)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for page in range(0, SIZE, PAGE):
        memory.write(page, b"x")
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 4 * SIZE // HUGE


def test_a_guest_of_huge_pages_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(data := random.Random(1).randbytes(3 << 20))
    os.close(huge_file("whether there are any", 2 * SIZE))
    with devices.start_ours(tmp_path) as running:
        monkeypatch.setattr(os, "memfd_create", lambda name, _flags: huge_file(name))
        # The region begins a page into its file, and so inside a huge page.
        with Device.connect(running.socket, memory=2 * SIZE - 2 * PAGE, regions=2) as device:
            monkeypatch.undo()
            session = Session(device)
            tree = Tree(session)
            assert tree.read_file("file") == data
            tree.write_file("written", data)
            assert (tmp_path / "written").read_bytes() == data
            shared = Path(f"/proc/{running.worker}/smaps").read_text()
            assert "/memfd:guest-memory" in shared and "KernelPageSize:     2048 kB" in shared
