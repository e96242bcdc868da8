# SPDX-License-Identifier: Apache-2.0
"""The file of an audit: JSON lines, each with the hash of itself and of the line before (docs/audit.md).

A line ends in `,"hash":"<64 hex digits>"}`: SHA-256 over the hash of the line before, as these digits, and over what
stands in the line before that end, with a `}` in its place.  So nothing in the middle can be changed, left out or added
without changing all that follows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

BEGINNING = "0" * 64
TAIL = len(',"hash":""}') + 64


class ChainError(Exception):
    """A chain is broken; the text says where."""


def seal(record: dict[str, Any], before: str) -> tuple[bytes, str]:
    """A record as a line of the file, and its hash."""
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    digest = sha256(before.encode() + body).hexdigest()
    return body[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


def unseal(line: bytes, before: str) -> tuple[dict[str, Any], str]:
    """What `seal` was given, and the hash.  Raises `ChainError` for a line that does not follow `before`."""
    if not line.endswith(b'"}\n') or len(line) <= TAIL or line[-TAIL - 1 : -67] != b',"hash":"':
        raise ChainError("it is not a whole line of an audit")
    body, digest = line[: -TAIL - 1] + b"}", line[-67:-3].decode("ascii", "replace")
    if sha256(before.encode() + body).hexdigest() != digest:
        raise ChainError("its hash is not that of it and the line before")
    try:
        record = json.loads(body)
    except ValueError:
        raise ChainError("it is no JSON") from None
    if not isinstance(record, dict):
        raise ChainError("it is no record")
    return record, digest


def read(lines: Iterable[bytes], before: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a file and their hashes.  Raises `ChainError`, with the number of the line.

    A line that is torn is passed over if the next one says so.  If it is the last, the last record is a note that it is
    unfinished.  `before`: the hash that the first record says it continues from (None: any).
    """
    torn: ChainError | None = None
    digest = BEGINNING
    line = b""
    for number, line in enumerate(lines, 1):
        if number == 1:
            digest = first_hash(line, before)
        try:
            record, following = unseal(line, digest)
        except ChainError as error:
            if torn is not None:
                raise torn from None
            torn = ChainError(f"line {number}: {error}")
            continue
        if torn is not None and record.get("note") != "torn":
            raise torn
        torn = None
        digest = following
        yield record, digest
    if torn is not None:
        if line.endswith(b"\n"):
            raise torn
        yield {"note": "unfinished", "bytes": len(line)}, digest


def first_hash(line: bytes, before: str | None) -> str:
    """What the first line of a file is chained to: nothing, or the end of the file that it continues."""
    try:
        claimed = json.loads(line).get("after", BEGINNING)
    except (ValueError, AttributeError):
        claimed = BEGINNING
    if before is not None and claimed != before:
        raise ChainError("line 1: it does not continue the file before")
    return str(claimed)


class Log:
    """An audit's file, to append to.  Raises `OSError`, and `ChainError` for a file that is no audit."""

    def __init__(self, path: str):
        self.path = path
        self._fd = -1
        self._hash = BEGINNING
        self._count = 0
        self._open()

    def _open(self, after: str | None = None) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._dirty = False
        size = os.fstat(self._fd).st_size
        if not size:
            self._hash = BEGINNING if after is None else after
            self.add({"note": "begin", **({} if after is None else {"after": after})})
            return
        torn = None
        with open(self.path, "rb") as file:
            for record, self._hash in read(file):
                torn = record if record.get("note") == "unfinished" else None
                self._count = record.get("n", self._count)
        if torn is not None:
            self.add({"note": "torn", "bytes": torn["bytes"]}, b"\n")
        self.add({"note": "goes on"})

    def add(self, record: dict[str, Any], front: bytes = b"") -> None:
        """Append a record, behind `front`."""
        self._count += 1
        line, self._hash = seal({"n": self._count, **record}, self._hash)
        line = front + line
        while line:
            line = line[os.write(self._fd, line) :]
        self._dirty = True

    def follow(self) -> None:
        """Go on in a new file where the old one was moved away."""
        try:
            there = os.stat(self.path)
            ours = os.fstat(self._fd)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        self.add({"note": "moved"})
        self.sync()
        os.close(self._fd)
        self._open(self._hash)

    def sync(self) -> None:
        """Have the disk hold what was added."""
        if self._dirty:
            os.fdatasync(self._fd)
            self._dirty = False

    def close(self) -> None:
        self.sync()
        os.close(self._fd)
