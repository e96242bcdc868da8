# SPDX-License-Identifier: Apache-2.0
"""A policy at work on names: looking up, making, giving and taking away.

A hidden name is ENOENT where something is looked for, and EACCES where something is to be made, whether it is there or
not.
"""

import cython
from cython.cimports.libc.errno import EACCES, ENFILE, ENOENT, EROFS, EXDEV, errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.descriptors import (
    birth_of,
    device_of,
    inode_descriptor,
    known_mount,
)
from cython.cimports.virtiofs.fs.passthrough.handles import handle_release
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    ESTALE,
    RENAME_EXCHANGE,
    S_IFDIR,
    S_IFMT,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    IDENTITY_MASK,
    Inode,
    inode_forget,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.marks import (
    ASK,
    DENY,
    FOLLOWS,
    HIDE,
    NOT_YET,
    READ_ONLY,
    STRICT,
    Mark,
    Policing,
    answer_name,
    directory_mark,
    mark_of,
    set_mark,
)
from cython.cimports.virtiofs.fs.passthrough.policynodes import CHANGE, USE, check_node, go_on, judge, show
from cython.cimports.virtiofs.fs.passthrough.ruled import rule_file, ruled_verdict
from cython.cimports.virtiofs.fs.policy.matcher import NO_STATE, Tables, Verdict, name_verdict, state_below
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_CREATE,
    FUSE_RENAME2,
    fuse_create_out,
    fuse_entry_out,
    fuse_link_in,
    fuse_rename2_in,
)
from cython.cimports.virtiofs.fuse.request import WOULD_BLOCK, Request
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stat_name(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    status: cython.pointer(statx_t),
) -> cython.int:
    """Look at a name on the host: 0 or a negative errno."""
    directory: cython.int
    error: cython.int = 0
    inode: cython.pointer(Inode) = inode_pin(cython.address(policing.share.inodes), parent)
    if inode == cython.NULL:
        return -ESTALE
    directory = inode_descriptor(cython.address(policing.share.inodes), inode)
    if directory < 0:
        error = directory
    elif statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, status) != 0:
        error = -errno
    inode_unpin(cython.address(policing.share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def meet(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    verdict: uint64_t,
) -> cython.void:
    """A name with a rule was met that the host is not asked about: if its file has others, the rule follows it."""
    status: statx_t
    if (
        verdict & FOLLOWS
        and stat_name(policing, parent, name, cython.address(status)) == 0
        and status.stx_nlink > 1
        and status.stx_mode & S_IFMT != S_IFDIR
    ):
        rule_file(policing, cython.address(policing.share.inodes), cython.address(status), verdict & FOLLOWS)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_directory(mode: uint32_t) -> cython.bint:
    return mode & S_IFMT == S_IFDIR


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def verdict_of_there(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    verdict: cython.pointer(Verdict),
    bits: cython.pointer(uint64_t),
    directory: cython.pointer(cython.bint),
) -> cython.int:
    """What holds for what has a name now, its own rule among it: 0, or a negative errno if there is nothing."""
    status: statx_t
    error: cython.int = stat_name(policing, parent, name, cython.address(status))
    if error:
        return error
    directory[0] = is_directory(status.stx_mode)
    bits[0] = verdict.directory if directory[0] else verdict.file
    bits[0] |= ruled_verdict(
        policing,
        device_of(cython.address(status)),
        status.stx_ino,
        birth_of(
            cython.address(policing.share.inodes),
            known_mount(cython.address(policing.share.inodes), cython.address(status)),
            cython.address(status),
        ),
    )
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_name(
    policing: cython.pointer(Policing),
    request: cython.pointer(Request),
    parent: uint64_t,
    which: cython.int,
    bits: uint64_t,
    hidden: cython.int,
) -> cython.int:
    """Whether the request's name may be made, given or removed where `bits` hold: 0, a negative errno, WOULD_BLOCK.

    `hidden`: what is said of a hidden one.
    """
    answer: cython.int
    if bits & HIDE:
        return -hidden
    if bits & DENY:
        return -EACCES
    if bits & READ_ONLY:
        return -EROFS
    if not bits & ASK:
        return 0
    answer = answer_name(policing, request, parent, request.names[which], request.name_sizes[which])
    return WOULD_BLOCK if answer == NOT_YET else judge(answer, CHANGE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_new(
    policing: cython.pointer(Policing),
    request: cython.pointer(Request),
    parent: uint64_t,
    which: cython.int,
    verdict: cython.pointer(Verdict),
) -> cython.int:
    """Whether the request's name may be given to something in `parent`, in place of what may have it.

    The answer is the same whether it is there or not, and whatever is to be made: EACCES for a hidden name.
    """
    there: uint64_t = 0
    directory: cython.bint = False
    mark: cython.pointer(Mark)
    error: cython.int = check_node(policing, request, parent, CHANGE)
    if not error:
        error = directory_mark(policing, parent, cython.address(mark))
    if error:
        return error
    name_verdict(policing.tables, mark.state, request.names[which], request.name_sizes[which], verdict)
    if load_acquire_u32(cython.address(policing.ruled_count)):
        error = verdict_of_there(
            policing,
            parent,
            request.names[which],
            verdict,
            cython.address(there),
            cython.address(directory),
        )
        if error and error != -ENOENT:
            return error
    return check_name(policing, request, parent, which, verdict.file | verdict.directory | there, EACCES)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_there(
    policing: cython.pointer(Policing),
    request: cython.pointer(Request),
    parent: uint64_t,
    which: cython.int,
    verdict: cython.pointer(Verdict),
) -> cython.int:
    """Whether the request's name may be taken away from what has it in `parent`.  ENOENT for a hidden one."""
    bits: uint64_t
    directory: cython.bint = False
    mark: cython.pointer(Mark)
    error: cython.int = check_node(policing, request, parent, CHANGE)
    if not error:
        error = directory_mark(policing, parent, cython.address(mark))
    if error:
        return error
    name_verdict(policing.tables, mark.state, request.names[which], request.name_sizes[which], verdict)
    bits = verdict.file
    if (verdict.file ^ verdict.directory) & STRICT or load_acquire_u32(cython.address(policing.ruled_count)):
        error = verdict_of_there(
            policing,
            parent,
            request.names[which],
            verdict,
            cython.address(bits),
            cython.address(directory),
        )
        if error:
            return error
    return check_name(policing, request, parent, which, bits, ENOENT)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def admit(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    verdict: cython.pointer(Verdict),
    entry: cython.pointer(fuse_entry_out),
) -> cython.int:
    """Let the guest have an inode that was looked up under `name` in a directory of `state`: 0, or a negative errno
    and the look-up is given back.
    """
    bits: uint64_t
    below: uint32_t = 0
    error: cython.int = 0
    directory: cython.bint = is_directory(entry.attr.mode)
    bits = verdict.directory if directory else verdict.file
    if not directory and bits & FOLLOWS and entry.attr.nlink > 1:
        meet(policing, parent, name, bits)
    if load_acquire_u32(cython.address(policing.ruled_count)):
        bits |= ruled_of(policing, entry.nodeid)
    if bits & HIDE:
        error = -ENOENT
    elif directory:
        below = state_below(policing.tables, state, name, size)
        if below == NO_STATE:
            error = -ENFILE
    if not error:
        error = set_mark(policing, entry.nodeid, directory, below, bits, parent, name, size)
    if error:
        inode_forget(cython.address(policing.share.inodes), entry.nodeid, 1)
        return error
    if bits:
        show(policing, bits, cython.address(entry.attr))
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ruled_of(policing: cython.pointer(Policing), nodeid: uint64_t) -> uint64_t:
    """The rule that follows an inode."""
    verdict: uint64_t
    inode: cython.pointer(Inode) = inode_pin(cython.address(policing.share.inodes), nodeid)
    if inode == cython.NULL:
        return HIDE
    verdict = ruled_verdict(policing, inode.dev, inode.ino, inode.born)
    inode_unpin(cython.address(policing.share.inodes), inode)
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lookup(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    verdict: Verdict
    mark: cython.pointer(Mark)
    parent: uint64_t = request.header.nodeid
    error: cython.int = check_node(policing, request, parent, USE)
    if not error:
        error = directory_mark(policing, parent, cython.address(mark))
    if error:
        return error
    name_verdict(
        policing.tables,
        mark.state,
        request.names[0],
        request.name_sizes[0],
        cython.address(verdict),
    )
    if verdict.file & verdict.directory & HIDE:
        meet(policing, parent, request.names[0], verdict.file)
        return -ENOENT
    error = go_on(policing, request)
    if error:
        return error
    return admit(
        policing,
        parent,
        mark.state,
        request.names[0],
        request.name_sizes[0],
        cython.address(verdict),
        cython.cast(cython.pointer(fuse_entry_out), request.reply),
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def admit_new(
    policing: cython.pointer(Policing), request: cython.pointer(Request), verdict: cython.pointer(Verdict)
) -> cython.int:
    """Let the guest have what it just made or linked under the request's first name: as `admit`."""
    mark: cython.pointer(Mark) = mark_of(policing, request.header.nodeid)
    entry: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    if mark == cython.NULL:
        inode_forget(cython.address(policing.share.inodes), entry.nodeid, 1)
        return -ESTALE
    return admit(
        policing,
        request.header.nodeid,
        mark.state,
        request.names[0],
        request.name_sizes[0],
        verdict,
        entry,
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """CREATE, MKNOD, MKDIR, SYMLINK.  CREATE of what is there after all opens it: a file with a rule of its own was
    refused before, or is now.
    """
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    verdict: Verdict
    mark: cython.pointer(Mark)
    out: cython.pointer(fuse_create_out) = cython.cast(cython.pointer(fuse_create_out), request.reply)
    error: cython.int = check_new(policing, request, request.header.nodeid, 0, cython.address(verdict))
    if not error:
        error = go_on(policing, request)
    if error:
        return error
    error = admit_new(policing, request, cython.address(verdict))
    if request.header.opcode != FUSE_CREATE:
        return error
    if not error:
        mark = mark_of(policing, out.entry.nodeid)
        if mark == cython.NULL or mark.verdict & FOLLOWS:
            inode_forget(cython.address(policing.share.inodes), out.entry.nodeid, 1)
            error = -EACCES
    if error:
        handle_release(cython.address(policing.share.handles), out.open.fh, False)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tmpfile(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A file without a name has the verdict of its directory; it was asked about there."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    out: cython.pointer(fuse_create_out) = cython.cast(cython.pointer(fuse_create_out), request.reply)
    mark: cython.pointer(Mark)
    verdict: uint64_t
    error: cython.int = check_node(policing, request, request.header.nodeid, CHANGE)
    if not error:
        error = directory_mark(policing, request.header.nodeid, cython.address(mark))
    if error:
        return error
    verdict = mark.verdict & ~cython.cast(uint64_t, STRICT)
    error = go_on(policing, request)
    if error:
        return error
    error = set_mark(policing, out.entry.nodeid, False, 0, verdict, 0, cython.NULL, 0)
    if error:
        inode_forget(cython.address(policing.share.inodes), out.entry.nodeid, 1)
        handle_release(cython.address(policing.share.handles), out.open.fh, False)
        return error
    show(policing, verdict, cython.address(out.entry.attr))
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def link(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Another name would take a file out of a rule: only what is plain gets one."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    verdict: Verdict
    source: uint64_t = cython.cast(cython.pointer(fuse_link_in), request.args).oldnodeid
    error: cython.int = check_node(policing, request, source, CHANGE)
    if not error:
        error = check_new(policing, request, request.header.nodeid, 0, cython.address(verdict))
    if not error:
        error = go_on(policing, request)
    return error if error else admit_new(policing, request, cython.address(verdict))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def remove(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    verdict: Verdict
    error: cython.int = check_there(policing, request, request.header.nodeid, 0, cython.address(verdict))
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rename(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A directory moves only to where the same holds for everything below it: else EXDEV, so that mv(1) copies."""
    policing: cython.pointer(Policing) = cython.cast(cython.pointer(Policing), context)
    args: cython.pointer(fuse_rename2_in) = cython.cast(cython.pointer(fuse_rename2_in), request.args)
    flags: uint32_t = args.flags if request.header.opcode == FUSE_RENAME2 else 0
    old: Verdict
    new: Verdict
    error: cython.int = check_there(policing, request, request.header.nodeid, 0, cython.address(old))
    if not error:
        error = check_new(policing, request, args.newdir, 1, cython.address(new))
    if not error and flags & RENAME_EXCHANGE:
        error = check_new(policing, request, request.header.nodeid, 0, cython.address(old))
        if not error:
            error = check_there(policing, request, args.newdir, 1, cython.address(new))
    if not error:
        error = check_state(policing, request, args.newdir, flags)
    return error if error else go_on(policing, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def check_state(
    policing: cython.pointer(Policing), request: cython.pointer(Request), newdir: uint64_t, flags: uint32_t
) -> cython.int:
    """0, or -EXDEV for a directory below which something else would hold at its new place."""
    status: statx_t
    tables: cython.pointer(Tables) = policing.tables
    mark: cython.pointer(Mark) = mark_of(policing, request.header.nodeid)
    target: cython.pointer(Mark) = mark_of(policing, newdir)
    below: uint32_t
    error: cython.int
    if mark == cython.NULL or target == cython.NULL:
        return -ESTALE
    below = state_below(tables, mark.state, request.names[0], request.name_sizes[0])
    if below != NO_STATE and below == state_below(
        tables, target.state, request.names[1], request.name_sizes[1]
    ):
        return 0
    error = stat_name(policing, request.header.nodeid, request.names[0], cython.address(status))
    if not error and not is_directory(status.stx_mode) and flags & RENAME_EXCHANGE:
        error = stat_name(policing, newdir, request.names[1], cython.address(status))
    if error:
        return error
    return -EXDEV if is_directory(status.stx_mode) else 0
