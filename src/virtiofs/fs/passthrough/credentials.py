# SPDX-License-Identifier: Apache-2.0
"""Creating files as the guest's user: the calling thread takes the user's ids for one host call.

Only creation needs it: the guest's kernel has checked permissions already (default_permissions), and the
owner, the group in set-group-id directories and ACL defaults must come from the user.  The raw system calls
are used because glibc's change the ids of all threads.  A thread that could not take its own ids back must
serve nobody: the process ends.
"""

import cython
from cython.cimports.libc.errno import EINVAL, errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import abort
from cython.cimports.virtiofs.fs.passthrough.host import (
    SYS_capget,
    SYS_capset,
    SYS_setgroups,
    SYS_setresgid,
    SYS_setresuid,
    syscall,
)
from cython.cimports.virtiofs.fuse.layout import FUSE_CREATE_SUPP_GROUP

INVALID_ID = cython.declare(uint32_t, 0xFFFFFFFF)
CAP_DAC_OVERRIDE = cython.declare(uint32_t, 1)
CAPABILITY_VERSION_3 = cython.declare(uint32_t, 0x20080522)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def become(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.int:
    """Take the ids of the request's user until `become_self`.  0, or a negative errno and nothing changed."""
    error: cython.int
    # "Unknown" would read as "keep" and create the file as root.
    if request.header.uid == INVALID_ID or request.header.gid == INVALID_ID:
        return -EINVAL
    if not share.switch_ids:
        return 0
    if request.groups_count and syscall(SYS_setgroups, request.groups_count, request.groups) != 0:
        return -errno
    if request.header.gid and syscall(SYS_setresgid, -1, request.header.gid, -1) != 0:
        error = -errno
        become_self(share, request)
        return error
    if request.header.uid:
        if syscall(SYS_setresuid, -1, request.header.uid, -1) != 0:
            error = -errno
            become_self(share, request)
            return error
        # A guest that can not send the user's groups would be refused where a group lets the user in.
        if not request.session_flags & FUSE_CREATE_SUPP_GROUP:
            raise_dac_override(share)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def become_self(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.void:
    """Take our own ids back."""
    saved: cython.int = errno
    if not share.switch_ids:
        return
    if request.header.uid and syscall(SYS_setresuid, -1, 0, -1) != 0:
        abort()
    if request.header.gid and syscall(SYS_setresgid, -1, 0, -1) != 0:
        abort()
    if request.groups_count and syscall(SYS_setgroups, 0, cython.NULL) != 0:
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
def raise_dac_override(share: cython.pointer(Share)) -> cython.void:
    """Put CAP_DAC_OVERRIDE back into the effective set, which a change of user id empties."""
    header: uint32_t[2]
    data: uint32_t[6]  # effective, permitted, inheritable: low words, then high words
    header[0] = CAPABILITY_VERSION_3
    header[1] = 0
    data[0] = share.permitted[0] & (cython.cast(uint32_t, 1) << CAP_DAC_OVERRIDE)
    data[1] = share.permitted[0]
    data[2] = 0
    data[3] = 0
    data[4] = share.permitted[1]
    data[5] = 0
    syscall(SYS_capset, header, data)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def permitted_capabilities() -> uint64_t:
    """The permitted capabilities of this thread as a bit mask; none if the kernel does not say."""
    header: uint32_t[2]
    data: uint32_t[6]
    header[0] = CAPABILITY_VERSION_3
    header[1] = 0
    if syscall(SYS_capget, header, data) != 0:
        return 0
    return cython.cast(uint64_t, data[4]) << 32 | data[1]
