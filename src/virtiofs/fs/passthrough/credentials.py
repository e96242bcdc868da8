# SPDX-License-Identifier: Apache-2.0
"""Acting for the guest's user: whose ids a new file gets, and what privilege a write takes away.

Only creation takes the user's ids: the guest's kernel has checked permissions already (default_permissions),
and the owner, the group in set-group-id directories and ACL defaults must come from the user.  The raw system
calls are used because glibc's change the ids of all threads.  A thread that could not take its own ids back
must serve nobody: the process ends.

A write, a truncation or a change of owner takes set-id bits and capabilities from a program, unless the writer
has CAP_FSETID in the guest.  The host's kernel does that for a writer without CAP_FSETID on the host, so the
thread drops that capability before a request that must kill the bits and takes it back before one that must
keep them, and stays as it is for all others: a guest that writes as one user costs no system call.
"""

import cython
from cython.cimports.libc.errno import EINVAL, EPERM, errno
from cython.cimports.libc.stdint import int64_t, uint32_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.stdlib import abort
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_MAPPED, OWNERS_STORED
from cython.cimports.virtiofs.fs.passthrough.host import (
    ENODATA,
    EOPNOTSUPP,
    SYS_capget,
    SYS_capset,
    SYS_setgroups,
    SYS_setresgid,
    SYS_setresuid,
    getxattr,
    removexattr,
    syscall,
)
from cython.cimports.virtiofs.fs.passthrough.host import umask as set_umask
from cython.cimports.virtiofs.fs.passthrough.idmap import translate
from cython.cimports.virtiofs.fs.passthrough.owners import strip_stored
from cython.cimports.virtiofs.fs.passthrough.thread_state import fsetid_dropped
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_CREATE_SUPP_GROUP,
    FUSE_DONT_MASK,
    FUSE_HANDLE_KILLPRIV_V2,
)

