# SPDX-License-Identifier: Apache-2.0
"""A request becomes a call of a method, and its result a reply.

The one handler of all operations (`enter`) leaves the queue's thread first, if there is a pool; then it takes the
GIL and goes through a table of *steps*, a function for each operation that unpacks its structure, calls the method
and packs the result (names.py, attributes.py, files.py, directories.py).  FORGET is called at once, on whatever
thread, so that it waits for no method.

Whatever a step raises ends here: an `OSError` is its errno, all else is the method's mistake, which is logged with
its request and is EIO for the guest.
"""

import inspect

import cython
from cython.cimports.libc.errno import EAGAIN, EIO
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.virtiofs.fs.python import attributes, directories, files, locks, names
from cython.cimports.virtiofs.fs.python.calls import Calls, Step
from cython.cimports.virtiofs.fs.python.packing import caller_of, node_of, set_epoch
from cython.cimports.virtiofs.fuse import layout
from cython.cimports.virtiofs.fuse.request import OPCODES, WAIT, WOULD_BLOCK, Request

from virtiofs.fs.python.calls import METHODS, NAMES
from virtiofs.fs.python.filesystem import CHANGING, OPERATIONS, Life
from virtiofs.fs.python.paths import PathFilesystem, PathNodes

INIT_FLAGS = (
    layout.FUSE_ASYNC_READ
    | layout.FUSE_BIG_WRITES
    | layout.FUSE_AUTO_INVAL_DATA
    | layout.FUSE_ASYNC_DIO
    | layout.FUSE_PARALLEL_DIROPS
    | layout.FUSE_DO_READDIRPLUS
    | layout.FUSE_READDIRPLUS_AUTO
    | layout.FUSE_NO_OPEN_SUPPORT
    | layout.FUSE_NO_EXPORT_SUPPORT
)
MAX_THREADS = 64
# Methods that are done without where they are absent.
ALWAYS = ("opendir", "releasedir", "open", "statfs", "release")
# Requests that take one of several methods, or that a method of another name answers.
ANY_OF = {
    "setlk": {"setlk", "flock"},
    "getlk": {"getlk"},
    "flush": {"flush", "setlk"},
    "statx": {"birth_times"},
}
# Called on whatever thread took the request, as they never wait.
AT_ONCE = ("forget", "getlk", "setlk")
LOOPS = {"asyncio": "Awaiting", "trio": "TrioAwaiting"}


@cython.cclass
class Bridge(Calls):
    """Serves `filesystem`.  `log` is given a line for each mistake of it; `directory`: what `start` is told.

    `epoch`: it is the so-many-th that serves its mount, 1 to 65535; 0: there is no other.

    Raises `ValueError` for settings that make no sense, and whatever `start` raises.
    """

    def __cinit__(
        self, filesystem: object, log: object, directory: str = "", read_only: bool = False, epoch: int = 0
    ):
        i: cython.int
        set_epoch(epoch)
        self.life = filesystem
        self.log = log
        self.listings = {}
        self.next_listing = (cython.cast(uint64_t, epoch) << 48) + 1
        self.told = {}
        paths: bool = isinstance(filesystem, PathFilesystem)
        loop: object = filesystem.loop
        if loop is None and any(
            is_async(getattr(filesystem, name)) for name in OPERATIONS if hasattr(filesystem, name)
        ):
            loop = "asyncio"
        if loop is not None:
            if loop not in LOOPS:
                raise ValueError(f'`loop` is "asyncio" or "trio", not {loop!r}')
            from virtiofs.fs.python import awaiting

            self.awaiting = getattr(awaiting, LOOPS[loop])()
        self.told_who = type(filesystem).asked_by is not Life.asked_by
        self.fs = PathNodes(filesystem, self.awaiting) if paths else filesystem
        there: frozenset = self.fs.implemented()
        self.absent = frozenset(OPERATIONS - there)
        threads: object = filesystem.threads
        if not isinstance(threads, int) or not 0 <= threads <= MAX_THREADS:
            raise ValueError(f"`threads` is 0 to {MAX_THREADS}, not {threads!r}")
        self.pool_threads = threads
        self.few_readers = True  # as one at a time holds the GIL
        changes: object = filesystem.read_only
        self.read_only = read_only or (not there & CHANGING if changes is None else bool(changes))
        self.init_flags = INIT_FLAGS
        if "setlk" in there:
            self.init_flags |= layout.FUSE_POSIX_LOCKS
        if "flock" in there:
            self.init_flags |= layout.FUSE_FLOCK_LOCKS
        if "ioctl" in there:
            self.init_flags |= layout.FUSE_HAS_IOCTL_DIR
        if filesystem.birth_times:
            there |= {"birth_times"}
        self.context = cython.cast(cython.p_void, self)
        self.reset = drop_all
        if self.awaiting is not None:
            self.interrupted = interrupt
        fill_steps(self.steps)
        for i in range(OPCODES):
            name = NAMES.get(i, "")
            name = METHODS.get(name, name)
            if self.steps[i] != cython.NULL and (name in ALWAYS or ANY_OF.get(name, {name}) & there):
                self.table[i] = enter_at_once if name in AT_ONCE else enter
        filesystem.start(directory)

    def close(self) -> None:
        """The end: nothing is called any more."""
        if self.awaiting is not None:
            self.awaiting.close()
        if self.life._notifier is not None:
            self.life._notifier.close()
        self.life.close()

    def use_notifications(self, send: object) -> None:
        """Let the file system tell the guest's kernel by `send` what it is to forget."""
        from virtiofs.fs.python.notifying import Notifier

        self.life._notifier = Notifier(send, self.log, self.next_listing >> 48)

    @cython.cfunc
    @cython.exceptval(check=False)
    def serve(self, request: cython.pointer(Request)) -> cython.int:
        """Call the request's step: 0 or a negative errno.  Whatever is raised ends here."""
        caught: object = None
        node: uint64_t = request.header.nodeid
        try:
            request.header.nodeid = node_of(node)
            if self.awaiting is not None:
                self.awaiting.serve(request.header.unique)
            if self.told_who:
                self.life.asked_by(caller_of(request))
            self.steps[request.header.opcode](self, request)
            return 0
        except OSError as error:
            code = error.errno
            if isinstance(code, int) and 0 < code < 512:
                if code == EAGAIN and request.header.opcode == layout.FUSE_SETLKW:
                    return WAIT
                return -cython.cast(cython.int, code)
            caught = error
        except BaseException as error:
            caught = error
        finally:
            request.header.nodeid = node  # as it may be asked again
        try:
            self.tell(request, caught)
        except BaseException:
            pass  # there is nobody to tell
        return -EIO


