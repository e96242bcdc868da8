# SPDX-License-Identifier: Apache-2.0
"""What goes wrong goes wrong with the error a local file system gives."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from virtiofs.client.check.case import MUST, SHOULD, Check, Failed, NotApplicable, checker, expect
from virtiofs.client.check.operations import UNSUPPORTED, opened
from virtiofs.client.check.subject import Subject
from virtiofs.client.session import Session
from virtiofs.fuse.abi import FUSE_ROOT_ID

CHECKS: list[Check] = []
check = checker("errors", CHECKS)

NOBODY = (1 << 40) + 12345  # a node id that no device gives
NO_HANDLE = (1 << 60) + 7

Act = Callable[[Subject, Session, int], object]


def _directory(subject: Subject) -> tuple[str, int]:
    name = subject.name_for("directory")
    return name, subject.session.mkdir(subject.place, name).nodeid


def _full_directory(subject: Subject) -> tuple[str, int]:
    name, node = _directory(subject)
    subject.session.mknod(node, "inside", stat.S_IFREG | 0o600)
    return name, node


def _rename_into_itself(subject: Subject, session: Session, place: int) -> None:
    name, node = _directory(subject)
    session.rename(place, name, node, "inside")


def _small_value(subject: Subject, session: Session, _place: int) -> None:
    _, node = subject.file()
    session.setxattr(node, "user.long", b"x" * 100)
    session.getxattr(node, "user.long", 10)


def _write_read_only(subject: Subject, session: Session, _place: int) -> None:
    _, node = subject.file()
    with opened(session, node, os.O_RDONLY) as handle:
        if not handle:
            raise NotApplicable("this device wants no OPEN")
        session.write(node, handle, 0, b"data", os.O_RDONLY)


# sentence, errors allowed, what is done
ERRORS: tuple[tuple[str, tuple[int, ...], Act], ...] = (
    ("a name that is not there is ENOENT", (errno.ENOENT,), lambda _, s, p: s.lookup(p, "nothing")),
    ("UNLINK of nothing is ENOENT", (errno.ENOENT, errno.EIO), lambda _, s, p: s.unlink(p, "nothing")),
    ("a name in a file is ENOTDIR", (errno.ENOTDIR,), lambda c, s, _: s.lookup(c.file()[1], "x")),
    ("MKDIR over a name is EEXIST", (errno.EEXIST,), lambda c, s, p: s.mkdir(p, c.file()[0])),
    ("SYMLINK over a name is EEXIST", (errno.EEXIST,), lambda c, s, p: s.symlink(p, c.file()[0], "x")),
    ("MKNOD over a name is EEXIST", (errno.EEXIST,), lambda c, s, p: s.mknod(p, c.file()[0], stat.S_IFREG)),
    (
        "CREATE with O_EXCL over a name is EEXIST",
        (errno.EEXIST,),
        lambda c, s, p: s.create(p, c.file()[0], os.O_RDWR | os.O_EXCL),
    ),
    ("LINK over a name is EEXIST", (errno.EEXIST,), lambda c, s, p: s.link(c.file()[1], p, c.file()[0])),
    ("LINK of a directory is EPERM", (errno.EPERM,), lambda c, s, p: s.link(_directory(c)[1], p, "again")),
    (
        "UNLINK of a directory is EISDIR",
        (errno.EISDIR, errno.EPERM),
        lambda c, s, p: s.unlink(p, _directory(c)[0]),
    ),
    ("RMDIR of a file is ENOTDIR", (errno.ENOTDIR,), lambda c, s, p: s.rmdir(p, c.file()[0])),
    (
        "RMDIR of a directory in use is ENOTEMPTY",
        (errno.ENOTEMPTY, errno.EEXIST),
        lambda c, s, p: s.rmdir(p, _full_directory(c)[0]),
    ),
    ("RENAME of a directory into itself is EINVAL", (errno.EINVAL,), _rename_into_itself),
    (
        "RENAME over a directory in use is ENOTEMPTY",
        (errno.ENOTEMPTY, errno.EEXIST),
        lambda c, s, p: s.rename(p, _directory(c)[0], p, _full_directory(c)[0]),
    ),
    (
        "RENAME of a file over a directory is EISDIR",
        (errno.EISDIR,),
        lambda c, s, p: s.rename(p, c.file()[0], p, _directory(c)[0]),
    ),
    ("a name of 256 bytes is ENAMETOOLONG", (errno.ENAMETOOLONG,), lambda _, s, p: s.mkdir(p, "n" * 256)),
    ("OPENDIR of a file is ENOTDIR", (errno.ENOTDIR, errno.ENOSYS), lambda c, s, _: s.opendir(c.file()[1])),
    ("READLINK of a file is EINVAL", (errno.EINVAL, errno.ENOENT), lambda c, s, _: s.readlink(c.file()[1])),
    (
        "an attribute that is not there is ENODATA",
        (errno.ENODATA,),
        lambda c, s, _: s.getxattr(c.file()[1], "user.no"),
    ),
    ("an attribute that does not fit is ERANGE", (errno.ERANGE,), _small_value),
    ("SETATTR of a negative size is EINVAL", (errno.EINVAL, errno.EFBIG), lambda c, s, _: _huge(c, s)),
    ("WRITE with a handle for reading is EBADF", (errno.EBADF,), _write_read_only),
)


def _huge(subject: Subject, session: Session) -> None:
    session.setattr(subject.file()[1], size=1 << 63)


def _error(sentence: str, allowed: tuple[int, ...], act: Act) -> None:
    @check(MUST, sentence, "POSIX; include/uapi/linux/fuse.h")
    def _act(subject: Subject) -> None:
        try:
            act(subject, subject.session, subject.place)
        except OSError as error:
            if error.errno in UNSUPPORTED and not set(UNSUPPORTED) & set(allowed):
                raise NotApplicable(os.strerror(error.errno)) from None
            expect(error.errno in allowed, f"it is {errno.errorcode.get(error.errno or 0, error.errno)}")
            return
        raise Failed("it succeeded")


for _sentence, _allowed, _act in ERRORS:
    _error(_sentence, _allowed, _act)


def _code(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or 0
    return 0


@check(SHOULD, "an unknown node is ESTALE, for which Linux walks the path again", "fs/namei.c of Linux")
def _stale(subject: Subject) -> None:
    code = _code(lambda: subject.session.getattr(NOBODY))
    expect(code, "GETATTR of a node that nobody has succeeded")
    expect(code == errno.ESTALE, f"it is {errno.errorcode.get(code, code)}")


@check(MUST, "a node that was forgotten is gone", "include/uapi/linux/fuse.h, FUSE_FORGET")
def _forgotten(subject: Subject) -> None:
    session = subject.session
    name, node = subject.file()
    session.forget(node, 1)
    again = session.lookup(subject.place, name).nodeid
    if again == node:
        session.forget(again)
        raise NotApplicable("node ids of forgotten files are used again")
    expect(_code(lambda: session.getattr(node)), "GETATTR of a forgotten node succeeded")


@check(MUST, "an unknown handle is EBADF", "include/uapi/linux/fuse.h")
def _handle(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file()
    if _code(lambda: session.open(node)) == errno.ENOSYS:
        raise NotApplicable("this device wants no OPEN")
    code = _code(lambda: session.read(node, NO_HANDLE, 0, 4096))
    expect(code == errno.EBADF, f"READ: {errno.errorcode.get(code, code)}")
    code = _code(lambda: session.write(node, NO_HANDLE, 0, b"x"))
    expect(code == errno.EBADF, f"WRITE: {errno.errorcode.get(code, code)}")


@check(SHOULD, "an operation nobody knows is ENOSYS", "include/uapi/linux/fuse.h")
def _unknown(subject: Subject) -> None:
    for opcode in (0, 7, 63, 4095, 0xFFFFFFFF):
        error = subject.session.device.request(opcode, FUSE_ROOT_ID, b"", 128).error
        expect(error == -errno.ENOSYS, f"opcode {opcode}: {errno.errorcode.get(-error, error)}")
