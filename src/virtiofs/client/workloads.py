# SPDX-License-Identifier: Apache-2.0
"""The kinds of work that daemons are compared by, as a table (`WORKLOADS`), and the files they use.

A workload's `prepare(session, directory)` makes its files in `directory` on the host (where they are not there from
the daemon before), holds the nodes it needs, and returns the `Script` of one round with the means to verify it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from virtiofs.client import traces
from virtiofs.client.arena import PAGE
from virtiofs.client.script import (
    IN,
    Answers,
    From,
    Numbered,
    Place,
    Replies,
    Script,
    handle_of,
    node_of,
    own_directory,
)
from virtiofs.client.session import Session
from virtiofs.fuse.abi import BY_NAME, FUSE_ATTR_OUT, FUSE_ENTRY_OUT
from virtiofs.virtqueue.load import shuffled

MIB = 1 << 20
FILES = 1024  # names that LOOKUP goes through
FILE_SIZE = 64 << 20  # what READ and WRITE go through; in the page cache
LISTING_PAGES = 8  # of a READDIRPLUS reply: 32 KiB, what getdents(2) of the C library asks for
FORGET_AT_ONCE = 2000
ENTRY_PLUS = struct.Struct("<Q120xQQII")  # fuse_direntplus: nodeid; ino, cookie, length of the name, type
MODES_ALL = ("interrupt", "polled", "one processor")
MODES_WAKING = ("interrupt", "one processor")


class Unavailable(Exception):
    """A workload that makes no sense here; the text says why."""


class Workload(NamedTuple):
    """One kind of work.  `depth`: rounds in flight; `modes`: ways to run it; `unit`: what an operation is, if not a
    request; `bare`: whether and as what (read, write) the bare system call is run beside it; `large`: left out of a
    quick run; `by`: the figure that daemons are compared by."""

    name: str
    prepare: Callable[[Session, Path], Script]
    depth: int = 1
    modes: tuple[str, ...] = MODES_ALL
    unit: str = ""
    bare: str = ""
    large: bool = False
    by: str = "operations_per_second"


# --- files ---


def names(directory: Path) -> list[Path]:
    """FILES small files of different sizes."""
    place = directory / "names"
    files = [place / Numbered(b"file-").at(i) for i in range(FILES)]
    if not place.is_dir():
        place.mkdir()
        for i, file in enumerate(files):
            file.write_bytes(bytes(100 + i))
    return files


def many(directory: Path, count: int) -> Path:
    """A directory of `count` empty files `file-00000000` and so on."""
    place = directory / f"many-{count}"
    if not place.is_dir():
        place.mkdir()
        base = os.open(place, os.O_RDONLY)
        try:
            for i in range(count):
                os.mknod(Numbered(b"file-").at(i), 0o100644, dir_fd=base)
        finally:
            os.close(base)
    return place


def random_file(directory: Path, name: str, size: int = FILE_SIZE) -> Path:
    """A file of random bytes, on the disk."""
    path = directory / name
    if not path.exists():
        generator = random.Random(26)
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(generator.randbytes(MIB))
            file.flush()
            os.fsync(file.fileno())
    return path


def file_system(directory: Path) -> str:
    """The type of the file system a directory is on, such as ext4; empty if the kernel does not say."""
    status = directory.stat()
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == number:
            return words[words.index("-") + 1]
    return ""


# --- metadata ---


def _held(session: Session, path: str) -> tuple[int, Callable[[], None]]:
    """The node of a path below the root, held by one lookup, and how to give it up."""
    node, owed = 1, []
    for name in path.split("/"):
        node = session.lookup(node, name).nodeid
        owed.append((node, 1))
    return node, lambda: session.batch_forget(owed)


def getattr_(session: Session, directory: Path) -> Script:
    host = names(directory)[0].stat()
    node, give_back = _held(session, "names/file-00000000")
    script = Script(session)
    script.add("getattr", node)

    def verify(replies: Replies) -> bool:
        attr = FUSE_ATTR_OUT.unpack(replies.payload(0), 0).attr
        return (attr.ino, attr.size) == (host.st_ino, host.st_size)

    script.verify, script.close = verify, give_back
    return script


def _lookup(known: bool) -> Callable[[Session, Path], Script]:
    def prepare(session: Session, directory: Path) -> Script:
        files = names(directory)
        hosts = [file.stat() for file in files]
        parent, give_back = _held(session, "names")
        held = [(session.lookup(parent, file.name).nodeid, 1) for file in files] if known else []
        script = Script(session)
        script.add("lookup", parent, [Numbered(b"file-", FILES)])
        script.add("forget", node_of(0), nlookup=1)

        def verify(replies: Replies) -> bool:
            entry = FUSE_ENTRY_OUT.unpack(replies.payload(0), 0)
            at = replies.round % FILES
            same = not known or entry.nodeid == held[at][0]
            return same and (entry.attr.ino, entry.attr.size) == (hosts[at].st_ino, hosts[at].st_size)

        def close() -> None:
            if held:
                session.batch_forget(held)
            give_back()

        script.verify, script.close = verify, close
        return script

    return prepare


def _open_release(session: Session, directory: Path) -> Script:
    names(directory)
    node, give_back = _held(session, "names/file-00000000")
    if not Answers.of(session, node).open:
        give_back()
        raise Unavailable("answers OPEN with ENOSYS: Linux never asks again")
    script = Script(session)
    script.add("open", node, flags=os.O_RDONLY)
    script.add("release", node, fh=handle_of(0), flags=os.O_RDONLY)
    script.close = give_back
    return script


def _create_unlink(session: Session, directory: Path) -> Script:
    place, parent, give_back = own_directory(session, directory)
    content = os.urandom(PAGE)
    name = Numbered(b"file-")
    script = Script(session)
    made = script.add("create", parent, [name], flags=os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o100644)
    node, handle = node_of(made), handle_of(made, created=True)
    script.add("write", node, tail=content, fh=handle, size=PAGE, flags=os.O_RDWR)
    read = script.add("read", node, pages=1, fh=handle, size=PAGE)
    script.add("release", node, fh=handle, flags=os.O_RDWR)
    script.add("unlink", parent, [name])
    script.add("forget", node, nlookup=1)

    def verify(replies: Replies) -> bool:
        return replies.payload(read) == content and not any(place.iterdir())

    script.verify, script.close = verify, give_back
    return script


def listed(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """The records of a READDIRPLUS reply: name, node, inode, cookie."""
    at = 0
    while at + ENTRY_PLUS.size <= len(data):
        node, ino, cookie, length, _ = ENTRY_PLUS.unpack_from(data, at)
        start = at + ENTRY_PLUS.size
        yield data[start : start + length], node, ino, cookie
        at = (start + length + 7) // 8 * 8


def _listing(count: int, known: bool) -> Callable[[Session, Path], Script]:
    def prepare(session: Session, directory: Path) -> Script:
        host = {os.fsencode(entry.name): entry.inode() for entry in os.scandir(many(directory, count))}
        node, give_back = _held(session, f"many-{count}")
        names(directory)
        file, give_file_back = _held(session, "names/file-00000000")
        opens = Answers.of(session, file).opendir
        give_file_back()
        # Where each reply ends does not change: the same names, and with them the same lengths, come every time.
        handle = session.opendir(node).fh if opens else 0
        pages: list[tuple[int, int, int]] = []  # cookie asked for, length of the reply, nodes in it
        nodes: list[int] = []
        found: dict[bytes, int] = {}
        cookie = 0
        while True:
            room = LISTING_PAGES * PAGE
            data = session.call("readdirplus", node, room=room, fh=handle, offset=cookie, size=room)
            entries = list(listed(data))
            here = [entry[1] for entry in entries if entry[1]]
            pages.append((cookie, len(data), len(here)))
            if known:
                nodes += here
            else:
                _give_back(session, here, 1)
            found |= {name: ino for name, _, ino, _ in entries if name not in (b".", b"..")}
            if not entries:
                break
            cookie = entries[-1][3]
        if opens:
            session.releasedir(node, handle)
        script = Script(session, operations=count)
        fh: int | From = 0
        if opens:
            fh = handle_of(script.add("opendir", node, flags=os.O_DIRECTORY))
        replies_at: list[tuple[int, int]] = []
        for cookie, length, listed_nodes in pages:
            step = script.add(
                "readdirplus",
                node,
                pages=LISTING_PAGES,
                length=length,
                fh=fh,
                offset=cookie,
                size=LISTING_PAGES * PAGE,
            )
            replies_at.append((step, length))
            if listed_nodes and not known:
                script.forget_listed(listed_nodes)
        if opens:
            script.add("releasedir", node, fh=fh)
        rounds_run = 0

        def verify(replies: Replies) -> bool:
            for step, length in {*replies_at[:1], *replies_at[-2:-1]}:
                for name, _, ino, _ in listed(replies.payload(step)[:length]):
                    if name not in (b".", b"..") and host.get(name) != ino:
                        return False
            return found == host

        def after(_first: int, rounds: int) -> None:
            nonlocal rounds_run
            rounds_run += rounds

        def close() -> None:
            _give_back(session, nodes, 1 + rounds_run)
            give_back()

        script.verify, script.after, script.close = verify, after, close
        return script

    return prepare


def _give_back(session: Session, nodes: list[int], count: int) -> None:
    for start in range(0, len(nodes), FORGET_AT_ONCE):
        session.batch_forget((node, count) for node in nodes[start : start + FORGET_AT_ONCE])


# --- data ---


def _opened(session: Session, name: str, flags: int) -> tuple[int, int, Callable[[], None]]:
    """A file's node and handle (0 from a device that wants no OPEN), and how to give both up."""
    node, give_back = _held(session, name)
    opens = Answers.of(session, node).open
    handle = session.open(node, flags).fh if opens else 0

    def close() -> None:
        if opens:
            session.release(node, handle, flags)
        give_back()

    return node, handle, close


