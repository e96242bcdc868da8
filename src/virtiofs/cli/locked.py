# SPDX-License-Identifier: Apache-2.0
"""What a command line of `virtiofsd` may not change: a file that fixes some options and refuses the others.

Whoever starts the daemon may have let somebody else add words to its command line: Kata's runtime takes them from a
pod's annotations, where that is enabled (CVE-2026-44210, GHSA-rr59-xxvx-96qr).  A lock is not on the command line, so
that it can not be taken off there: /etc/virtiofs/locked.toml is read whenever it exists, and `--locked FILE` adds
another.

    arguments = ["--sandbox=namespace", "--seccomp=kill"]     # as if they stood first on the command line

    [allowed]                                                 # all that may stand on it
    shared-dir = ["/run/kata-containers/shared/sandboxes/*/shared"]
    cache = ["never", "auto"]
    fd = true

`true` allows any value; a list has the values, where `*` stands for any characters but "/".
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from virtiofs.cli.virtiofsd_options import OPTIONS, Option, Refused, UsageError

__all__ = ["Lock", "key_of", "read_lock"]

_PATHS = ("shared-dir", "socket-path")


class Lock(NamedTuple):
    """One file: where it is, the words it puts first, and what else may be given (None: anything)."""

    path: str
    arguments: tuple[str, ...]
    allowed: Mapping[str, tuple[str, ...] | None]

    def check(self, spelling: str, option: Option, value: str | None) -> None:
        """Raises `Refused` for an option, or a value of it, that this file does not allow."""
        key = key_of(option)
        said = spelling.rstrip("=") + (f" {value}" if value is not None else "")
        if key not in self.allowed:
            raise Refused(f"{said}: {self.path} does not allow {key}")
        patterns = self.allowed[key]
        if patterns is None:
            return
        # A path is looked at as it is written, and as the host's links lead: both must be allowed.
        values = [value or ""]
        if key in _PATHS and value:
            values += [os.path.realpath(value)]
        for each in values:
            if not any(_matches(pattern, each) for pattern in patterns):
                raise Refused(f"{said}: {self.path} allows {', '.join(patterns) or 'no value'} only")


def key_of(option: Option) -> str:
    """The name of an option in a lock: its first form, without dashes and `-o`."""
    return (option.names[0].lstrip("-") if option.names else option.words[0]).rstrip("=")


def read_lock(path: str) -> Lock:
    """Read a lock.  Raises `UsageError` for one that is unreadable, wrong, or could be changed by others than its
    owner, who has to be root or this user."""
    import tomllib

    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            text = file.read()
    except OSError as error:
        raise UsageError(f"cannot read the lock {path}: {error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
        raise UsageError(
            f"the lock {path} can be changed by others: it must belong to root, with mode 0644 or less"
        )
    try:
        document = tomllib.loads(text.decode())
    except ValueError as error:
        raise UsageError(f"the lock {path}: {error}") from None
    unknown = document.keys() - {"arguments", "allowed"}
    if unknown or "allowed" not in document:
        raise UsageError(
            f"the lock {path} takes arguments and [allowed]" + "".join(f", not {key}" for key in unknown)
        )
    return Lock(
        path, _words(path, "arguments", document.get("arguments", [])), _allowed(path, document["allowed"])
    )


def _allowed(path: str, table: object) -> dict[str, tuple[str, ...] | None]:
    if not isinstance(table, dict):
        raise UsageError(f"the lock {path}: [allowed] is a table")
    known = {key_of(option) for option in OPTIONS}
    allowed: dict[str, tuple[str, ...] | None] = {}
    for key, values in table.items():
        if key not in known:
            raise UsageError(f"the lock {path}: there is no option {key}")
        if values is False:
            continue
        allowed[key] = None if values is True else _words(path, key, values)
    return allowed


def _words(path: str, key: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UsageError(f"the lock {path}: {key} takes a list of strings")
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"the lock {path}: {key} takes a list of strings, not {value!r}")
    return tuple(values)


def _matches(pattern: str, value: str) -> bool:
    """`*` stands for any characters but a slash; ".." is not among what it stands for."""
    expression = re.escape(pattern).replace(r"\*", r"(?!\.\.?(?:/|$))[^/]*")
    return re.fullmatch(expression, value, re.DOTALL) is not None
