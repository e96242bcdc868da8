# SPDX-License-Identifier: Apache-2.0
"""Requests that no kernel sends: refused, or answered within the rules; nothing outside the share is reached."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from typing import Any

from virtiofs.client.check.case import MUST, SAFE, SHOULD, Check, Failed, checker, expect
from virtiofs.client.check.operations import opened
from virtiofs.client.check.subject import SECRET, Subject
from virtiofs.client.device import Caller, Layout
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import BY_NAME, FUSE_IN_HEADER, FUSE_OUT_HEADER, FUSE_ROOT_ID, OPERATIONS

CHECKS: list[Check] = []
check = checker("requests", CHECKS)

NAMED = [operation for operation in OPERATIONS if abi.NAME in operation.names]
BAD_NAMES = (b"", b".", b"..", b"/etc/passwd", b"../secret", b"a/b", b"/", b"trailing/")
NOISE = 2000  # requests of random bytes
MAX_ERRNO = 511
LEAVE_OUT = ("init", "destroy")  # they end the session
MEANINGLESS = ("syncfs",)  # its argument holds nothing


def body_of(session: Session, operation: abi.Operation, names: list[bytes], **fields: int) -> bytes:
    """The structure and the strings of a request."""
    structure = operation.args.pack(**fields) if operation.args else b""
    if operation.name == "setxattr" and not session.has("SETXATTR_EXT"):
        structure = structure[:8]
    return structure + b"".join(name + b"\0" for name in names)


def _room(operation: abi.Operation) -> int:
    return operation.reply.size if operation.reply else 4096


@check(SAFE, "no operation takes a name that is empty, dotted or a path", "include/linux/namei.h; CWE-22")
def _bad_names(subject: Subject) -> None:
    session, place = subject.session, subject.place
    accepted = []
    for operation in NAMED:
        for position, kind in enumerate(operation.names):
            if kind != abi.NAME:
                continue
            for bad in BAD_NAMES:
                names = [f"{operation.name}-{position}-{i}".encode() for i in range(len(operation.names))]
                names[position] = bad
                mode = {"mode": stat.S_IFREG | 0o600} if operation.name == "mknod" else {}
                reply = session.device.request(
                    operation.name, place, body_of(session, operation, names, **mode), _room(operation)
                )
                if not reply.error and not _stays_inside(subject, operation, bad, reply.payload):
                    accepted.append(f"{operation.name} of {bad.decode()!r}")
    expect(not accepted, f"accepted: {', '.join(accepted)}")
    _check_outside(subject)


def _stays_inside(subject: Subject, operation: abi.Operation, name: bytes, reply: bytes) -> bool:
    """LOOKUP of . and .. is asked by hosts that export a share; it is sound as long as it stays in the share."""
    if operation.name != "lookup" or name not in (b".", b".."):
        return False
    entry = abi.FUSE_ENTRY_OUT.unpack(reply)
    inside = {subject.session.getattr(node).ino for node in (subject.place, FUSE_ROOT_ID)}
    subject.session.forget(entry.nodeid)
    return entry.attr.ino in inside


@check(SAFE, "the parent of the root is the root, or an error", "CWE-22")
def _above_the_root(subject: Subject) -> None:
    session = subject.session
    reply = session.device.request("lookup", FUSE_ROOT_ID, b"..\0", 128)
    if not reply.error:
        entry = abi.FUSE_ENTRY_OUT.unpack(reply.payload)
        expect(entry.attr.ino == session.getattr(FUSE_ROOT_ID).ino, "LOOKUP of .. left the share")


# What would follow a symbolic link, if it is followed: (session, directory, the link's name, its node).
FOLLOWERS: dict[str, Callable[[Session, int, str, int], object]] = {
    "OPEN": lambda session, _place, _name, node: session.open(node, os.O_RDWR),
    "LOOKUP beneath": lambda session, _place, _name, node: session.lookup(node, "x"),
    "OPENDIR": lambda session, _place, _name, node: session.opendir(node),
    "SETATTR of size": lambda session, _place, _name, node: session.setattr(node, size=0),
    "CREATE": lambda session, place, name, _node: session.create(place, name, os.O_RDWR | os.O_TRUNC),
}


def _succeeds(act: Callable[[Session, int, str, int], object], *arguments: Any) -> bool:
    try:
        act(*arguments)
    except OSError:
        return False
    return True


@check(SAFE, "a symbolic link is never followed by the device", "CVE-2020-35517")
def _links(subject: Subject) -> None:
    session, place = subject.session, subject.place
    target = str(subject.outside) if subject.outside else "/etc/passwd"
    for text in (target, "../../secret"):
        name = subject.name_for("link")
        node = session.symlink(place, name, text).nodeid
        followed = [what for what, act in FOLLOWERS.items() if _succeeds(act, session, place, name, node)]
        expect(not followed, f"followed by {', '.join(followed)}")
    _check_outside(subject)


@check(SAFE, "FIFOs, sockets and device nodes are not opened", "CVE-2020-35517")
def _special(subject: Subject) -> None:
    session = subject.session
    for kind in (stat.S_IFIFO, stat.S_IFSOCK):
        node = session.mknod(subject.place, subject.name_for("special"), kind | 0o666).nodeid
        try:
            session.open(node, os.O_RDWR)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return
        else:
            raise Failed(f"a node of mode {kind:o} was opened")


@check(SAFE, "a request that is cut short anywhere is refused", "include/uapi/linux/fuse.h")
def _truncated(subject: Subject) -> None:
    session = subject.session
    accepted = []
    for operation in OPERATIONS:
        if operation.name in (*LEAVE_OUT, *MEANINGLESS) or operation.flags & abi.NO_REPLY:
            continue
        body = body_of(session, operation, [b"cut-short"] * len(operation.names))
        for size in range(len(body)):
            reply = session.device.request(operation.name, subject.place, body[:size], _room(operation))
            if not reply.error:
                accepted.append(f"{operation.name} ({size} of {len(body)} bytes)")
                break
    subject.must_live()
    expect(not accepted, f"carried out: {', '.join(accepted)}")


@check(
    SHOULD,
    "a length that disagrees with the descriptors is refused",
    "include/uapi/linux/fuse.h, fuse_in_header",
)
def _lengths(subject: Subject) -> None:
    device = subject.session.device
    body = abi.FUSE_GETATTR_IN.pack()
    for claimed in (0, 1, 39, 57, 4096, 0xFFFFFFFF):
        header = FUSE_IN_HEADER.pack(
            len=claimed, opcode=BY_NAME["getattr"].opcode, unique=44, nodeid=FUSE_ROOT_ID
        )
        reply = device.finish(device.submit(header + body, 120))
        if reply is not None and reply.used_length and not reply.error and claimed < len(header):
            raise Failed(f"a message of {claimed} bytes by its own words was served")
        if reply is not None and reply.used_length and not reply.error and claimed > len(header + body):
            raise Failed(
                f"a message of {claimed} bytes by its own words was served with {len(header + body)}"
            )
    subject.must_live()


@check(SAFE, "a message shorter than a header does no harm", "include/uapi/linux/fuse.h, fuse_in_header")
def _short(subject: Subject) -> None:
    for size in (0, 1, 16, 39):
        device = subject.session.device
        device.finish(device.submit(bytes(size), 120))
    subject.must_live()
    subject.must_serve()


@check(SHOULD, "a request without room for its reply is not carried out", "virtio 1.3, 5.11.6.1")
def _no_room(subject: Subject) -> None:
    session = subject.session
    name = subject.name_for("unheard")
    body = abi.FUSE_MKDIR_IN.pack(mode=0o755) + name.encode() + b"\0"
    for room in (16, 127):
        session.device.request("mkdir", subject.place, body, room=room)
        try:
            node = session.lookup(subject.place, name)
        except FileNotFoundError:
            continue
        session.forget(node.nodeid)
        raise Failed(f"with room for {room} bytes of 128 it was carried out")


@check(SAFE, "a READ never brings more than there is room for", "include/uapi/linux/fuse.h, FUSE_READ")
def _read_room(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file(b"x" * 65536)
    with opened(session, node) as handle:
        for size in (8192, 1 << 20, 0xFFFFFFFF):
            body = abi.FUSE_READ_IN.pack(fh=handle, size=size)
            reply = session.device.request("read", node, body, 4096)
            expect(len(reply.payload) <= 4096, f"{len(reply.payload)} bytes came into 4096")
    subject.must_live()


@check(
    SAFE, "a WRITE that claims more data than it brings is refused", "include/uapi/linux/fuse.h, FUSE_WRITE"
)
def _write_claims(subject: Subject) -> None:
    session = subject.session
    _, node = subject.file()
    with opened(session, node) as handle:
        for size in (4096, 1 << 20, 0xFFFFFFFF):
            body = abi.FUSE_WRITE_IN.pack(fh=handle, size=size) + b"few"
            reply = session.device.request("write", node, body, 8)
            if not reply.error:
                written = int.from_bytes(reply.payload[:4], "little")
                expect(written <= 3, f"{written} bytes were written of 3")
    expect(session.getattr(node).size <= 3, "the file holds more than was sent")
    subject.must_live()


@check(
    SAFE,
    "FORGET counts past zero and for nodes nobody has do no harm",
    "include/uapi/linux/fuse.h, FUSE_FORGET",
)
def _forget(subject: Subject) -> None:
    session = subject.session
    name, node = subject.file()
    for nodeid, count in ((FUSE_ROOT_ID, 1 << 63), (node, (1 << 64) - 1), (node, 1), ((1 << 40) + 12345, 5)):
        session.forget(nodeid, count)
    session.batch_forget([(node, 1), (node, 1), (12345678, 1)])
    expect(stat.S_ISDIR(session.getattr(FUSE_ROOT_ID).mode), "the root is lost")
    subject.must_live()
    if not subject.own_tree:
        subject.session.lookup(subject.place, name)


@check(SHOULD, "nothing is served before INIT", "include/uapi/linux/fuse.h, FUSE_INIT")
def _before_init(subject: Subject) -> None:
    device = subject.fresh()
    for name in ("getattr", "lookup", "statfs", "opendir"):
        body = body_of_fresh(BY_NAME[name])
        reply = device.request(name, FUSE_ROOT_ID, body, 144)
        expect(reply.error, f"{name} was served")


def body_of_fresh(operation: abi.Operation) -> bytes:
    """A request's body where no session knows what was agreed on."""
    return (operation.args.pack() if operation.args else b"") + b"name\0" * len(operation.names)


