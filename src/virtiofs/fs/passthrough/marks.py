# SPDX-License-Identifier: Apache-2.0
"""What a policy says of each inode that the guest knows, kept beside the inode store.

A *mark* belongs to the record of the same index, and holds for one life of it: whoever asks by a node id that has no
mark yet, because its look-up is not done or was refused, is told ESTALE.  A mark is written under a lock and read
without one.  A policy that came later (`policy.py`) has no marks of what the guest knew before: they are made when they
are first needed, by the path that the host's kernel says a file has.

Of a file with several names the strictest verdict that was met counts (`ruled.py`), and it follows the file as its
identity: device, inode number and birth time.

A guest can not change what holds below a directory (policynames.py refuses such a rename), but the host can: the path
of a directory is looked at again when it is used a second after the last time.
"""

import cython
from cython.cimports.libc.errno import EACCES, EIO, ENOMEM
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcmp, memcpy, strlen
from cython.cimports.posix.time import clock_gettime, timespec
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import device_of, inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    ESTALE,
    S_IFDIR,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    readlinkat,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    IDENTITY_MASK,
    ROOT_INDEX,
    Inode,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.ruled import rule_file, ruled_verdict
from cython.cimports.virtiofs.fs.policy.matcher import NO_STATE, Verdict, name_verdict, state_below
from cython.cimports.virtiofs.fuse.layout import FUSE_SETLK, FUSE_SETLKW
from cython.cimports.virtiofs.fuse.request import Request
from cython.cimports.virtiofs.virtqueue.atomics import (
    load_acquire_u32,
    load_acquire_u64,
    load_u32,
    store_release_u32,
    store_release_u64,
    store_u32,
    store_u64,
)

PATH_ROOM = cython.declare(cython.int, 4096)
LOOK_AGAIN = cython.declare(int64_t, 1_000_000_000)
# What the host's kernel puts behind the path of a file whose name was removed (d_path in fs/d_path.c).
REMOVED_SUFFIX = cython.declare(cython.p_char, b" (deleted)")
REMOVED_SIZE = cython.declare(cython.Py_ssize_t, 10)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def coarse_now() -> int64_t:
    """The monotonic clock as of the last tick, which costs next to nothing (ns)."""
    time: timespec
    clock_gettime(CLOCK_MONOTONIC_COARSE, cython.address(time))
    return cython.cast(int64_t, time.tv_sec) * 1000000000 + time.tv_nsec


