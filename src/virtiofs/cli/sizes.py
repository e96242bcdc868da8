# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write and read them: numbers of bytes with K, M, G or T behind them, powers of 1024."""

from __future__ import annotations

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """The number of bytes that "512M" or "10g" means.  Raises `ValueError`."""
    number = text.rstrip("kKmMgGtT")
    unit = UNITS.get(text[len(number) :].upper())
    if unit is None or not number.isascii() or not number.isdecimal() or len(number) > 19:
        raise ValueError(f"a size is a number of bytes, or one with K, M, G or T behind it, not {text!r}")
    return int(number) * unit


def show_size(size: int) -> str:
    """A number of bytes in the largest unit of which it has at least one, as in "1.5G"."""
    for unit, factor in reversed(UNITS.items()):
        if size >= factor > 1:
            return f"{size / factor:.1f}".removesuffix(".0") + unit
    return str(size)
