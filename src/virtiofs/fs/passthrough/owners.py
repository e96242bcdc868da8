# SPDX-License-Identifier: Apache-2.0
"""Owners, modes and devices as the guest sees them: the host's ids translated, or all of it from an attribute.

Stored ownership gives a guest's root everything it expects of a file system of its own, from a daemon that
has no privilege: each file has an attribute `user.containers.override_stat` of the form
`UID:GID:MODE[:TYPE]`, which rootless containers use as well, so that their tools understand the tree (TYPE is
file, dir, pipe, socket, symlink, block-MAJOR-MINOR or char-MAJOR-MINOR; MODE is octal).  On the host the files
belong to the daemon's user, with modes that let nobody else in; FIFOs, sockets and devices are empty regular
files, so nothing that a guest makes can act on the host.

Whose word counts: a file of another user of the host is nobody's (65534), whatever its attribute says, and
can not be changed; else any user of the host could make a set-user-id program for the guest.  A file of the
daemon's user without the attribute belongs to the guest's root, with the host's mode and without set-id bits.
That is how a user namespace with a single id would show it.  Symbolic links can not carry the attribute.
"""

import cython
from cython.cimports.libc.errno import EINVAL, EPERM, ERANGE, errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memcmp, strcmp, strlen, strncmp
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_MAPPED
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    ENODATA,
    EOPNOTSUPP,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
    S_IFSOCK,
    S_ISGID,
    S_ISUID,
    STATX_BASIC_STATS,
    fchmodat,
    getxattr,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    setxattr,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.idmap import translate
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_UID,
    fuse_setattr_in,
)
from cython.cimports.virtiofs.fuse.request import Request

