# SPDX-License-Identifier: Apache-2.0
"""Where the table of a tree lies, and who has it mapped.

One file for each tree, in the runtime directory of the user, named after the device and inode number of the tree's
root.  Nobody serves it: whoever is first makes it, whoever is last removes it, and the kernel keeps the list of who
is there, as locks on bytes of the file.  They are open file description locks, which end when the last descriptor
*and mapping* of that description are gone: so a member whose byte is not locked is dead, whatever killed it.

The byte `LOCK_DOOR` is held by whoever attaches, detaches or tidies up, for some microseconds.
"""

import errno
import fcntl
import os
import stat
import struct
import time

from virtiofs.metadata import layout
from virtiofs.metadata.table import MetadataError, Table

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2) where off_t has 64 bits
_HEADER = struct.Struct(
    "<" + "".join(f"{field.times}{'IQ'[field.size == 8]}" for field in layout.HEADER.fields)
)
_PATIENCE = 10.0


def runtime_directory() -> str:
    """The directory for tables of this user; it is made if need be.

    /run/virtiofs for root, so that a service and a shell agree on it; else $XDG_RUNTIME_DIR/virtiofs or
    /tmp/virtiofs-UID.  Raises `MetadataError` if it is not a directory of this user's alone.
    """
    user = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = "/run/virtiofs" if user == 0 else f"{runtime}/virtiofs" if runtime else f"/tmp/virtiofs-{user}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise MetadataError(error.errno, f"cannot make {path}: {error.strerror}") from None
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o022:
        raise MetadataError(
            errno.EPERM,
            f"{path} must be a directory that belongs to user {user} and only it may write; remove it",
        )
    return path


def attach(tree: str | int, slots: int = layout.SLOTS, directory: str | None = None) -> Table:
    """Map the metadata table of the tree below `tree`, a path or a descriptor; it is made if there is none.

    `slots`: how many a new one gets; one that is there stays as it is.  `directory`: where tables lie, instead
    of `runtime_directory()`; the caller answers for who may write there.
    Raises `MetadataError`, for a table that is broken too, and `OSError` for the tree.
    """
    if slots & (slots - 1) or not layout.FEWEST_SLOTS <= slots <= layout.MOST_SLOTS:
        raise MetadataError(
            errno.EINVAL,
            f"a table has a power of two from {layout.FEWEST_SLOTS} to {layout.MOST_SLOTS} slots, not {slots}",
        )
    root = os.stat(tree)
    if not stat.S_ISDIR(root.st_mode):
        raise MetadataError(errno.ENOTDIR, f"{tree} is not a directory, so it has no metadata table")
    path = os.path.join(directory or runtime_directory(), f"{root.st_dev:x}-{root.st_ino:x}.table")
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise MetadataError(error.errno, f"cannot open {path}: {error.strerror}") from None
        try:
            table = _enter(fd, path, root, slots)
        except BaseException:
            os.close(fd)
            raise
        if table is not None:
            return table
        os.close(fd)