# --- marks ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mark_of(policing: cython.pointer(Policing), nodeid: uint64_t) -> cython.pointer(Mark):
    """The mark of a node id, or NULL."""
    index: uint32_t = cython.cast(uint32_t, nodeid)
    mark: cython.pointer(Mark)
    if index >= policing.limit:
        return cython.NULL
    mark = cython.address(policing.marks[index])
    if load_acquire_u32(cython.address(mark.life)) != cython.cast(uint32_t, (nodeid >> 32) + 1):
        return cython.NULL
    return mark


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_mark(
    policing: cython.pointer(Policing),
    nodeid: uint64_t,
    directory: cython.bint,
    state: uint32_t,
    verdict: uint64_t,
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.int:
    """Note what holds for an inode that was found under `name` in `parent`: 0 or a negative errno.

    What was found strictly under another name stays so, but for a directory, which has one.
    """
    mark: cython.pointer(Mark) = mark_of(policing, nodeid)
    kept: cython.p_char = cython.NULL
    error: cython.int
    if (
        mark != cython.NULL
        and load_acquire_u64(cython.address(mark.verdict)) == verdict
        and mark.state == state
        and not verdict & ASK
        and not directory
    ):
        return 0
    if verdict & ASK and name != cython.NULL:
        error = keep_path(policing, parent, name, size, cython.address(kept))
        if error:
            return error
    write_mark(policing, nodeid, directory, state, verdict, kept)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_mark(
    policing: cython.pointer(Policing),
    nodeid: uint64_t,
    directory: cython.bint,
    state: uint32_t,
    verdict: uint64_t,
    kept: cython.p_char,
) -> cython.void:
    """As `set_mark`.  `kept`: the path of what is asked about, which is the mark's from now on, or NULL."""
    mark: cython.pointer(Mark) = cython.address(policing.marks[cython.cast(uint32_t, nodeid)])
    pthread_mutex_lock(cython.address(policing.lock))
    if mark.life != cython.cast(uint32_t, (nodeid >> 32) + 1):
        mark.until = mark.answer = 0
        store_u32(cython.address(mark.compared), 0)
    elif not directory:
        verdict |= mark.verdict & STRICT
    if kept != cython.NULL:
        free(mark.path)
        mark.path = kept
        if cython.cast(uint32_t, nodeid) >= policing.named:
            policing.named = cython.cast(uint32_t, nodeid) + 1
    store_u32(cython.address(mark.state), state)
    store_u64(cython.address(mark.checked), coarse_now())
    store_release_u64(cython.address(mark.verdict), verdict)
    store_release_u32(cython.address(mark.life), cython.cast(uint32_t, (nodeid >> 32) + 1))
    pthread_mutex_unlock(cython.address(policing.lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def known_mark(policing: cython.pointer(Policing), nodeid: uint64_t) -> cython.pointer(Mark):
    """The mark of a node id, made now if the guest knew it before there was this policy; or NULL."""
    mark: cython.pointer(Mark) = mark_of(policing, nodeid)
    if mark != cython.NULL or not policing.late or mark_anew(policing, nodeid) != 0:
        return mark
    return mark_of(policing, nodeid)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mark_anew(policing: cython.pointer(Policing), nodeid: uint64_t) -> cython.int:
    """Mark an inode by the path it has, or, if it was removed, had: 0 or a negative errno.

    ESTALE where no path leads to it: the guest's kernel looks the name up again, and that marks it.
    """
    path: cython.char[4096]
    size: cython.Py_ssize_t
    fd: cython.int
    error: cython.int = -ESTALE
    directory: cython.bint
    status: statx_t
    state: uint32_t = 0
    verdict: uint64_t = 0
    kept: cython.p_char = cython.NULL
    inode: cython.pointer(Inode) = inode_pin(cython.address(policing.share.inodes), nodeid)
    if inode == cython.NULL:
        return -ESTALE
    directory = inode.type == S_IFDIR
    fd = inode_descriptor(cython.address(policing.share.inodes), inode)
    if fd >= 0:
        size = named_path(policing, inode, fd, path, cython.address(status))
        if size > 0 and walk(policing, path, size, directory, cython.address(state), cython.address(verdict)):
            error = 0
    if not error and not directory and verdict & FOLLOWS and status.stx_nlink > 1:
        error = rule_file(
            policing, cython.address(policing.share.inodes), cython.address(status), verdict & FOLLOWS
        )
    if not error and verdict & ASK:
        error = copy_path(path, size, cython.address(kept))
    if not error:
        verdict |= ruled_verdict(policing, inode.dev, inode.ino, inode.born)
        write_mark(policing, nodeid, directory, state, verdict, kept)
    inode_unpin(cython.address(policing.share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def named_path(
    policing: cython.pointer(Policing),
    inode: cython.pointer(Inode),
    fd: cython.int,
    path: cython.p_char,
    status: cython.pointer(statx_t),
) -> cython.Py_ssize_t:
    """The path of an inode into `path`, relative to the shared directory, and its status: the path's size, or 0 if none
    leads to it.  Of one without any name left it is the last one.
    """
    size: cython.Py_ssize_t = path_of(policing.share, fd, path)
    if size <= 0:
        return 0
    if (
        statx(policing.share.root, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, status) == 0
        and status.stx_ino == inode.ino
        and device_of(status) == inode.dev
    ):
        return size
    if (
        statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, status) != 0
        or status.stx_nlink != 0
        or size <= REMOVED_SIZE
        or memcmp(path + size - REMOVED_SIZE, REMOVED_SUFFIX, REMOVED_SIZE) != 0
    ):
        return 0
    path[size - REMOVED_SIZE] = 0
    return size - REMOVED_SIZE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def compare_ruled(
    policing: cython.pointer(Policing), nodeid: uint64_t, mark: cython.pointer(Mark)
) -> cython.int:
    """Compare an inode with the files that have a rule of their own, if there are new ones: 0 or -ESTALE."""
    count: uint32_t = load_acquire_u32(cython.address(policing.ruled_count))
    inode: cython.pointer(Inode)
    verdict: uint64_t
    if load_u32(cython.address(mark.compared)) == count:
        return 0
    inode = inode_pin(cython.address(policing.share.inodes), nodeid)
    if inode == cython.NULL:
        return -ESTALE
    verdict = ruled_verdict(policing, inode.dev, inode.ino, inode.born)
    pthread_mutex_lock(cython.address(policing.lock))
    store_release_u64(cython.address(mark.verdict), mark.verdict | verdict)
    store_release_u32(cython.address(mark.compared), count)
    pthread_mutex_unlock(cython.address(policing.lock))
    inode_unpin(cython.address(policing.share.inodes), inode)
    return 0


# --- directories, and where they are ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def directory_mark(
    policing: cython.pointer(Policing), nodeid: uint64_t, mark: cython.pointer(cython.pointer(Mark))
) -> cython.int:
    """The mark of a directory, with a state that is right: 0 or a negative errno."""
    error: cython.int = 0
    time: int64_t
    mark[0] = known_mark(policing, nodeid)
    if mark[0] == cython.NULL:
        return -ESTALE
    if cython.cast(uint32_t, nodeid) == ROOT_INDEX:
        return 0
    time = coarse_now()
    if time - cython.cast(int64_t, load_acquire_u64(cython.address(mark[0].checked))) > LOOK_AGAIN:
        error = look_again(policing, nodeid, mark[0], time)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def look_again(
    policing: cython.pointer(Policing), nodeid: uint64_t, mark: cython.pointer(Mark), time: int64_t
) -> cython.int:
    """Find the path of a directory, and what holds there: 0 or a negative errno.

    A path that has no room (4095 bytes) leaves what was known by walking there; so does a directory that was removed.
    """
    path: cython.char[4096]
    size: cython.Py_ssize_t
    fd: cython.int
    error: cython.int = 0
    status: statx_t
    state: uint32_t = 0
    verdict: uint64_t = 0
    inode: cython.pointer(Inode) = inode_pin(cython.address(policing.share.inodes), nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = inode_descriptor(cython.address(policing.share.inodes), inode)
    if fd < 0:
        inode_unpin(cython.address(policing.share.inodes), inode)
        return fd
    size = path_of(policing.share, fd, path)
    if size >= 0:
        if (
            statx(
                policing.share.root,
                path,
                AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
                IDENTITY_MASK,
                cython.address(status),
            )
            != 0
            or status.stx_ino != inode.ino
            or device_of(cython.address(status)) != inode.dev
        ):
            # Removed, or moved out of the share.
            if (
                statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, cython.address(status)) != 0
                or status.stx_nlink != 0
            ):
                error = -ESTALE
        elif not walk(policing, path, size, True, cython.address(state), cython.address(verdict)):
            error = -EIO
        else:
            pthread_mutex_lock(cython.address(policing.lock))
            store_u32(cython.address(mark.state), state)
            store_release_u64(cython.address(mark.verdict), verdict)
            pthread_mutex_unlock(cython.address(policing.lock))
    inode_unpin(cython.address(policing.share.inodes), inode)
    if not error:
        store_u64(cython.address(mark.checked), time)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_of(share: cython.pointer(Share), fd: cython.int, path: cython.p_char) -> cython.Py_ssize_t:
    """The path of an open directory, relative to the shared one, into `path` (PATH_ROOM bytes): its size, -1 if it has
    no room, or 0 for what is not below the shared directory.
    """
    name: cython.char[16]
    root: cython.char[4096]
    size: cython.Py_ssize_t
    prefix: cython.Py_ssize_t
    snprintf(name, 16, b"%d", fd)
    size = readlinkat(share.proc, name, path, PATH_ROOM)
    snprintf(name, 16, b"%d", share.root)
    prefix = readlinkat(share.proc, name, root, PATH_ROOM)
    if size < 0 or size >= PATH_ROOM or prefix < 0 or prefix >= PATH_ROOM:
        return -1
    if prefix == 1:
        prefix = 0  # the root of everything
    if size <= prefix + 1 or memcmp(path, root, prefix) != 0 or path[prefix] != ord("/"):
        path[0] = 0
        return 0
    size -= prefix + 1
    memcpy(root, path + prefix + 1, size)
    memcpy(path, root, size)
    path[size] = 0
    return size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def walk(
    policing: cython.pointer(Policing),
    path: cython.p_char,
    size: cython.Py_ssize_t,
    directory: cython.bint,
    state: cython.pointer(uint32_t),
    verdict: cython.pointer(uint64_t),
) -> cython.bint:
    """State and verdict of the directory at `path`, or the verdict of a file.  False without room for a state."""
    found: Verdict
    start: cython.Py_ssize_t = 0
    end: cython.Py_ssize_t
    state[0] = 0
    while start < size:
        end = start
        while end < size and path[end] != ord("/"):
            end += 1
        name_verdict(policing.tables, state[0], path + start, end - start, cython.address(found))
        if end == size and not directory:
            verdict[0] = found.file
            return True
        verdict[0] = found.directory
        state[0] = state_below(policing.tables, state[0], path + start, end - start)
        if state[0] == NO_STATE:
            return False
        start = end + 1
    return True


# --- asking ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def may_wait(request: cython.pointer(Request)) -> cython.bint:
    """Whether this thread may wait for an answer.  A security context stays on the queue's thread (pool.py), and so
    does what may be set aside (waiting.py).
    """
    return (
        not request.no_wait
        or request.context_name != cython.NULL
        or request.header.opcode in (FUSE_SETLK, FUSE_SETLKW)
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def answer_node(
    policing: cython.pointer(Policing), request: cython.pointer(Request), mark: cython.pointer(Mark)
) -> cython.int:
    """What the policy's function says of an inode: bits of a verdict, a negative errno, or NOT_YET."""
    path: cython.char[4096]
    answer: cython.int
    size: cython.Py_ssize_t
    until: int64_t = 0
    if cython.cast(int64_t, load_acquire_u64(cython.address(mark.until))) > coarse_now():
        return mark.answer
    if not may_wait(request):
        return NOT_YET
    pthread_mutex_lock(cython.address(policing.lock))
    if mark.path == cython.NULL:
        pthread_mutex_unlock(cython.address(policing.lock))
        return -EACCES
    size = strlen(mark.path)
    memcpy(path, mark.path, size)
    pthread_mutex_unlock(cython.address(policing.lock))
    with cython.gil:
        answer = call_asker(policing, path, size, cython.address(until))
    pthread_mutex_lock(cython.address(policing.lock))
    mark.answer = answer
    store_release_u64(cython.address(mark.until), coarse_now() + until if until else 0)
    pthread_mutex_unlock(cython.address(policing.lock))
    return answer


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def answer_name(
    policing: cython.pointer(Policing),
    request: cython.pointer(Request),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.int:
    """As `answer_node`, of a name in a directory."""
    until: int64_t = 0
    path: cython.char[4096]
    length: cython.Py_ssize_t
    answer: cython.int
    if not may_wait(request):
        return NOT_YET
    length = path_below(policing, parent, name, size, path)
    if length < 0:
        return length
    with cython.gil:
        answer = call_asker(policing, path, length, cython.address(until))
    return answer


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_below(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    path: cython.p_char,
) -> cython.Py_ssize_t:
    """The path of a name in a directory into `path` (PATH_ROOM bytes): its size, or a negative errno."""
    length: cython.Py_ssize_t = 0
    fd: cython.int
    inode: cython.pointer(Inode)
    if cython.cast(uint32_t, parent) != ROOT_INDEX:
        inode = inode_pin(cython.address(policing.share.inodes), parent)
        if inode == cython.NULL:
            return -ESTALE
        fd = inode_descriptor(cython.address(policing.share.inodes), inode)
        length = fd if fd < 0 else path_of(policing.share, fd, path)
        inode_unpin(cython.address(policing.share.inodes), inode)
        if length <= 0 or length + size + 2 > PATH_ROOM:
            return -EACCES
        path[length] = ord("/")
        length += 1
    memcpy(path + length, name, size)
    return length + size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def keep_path(
    policing: cython.pointer(Policing),
    parent: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    kept: cython.pointer(cython.p_char),
) -> cython.int:
    """A copy of the path of a name in a directory, to be freed: 0 or a negative errno."""
    path: cython.char[4096]
    length: cython.Py_ssize_t = path_below(policing, parent, name, size, path)
    return length if length < 0 else copy_path(path, length, kept)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_path(
    path: cython.p_char, length: cython.Py_ssize_t, kept: cython.pointer(cython.p_char)
) -> cython.int:
    """A copy of a path, to be freed: 0 or -ENOMEM."""
    kept[0] = cython.cast(cython.p_char, malloc(length + 1))
    if kept[0] == cython.NULL:
        return -ENOMEM
    memcpy(kept[0], path, length)
    kept[0][length] = 0
    return 0


@cython.cfunc
@cython.exceptval(check=False)
def call_asker(
    policing: cython.pointer(Policing),
    path: cython.p_char,
    size: cython.Py_ssize_t,
    holds: cython.pointer(int64_t),
) -> cython.int:
    try:
        answer, nanoseconds = cython.cast(object, policing.asker).ask(path[:size])
        holds[0] = nanoseconds
        return answer
    except BaseException:
        return -EIO


# --- whose files are ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def show_owner(
    policing: cython.pointer(Policing),
    verdict: uint64_t,
    uid: cython.pointer(uint32_t),
    gid: cython.pointer(uint32_t),
) -> cython.void:
    """Put the owner that is shown in place of what is there.  The last list that has one decides."""
    users: uint64_t = verdict & policing.has_uid
    groups: uint64_t = verdict & policing.has_gid
    index: cython.int = MOST_LISTS - 1
    while index >= FIRST_OWNER and (users or groups):
        if users >> index & 1:
            uid[0] = policing.uids[index]
            users = 0
        if groups >> index & 1:
            gid[0] = policing.gids[index]
            groups = 0
        index -= 1