OWNER_NAME = b"user.containers.override_stat"
NOBODY = cython.declare(uint32_t, 65534)
INVALID_ID = cython.declare(uint32_t, 0xFFFFFFFF)
S_IXGRP = cython.declare(uint32_t, 0o010)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_owner_name(name: cython.pointer(cython.const[cython.char])) -> cython.bint:
    return strcmp(name, OWNER_NAME) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def number(text: cython.pointer(cython.p_char), base: uint32_t, most: uint64_t) -> int64_t:
    """Read digits of `base` from `text` and step over them: the number, or -1 if there is none up to `most`."""
    value: uint64_t = 0
    digit: uint32_t
    at: cython.p_char = text[0]
    while True:
        digit = cython.cast(uint32_t, at[0]) - 48
        if digit >= base:
            break
        value = value * base + digit
        if value > most:
            return -1
        at += 1
    if at == text[0]:
        return -1
    text[0] = at
    return value


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def type_of(at: cython.p_char, owner: cython.pointer(Owner)) -> cython.bint:
    """Read the last field of a record.  False if it is none that is known."""
    value: int64_t
    if strcmp(at, b"file") == 0:
        owner.type = S_IFREG
    elif strcmp(at, b"dir") == 0:
        owner.type = S_IFDIR
    elif strcmp(at, b"pipe") == 0:
        owner.type = S_IFIFO
    elif strcmp(at, b"socket") == 0:
        owner.type = S_IFSOCK
    elif strcmp(at, b"symlink") == 0:
        owner.type = S_IFLNK
    elif strncmp(at, b"block-", 6) == 0 or strncmp(at, b"char-", 5) == 0:
        owner.type = S_IFBLK if at[0] == ord("b") else S_IFCHR
        at += 6 if at[0] == ord("b") else 5
        value = number(cython.address(at), 10, 0xFFF)
        if value < 0 or at[0] != ord("-"):
            return False
        owner.major = value
        at += 1
        value = number(cython.address(at), 10, 0xFFFFF)
        if value < 0 or at[0] != 0:
            return False
        owner.minor = value
    else:
        return False
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def parse_record(text: cython.p_char, owner: cython.pointer(Owner)) -> cython.bint:
    """Read a record, NUL-terminated, into `owner`.  False if it is malformed; `owner` means nothing then.

    `owner.type` is 0 where the record does not say it.
    """
    at: cython.p_char = text
    value: int64_t
    owner.type = owner.major = owner.minor = 0
    value = number(cython.address(at), 10, INVALID_ID - 1)
    if value < 0 or at[0] != ord(":"):
        return False
    owner.uid = value
    at += 1
    value = number(cython.address(at), 10, INVALID_ID - 1)
    if value < 0 or at[0] != ord(":"):
        return False
    owner.gid = value
    at += 1
    value = number(cython.address(at), 8, 0o177777)
    if value < 0:
        return False
    owner.mode = value & 0o7777
    owner.type = value & S_IFMT  # some write the whole of st_mode
    if at[0] == 0:
        return True
    return at[0] == ord(":") and type_of(at + 1, owner)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def format_record(owner: cython.pointer(Owner), text: cython.p_char) -> cython.int:
    """Write a record to `text` (RECORD_ROOM bytes); its length."""
    length: cython.int = snprintf(text, RECORD_ROOM, b"%u:%u:%04o:", owner.uid, owner.gid, owner.mode)
    at: cython.p_char = text + length
    room: cython.int = RECORD_ROOM - length
    if owner.type == S_IFDIR:
        return length + snprintf(at, room, b"dir")
    if owner.type == S_IFIFO:
        return length + snprintf(at, room, b"pipe")
    if owner.type == S_IFSOCK:
        return length + snprintf(at, room, b"socket")
    if owner.type == S_IFLNK:
        return length + snprintf(at, room, b"symlink")
    if owner.type == S_IFBLK:
        return length + snprintf(at, room, b"block-%u-%u", owner.major, owner.minor)
    if owner.type == S_IFCHR:
        return length + snprintf(at, room, b"char-%u-%u", owner.major, owner.minor)
    return length + snprintf(at, room, b"file")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def carries(share: cython.pointer(Share), status: cython.pointer(cython.const[statx_t])) -> cython.bint:
    """Whether the host's file may have a record that counts."""
    type: uint32_t = status.stx_mode & S_IFMT
    return status.stx_uid == share.user and type in (S_IFREG, S_IFDIR)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_record(
    share: cython.pointer(Share),
    fd: cython.int,
    status: cython.pointer(cython.const[statx_t]),
    owner: cython.pointer(Owner),
) -> cython.int:
    """Owner, mode, type and device of the file `fd`, whose status on the host is `status`.  0 or a negative errno."""
    name: cython.char[16]
    text: cython.char[RECORD_ROOM]
    size: cython.Py_ssize_t
    type: uint32_t = status.stx_mode & S_IFMT
    if carries(share, status):
        snprintf(name, 16, b"%d", fd)
        size = getxattr(name, OWNER_NAME, text, RECORD_ROOM - 1)
        if size >= 0:
            text[size] = 0
            if parse_record(text, owner) and strlen(text) == cython.cast(uint64_t, size):
                # What a file is on the host counts, but for the types that are kept in regular files.
                if type == S_IFDIR or owner.type == 0 or owner.type == S_IFDIR or owner.type == S_IFLNK:
                    owner.type = type
                return 0
        elif errno != ENODATA and errno != EOPNOTSUPP and errno != ERANGE:
            return -errno
    owner.uid = 0 if status.stx_uid == share.user else NOBODY
    owner.gid = 0 if status.stx_gid == share.group else NOBODY
    owner.mode = status.stx_mode & (0o777 if type == S_IFLNK else 0o1777)
    owner.type = type
    owner.major = status.stx_rdev_major
    owner.minor = status.stx_rdev_minor
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_record(fd: cython.int, owner: cython.pointer(Owner)) -> cython.int:
    name: cython.char[16]
    text: cython.char[RECORD_ROOM]
    snprintf(name, 16, b"%d", fd)
    if setxattr(name, OWNER_NAME, text, format_record(owner, text), 0) != 0:
        return -errno
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def as_guest_sees(
    share: cython.pointer(Share), fd: cython.int, status: cython.pointer(statx_t)
) -> cython.int:
    """Change the host's `status` of the file `fd` to what the guest is told.  0 or a negative errno.

    Only called where ownership is not as is; `status` holds the basic statistics.
    """
    owner: Owner
    id: int64_t
    error: cython.int
    if share.ownership == OWNERS_MAPPED:
        # As an id-mapped mount shows ids that it does not map.
        id = translate(cython.address(share.user_to_guest), status.stx_uid)
        status.stx_uid = id if id >= 0 else NOBODY
        id = translate(cython.address(share.group_to_guest), status.stx_gid)
        status.stx_gid = id if id >= 0 else NOBODY
        return 0
    error = read_record(share, fd, status, cython.address(owner))
    if error:
        return error
    status.stx_uid = owner.uid
    status.stx_gid = owner.gid
    status.stx_mode = owner.type | owner.mode
    status.stx_rdev_major = owner.major
    status.stx_rdev_minor = owner.minor
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def in_group(request: cython.pointer(Request), gid: uint32_t) -> cython.bint:
    i: uint32_t = 0
    while i < request.groups_count and request.groups[i] != gid:
        i += 1
    return request.header.gid == gid or i < request.groups_count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def store_new(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    directory: cython.int,
    fd: cython.int,
    type: uint32_t,
    mode: uint32_t,
    rdev: uint32_t,
) -> cython.int:
    """Give the file `fd`, just made in `directory` for the request's user, its record.  0 or a negative errno.

    What a host kernel does for a set-group-id directory is done here: the group is the directory's,
    directories inherit the bit, and a program does not get it for a group its maker is not in (CVE-2018-13405).
    """
    owner: Owner
    parent: Owner
    status: statx_t
    error: cython.int
    owner.uid = request.header.uid
    owner.gid = request.header.gid
    owner.type = type
    owner.mode = mode & 0o7777
    owner.major = rdev >> 8 & 0xFFF
    owner.minor = (rdev & 0xFF) | (rdev >> 12 & 0xFFF00)
    if statx(directory, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, cython.address(status)) != 0:
        return -errno
    error = read_record(share, directory, cython.address(status), cython.address(parent))
    if error:
        return error
    if parent.mode & S_ISGID:
        owner.gid = parent.gid
        if type == S_IFDIR:
            owner.mode |= S_ISGID
        elif (
            owner.mode & S_ISGID
            and owner.mode & S_IXGRP
            and request.header.uid != 0
            and not in_group(request, owner.gid)
        ):
            owner.mode &= ~cython.cast(uint32_t, S_ISGID)
    return write_record(fd, cython.address(owner))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def strip(owner: cython.pointer(Owner)) -> cython.bint:
    """Take the bits away that a write takes; whether there were any."""
    before: uint32_t = owner.mode
    if owner.type == S_IFDIR:
        return False
    owner.mode &= ~cython.cast(uint32_t, S_ISUID)
    if owner.mode & S_IXGRP:
        owner.mode &= ~cython.cast(uint32_t, S_ISGID)
    return owner.mode != before


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def strip_stored(share: cython.pointer(Share), fd: cython.int) -> cython.int:
    """Before a write by somebody who may not keep them: take set-id bits out of the record.  0 or a negative errno.

    No lock where there is nothing to take: a file without a record shows no such bits.
    """
    owner: Owner
    text: cython.char[RECORD_ROOM]
    name: cython.char[16]
    status: statx_t
    size: cython.Py_ssize_t
    error: cython.int = 0
    snprintf(name, 16, b"%d", fd)
    size = getxattr(name, OWNER_NAME, text, RECORD_ROOM - 1)
    if size < 0:
        return 0 if errno in (ENODATA, EOPNOTSUPP, ERANGE) else -errno
    text[size] = 0
    if not parse_record(text, cython.address(owner)) or not strip(cython.address(owner)):
        return 0
    pthread_mutex_lock(cython.address(share.storing))
    if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, cython.address(status)) != 0:
        error = -errno
    elif carries(share, cython.address(status)):
        error = read_record(share, fd, cython.address(status), cython.address(owner))
        if not error and strip(cython.address(owner)):
            error = write_record(fd, cython.address(owner))
    pthread_mutex_unlock(cython.address(share.storing))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def store_change(
    share: cython.pointer(Share), args: cython.pointer(cython.const[fuse_setattr_in]), fd: cython.int
) -> cython.int:
    """SETATTR of owner and mode of the file `fd`.  0 or a negative errno."""
    owner: Owner
    status: statx_t
    error: cython.int
    if not args.valid & (FATTR_UID | FATTR_GID | FATTR_MODE):
        return 0
    if (args.valid & FATTR_UID and args.uid == INVALID_ID) or (
        args.valid & FATTR_GID and args.gid == INVALID_ID
    ):
        return -EINVAL
    pthread_mutex_lock(cython.address(share.storing))
    error = change_locked(share, args, fd, cython.address(owner), cython.address(status))
    pthread_mutex_unlock(cython.address(share.storing))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_locked(
    share: cython.pointer(Share),
    args: cython.pointer(cython.const[fuse_setattr_in]),
    fd: cython.int,
    owner: cython.pointer(Owner),
    status: cython.pointer(statx_t),
) -> cython.int:
    name: cython.char[16]
    old: Owner
    needed: uint32_t
    error: cython.int
    if statx(fd, b"", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, status) != 0:
        return -errno
    error = read_record(share, fd, status, owner)
    if error:
        return error
    old = owner[0]
    if args.valid & FATTR_UID:
        owner.uid = args.uid
    if args.valid & FATTR_GID:
        owner.gid = args.gid
    if args.valid & (FATTR_UID | FATTR_GID) and args.valid & FATTR_KILL_SUIDGID:
        strip(owner)
    if args.valid & FATTR_MODE:
        if owner.type == S_IFLNK:
            return -EOPNOTSUPP
        owner.mode = args.mode & 0o7777
    if not carries(share, status):
        # What can not be stored is refused, unless it is so already.
        return 0 if memcmp(cython.address(old), owner, cython.sizeof(Owner)) == 0 else -EPERM
    error = write_record(fd, owner)
    # We have to be able to use the file, whatever the guest may.
    needed = 0o700 if status.stx_mode & S_IFMT == S_IFDIR else 0o600
    if not error and status.stx_mode & needed != needed:
        snprintf(name, 16, b"%d", fd)
        if fchmodat(share.proc, name, (status.stx_mode & 0o777) | needed, 0) != 0:
            error = -errno
    return error


def read_text(text: bytes) -> tuple[int, int, int, int, int, int] | None:
    """A record's uid, gid, mode, type (0 if it does not say), major and minor; None if it is malformed."""
    owner: Owner
    if b"\0" in text or not parse_record(text, cython.address(owner)):
        return None
    return owner.uid, owner.gid, owner.mode, owner.type, owner.major, owner.minor


def write_text(uid: int, gid: int, mode: int, type: int, major: int = 0, minor: int = 0) -> bytes:
    """The record that says this."""
    owner: Owner
    text: cython.char[RECORD_ROOM]
    owner.uid, owner.gid, owner.mode, owner.type, owner.major, owner.minor = (
        uid,
        gid,
        mode,
        type,
        major,
        minor,
    )
    length: cython.int = format_record(cython.address(owner), text)
    return text[:length]