@check(MUST, "a newer major version is answered with version 7, an older one refused", "fuse.h, FUSE_INIT")
def _versions(subject: Subject) -> None:
    device = subject.fresh()
    newer = device.request("init", 0, abi.FUSE_INIT_IN.pack(major=8, minor=0), 64)
    expect(
        not newer.error and abi.FUSE_INIT_OUT.unpack(newer.payload.ljust(64, b"\0")).major == 7,
        "not answered with 7",
    )
    device = subject.fresh()
    older = device.request("init", 0, abi.FUSE_INIT_IN.pack(major=6, minor=9), 64)
    expect(
        older.error or abi.FUSE_INIT_OUT.unpack(older.payload.ljust(64, b"\0")).major != 6,
        "it speaks version 6",
    )


@check(
    SHOULD,
    "a second INIT begins a new session, as a rebooted guest needs",
    "include/uapi/linux/fuse.h, FUSE_INIT",
)
def _second_init(subject: Subject) -> None:
    device = subject.fresh()
    Session(device).getattr(FUSE_ROOT_ID)
    try:
        Session(device).getattr(FUSE_ROOT_ID)
    except OSError as error:
        raise Failed(f"the second INIT: {error}") from None


@check(SAFE, "files are not made in the name of the unknown user, which the host takes for root", "chown(2)")
def _unknown_user(subject: Subject) -> None:
    session = subject.session
    for uid, gid in ((0xFFFFFFFF, 0), (0, 0xFFFFFFFF)):
        name = subject.name_for("unknown")
        body = abi.FUSE_MKDIR_IN.pack(mode=0o755) + name.encode() + b"\0"
        reply = session.device.request("mkdir", subject.place, body, 128, caller=Caller(uid, gid, 1))
        if reply.error:
            continue
        attr = session.lookup(subject.place, name).attr
        expect((attr.uid, attr.gid) == (uid, gid), f"a directory of {attr.uid}:{attr.gid} was made")


