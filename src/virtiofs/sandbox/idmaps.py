# SPDX-License-Identifier: Apache-2.0
"""Maps of the ids in a user namespace to those outside (user_namespaces(7)), and how they are put in place.

A map is written `:INSIDE:OUTSIDE:COUNT:` with any character in place of the colons, as virtiofsd takes it.  The oracle
of the parser: a map that the kernel could take, with an id 0 in it, or `ValueError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

# The kernel takes as many lines (UID_GID_MAP_MAX_EXTENTS).
MAX_RANGES = 340
# 0xffffffff is nobody's id.
MAX_ID = 0xFFFFFFFE
PROGRAMS = {"uid": "newuidmap", "gid": "newgidmap"}


class IdRange(NamedTuple):
    """`length` ids from `inside` on in the namespace are `outside` and what follows it on the host."""

    inside: int
    outside: int
    length: int


def parse_map(texts: Iterable[str], option: str) -> list[IdRange]:
    """The ranges of a map, sorted.  Raises `ValueError` saying what is wrong with which."""
    ranges = []
    for text in texts:
        fields = text.split(text[:1] or ":")
        numbers = fields[1:4]
        if (
            len(fields) != 5
            or fields[0]
            or fields[4]
            or not all(number.isascii() and number.isdigit() and len(number) <= 10 for number in numbers)
        ):
            raise ValueError(f"{option} takes :INSIDE:OUTSIDE:COUNT:, not {text!r}")
        found = IdRange(*map(int, numbers))
        if found.length < 1 or max(found.inside, found.outside) + found.length - 1 > MAX_ID:
            raise ValueError(f"{option} {text}: the count is at least 1, and ids go up to {MAX_ID}")
        ranges.append(found)
    for column, where in ((0, "the namespace"), (1, "the host")):
        for one, two in pairwise(sorted(ranges, key=lambda found: found[column])):
            if one[column] + one.length > two[column]:
                raise ValueError(f"{option}: {two[column]} of {where} is in two ranges")
    ranges.sort()
    if ranges and ranges[0].inside != 0:
        raise ValueError(
            f"{option}: the worker is 0 in its namespace, so the map has to say who that is outside"
        )
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"{option}: {len(ranges)} ranges are too many; {MAX_RANGES} are allowed")
    return ranges


class IdMaps:
    """The maps of users and groups of a namespace that is to be made; an empty one holds our own id only, as 0.

    Without the capabilities to write them, newuidmap(1) and newgidmap(1) do that.  Raises `OSError` if they are
    not there.
    """

    def __init__(self, users: Sequence[IdRange], groups: Sequence[IdRange], privileged: bool):
        self.maps = {
            "uid": list(users) or [IdRange(0, os.geteuid(), 1)],
            "gid": list(groups) or [IdRange(0, os.getegid(), 1)],
        }
        self.programs = {} if privileged else {kind: find_program(name) for kind, name in PROGRAMS.items()}

    def write(self, pid: int, said: int) -> None:
        """Put the maps of process `pid` in place, from outside; what the programs say goes to the descriptor `said`.

        Raises `OSError`.
        """
        for kind, ranges in self.maps.items():
            program = self.programs.get(kind)
            if program is not None:
                run(program, [str(pid), *(str(number) for found in ranges for number in found)], said)
                continue
            lines = "".join(f"{found.inside} {found.outside} {found.length}\n" for found in ranges)
            fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, lines.encode())
            except PermissionError:
                raise OSError(
                    f"the kernel refuses this map of {kind}s; it takes the capabilities setuid, setgid and, to map 0,"
                    " setfcap"
                ) from None
            finally:
                os.close(fd)


def find_program(name: str) -> str:
    """The path of a program.  Raises `OSError` saying where it comes from."""
    for directory in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/bin"):
        path = os.path.join(directory, name)
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    raise OSError(
        f"without privilege ids are mapped with {name}, which is not here: install the package uidmap (or shadow-utils)"
    )


def run(program: str, arguments: list[str], said: int) -> None:
    """Run a program to its end, its output going to `said`.  Raises `OSError` if it fails."""
    output = [(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
    pid = os.posix_spawn(program, [program, *arguments], {}, file_actions=output)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        name = os.path.basename(program)
        raise OSError(f"{name} refuses the map; /etc/subuid and /etc/subgid say which ids this user may map")
