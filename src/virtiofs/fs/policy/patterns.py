# SPDX-License-Identifier: Apache-2.0
"""Patterns of gitignore(5) as tokens, for the tables of `matcher.py`.

A pattern is a list of segments, each matched against one component of a path.  A segment is a list of tokens: a byte
(0 to 255), ANY (one byte), STAR (any number of them), CLASS + n (one byte of class n), or the single token DEEP (any
number of components).  As git does it, `?` and a class are one byte, not one character.
"""

from __future__ import annotations

import os
import string
from typing import NamedTuple

ANY = 256
STAR = 257
DEEP = 258
CLASS = 512
NAMED = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, (*range(32), 127))),
    "digit": string.digits,
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "lower": string.ascii_lowercase,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "punct": string.punctuation,
    "space": " \t\n\r\x0b\x0c",
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
Class = frozenset[int]


class Pattern(NamedTuple):
    """One pattern: what it matches is taken into its list, or out of it (`negated`)."""

    text: str
    segments: tuple[tuple[int | Class, ...], ...]
    negated: bool
    directories: bool  # matches directories only
    floating: bool  # one segment that is matched at any depth


def parse(text: str) -> Pattern | None:
    """A line of a .gitignore file; None for one that is empty or a comment.

    Raises `ValueError` for a pattern that could never match, which git passes over in silence.
    """
    pattern = strip(os.fsencode(text.rstrip("\r\n")))
    if not pattern or pattern.startswith(b"#"):
        return None
    negated = pattern.startswith(b"!")
    pattern = pattern[negated:]
    directories = pattern.endswith(b"/")
    if directories:
        pattern = pattern[:-1]
    anchored = b"/" in pattern
    parts = pattern.removeprefix(b"/").split(b"/")
    if b"" in parts or b"." in parts or b".." in parts:
        raise ValueError(
            f"the pattern {text!r} can not match: its parts are names, separated by one slash each"
        )
    if not anchored:
        segments: list[tuple[int | Class, ...]] = [tokens(parts[0], text)]
    else:
        segments = [(DEEP,) if part == b"**" else tokens(part, text) for part in parts]
    return Pattern(text, tuple(segments), negated, directories, not anchored)


def strip(line: bytes) -> bytes:
    """A line without the spaces at its end, unless they are quoted with a backslash."""
    end = len(line)
    while end and line[end - 1] == ord(" "):
        before = line[: end - 1]
        if (len(before) - len(before.rstrip(b"\\"))) % 2:
            break
        end -= 1
    return line[:end]


def tokens(part: bytes, text: str) -> tuple[int | Class, ...]:
    """The tokens of one segment.  Raises `ValueError`."""
    found: list[int | Class] = []
    at = 0
    while at < len(part):
        byte = part[at]
        at += 1
        if byte == ord("*"):
            if not found or found[-1] != STAR:
                found.append(STAR)
        elif byte == ord("?"):
            found.append(ANY)
        elif byte == ord("["):
            one, at = read_class(part, at, text)
            found.append(one)
        elif byte == ord("\\"):
            if at == len(part):
                raise ValueError(f"the pattern {text!r} can not match: it ends with a backslash")
            found.append(part[at])
            at += 1
        else:
            found.append(byte)
    return tuple(found)


def read_class(part: bytes, at: int, text: str) -> tuple[Class, int]:
    """The bytes of a class that begins behind its "[", and where it ends.  Raises `ValueError`."""
    start = at
    members: set[int] = set()
    negated = part[at : at + 1] in (b"!", b"^")
    at += negated
    first = True
    while first or part[at : at + 1] != b"]":
        first = False
        if part[at : at + 2] == b"[:":
            end = part.find(b":]", at)
            name = part[at + 2 : end].decode("ascii", "replace")
            if end < 0 or name not in NAMED:
                raise ValueError(
                    f"the pattern {text!r} has a class that is not known: there are {', '.join(NAMED)}"
                )
            members.update(NAMED[name].encode())
            at = end + 2
            continue
        low, at = member(part, at, text, start)
        high = low
        if part[at : at + 1] == b"-" and part[at + 1 : at + 2] not in (b"]", b""):
            high, at = member(part, at + 1, text, start)
        members.update(range(low, high + 1))
    if negated:
        members = set(range(256)) - members
    return frozenset(members - {ord("/")}), at + 1


def member(part: bytes, at: int, text: str, start: int) -> tuple[int, int]:
    """One byte of a class, and what follows it.  Raises `ValueError`."""
    if part[at : at + 1] == b"\\":
        at += 1
    if at >= len(part):
        raise ValueError(f"the pattern {text!r} can not match: the [ at {start} has no ]")
    return part[at], at + 1
