# SPDX-License-Identifier: Apache-2.0
"""The process that writes the audit of a share, outside the worker: what it has written no guest can change.

It is forked before the first worker, reads their records from a socket, and ends when nobody has the other end any
more: the last record of a worker that was killed is still in the socket, and is written.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection
from errno import errorcode
from typing import Any

from virtiofs.daemon.chain import ChainError, Log
from virtiofs.fs.passthrough.audit import RECORD, REFUSALS, Audit
from virtiofs.fuse import abi
from virtiofs.sandbox import capabilities, process

NAMES = {operation.opcode: operation.name for operation in abi.OPERATIONS}
GROUPS = {
    "changes": frozenset(one.name for one in abi.OPERATIONS if one.flags & abi.MUTATES) | {"ioctl"},
    "opens": frozenset(("open", "opendir", "create", "tmpfile")),
    REFUSALS: frozenset((REFUSALS,)),
    "all": frozenset(one.name for one in abi.OPERATIONS if not one.flags & abi.NO_REPLY)
    - {"init", "destroy", "interrupt"}
    | {REFUSALS},
}
DEFAULT = "changes,opens,refusals"
ROOM = 4096
SYNC_SECONDS = 1.0
SOCKET_ROOM = 1 << 20


def operations(text: str) -> frozenset[str]:
    """The operations that a list of groups and names means.  Raises `ValueError`."""
    found: set[str] = set()
    for word in text.split(","):
        if word not in GROUPS and word not in GROUPS["all"]:
            raise ValueError(
                f"--audit-operations takes {', '.join(GROUPS)} and names of operations, not {word!r}"
            )
        found |= GROUPS.get(word, {word})
    return frozenset(found)


class Auditor:
    """Writes what workers tell of `operations` to the file at `path`, as of the share `tag`.

    `note`: workers do not wait for it.  Make it before workers are forked; `descriptors` are what they keep.  Raises
    `ValueError` for a file that is no audit, or is broken.
    """

    def __init__(self, path: str, tag: str, wanted: Collection[str], note: bool, log: Callable[[str], None]):
        self._wanted = wanted
        self._note = note
        self._log = log
        self._lost = mmap.mmap(-1, mmap.PAGESIZE)
        try:
            file = Log(os.path.abspath(path))
        except (OSError, ChainError) as error:
            raise ValueError(f"cannot go on with the audit {path}: {error}; move it away") from None
        reader, self._end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_ROOM)
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                self._end.close()
                write(file, tag, reader, self._lost)
                status = 0
            except BaseException as error:  # nothing may return into the supervisor's code
                log(f"the audit {path} can not be written: {error}")
            finally:
                os._exit(status)
        reader.close()
        os.close(file._fd)

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self._end.fileno(),)

    def make(self) -> Audit:
        """What stands in a worker's share."""
        return Audit(self._end.fileno(), self._wanted, self._note, self._lost, self._log)

    def close(self) -> None:
        """Wait until all is written; no worker may be alive."""
        self._end.close()
        os.waitpid(self.pid, 0)


def write(file: Log, tag: str, reader: socket.socket, lost: mmap.mmap) -> None:
    """The life of the process: write until nobody can tell anything any more."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep = {0, 1, 2, file._fd, reader.fileno()}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that listed them
    process.no_new_privileges()
    capabilities.keep(capabilities.permitted() & capabilities.mask("dac_override"))
    known = 0
    synced = time.monotonic()
    while True:
        ready = select.select([reader], [], [], SYNC_SECONDS)[0]
        file.follow()
        data = b"-"
        while ready and data:
            try:
                data = reader.recv(ROOM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if data:
                file.add(describe(data, tag))
            if time.monotonic() - synced > SYNC_SECONDS:
                break
        (count,) = struct.unpack_from("=Q", lost)
        if count != known:
            file.add({"note": "lost", "count": count - known})
            known = count
        if not data:
            file.add({"note": "end"})
            file.close()
            return
        if time.monotonic() - synced > SYNC_SECONDS:
            file.sync()
            synced = time.monotonic()


def describe(data: bytes, tag: str) -> dict[str, Any]:
    """A worker's message as a record; the worker is not trusted."""
    if len(data) < RECORD.size:
        return {"note": "nonsense", "bytes": len(data)}
    at, node, ino, size, opcode, error, uid, gid, pid, first, second, cut, *_ = RECORD.unpack_from(data)
    seconds, fraction = divmod(at, 1_000_000_000)
    if seconds > 1 << 36 or RECORD.size + first + second != len(data):
        return {"note": "nonsense", "bytes": len(data)}
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    record: dict[str, Any] = {
        "time": f"{day}.{fraction:09d}Z",
        "share": tag,
        "operation": NAMES.get(opcode, str(opcode)),
        "path": text(data[RECORD.size : RECORD.size + first]) if first else None,
        "node": node,
        "inode": ino,
        "uid": uid,
        "gid": gid,
        "pid": pid,
        "result": errorcode.get(-error, str(error)) if error else "ok",
    }
    if second:
        record["to"] = text(data[RECORD.size + first :])
    if size:
        record["bytes"] = size
    if cut:
        record["cut"] = cut
    return record


def text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