@check(
    SAFE, f"{NOISE} requests of random bytes are answered by the rules, and do no harm", "fs/fuse/virtio_fs.c"
)
def _noise(subject: Subject) -> None:
    session, generator = subject.session, random.Random(26)
    device = session.device
    opcodes = [op.opcode for op in OPERATIONS if op.name not in (*LEAVE_OUT, "setlkw")]
    for _ in range(NOISE):
        opcode = generator.choice([*opcodes, generator.randrange(54, 5000)])
        body = generator.randbytes(generator.randrange(0, 200))
        if generator.randrange(2):
            body += bytes(range(97, 97 + generator.randrange(1, 20))) + b"\0"
        room = generator.randrange(0, 5000)
        splits = sorted({generator.randrange(1, 240) for _ in range(generator.randrange(5))})
        node = generator.choice(
            [0, FUSE_ROOT_ID, subject.place, generator.randrange(100), generator.getrandbits(64)]
        )
        if opcode in _HARMFUL and node == FUSE_ROOT_ID:
            node = subject.place
        caller = Caller(generator.choice([0, 1000, generator.getrandbits(32)]), 1000, 1)
        pending = device.begin(opcode, node, body, room, caller=caller, layout=Layout(splits, splits[:2]))
        reply = device.finish(pending)
        if reply is None or not reply.used_length:
            continue
        wrong = not -MAX_ERRNO <= reply.error <= 0 or reply.used_length != reply.length
        if (
            wrong
            or (reply.error and reply.used_length != FUSE_OUT_HEADER.size)
            or reply.unique != pending.unique
        ):
            raise Failed(
                f"opcode {opcode}, request {pending.unique}, was answered as request {reply.unique} with error "
                f"{reply.error} and {reply.length} bytes in {reply.used_length}"
            )
    subject.must_live()
    _check_outside(subject)
    subject.must_serve()


# What random bytes may do to the whole share, if it is not ours: they are sent to our own directory instead.
_HARMFUL = tuple(op.opcode for op in OPERATIONS if op.flags & abi.MUTATES)


def _check_outside(subject: Subject) -> None:
    if subject.outside is not None:
        expect(subject.outside.read_bytes() == SECRET, "a file outside the share was changed")