def _enter(fd: int, path: str, root: os.stat_result, slots: int) -> Table | None:
    """Become a member, through the door; None: the last one took the file away meanwhile."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise MetadataError(errno.EPERM, f"{path} must be a file that is this user's alone; remove it")
    _open_door(fd, path)
    try:
        if os.fstat(fd).st_nlink == 0:
            return None
        if not _locked(fd, layout.LOCK_MEMBERS, layout.MEMBERS):
            _create(fd, path, root, slots)
        slots, key = _look_at(fd, path, root)
        for member in range(layout.MEMBERS):
            if not _lock(fd, layout.LOCK_MEMBERS + member):
                continue
            if _state(fd, member):
                _unlock(fd, layout.LOCK_MEMBERS + member)  # dead, and not buried yet
                continue
            table = Table(fd, path, slots, key, member)
            _bury_the_dead(table)
            return table
        raise MetadataError(
            errno.EUSERS,
            f"{path} has {layout.MEMBERS} members, which is all it can; end a daemon of this tree",
        )
    finally:
        _unlock(fd, layout.LOCK_DOOR)


def _create(fd: int, path: str, root: os.stat_result, slots: int) -> None:
    """Make the file a new table: nobody is there, so whatever it held is of no use to anyone."""
    size = layout.file_size(slots)
    try:
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size)  # a page that can not be had later would be a SIGBUS
    except OSError as error:
        os.unlink(path)
        raise MetadataError(
            error.errno, f"cannot make {path} of {size >> 20} MiB: {error.strerror}"
        ) from None
    key = struct.unpack("<2Q", os.urandom(16))
    values = {
        "magic": layout.MAGIC,
        "version": layout.VERSION,
        "header_size": layout.PAGE,
        "size": size,
        "dev": root.st_dev,
        "ino": root.st_ino,
        "created": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "members": layout.MEMBERS,
        "member_size": layout.MEMBER.size,
        "members_at": layout.MEMBERS_AT,
        "slots": slots,
        "slots_at": layout.SLOTS_AT,
        "records": layout.RECORDS,
        "record_size": layout.RECORD.size,
        "records_at": layout.RECORDS_AT,
    }
    flat: list[int] = []
    for field in layout.HEADER.fields:
        flat += key if field.name == "key" else [values.get(field.name, 0)] + [0] * (field.times - 1)
    header = _HEADER.pack(*flat)
    os.pwrite(fd, header[8:], 8)
    os.pwrite(fd, header[:8], 0)


def _look_at(fd: int, path: str, root: os.stat_result) -> tuple[int, tuple[int, int]]:
    """Number of slots and key of a table.  Raises `MetadataError` for one that is not as it should be."""
    header = os.pread(fd, layout.HEADER.size, 0)
    values = iter(_HEADER.unpack(header.ljust(layout.HEADER.size, b"\0")))
    found = {field.name: [next(values) for _ in range(field.times)] for field in layout.HEADER.fields}
    advice = "end the daemons of this tree and remove it"
    if found["magic"] != [layout.MAGIC]:
        raise MetadataError(errno.EINVAL, f"{path} is not a metadata table; {advice}")
    if found["version"] != [layout.VERSION]:
        raise MetadataError(
            errno.EPROTO, f"{path} is of version {found['version'][0]}, not {layout.VERSION}; {advice}"
        )
    slots: int = found["slots"][0]
    expected = {
        "header_size": layout.PAGE,
        "dev": root.st_dev,
        "ino": root.st_ino,
        "members": layout.MEMBERS,
        "member_size": layout.MEMBER.size,
        "members_at": layout.MEMBERS_AT,
        "slots_at": layout.SLOTS_AT,
        "records": layout.RECORDS,
        "record_size": layout.RECORD.size,
        "records_at": layout.RECORDS_AT,
        "size": layout.file_size(slots),
    }
    wrong = [name for name, value in expected.items() if found[name] != [value]]
    if slots & (slots - 1) or not layout.FEWEST_SLOTS <= slots <= layout.MOST_SLOTS:
        wrong.append("slots")
    if os.fstat(fd).st_size != layout.file_size(slots):
        wrong.append("length of the file")
    if wrong:
        raise MetadataError(errno.EINVAL, f"{path} is damaged ({', '.join(wrong)}); {advice}")
    return slots, (found["key"][0], found["key"][1])


def tidy(table: Table) -> int:
    """End what members had begun that have died since.  How many changes that were."""
    _open_door(table.fd, table.path)
    try:
        return _bury_the_dead(table)
    finally:
        _unlock(table.fd, layout.LOCK_DOOR)


def detach(table: Table) -> None:
    """Leave; `Table.close` calls it.  The last member removes the file."""
    _open_door(table.fd, table.path)
    try:
        _bury_the_dead(table)
        _unlock(table.fd, layout.LOCK_WATCHER)
        _unlock(table.fd, layout.LOCK_MEMBERS + table.member)
        table.bury(table.member)
        if not _locked(table.fd, layout.LOCK_MEMBERS, layout.MEMBERS) and os.fstat(table.fd).st_nlink:
            os.unlink(table.path)
    finally:
        _unlock(table.fd, layout.LOCK_DOOR)


def living(table: Table) -> list[int]:
    """The numbers of the members that are alive."""
    return [number for number in table.taken() if _alive(table, number)]


def take_watch(table: Table, block: bool) -> bool:
    """See `Table.take_watch`."""
    if table.fd < 0:
        raise MetadataError(errno.EBADF, "only a process that has the table's descriptor can watch")
    return _lock(table.fd, layout.LOCK_WATCHER, block)


def _alive(table: Table, member: int) -> bool:
    return member == table.member or _locked(table.fd, layout.LOCK_MEMBERS + member, 1)


def _bury_the_dead(table: Table) -> int:
    return sum(max(0, table.bury(number)) for number in table.taken() if not _alive(table, number))


def _state(fd: int, member: int) -> int:
    at = layout.MEMBERS_AT + member * layout.MEMBER.size + layout.MEMBER.offset("state")
    return int.from_bytes(os.pread(fd, 4, at), "little")


def _open_door(fd: int, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _lock(fd, layout.LOCK_DOOR):
        if time.monotonic() > deadline:
            raise MetadataError(
                errno.ETIMEDOUT, f"another process keeps {path} locked; is one of its daemons stopped?"
            )
        time.sleep(0.001)


def _lock(fd: int, at: int, block: bool = False) -> bool:
    command = fcntl.F_OFD_SETLKW if block else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(fd: int, at: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, 1, 0))


def _locked(fd: int, at: int, count: int) -> bool:
    """Whether somebody else holds a lock on any of these bytes."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, count, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