def is_async(method: object) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def enter(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Every operation that may take its time."""
    if request.no_wait:
        return WOULD_BLOCK
    return enter_at_once(context, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def enter_at_once(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    error: cython.int
    with cython.gil:
        error = cython.cast(Bridge, context).serve(request)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def drop_all(context: cython.p_void) -> cython.void:
    """The guest has nothing any more."""
    with cython.gil:
        tell_reset(cython.cast(Bridge, context))


@cython.cfunc
@cython.exceptval(check=False)
def tell_reset(bridge: Bridge) -> cython.void:
    try:
        bridge.listings.clear()
        bridge.listed = 0
        bridge.fs.reset()
    except BaseException as error:
        try:
            bridge.log(f"reset failed: {type(error).__name__}: {error}")
        except BaseException:
            pass  # there is nobody to tell


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def interrupt(context: cython.p_void, unique: uint64_t) -> cython.void:
    """The guest gives a request up."""
    with cython.gil:
        tell_interrupt(cython.cast(Bridge, context), unique)


@cython.cfunc
@cython.exceptval(check=False)
def tell_interrupt(bridge: Bridge, unique: uint64_t) -> cython.void:
    try:
        bridge.awaiting.interrupt(unique)
    except BaseException:
        pass  # the loop has ended


@cython.cfunc
@cython.exceptval(check=False)
def fill_steps(steps: cython.pointer(Step)) -> cython.void:
    steps[layout.FUSE_LOOKUP] = names.lookup
    steps[layout.FUSE_FORGET] = names.forget
    steps[layout.FUSE_BATCH_FORGET] = names.batch_forget
    steps[layout.FUSE_READLINK] = names.readlink
    steps[layout.FUSE_SYMLINK] = names.symlink
    steps[layout.FUSE_MKNOD] = names.mknod
    steps[layout.FUSE_MKDIR] = names.mkdir
    steps[layout.FUSE_UNLINK] = names.unlink
    steps[layout.FUSE_RMDIR] = names.rmdir
    steps[layout.FUSE_RENAME] = names.rename
    steps[layout.FUSE_RENAME2] = names.rename2
    steps[layout.FUSE_LINK] = names.link
    steps[layout.FUSE_GETATTR] = attributes.getattr_
    steps[layout.FUSE_SETATTR] = attributes.setattr_
    steps[layout.FUSE_ACCESS] = attributes.access
    steps[layout.FUSE_STATFS] = attributes.statfs
    steps[layout.FUSE_SETXATTR] = attributes.setxattr
    steps[layout.FUSE_GETXATTR] = attributes.getxattr
    steps[layout.FUSE_LISTXATTR] = attributes.listxattr
    steps[layout.FUSE_REMOVEXATTR] = attributes.removexattr
    steps[layout.FUSE_OPEN] = files.open_
    steps[layout.FUSE_CREATE] = files.create
    steps[layout.FUSE_TMPFILE] = files.tmpfile
    steps[layout.FUSE_READ] = files.read
    steps[layout.FUSE_WRITE] = files.write
    steps[layout.FUSE_FLUSH] = files.flush
    steps[layout.FUSE_RELEASE] = files.release
    steps[layout.FUSE_FSYNC] = files.fsync
    steps[layout.FUSE_FALLOCATE] = files.fallocate
    steps[layout.FUSE_LSEEK] = files.lseek
    steps[layout.FUSE_BMAP] = files.bmap
    steps[layout.FUSE_SYNCFS] = files.syncfs
    steps[layout.FUSE_COPY_FILE_RANGE] = files.copy_file_range
    steps[layout.FUSE_COPY_FILE_RANGE_64] = files.copy_file_range
    steps[layout.FUSE_IOCTL] = files.ioctl
    steps[layout.FUSE_POLL] = files.poll
    steps[layout.FUSE_STATX] = attributes.statx
    steps[layout.FUSE_GETLK] = locks.getlk
    steps[layout.FUSE_SETLK] = locks.setlk
    steps[layout.FUSE_SETLKW] = locks.setlk
    steps[layout.FUSE_OPENDIR] = directories.opendir
    steps[layout.FUSE_RELEASEDIR] = directories.releasedir
    steps[layout.FUSE_FSYNCDIR] = directories.fsyncdir
    steps[layout.FUSE_READDIR] = directories.readdir
    steps[layout.FUSE_READDIRPLUS] = directories.readdir
