# SPDX-License-Identifier: Apache-2.0
"""Rules that translate user and group ids between guest and host: from text to ranges.

A rule is `TYPE:FROM:TO:COUNT`, with the types of virtiofsd's --translate-uid:

    guest:GUEST:HOST:COUNT          the guest's ids, on the way to the host
    host:HOST:GUEST:COUNT           the host's ids, on the way to the guest
    map:GUEST:HOST:COUNT            both
    squash-guest:GUEST:HOST:COUNT   the guest's ids, all to one id of the host
    squash-host:HOST:GUEST:COUNT    the host's ids, all to one id of the guest
    forbid-guest:GUEST:COUNT        the guest may not use these ids

The oracle of the parser: two lists of ranges without overlap, or `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

SHIFT, SQUASH, FORBID = 0, 1, 2
# Type -> directions ("guest": on the way to the host) and what is done with an id of the range.
TYPES = {
    "guest": (("guest",), SHIFT),
    "host": (("host",), SHIFT),
    "map": (("guest", "host"), SHIFT),
    "squash-guest": (("guest",), SQUASH),
    "squash-host": (("host",), SQUASH),
    "forbid-guest": (("guest",), FORBID),
}
# 0xffffffff means "none" or "keep" to every system call, so it is nobody's id.
MAX_ID = 0xFFFFFFFE
MAX_RULES = 4096


class Range(NamedTuple):
    """`count` ids from `base` on become `target` and what follows it (SHIFT), or `target` (SQUASH), or nothing."""

    base: int
    count: int
    target: int
    action: int


class Translation(NamedTuple):
    """Ranges by direction, sorted; those of one direction do not overlap."""

    to_host: list[Range]
    to_guest: list[Range]


def parse_id_rules(texts: Iterable[str]) -> Translation:
    """The ranges of a list of rules.  Raises `ValueError` saying which rule is wrong, and how."""
    found: dict[str, list[tuple[Range, str]]] = {"guest": [], "host": []}
    for text in texts:
        name = text.lower()
        end = next((i for i, c in enumerate(name) if not (c.isalnum() or c in "-_")), len(name))
        name, separator = name[:end], text[end : end + 1]
        if name not in TYPES:
            raise ValueError(f"id rule {text!r}: the type is {', '.join(TYPES)}")
        directions, action = TYPES[name]
        numbers = _numbers(text, text[end + 1 :].split(separator) if separator else [])
        if len(numbers) != (2 if action == FORBID else 3):
            form = "FROM:COUNT" if action == FORBID else "FROM:TO:COUNT"
            raise ValueError(f"id rule {text!r}: {name} is written {name}:{form}")
        base, count, target = numbers[0], numbers[-1], numbers[1] if action != FORBID else 0
        for direction in directions:
            first, second = (target, base) if (name, direction) == ("map", "host") else (base, target)
            found[direction].append((_range(text, first, second, count, action), text))
    return Translation(_sorted(found["guest"]), _sorted(found["host"]))


def _numbers(text: str, fields: list[str]) -> list[int]:
    if not all(field.isascii() and field.isdigit() and len(field) <= 10 for field in fields):
        raise ValueError(f"id rule {text!r}: ids and counts are decimal numbers")
    return [int(field) for field in fields]


def _range(text: str, base: int, target: int, count: int, action: int) -> Range:
    if count == 0:
        raise ValueError(f"id rule {text!r}: the count is zero")
    # All ids there are, told as a count of 2**32 - 1 from 0, are meant without the one that is nobody's.
    count = min(count, MAX_ID + 1 - base) if action != SHIFT else count
    last = target if action != SHIFT else target + count - 1
    if base > MAX_ID or count < 1 or base + count - 1 > MAX_ID or last > MAX_ID:
        raise ValueError(f"id rule {text!r}: ids go from 0 to {MAX_ID}")
    return Range(base, count, target, action)


def _sorted(ranges: list[tuple[Range, str]]) -> list[Range]:
    ranges.sort()
    for (one, first), (two, second) in pairwise(ranges):
        if one.base + one.count > two.base:
            raise ValueError(f"id rules {first!r} and {second!r} overlap at {two.base}")
    if len(ranges) > MAX_RULES:
        raise ValueError(f"{len(ranges)} id rules are too many; {MAX_RULES} are allowed")
    return [range for range, _ in ranges]
