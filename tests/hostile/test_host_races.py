# SPDX-License-Identifier: Apache-2.0
"""Somebody on the host swaps directories and files of the share with symbolic links that lead out of it, while a guest
walks, opens, creates, renames and removes there: nothing outside is ever read or changed."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from watching import Watch

import devices
from sharing import ROOT
from virtiofs.client.device import Device
from virtiofs.client.session import Session

STEPS = 800
DECOYS = 40  # more than the pool of descriptors holds, so that ways back are walked again and again
RENAME_EXCHANGE = 2
# By the rules alone, with every directory reached by name again; and as served by default.
CONFIGURATIONS = {
    "by name": ["--sandbox", "none", "--inode-file-handles", "never", "--max-open", "16"],
    "by handle": ["--sandbox", "none", "--max-open", "16"],
    "walled": [],
}


class Swapper(threading.Thread):
    """Exchanges names of the share with links out of it, from when it starts until `end`."""

    def __init__(self, pairs: list[tuple[Path, Path]]):
        super().__init__(daemon=True)
        self.renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        self.pairs = [(os.fsencode(one), os.fsencode(other)) for one, other in pairs]
        self.rounds = 0
        self.ending = threading.Event()
        self.turned = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            for one, other in self.pairs:
                self.renameat2(-100, one, -100, other, RENAME_EXCHANGE)
            self.rounds += 1
            self.turned.set()

    def end(self) -> None:
        self.ending.set()
        self.join()


class Tidy(Session):
    """A session that can give back all lookups it owes, as a kernel does that needs the memory."""

    def __init__(self, device: Device):
        self.owed: list[int] = []
        super().__init__(device)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        record = super().call(*arguments, **keywords)
        entry = getattr(record, "entry", record)
        if hasattr(entry, "nodeid"):
            self.owed.append(entry.nodeid)
        return record

    def give_back(self) -> None:
        self.batch_forget((nodeid, 1) for nodeid in self.owed)
        self.owed.clear()


class Race(NamedTuple):
    session: Tidy
    share: Path
    outside: Path
    running: devices.RunningDevice


def state(place: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        found.append((path, status.st_mode, status.st_uid, status.st_nlink, status.st_size, times))
    return found


@pytest.fixture(params=CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def race(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Race]:
    """A share and, beside it, a tree of the same names that must not be touched."""
    outside, share = tmp_path / "outside", tmp_path / "share"
    for place, content in ((outside, "secret"), (share, "inside")):
        (place / "d" / "sub").mkdir(parents=True)
        for name in ("f", "d/f", "d/sub/f"):
            (place / name).write_text(content)
    for number in range(DECOYS):
        (share / f"decoy{number}").touch()
    # What takes turns with the share's own entries.
    os.symlink(outside / "d", share / "d-out")
    os.symlink("../../outside/d/sub", share / "d" / "sub-out")
    os.symlink("../outside/f", share / "f-out")
    with devices.start_ours(share, request.param) as running, Device.connect(running.socket) as device:
        yield Race(Tidy(device), share, outside, running)
        assert running.alive, running.log


def walk(session: Session, *names: str) -> int:
    node = ROOT
    for name in names:
        node = session.lookup(node, name).nodeid
    return node


def read(session: Session, *names: str) -> None:
    node = walk(session, *names)
    handle = session.open(node, os.O_RDONLY).fh
    assert not session.read(node, handle, 0, 20).startswith(b"sec")
    session.release(node, handle)


def write(session: Session, *names: str) -> None:
    node = walk(session, *names)
    handle = session.open(node, os.O_WRONLY | os.O_TRUNC).fh
    session.write(node, handle, 0, b"guest")
    session.release(node, handle)


def create_over(session: Session, *names: str) -> None:
    """CREATE of a name that may be a link out of the share at that moment."""
    parent = walk(session, *names[:-1])
    entry, handle = session.create(parent, names[-1], os.O_RDWR | os.O_TRUNC)
    session.write(entry.nodeid, handle.fh, 0, b"guest")
    session.release(entry.nodeid, handle.fh)


def make_and_remove(session: Session, *names: str) -> None:
    parent = walk(session, *names[:-1])
    session.mkdir(parent, "new-directory")
    session.symlink(parent, "new-link", "../../outside/f")
    session.mknod(parent, "new-node", stat.S_IFREG | 0o666)
    session.rename(parent, "new-node", ROOT, "new-name")
    session.link(walk(session, "new-name"), parent, "new-node")
    for name in ("new-link", "new-node"):
        session.unlink(parent, name)
    session.unlink(ROOT, "new-name")
    session.rmdir(parent, "new-directory")


def change(session: Session, *names: str) -> None:
    node = walk(session, *names)
    session.setattr(node, mtime=5)
    session.setattr(node, mode=0o640)
    session.setattr(node, size=3)
    session.setattr(node, uid=os.geteuid())


def attributes(session: Session, *names: str) -> None:
    node = walk(session, *names)
    session.setxattr(node, "user.x", b"value")
    session.listxattr(node)
    session.removexattr(node, "user.x")


def listing(session: Session, *names: str) -> None:
    node = walk(session, *names[:-1])
    handle = session.opendir(node).fh
    for entry in session.readdirplus(node, handle):
        if entry.entry is not None:
            session.forget(entry.entry.nodeid)
    session.releasedir(node, handle)


def exchange(session: Session, *names: str) -> None:
    """The guest swaps, too."""
    parent = walk(session, *names[:-1])
    session.rename(parent, "f", ROOT, "f", RENAME_EXCHANGE)


ACTS: list[Callable[..., None]] = [
    read,
    write,
    create_over,
    make_and_remove,
    change,
    attributes,
    listing,
    exchange,
]
PLACES = [("d", "f"), ("d", "sub", "f"), ("f",)]


def test_links_that_take_turns_with_directories_and_files_are_never_followed(race):
    session, share = race.session, race.share
    before = state(race.outside)
    watch = Watch([race.outside, *race.outside.rglob("*")])
    swapper = Swapper(
        [
            (share / "d", share / "d-out"),
            (share / "d/sub", share / "d/sub-out"),
            (share / "f", share / "f-out"),
        ]
    )
    outcomes: dict[str, set[int]] = {act.__name__: set() for act in ACTS}
    # Nodes of before stay known: what is reached by name again must be the same file, or ESTALE.
    known = [walk(session, *place) for place in PLACES]
    session.owed.clear()
    swapper.start()
    try:
        assert swapper.turned.wait(20)
        for step in range(STEPS):
            act = ACTS[step % len(ACTS)]
            outcomes[act.__name__].add(outcome(act, session, *PLACES[step // len(ACTS) % len(PLACES)]))
            if step % 8 == 0:
                outcome(session.lookup, ROOT, f"decoy{step // 8 % DECOYS}")
                outcome(session.getattr, known[step // 8 % len(known)])
                session.give_back()
    finally:
        swapper.end()
    assert watch.seen() == set(), "something outside was read or changed"
    watch.close()
    assert state(race.outside) == before
    assert swapper.rounds > STEPS // 100
    for name, errnos in outcomes.items():
        assert 0 in errnos, f"{name} never worked"
        assert errnos & {errno.ENOTDIR, errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}, (
            f"{name} never met a link"
        )


def outcome(act: Callable[..., object], *arguments: object) -> int:
    """The errno an act ends with, 0 if all of it worked."""
    try:
        act(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0
