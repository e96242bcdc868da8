# SPDX-License-Identifier: Apache-2.0
"""What a benchmark sends: a `Script` of requests for the compiled loop (virtqueue/load.py), written by name.

    script = Script(session)
    made = script.add("create", parent, [Numbered(b"f-", 8)], flags=os.O_RDWR | os.O_CREAT, mode=0o100644)
    script.add("release", node_of(made), fh=handle_of(made))

A value in a request may be fixed, follow the round (`Numbered` in names, `Place` in fields) or come from an earlier
reply of the round (`From`).  Messages lie in memory as Linux lays them: header, arguments, then data in pages.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from virtiofs.client.arena import PAGE
from virtiofs.client.session import Session
from virtiofs.fuse.abi import (
    BY_NAME,
    FUSE_BATCH_FORGET_IN,
    FUSE_ENTRY_OUT,
    FUSE_FORGET_ONE,
    FUSE_IN_HEADER,
    FUSE_OUT_HEADER,
    NO_REPLY,
    Operation,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.virtqueue.load import Load, Prepared

IN, OUT = FUSE_IN_HEADER.size, FUSE_OUT_HEADER.size
NODEID = 16  # of the in header
NAME_DIGITS = 8


class From(NamedTuple):
    """Eight bytes of the reply to an earlier step."""

    step: int
    position: int


def node_of(step: int) -> From:
    """The node of an entry reply (LOOKUP, MKDIR, CREATE...)."""
    return From(step, OUT)


def handle_of(step: int, created: bool = False) -> From:
    """The handle of an OPEN reply, or of a CREATE reply, where it comes behind the entry."""
    return From(step, OUT + (FUSE_ENTRY_OUT.size if created else 0))


class Numbered(NamedTuple):
    """A name that ends in the digits of `start + round % among`."""

    head: bytes
    among: int = 10**NAME_DIGITS
    start: int = 0

    def at(self, number: int) -> str:
        """The name in round `number`."""
        return os.fsdecode(self.head) + f"{self.start + number % self.among:0{NAME_DIGITS}}"


class Place(NamedTuple):
    """A field that is `by * (round % among)`, or with `shuffled` those in no order."""

    by: int
    among: int
    shuffled: bool = False


class Answers(NamedTuple):
    """What a device wants to be asked at all: an operation it answers with ENOSYS is never sent again by Linux."""

    open: bool
    opendir: bool
    flush: bool

    @classmethod
    def of(cls, session: Session, node: int) -> Answers:
        """Asked with a regular file's node."""
        opens = _answered(lambda: session.release(node, session.open(node).fh))
        opendirs = _answered(lambda: session.releasedir(1, session.opendir(1).fh))
        handle = session.open(node).fh if opens else 0
        flushes = _answered(lambda: session.flush(node, handle))
        if opens:
            session.release(node, handle)
        return cls(opens, opendirs, flushes)


