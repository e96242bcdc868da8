# SPDX-License-Identifier: Apache-2.0
"""Each kind of change that the host's programs make enters the table, by fanotify and by inotify."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.daemon.log import Log
from virtiofs.daemon.watcher import WatcherProcess
from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import Table

DEADLINE = 20.0
WATCHERS = ("fanotify", "inotify")
NAMES = {kind: name for name, kind in layout.KINDS.items()}


class Watched:
    """A tree that a watcher looks at, its table, and a directory outside of the tree, on the same file system."""

    def __init__(self, place: Path, kind: str):
        self.tree = place / "tree"
        self.outside = place / "outside"
        for path in (self.tree / "d" / "e", self.outside):
            path.mkdir(parents=True)
        for name in ("f", "d/f", "d/e/f"):
            (self.tree / name).write_text("before")
        (self.outside / "f").write_text("outside")
        self.table: Table = registry.attach(str(self.tree), 1 << 14)
        self.follower = self.table.follow()
        self.process = WatcherProcess(str(self.tree), Log("warning"), kind)
        self.process.start()
        assert self.wait_for("complete"), self.process.status()
        while self.follower.next(0):
            pass  # that everything counted as changed when it began

    def wait_for(self, state: str) -> bool:
        return devices.wait_until(lambda: self.process.gauges.report()["state"] == state, DEADLINE)

    def end(self) -> None:
        self.process.end()
        self.follower.close()
        self.table.close()

    def word(self, inode: tuple[int, int]) -> tuple[int, int]:
        return self.table.word(self.table.slot(*inode)), self.table.everything

    def changes(self, inode: tuple[int, int], act: Callable[[], object]) -> bool:
        """Whether `act` changes the word of an inode."""
        before = self.word(inode)
        act()
        return devices.wait_until(lambda: self.word(inode) != before, DEADLINE)

    def until(self, sentinel: str) -> list[tuple[str, bytes]]:
        """Kinds and names of what the journal tells, until a file `sentinel` that is made now is told of."""
        (self.tree / sentinel).touch()
        seen = []
        while change := self.follower.next(DEADLINE):
            if change.name == sentinel.encode():
                return seen
            seen.append((NAMES[change.kind], change.name))
        raise AssertionError(f"only {seen}")


def inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


@pytest.fixture(params=WATCHERS)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    if request.param == "fanotify" and os.geteuid() != 0:
        pytest.skip("fanotify of whole file systems takes root")
    watched = Watched(tmp_path, request.param)
    yield watched
    watched.end()


def write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"after")


def store_through_a_mapping(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] = 1


# What is done to a file or directory of the tree, by the name it goes by, and whose word changes.
CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "write": ("d/f", write),
    "store through a mapping": ("d/f", store_through_a_mapping),
    "truncate": ("d/f", lambda path: os.truncate(path, 2)),
    "fallocate": ("d/f", lambda path: subprocess.run(["fallocate", "-l", "1M", path], check=True)),
    "chmod": ("d/f", lambda path: path.chmod(0o600)),
    "chmod of a directory": ("d/e", lambda path: path.chmod(0o700)),
    "chmod of the root": (".", lambda path: path.chmod(0o700)),
    "chown": ("d/f", lambda path: os.chown(path, os.geteuid(), os.getegid())),
    "times": ("d/f", lambda path: os.utime(path, (1, 1))),
    "extended attribute": ("d/f", lambda path: os.setxattr(path, "user.new", b"1")),
    "link": ("d/f", lambda path: os.link(path, path.parent / "e" / "link")),
    "create": ("d/e", lambda path: (path / "new").touch()),
    "create in the root": (".", lambda path: (path / "new").touch()),
    "symbolic link": ("d/e", lambda path: (path / "new").symlink_to("nowhere")),
    "fifo": ("d/e", lambda path: os.mkfifo(path / "new")),
    "mkdir": ("d/e", lambda path: (path / "new").mkdir()),
    "unlink": ("d/e", lambda path: (path / "f").unlink()),
    "rename": ("d/e", lambda path: (path / "f").rename(path / "g")),
    "rename to another directory": ("d", lambda path: (path / "e" / "f").rename(path / "g")),
    "rename from another directory": ("d/e", lambda path: (path.parent / "f").rename(path / "g")),
    "rename of the file": ("d/f", lambda path: path.rename(path.parent / "g")),
    "rename into the tree": ("d", lambda path: (path.parents[1] / "outside" / "f").rename(path / "g")),
    "rename out of the tree": ("d", lambda path: (path / "f").rename(path.parents[1] / "outside" / "g")),
    "directory out of the tree": ("d", lambda path: (path / "e").rename(path.parents[1] / "outside" / "g")),
    "rmdir of a tree": (".", lambda path: shutil.rmtree(path / "d")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_host_changes_the_word(watched: Watched, change: str) -> None:
    name, act = CHANGES[change]
    path = watched.tree / name
    assert watched.changes(inode(path), lambda: act(path))


def test_the_journal_says_what_was_done_to_which_name(watched: Watched) -> None:
    d = watched.tree / "d"
    watched.until("begin")
    (d / "new").touch()
    (d / "new").rename(d / "e" / "moved")
    (d / "e" / "moved").unlink()
    (d / "e" / "f").unlink()
    seen = watched.until("end")
    names = [each for each in seen if each[0] in ("entry", "gone")]
    assert names == [
        ("entry", b"new"),
        ("gone", b"new"),
        ("entry", b"moved"),
        ("gone", b"moved"),
        ("gone", b"f"),
    ]


def test_directories_that_come_are_watched(watched: Watched) -> None:
    """Made at once with what is in them, moved within the tree, and moved into it."""
    (watched.outside / "far" / "below").mkdir(parents=True)
    (watched.outside / "far" / "below" / "f").touch()
    os.makedirs(watched.tree / "one" / "two" / "three")
    (watched.tree / "one" / "two" / "three" / "f").touch()
    (watched.tree / "d").rename(watched.tree / "one" / "two" / "d")
    (watched.outside / "far").rename(watched.tree / "far")
    watched.until("settled")
    for name in ("one/two/three/f", "one/two/d/e/f", "far/below/f"):
        path = watched.tree / name
        assert watched.changes(inode(path), lambda path=path: path.write_text("after")), name
        assert watched.changes(inode(path.parent), lambda path=path: (path.parent / "n").touch()), name


def test_many_writes_at_once_are_one_change(watched: Watched) -> None:
    path = watched.tree / "f"
    os.kill(watched.process.pid, signal.SIGSTOP)
    with open(path, "r+b", buffering=0) as file:
        for _ in range(1000):
            file.write(b"x")
    os.kill(watched.process.pid, signal.SIGCONT)
    seen = watched.until("end")
    assert seen.count(("data", b"f")) <= 2


def test_more_than_the_queue_holds_changes_everything(watched: Watched) -> None:
    before = watched.table.everything
    os.kill(watched.process.pid, signal.SIGSTOP)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    path = watched.tree / "d" / "f"
    for number in range(limit + 1):
        path = path.rename(path.parent / f"{number}")
    os.kill(watched.process.pid, signal.SIGCONT)
    assert devices.wait_until(lambda: watched.process.gauges["overflows"] > 0, DEADLINE)
    assert devices.wait_until(lambda: watched.table.everything != before, DEADLINE)
    assert watched.wait_for("complete")
    assert watched.changes(inode(path), lambda: path.write_text("after"))