INVALID_ID = cython.declare(uint32_t, 0xFFFFFFFF)
CAP_DAC_OVERRIDE = cython.declare(uint32_t, 1)
CAP_FSETID = cython.declare(uint32_t, 4)
CAPABILITY_VERSION_3 = cython.declare(uint32_t, 0x20080522)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def become(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    umask: uint32_t,
    user: cython.pointer(User),
) -> cython.int:
    """Take the ids of the request's user, and its `umask`, until `become_self`.  0, or a negative errno and
    nothing changed.
    """
    error: cython.int
    # "Unknown" would read as "keep" and create the file as root.
    if request.header.uid == INVALID_ID or request.header.gid == INVALID_ID:
        return -EINVAL
    error = host_ids(share, request, user)
    if error:
        return error
    # The guest's kernel leaves the umask to us where ACLs are: a directory's default ACL takes its place.
    user.umask = umask & 0o777 if request.session_flags & FUSE_DONT_MASK else 0
    if user.umask:
        set_umask(user.umask)
    if not share.switch_ids:
        return 0
    keep_set_ids(share, True)
    if user.groups_count and syscall(SYS_setgroups, user.groups_count, user.groups) != 0:
        error = -errno
        become_self(share, user)
        return error
    if user.gid and syscall(SYS_setresgid, -1, user.gid, -1) != 0:
        error = -errno
        become_self(share, user)
        return error
    if user.uid:
        if syscall(SYS_setresuid, -1, user.uid, -1) != 0:
            error = -errno
            become_self(share, user)
            return error
        # A guest that can not send the user's groups would be refused where a group lets the user in.
        if not request.session_flags & FUSE_CREATE_SUPP_GROUP:
            set_effective(share, share.permitted[0] & (cython.cast(uint32_t, 1) << CAP_DAC_OVERRIDE), 0)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def host_ids(
    share: cython.pointer(Share), request: cython.pointer(Request), user: cython.pointer(User)
) -> cython.int:
    """The ids of the request's user on the host: 0, or a negative errno for one that may not be used."""
    i: uint32_t
    id: int64_t
    user.uid = request.header.uid
    user.gid = request.header.gid
    user.groups_count = request.groups_count
    for i in range(request.groups_count):
        user.groups[i] = request.groups[i]
    if share.ownership != OWNERS_MAPPED:
        return 0
    id = translate(cython.address(share.user_to_host), user.uid)
    if id < 0:
        return id
    user.uid = id
    id = translate(cython.address(share.group_to_host), user.gid)
    if id < 0:
        return id
    user.gid = id
    for i in range(user.groups_count):
        id = translate(cython.address(share.group_to_host), user.groups[i])
        if id < 0:
            return id
        user.groups[i] = id
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def become_self(share: cython.pointer(Share), user: cython.pointer(User)) -> cython.void:
    """Take our own ids and umask back."""
    saved: cython.int = errno
    if user.umask:
        set_umask(0)
    if share.switch_ids:
        # With the user id the whole effective set comes back.
        if user.uid and syscall(SYS_setresuid, -1, 0, -1) != 0:
            abort()
        if user.gid and syscall(SYS_setresgid, -1, 0, -1) != 0:
            abort()
        if user.groups_count and syscall(SYS_setgroups, 0, cython.NULL) != 0:
            abort()
    set_errno(saved)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_errno(value: cython.int) -> cython.void:
    location: cython.pointer(cython.int) = __errno_location()
    location[0] = value


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_permitted(share: cython.pointer(Share)) -> cython.void:
    """Note which capabilities the calling thread may have."""
    header: uint32_t[2]
    data: uint32_t[6]  # effective, permitted, inheritable: low words, then high words
    header[0] = CAPABILITY_VERSION_3
    header[1] = 0
    if syscall(SYS_capget, header, data) != 0:
        data[1] = data[4] = 0
    share.permitted[0] = data[1]
    share.permitted[1] = data[4]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_effective(share: cython.pointer(Share), low: uint32_t, high: uint32_t) -> cython.int:
    """Make these the effective capabilities of the thread: 0 or a negative errno."""
    header: uint32_t[2]
    data: uint32_t[6]
    header[0] = CAPABILITY_VERSION_3
    header[1] = 0
    data[0] = low
    data[1] = share.permitted[0]
    data[2] = 0
    data[3] = high
    data[4] = share.permitted[1]
    data[5] = 0
    return 0 if syscall(SYS_capset, header, data) == 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def keep_set_ids(share: cython.pointer(Share), keep: cython.bint) -> cython.void:
    """Have the host keep set-id bits of files the thread changes, or take them away.

    A daemon without CAP_FSETID always takes them away.
    """
    bit: uint32_t = cython.cast(uint32_t, 1) << CAP_FSETID
    if keep != fsetid_dropped or not share.permitted[0] & bit:
        return
    # A thread that keeps what it must kill would hand out root: it serves nobody any more.
    if set_effective(share, share.permitted[0] & ~(0 if keep else bit), share.permitted[1]) != 0:
        abort()
    store_dropped(not keep)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def store_dropped(dropped: cython.bint) -> cython.void:
    here: cython.pointer(cython.int) = cython.address(fsetid_dropped)
    here[0] = dropped


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def may_not_keep(request: cython.pointer(Request)) -> cython.bint:
    """Whether the caller of FALLOCATE or COPY_FILE_RANGE loses set-id bits by it: these have no flag that says so.

    Where the device does not handle it, the guest has sent a SETATTR before.
    """
    return request.session_flags & FUSE_HANDLE_KILLPRIV_V2 and request.header.uid != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def guard(share: cython.pointer(Share), fd: cython.int, kill: cython.bint) -> cython.int:
    """Before the content or owner of the regular file `fd` changes: take away what that takes away.

    `kill`: set-id bits as well, as the caller may not keep them.  Capabilities go always: the host does it for
    security.capability, and we where another name stands for it (CVE-2021-20263).  0 or a negative errno.
    """
    name: cython.char[16]
    error: cython.int
    if share.capability[0]:
        snprintf(name, 16, b"%d", fd)
        if removexattr(name, share.capability) != 0 and errno not in (ENODATA, EOPNOTSUPP):
            error = -errno
            # Without privilege for a trusted.* name the guest has no such attribute either.
            if error != -EPERM or getxattr(name, share.capability, cython.NULL, 0) >= 0 or errno != ENODATA:
                return error
    if share.ownership == OWNERS_STORED:
        return strip_stored(share, fd) if kill else 0
    keep_set_ids(share, not kill)
    return 0