def _answered(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return False
    return True


class Replies:
    """What a lane of a load holds after a run: replies of its last round."""

    def __init__(self, load: Load, lane: int):
        self._load = load
        self.lane = lane
        self.round = load.round(lane)

    def payload(self, step: int) -> bytes:
        """What follows the out header of a step's reply, to the end of its room."""
        return self._load.reply(self.lane, step)[OUT:]

    def length(self, step: int) -> int:
        """Bytes of a step's reply behind the out header."""
        return int.from_bytes(self._load.reply(self.lane, step)[:4], "little") - OUT


def own_directory(session: Session, directory: Path) -> tuple[Path, int, Callable[[], None]]:
    """A new directory for a script that makes files, its node, and how to get rid of it: what a daemon leaves behind
    that dies meets nobody else."""
    place = Path(tempfile.mkdtemp(prefix="work-", dir=directory))
    node = session.lookup(1, place.name).nodeid

    def close() -> None:
        session.forget(node)
        shutil.rmtree(place)

    return place, node, close


def _always(_replies: Replies) -> bool:
    return True


def _nothing(*_: int) -> None:
    pass


class Script:
    """The steps of one round, and what belongs to them.

    `operations`: in a round, what speed is counted in.  `data`: bytes a round moves.  `most`: rounds a run may have,
    0 for any.  `beside`: a script that runs beside this one in one lane.  `before()`: ahead of each run.
    `verify(replies)`: after it, for each lane: is everything right?  `after(first, rounds)`: give back what the
    rounds took.  `close()`: when nothing more comes.
    """

    def __init__(self, session: Session, operations: int = 1, data: int = 0):
        self.session = session
        self.operations = operations
        self.data = data
        self.most = 0
        self.steps: list[Prepared] = []
        self.beside: Script | None = None
        self.before: Callable[[], None] = lambda: None
        self.verify: Callable[[Replies], bool] = _always
        self.after: Callable[[int, int], None] = _nothing
        self.close: Callable[[], None] = lambda: None
        self._edits: list[Callable[[Load, int], None]] = []

    def add(
        self,
        name: str,
        nodeid: int | From = 1,
        names: Sequence[bytes | Numbered] = (),
        tail: bytes = b"",
        pages: int = 0,
        length: int | None = None,
        error: int = 0,
        **fields: int | From | Place,
    ) -> int:
        """One step more: its number.  `pages`: of data in the reply; `length`: bytes of its payload (-1: any),
        where the operation's table does not say; `error`: the errno the reply must carry."""
        operation = BY_NAME[name]
        step = len(self.steps)
        fixed = {label: value if isinstance(value, int) else 0 for label, value in fields.items()}
        arguments = operation.args.pack(**fixed) if operation.args else b""
        body = arguments
        for part in names:
            if isinstance(part, Numbered):
                at = IN + len(body) + len(part.head)
                self._edits.append(_digits(step, at, part))
                part = part.head + b"0" * NAME_DIGITS
            body += part + b"\0"
        if isinstance(nodeid, From):
            self._edits.append(_copy(step, NODEID, nodeid))
        for label, value in fields.items():
            at = IN + _position(operation, label, fields) if not isinstance(value, int) else 0
            if isinstance(value, From):
                self._edits.append(_copy(step, at, value))
            elif isinstance(value, Place):
                self._edits.append(_number(step, at, value))
        header = FUSE_IN_HEADER.pack(
            len=IN + len(body) + len(tail),
            opcode=operation.opcode,
            nodeid=nodeid if isinstance(nodeid, int) else 0,
            pid=1,
        )
        readable = [IN, *([len(body)] if body else []), *_in_pages(len(tail))]
        writable: list[int] = []
        expected = 0
        if not operation.flags & NO_REPLY:
            room = PAGE * pages or (operation.reply.size if operation.reply else 0)
            writable = [OUT, *([PAGE] * pages if pages else [room] if room else [])]
            expected = OUT + (room if length is None else length) if length != -1 else -1
            if error:
                expected = OUT
        self.steps.append((header + body + tail, readable, writable, expected, -error))
        return step

    def forget_listed(self, nodes: int) -> int:
        """A BATCH_FORGET of the `nodes` nodes in the reply to the last step, a READDIRPLUS."""
        records = FUSE_FORGET_ONE.pack(nlookup=1) * nodes
        arguments = FUSE_BATCH_FORGET_IN.pack(count=nodes)
        body = arguments + records
        header = FUSE_IN_HEADER.pack(len=IN + len(body), opcode=BY_NAME["batch_forget"].opcode, pid=1)
        step = len(self.steps)
        self.steps.append((header + body, [IN, len(body)], [], 0, 0))
        self._edits.append(lambda load, first: load.forget_entries(first + step, IN + len(arguments)))
        return step

    def mark_round(self, step: int, position: int) -> None:
        """Let the 8 bytes at `position` of a step's request be the round's number."""
        self._edits.append(lambda load, first: load.number(first + step, position))

    def load(self, ring: object, depth: int, address: int) -> Load:
        """The script on a queue, `depth` rounds at a time."""
        from virtiofs.virtqueue.load import Load

        beside = self.beside.steps if self.beside else []
        load = Load(ring, self.steps, depth, address, beside)  # type: ignore[arg-type]
        for edit in self._edits:
            edit(load, 0)
        for edit in self.beside._edits if self.beside else ():
            edit(load, len(self.steps))
        return load

    def memory_needed(self, depth: int) -> int:
        """Bytes of guest memory `load` takes."""
        from virtiofs.virtqueue.load import Load

        return Load.memory_needed(self.steps, depth, self.beside.steps if self.beside else [])


def _in_pages(length: int) -> Iterable[int]:
    """Pieces of a request's data: pages, the last one cut."""
    return [min(PAGE, length - start) for start in range(0, length, PAGE)]


def _position(operation: Operation, label: str, fields: dict[str, int | From | Place]) -> int:
    """Where a 64-bit field of an operation's arguments is."""
    assert operation.args is not None
    mark = (1 << 64) - 1
    return operation.args.pack(**{label: mark}).index(b"\xff" * 8)


def _digits(step: int, position: int, part: Numbered) -> Callable[[Load, int], None]:
    return lambda load, first: load.digits(first + step, position, NAME_DIGITS, part.among, part.start)


def _copy(step: int, position: int, source: From) -> Callable[[Load, int], None]:
    return lambda load, first: load.copy(first + step, position, first + source.step, source.position)


def _number(step: int, position: int, place: Place) -> Callable[[Load, int], None]:
    return lambda load, first: load.number(first + step, position, 0, place.by, place.among, place.shuffled)
