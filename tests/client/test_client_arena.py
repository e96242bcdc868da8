# SPDX-License-Identifier: Apache-2.0
"""The account of guest memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs.client.arena import Arena

RANGES = [(4096, 10000), (1 << 20, 5000)]


@given(st.data())
def test_what_is_taken_is_aligned_and_never_overlaps(data):
    """Oracle: pieces lie inside the ranges, apart from each other, and giving all back leaves the arena as new."""
    arena = Arena(RANGES)
    total = arena.free
    taken = []
    for _ in range(data.draw(st.integers(1, 60))):
        if taken and data.draw(st.booleans()):
            arena.give(*taken.pop(data.draw(st.integers(0, len(taken) - 1))))
            continue
        length = data.draw(st.integers(1, 3000))
        align = 1 << data.draw(st.integers(0, 12))
        try:
            address = arena.take(length, align)
        except MemoryError:
            continue
        assert address % align == 0
        assert any(start <= address and address + length <= start + size for start, size in RANGES)
        assert all(address + length <= other or other + size <= address for other, size in taken)
        taken.append((address, length))
        assert arena.free == total - sum(size for _, size in taken)
    for piece in taken:
        arena.give(*piece)
    assert arena.free == total
    assert arena.take(10000, 4096) == 4096


def test_a_full_arena_says_what_to_do():
    with pytest.raises(MemoryError, match="more memory"):
        Arena([(0, 100)]).take(101, 1)
