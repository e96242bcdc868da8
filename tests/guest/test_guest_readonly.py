# SPDX-License-Identifier: Apache-2.0
"""A share served with --readonly, which the guest mounts as if it could be written."""

from __future__ import annotations

import os

import pytest
from probe import Step
from shares import Place

pytestmark = pytest.mark.guest

DAEMON_OPTIONS = ("--readonly",)

CHANGES: list[Step] = [
    ("open", "f", "file", "w"),
    ("open", "f", "file", "rw"),
    ("open", "f", "file", "r,trunc"),
    ("open", "f", "new", "w,creat"),
    ("truncate", "file", 0),
    ("unlink", "file"),
    ("rename", "file", "other"),
    ("rename", "file", "dir", "exchange"),
    ("link", "file", "other"),
    ("symlink", "x", "other"),
    ("mkdir", "other", "755"),
    ("rmdir", "dir"),
    ("chmod", "file", "600"),
    ("chown", "file", 1, 1),
    ("setxattr", "file", "user.new", "x"),
    ("setxattr", "dir", "user.new", "x"),
    ("removexattr", "file", "user.old"),
]


@pytest.fixture
def filled(place: Place) -> Place:
    (place.host / "file").write_text("contents")
    (place.host / "dir").mkdir()
    os.setxattr(place.host / "file", "user.old", b"value")
    return place


@pytest.mark.parametrize("change", CHANGES, ids=lambda step: "-".join(map(str, step)))
def test_every_change_is_refused(filled: Place, change: Step) -> None:
    before = snapshot(filled)
    assert filled.do(change) == "EROFS"
    assert snapshot(filled) == before


def snapshot(place: Place) -> list[tuple[object, ...]]:
    """Names, contents, modes, owners, times and attributes of the place."""
    found: list[tuple[object, ...]] = []
    for path in sorted([place.host, *place.host.rglob("*")]):
        status = path.lstat()
        attributes = [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
        contents = path.read_bytes() if path.is_file() else b""
        found.append((path, contents, attributes, tuple(status)[:7], status.st_mtime_ns, status.st_ctime_ns))
    return found


def test_everything_is_read(filled: Place) -> None:
    assert filled.output("cat file; ls -A; df . | wc -l") == "contentsdir\nfile\n2"
    assert filled.do(("getxattr", "file", "user.old")) == b"value"
    assert (
        filled.do(("open", "f", "file", "r"), ("map", "m", "f", 8, "r"), ("load", "m", 0, 8)) == b"contents"
    )
    assert filled.run("touch file").status != 0


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (".", "ls -la; ls -la dir"),
        ("file", "cat file; tail -c 3 file; cp file /tmp/copy"),
        ("dir", "ls -lR; find . -type f -exec cat {} +"),
        ("link", "readlink link; cat link; ls -l"),
    ],
)
def test_reading_leaves_no_access_time_on_the_host(filled: Place, name: str, read: str) -> None:
    os.symlink("file", filled.host / "link")
    # Older than a day and than the last change: the host would note any access, also with relatime.
    os.utime(filled.host / name, (1_000_000_000, 1_000_000_001), follow_symlinks=False)
    filled.output(read)
    assert (filled.host / name).lstat().st_atime == 1_000_000_000


def test_what_the_host_changes_is_seen(filled: Place) -> None:
    filled.output("cat file")
    (filled.host / "file").write_text("changed by the host")
    filled.wait("grep -q changed file")
