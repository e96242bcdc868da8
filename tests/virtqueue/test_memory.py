# SPDX-License-Identifier: Apache-2.0
"""The guest's memory: which addresses are bytes, and which regions are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs.virtqueue.memory import GuestMemory
from virtiofs.virtqueue.split import SplitQueue

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 64 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(file: int) -> GuestMemory:
    """Two adjacent regions, a hole, a third region."""
    guest = GuestMemory()
    guest.add(0, 4 * PAGE, file, 0)
    guest.add(4 * PAGE, 4 * PAGE, file, 32 * PAGE)
    guest.add(16 * PAGE, PAGE, file, 8 * PAGE)
    return guest


@pytest.mark.parametrize(
    ("address", "length", "inside"),
    [
        (0, 0, True),
        (0, 4 * PAGE, True),
        (0, 4 * PAGE + 1, False),
        (4 * PAGE - 1, 1, True),
        (4 * PAGE - 1, 2, False),  # over the border of two regions
        (8 * PAGE - 1, 1, True),
        (8 * PAGE, 1, False),
        (16 * PAGE, PAGE, True),
        (16 * PAGE + 1, PAGE, False),
        (TOP - 1, 1, False),
        (TOP - 1, TOP - 1, False),
        (1, TOP - 1, False),
        (PAGE, TOP - PAGE, False),
    ],
)
def test_bytes_are_inside_when_one_region_holds_them_all(memory, address, length, inside):
    assert memory.contains(address, length) is inside


@given(address=st.integers(0, TOP - 1), length=st.integers(0, TOP - 1))
def test_containment_agrees_with_arithmetic_that_cannot_wrap(address, length):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 64 * PAGE)
    guest = GuestMemory()
    regions = [(PAGE, 3 * PAGE), (TOP - 2 * PAGE, 2 * PAGE)]
    for start, size in regions:
        guest.add(start, size, fd)
    os.close(fd)
    expected = any(start <= address and address + length <= start + size for start, size in regions)
    assert guest.contains(address, length) is expected


def test_what_is_written_is_in_the_file_at_the_region_offset(memory, file):
    memory.write(4 * PAGE + 10, b"bytes")
    assert os.pread(file, 5, 32 * PAGE + 10) == b"bytes"
    assert memory.read(4 * PAGE + 10, 5) == b"bytes"
    for act in (lambda: memory.read(8 * PAGE, 1), lambda: memory.write(4 * PAGE - 2, b"1234")):
        with pytest.raises(ValueError, match="outside guest memory"):
            act()


@pytest.mark.parametrize(
    ("guest", "size", "offset", "text"),
    [
        (8 * PAGE, 0, 0, "empty or wraps"),
        (TOP - PAGE, 2 * PAGE, 0, "empty or wraps"),
        (3 * PAGE, 2 * PAGE, 0, "overlaps"),
        (0, 1, 0, "overlaps"),
        (32 * PAGE, PAGE, 64 * PAGE, "its file has"),
        (32 * PAGE, 65 * PAGE, 0, "its file has"),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_changes_nothing(memory, file, guest, size, offset, text):
    with pytest.raises(ValueError, match=text):
        memory.add(guest, size, file, offset)
    assert len(memory) == 3


def test_overlap_is_noticed_at_the_top_of_the_address_space(memory, file):
    memory.add(TOP - 2 * PAGE, 2 * PAGE, file)
    for guest in (TOP - 2 * PAGE, TOP - PAGE, TOP - 3 * PAGE):
        with pytest.raises(ValueError, match="overlaps"):
            memory.add(guest, TOP - guest if guest > TOP - 3 * PAGE else 2 * PAGE, file)


def test_a_region_may_begin_inside_a_page_of_its_file(memory, file):
    os.pwrite(file, b"here", 20 * PAGE + 100)
    memory.add(64 * PAGE, PAGE, file, 20 * PAGE + 100)
    assert memory.read(64 * PAGE, 4) == b"here"


def test_a_removed_region_is_no_longer_memory(memory):
    memory.remove(4 * PAGE, 4 * PAGE)
    assert not memory.contains(4 * PAGE, 1)
    assert memory.contains(16 * PAGE, PAGE)
    with pytest.raises(KeyError):
        memory.remove(4 * PAGE, 4 * PAGE)
    with pytest.raises(KeyError):
        memory.remove(0, PAGE)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 3}, "power of two"),
        ({"size": 0}, "power of two"),
        ({"size": 65536}, "power of two"),
        ({"desc": 8}, "not aligned"),
        ({"avail": 1 + 2 * PAGE}, "not aligned"),
        ({"used": 2 + 3 * PAGE}, "not aligned"),
        ({"desc": 8 * PAGE}, "outside"),
        ({"desc": 4 * PAGE - 16}, "outside"),
        ({"used": 17 * PAGE - 4}, "outside"),
    ],
)
def test_a_queue_whose_rings_cannot_be_is_refused(memory, change, text):
    rings = {"size": 16, "desc": 0, "avail": 2 * PAGE, "used": 3 * PAGE} | change
    with pytest.raises(ValueError, match=text):
        SplitQueue(memory, **rings)
