# SPDX-License-Identifier: Apache-2.0
"""Bytes as a sequence of choices, so that small changes of an input are small changes of what is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads `data` from its start; past the end everything is 0.  Stands in for `random.Random` in generators."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return max(len(self.data) - self.at, 0)

    def number(self, size: int) -> int:
        """An unsigned number of `size` bytes."""
        value = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.at += size
        return value

    def take(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def randrange(self, end: int) -> int:
        return self.number(1 if end <= 256 else 4) % end

    def choice(self, items: Sequence[T]) -> T:
        return items[self.randrange(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        rest = list(items)
        return [rest.pop(self.randrange(len(rest))) for _ in range(count)]