def _read(size: int) -> Callable[[Session, Path], Script]:
    """Reads of the page cache: small ones in no order, large ones one after another."""

    def prepare(session: Session, directory: Path) -> Script:
        path = random_file(directory, "data")
        node, handle, close = _opened(session, "data", os.O_RDONLY)
        count, random_order = FILE_SIZE // size, size < MIB
        script = Script(session, data=size)
        place = Place(size, count, random_order)
        script.add("read", node, pages=size // PAGE, fh=handle, size=size, offset=place)

        def verify(replies: Replies) -> bool:
            at = replies.round % count
            with path.open("rb") as file:
                file.seek(size * (shuffled(at, count) if random_order else at))
                return replies.payload(0) == file.read(size)

        script.verify, script.close = verify, close
        return script

    return prepare


def _write(size: int) -> Callable[[Session, Path], Script]:
    """Writes into the page cache; each block begins with its round's number."""

    def prepare(session: Session, directory: Path) -> Script:
        path = random_file(directory, "written")
        node, handle, close = _opened(session, "written", os.O_RDWR)
        count, random_order = FILE_SIZE // size, size < MIB
        content = os.urandom(
            size
        )  # each daemon writes other bytes: what another wrote is not taken for its work
        script = Script(session, data=size)
        place = Place(size, count, random_order)
        if size > session.max_write:
            raise Unavailable(f"takes at most {session.max_write} bytes in a WRITE")
        step = script.add("write", node, tail=content, fh=handle, size=size, offset=place, flags=os.O_RDWR)
        args = BY_NAME["write"].args
        assert args is not None
        script.mark_round(step, IN + args.size)

        def verify(replies: Replies) -> bool:
            at = replies.round % count
            with path.open("rb") as file:
                file.seek(size * (shuffled(at, count) if random_order else at))
                return file.read(size) == replies.round.to_bytes(8, "little") + content[8:]

        script.verify, script.close = verify, close
        return script

    return prepare


def _cold(beside: bool) -> Callable[[Session, Path], Script]:
    """4 KiB reads of what is not in the page cache; each block is read once in a run."""

    def prepare(session: Session, directory: Path) -> Script:
        kind = file_system(directory)
        if kind in ("tmpfs", "ramfs"):
            raise Unavailable(f"{directory} is on {kind}, which is never cold: name another --directory")
        script = _read(PAGE)(session, directory)
        path = directory / "data"
        script.most = FILE_SIZE // PAGE

        def drop() -> None:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

        script.before = drop
        if beside:
            script.beside = getattr_(session, directory)
            close_reads, close_beside = script.close, script.beside.close

            def close() -> None:
                close_reads()
                close_beside()

            script.close = close
        return script

    return prepare


COLD_BESIDE = "GETATTR while 32 cold 4 KiB reads are in flight"
WORKLOADS = (
    Workload("GETATTR", getattr_),
    Workload("LOOKUP + FORGET, known names", _lookup(known=True), unit="pair"),
    Workload("LOOKUP + FORGET, new names", _lookup(known=False), unit="pair"),
    Workload("OPEN + RELEASE", _open_release, unit="pair"),
    Workload("CREATE + WRITE + READ + RELEASE + UNLINK", _create_unlink, unit="file"),
    Workload("READDIRPLUS of 1,000, first", _listing(1000, known=False), unit="entry"),
    Workload("READDIRPLUS of 1,000, known", _listing(1000, known=True), unit="entry"),
    Workload(
        "READDIRPLUS of 100,000, first", _listing(100_000, known=False), 1, MODES_WAKING, "entry", large=True
    ),
    Workload(
        "READDIRPLUS of 100,000, known", _listing(100_000, known=True), 1, MODES_WAKING, "entry", large=True
    ),
    Workload("READ 4 KiB", _read(PAGE)),
    Workload("READ 4 KiB, depth 32", _read(PAGE), 32),
    Workload("WRITE 4 KiB", _write(PAGE)),
    Workload("WRITE 4 KiB, depth 32", _write(PAGE), 32),
    Workload("READ 4 KiB cold, depth 32", _cold(beside=False), 32, ("interrupt",)),
    # Speed is that of the reads, latency that of the GETATTR.
    Workload(COLD_BESIDE, _cold(beside=True), 32, ("interrupt",), "read", by="p99_us"),
    Workload("READ 1 MiB", _read(MIB), 1, MODES_WAKING, bare="read"),
    Workload("READ 1 MiB, depth 8", _read(MIB), 8, MODES_WAKING),
    Workload("WRITE 1 MiB", _write(MIB), 1, MODES_WAKING, bare="write"),
    Workload("WRITE 1 MiB, depth 8", _write(MIB), 8, MODES_WAKING),
    Workload("git status", traces.git_status, 1, MODES_WAKING, "file"),
    Workload("untar", traces.untar, 1, MODES_WAKING, "file"),
    Workload("smallfile mix", traces.smallfile, 1, MODES_WAKING, "file"),
)
