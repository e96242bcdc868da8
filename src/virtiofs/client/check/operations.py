# SPDX-License-Identifier: Apache-2.0
"""Every operation of the protocol, done once, and seen to have been done."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from virtiofs.client.check.case import MUST, SHOULD, Check, NotApplicable, checker, expect
from virtiofs.client.check.subject import Subject
from virtiofs.client.session import DirectoryEntry, Session
from virtiofs.fuse.abi import CONSTANTS, FUSE_LK_IN, FUSE_ROOT_ID, OPERATIONS, REPLY_DATA

CHECKS: list[Check] = []
check = checker("operations", CHECKS)

HEADER = "include/uapi/linux/fuse.h"
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP)
TEXT = b"The quick brown fox jumps over the lazy dog.\n"
KEEP_SIZE, PUNCH_HOLE = 1, 2  # FALLOC_FL_*
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
EXCHANGE, NOREPLACE = 2, 1  # RENAME_*


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """An operation that a device or its host file system may lack: then the check says so and is not made."""
    try:
        yield
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise NotApplicable(f"{what}: {os.strerror(error.errno or 0)}") from None
        raise


@contextlib.contextmanager
def _handle(opening: Callable[[], SimpleNamespace], release: Callable[[int], None]) -> Iterator[int]:
    """A handle; 0 for a device that wants none (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT)."""
    try:
        handle = opening().fh
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        yield 0
        return
    try:
        yield handle
    finally:
        release(handle)


def opened(session: Session, nodeid: int, flags: int = os.O_RDWR) -> contextlib.AbstractContextManager[int]:
    """A handle of a file."""
    return _handle(lambda: session.open(nodeid, flags), lambda fh: session.release(nodeid, fh, flags))


def opened_directory(session: Session, nodeid: int) -> contextlib.AbstractContextManager[int]:
    """A handle of a directory."""
    return _handle(lambda: session.opendir(nodeid), lambda fh: session.releasedir(nodeid, fh))


def names_of(
    session: Session, nodeid: int, read: Callable[..., list[DirectoryEntry]], size: int = 4096
) -> list[DirectoryEntry]:
    """All entries of a directory, in as many pieces as it takes; lookups that came with them are given back."""
    found: list[DirectoryEntry] = []
    with opened_directory(session, nodeid) as handle:
        while part := read(nodeid, handle, found[-1].cookie if found else 0, size):
            found += part
    for entry in found:
        if entry.entry is not None and entry.name not in (b".", b".."):
            session.forget(entry.entry.nodeid)
    return found


@check(MUST, "INIT agrees on version 7 and at least 128 KiB a write", HEADER + ", FUSE_INIT")
def _init(subject: Subject) -> None:
    init = subject.session.init
    expect(init.major == 7 and init.minor >= 27, f"it speaks {init.major}.{init.minor}")
    expect(subject.session.max_write >= 128 << 10, f"a write may have {subject.session.max_write} bytes")


@check(SHOULD, "INIT agrees on requests of 1 MiB", HEADER + ", FUSE_MAX_PAGES")
def _init_pages(subject: Subject) -> None:
    init = subject.session.init
    expect(
        init.max_pages >= 256 and init.max_write >= 1 << 20, f"{init.max_pages} pages, {init.max_write} bytes"
    )


@check(
    MUST, "LOOKUP gives the same node for the same file, and FORGET takes it back", HEADER + ", FUSE_LOOKUP"
)
def _lookup(subject: Subject) -> None:
    session = subject.session
    name, node = subject.file(TEXT)
    again = session.lookup(subject.place, name)
    expect(again.nodeid == node, f"node {again.nodeid} instead of {node}")
    expect((again.attr.size, stat.S_ISREG(again.attr.mode)) == (len(TEXT), True), "its attributes are wrong")
    session.forget(node, 1)
    session.getattr(node)
    session.forget(node, 1)
    session.forget(session.lookup(subject.place, name).nodeid)


@check(MUST, "LOOKUP and GETATTR tell the same attributes", HEADER + ", fuse_attr")
def _same_attributes(subject: Subject) -> None:
    session = subject.session
    name, node = subject.file(TEXT)
    entry = session.lookup(subject.place, name).attr
    attr = session.getattr(node)
    expect(vars(entry) == vars(attr), f"LOOKUP says {vars(entry)}, GETATTR {vars(attr)}")
    if subject.host is not None:
        host = next(subject.host.glob(f"*/{name}")).stat()
        expect((attr.ino, attr.size) == (host.st_ino, host.st_size), "they are not the host's")


@check(MUST, "SETATTR changes mode, size and times to the nanosecond", HEADER + ", FUSE_SETATTR")
def _setattr(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(TEXT)
    attr = session.setattr(node, mode=stat.S_IFREG | 0o640)
    expect(stat.S_IMODE(attr.mode) == 0o640, f"mode {attr.mode:o}")
    expect(session.setattr(node, size=5).size == 5, "the size did not change")
    attr = session.setattr(node, atime=1_000_000_001, mtime=2_000_000_002)
    expect((attr.atime, attr.atimensec, attr.mtime, attr.mtimensec) == (1, 1, 2, 2), "the times are others")
    attr = session.setattr(node, mtime="now")
    expect(attr.mtime > 2, "mtime did not become now")


@check(MUST, "CREATE, WRITE, READ, FLUSH, FSYNC and RELEASE carry a file's data", HEADER)
def _file(subject: Subject) -> None:
    session = subject.session
    entry, handle = session.create(subject.place, subject.name_for("data"))
    node, data = entry.nodeid, os.urandom(100_001)
    expect(session.write(node, handle.fh, 0, data) == len(data), "a short write")
    expect(session.write(node, handle.fh, 200_000, TEXT) == len(TEXT), "a short write")
    expect(
        session.read(node, handle.fh, 0, 1 << 17) == data[: 1 << 17] + bytes((1 << 17) - len(data)),
        "other data",
    )
    expect(session.read(node, handle.fh, 200_000, 4096) == TEXT, "the end reads otherwise")
    expect(session.read(node, handle.fh, 1 << 30, 4096) == b"", "there is something behind the end")
    session.flush(node, handle.fh)
    session.fsync(node, handle.fh)
    session.fsync(node, handle.fh, datasync=True)
    session.release(node, handle.fh)
    expect(session.getattr(node).size == 200_000 + len(TEXT), "the size is wrong")


@check(MUST, "OPEN heeds O_TRUNC and O_APPEND", HEADER + ", FUSE_OPEN; open(2)")
def _open_flags(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(TEXT)
    if session.has("ATOMIC_O_TRUNC"):
        with opened(session, node, os.O_RDWR | os.O_TRUNC):
            expect(session.getattr(node).size == 0, "O_TRUNC did nothing")
    with opened(session, node, os.O_RDWR | os.O_APPEND) as handle:
        session.write(node, handle, session.getattr(node).size, b"more", os.O_RDWR | os.O_APPEND)
    with opened(session, node) as handle:
        expect(session.read(node, handle, 0, 4096).endswith(b"more"), "the appended bytes are not at the end")


@check(MUST, "a file that was unlinked while open can be read until RELEASE", "unlink(2)")
def _unlinked(subject: Subject) -> None:
    session = subject.session
    name, node = subject.file(TEXT)
    with opened(session, node) as handle:
        session.unlink(subject.place, name)
        expect(session.read(node, handle, 0, 4096) == TEXT, "other data")


@check(MUST, "MKDIR, RMDIR, UNLINK, SYMLINK, READLINK and LINK do so", HEADER)
def _names(subject: Subject) -> None:
    session, place = subject.session, subject.place
    directory = subject.name_for("directory")
    made = session.mkdir(place, directory, 0o750)
    expect(stat.S_ISDIR(made.attr.mode) and stat.S_IMODE(made.attr.mode) == 0o750, f"mode {made.attr.mode:o}")
    link = session.symlink(made.nodeid, "link", "../anywhere")
    expect(session.readlink(link.nodeid) == b"../anywhere", "the link holds something else")
    _, node = subject.file(TEXT)
    hard = session.link(node, made.nodeid, "hard")
    expect((hard.nodeid, hard.attr.nlink) == (node, 2), f"node {hard.nodeid}, {hard.attr.nlink} links")
    for name in ("link", "hard"):
        session.unlink(made.nodeid, name)
    session.rmdir(place, directory)
    try:
        session.lookup(place, directory)
    except FileNotFoundError:
        return
    expect(False, "the directory is still there")


@check(MUST, "MKNOD makes FIFOs, sockets and regular files", HEADER + ", FUSE_MKNOD")
def _mknod(subject: Subject) -> None:
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
        made = subject.session.mknod(subject.place, subject.name_for("node"), kind | 0o600)
        expect(stat.S_IFMT(made.attr.mode) == kind, f"mode {made.attr.mode:o}")


@check(MUST, "RENAME and RENAME2 move, replace, exchange, and refuse to replace", "renameat2(2)")
def _rename(subject: Subject) -> None:
    session, place = subject.session, subject.place
    (one, first), (two, second), other = subject.file(b"1"), subject.file(b"2"), subject.name_for("moved")
    session.rename(place, one, place, other)
    expect(session.lookup(place, other).nodeid == first, "another node has the new name")
    session.rename(place, other, place, two)
    expect(session.lookup(place, two).nodeid == first, "the old file still has its name")
    three, third = subject.file(b"3")
    try:
        session.rename(place, two, place, three, NOREPLACE)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EINVAL):
            raise
        raise NotApplicable(f"RENAME2 with flags: {os.strerror(error.errno or 0)}") from None
    else:
        expect(False, "RENAME_NOREPLACE replaced")
    session.rename(place, two, place, three, EXCHANGE)
    expect(session.lookup(place, two).nodeid == third, "RENAME_EXCHANGE exchanged nothing")
    expect(second not in (first, third), "nodes were confused")


def _reading(name: str) -> None:
    @check(MUST, f"{name.upper()} gives every entry once, in small pieces too", HEADER + ", fuse_dirent")
    def _act(subject: Subject) -> None:
        session = subject.session
        made = session.mkdir(subject.place, subject.name_for("many"))
        wanted = {f"{'n' * (i % 60)}-{i}".encode() for i in range(100)}
        for entry in wanted:
            session.mknod(made.nodeid, entry, stat.S_IFREG | 0o600)
        if name == "readdirplus" and not session.has("DO_READDIRPLUS"):
            raise NotApplicable("READDIRPLUS was not agreed on")
        for size in (512, 4096, 1 << 16):
            entries = names_of(session, made.nodeid, getattr(session, name), size)
            found = [entry.name for entry in entries if entry.name not in (b".", b"..")]
            expect(len(found) == len(set(found)), f"in pieces of {size} bytes a name came twice")
            expect(
                set(found) == wanted,
                f"in pieces of {size} bytes {len(wanted - set(found))} names are missing",
            )


_reading("readdir")
_reading("readdirplus")


@check(MUST, "READDIRPLUS counts a lookup for each entry but . and ..", HEADER + ", FUSE_READDIRPLUS")
def _plus_counts(subject: Subject) -> None:
    session = subject.session
    if not session.has("DO_READDIRPLUS"):
        raise NotApplicable("READDIRPLUS was not agreed on")
    made = session.mkdir(subject.place, subject.name_for("counted"))
    session.mknod(made.nodeid, "one", stat.S_IFREG | 0o600)
    held = session.lookup(made.nodeid, "one").nodeid
    session.forget(held, 2)
    with opened_directory(session, made.nodeid) as handle:
        entries = session.readdirplus(made.nodeid, handle)
    one = next(entry for entry in entries if entry.name == b"one")
    expect(one.entry is not None, "the entry came without its node")
    assert one.entry is not None
    session.getattr(one.entry.nodeid)
    for entry in entries:
        if entry.name in (b".", b".."):
            expect(
                entry.entry is None or entry.entry.nodeid in (0, made.nodeid, subject.place), "a strange node"
            )
    session.forget(one.entry.nodeid)


@check(MUST, "STATFS answers for the root", "statfs(2)")
def _statfs(subject: Subject) -> None:
    state = subject.session.statfs(FUSE_ROOT_ID)
    expect(state.bsize > 0 and state.namelen >= 255 and state.blocks >= state.bfree, f"{vars(state)}")


@check(SHOULD, "extended attributes are set, got, listed and removed", "xattr(7)")
def _xattr(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file()
    with optional("SETXATTR"):
        session.setxattr(node, "user.check", b"value")
    expect(session.getxattr(node, "user.check") == b"value", "another value")
    expect(session.getxattr_size(node, "user.check") == 5, "another size")
    expect(b"user.check" in session.listxattr(node), "it is not listed")
    session.removexattr(node, "user.check")
    expect(b"user.check" not in session.listxattr(node), "it is still listed")


@check(SHOULD, "FALLOCATE allocates and punches holes", "fallocate(2)")
def _fallocate(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(bytes(range(256)) * 64)
    with opened(session, node) as handle:
        with optional("FALLOCATE"):
            session.fallocate(node, handle, 0, 32768)
        expect(session.getattr(node).size == 32768, "the file did not grow")
        with optional("FALLOC_FL_PUNCH_HOLE"):
            session.fallocate(node, handle, 4096, 4096, KEEP_SIZE | PUNCH_HOLE)
        expect(session.read(node, handle, 4096, 4096) == bytes(4096), "the hole is not empty")


@check(SHOULD, "LSEEK finds data and holes", "lseek(2)")
def _lseek(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file()
    with opened(session, node) as handle:
        session.write(node, handle, 1 << 20, TEXT)
        with optional("LSEEK"):
            data = session.lseek(node, handle, 0, os.SEEK_DATA)
        expect(0 <= data <= 1 << 20, f"data begins at {data}")
        expect(
            session.lseek(node, handle, 1 << 20, os.SEEK_HOLE) == (1 << 20) + len(TEXT), "no hole at the end"
        )


@check(SHOULD, "COPY_FILE_RANGE copies between two files", "copy_file_range(2)")
def _copy(subject: Subject) -> None:
    session = subject.session
    (_, source), (_, target) = subject.file(TEXT * 100), subject.file()
    with opened(session, source) as one, opened(session, target) as two, optional("COPY_FILE_RANGE"):
        copied = session.copy_file_range(source, one, 0, target, two, 0, len(TEXT) * 100)
        expect(session.read(target, two, 0, 65536) == (TEXT * 100)[:copied] and copied, "other data")


@check(SHOULD, "TMPFILE makes a file without a name, which LINK gives one", "open(2), O_TMPFILE")
def _tmpfile(subject: Subject) -> None:
    session = subject.session
    with optional("TMPFILE"):
        entry, handle = session.tmpfile(subject.place)
    session.write(entry.nodeid, handle.fh, 0, TEXT)
    name = subject.name_for("linked")
    session.link(entry.nodeid, subject.place, name)
    session.release(entry.nodeid, handle.fh)
    expect(session.lookup(subject.place, name).attr.size == len(TEXT), "the linked file is another")


@check(SHOULD, "STATX tells when a file was made", "statx(2)")
def _statx(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(TEXT)
    with optional("STATX"):
        found = session.statx(node)
    attr = session.getattr(node)
    expect(
        (found.size, found.mode, found.ino) == (attr.size, attr.mode, attr.ino),
        "it is not what GETATTR tells",
    )


@check(SHOULD, "SYNCFS writes the share's file system back", "syncfs(2)")
def _syncfs(subject: Subject) -> None:
    with optional("SYNCFS"):
        subject.session.syncfs()


@check(SHOULD, "FSYNCDIR writes a directory back", HEADER + ", FUSE_FSYNCDIR")
def _fsyncdir(subject: Subject) -> None:
    session = subject.session
    with opened_directory(session, subject.place) as handle, optional("FSYNCDIR"):
        session.fsyncdir(subject.place, handle)


@check(SHOULD, "locks of two owners exclude each other and are released", "fcntl(2), FUSE_SETLK")
def _locks(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(TEXT)

    def lock(handle: int, owner: int, kind: int) -> None:
        span = {"start": 0, "end": (1 << 63) - 1, "type": kind, "pid": owner}
        arguments = FUSE_LK_IN.pack(fh=handle, owner=owner, lk=span)
        session.call("setlk", node, arguments=arguments)

    with opened(session, node) as one, opened(session, node) as two:
        with optional("SETLK"):
            lock(one, 1, F_WRLCK)
        try:
            lock(two, 2, F_WRLCK)
        except BlockingIOError:
            pass
        else:
            expect(False, "two owners hold a write lock on the same bytes")
        lock(one, 1, F_UNLCK)
        lock(two, 2, F_RDLCK)
        lock(two, 2, F_UNLCK)


@check(SHOULD, "an operation that it does not serve is ENOSYS, so that a guest stops asking", HEADER)
def _unserved(subject: Subject) -> None:
    """What is not served is listed in the report; here only the way of refusing is checked."""
    device = subject.session.device
    for operation in OPERATIONS:
        if operation.name in ("bmap", "poll", "ioctl"):
            size = operation.reply.size if operation.reply and not operation.flags & REPLY_DATA else 4096
            body = operation.args.pack() if operation.args else b""
            reply = device.request(operation.name, subject.place, body, size)
            allowed = (
                0,
                errno.ENOSYS,
                errno.EBADF,
                errno.ENOTTY,
                errno.EOPNOTSUPP,
                errno.EINVAL,
                errno.EPERM,
            )
            expect(-reply.error in allowed, f"{operation.name}: {os.strerror(-reply.error)}")


def unserved(session: Session) -> list[str]:
    """The operations a device answers with ENOSYS, by asking for each with an empty structure and harmless names."""
    found = []
    for operation in OPERATIONS:
        if operation.name in ("init", "destroy", "forget", "batch_forget", "interrupt"):
            continue
        body = operation.args.pack() if operation.args else b""
        if operation.name == "setxattr" and not session.has("SETXATTR_EXT"):
            body = body[:8]
        body += b"".join(b"\x7f-not-there\0" for _ in operation.names)
        room = operation.reply.size if operation.reply else 4096
        nodeid = (1 << 40) + 12345  # nobody's: nothing can be changed
        if session.device.request(operation.name, nodeid, body, room).error == -errno.ENOSYS:
            found.append(operation.name)
    return found


def agreed(session: Session) -> list[str]:
    """The INIT flags both sides agreed on, without their prefix."""
    flags = itertools.takewhile(lambda name: not name.startswith("FOPEN_"), CONSTANTS)
    return [name.removeprefix("FUSE_") for name in flags if session.flags & CONSTANTS[name]]
