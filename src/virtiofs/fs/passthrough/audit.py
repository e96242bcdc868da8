# SPDX-License-Identifier: Apache-2.0
"""What the guest did, told to a process outside the worker (daemon/audit.py): one message for each request.

`watch` stands in front of all operations, the policy and the quota among them.  When a request is done, it sends a
record over a socket that keeps messages apart, before the guest gets its reply.  What was sent can not be taken back,
by whoever runs code here.  If the socket is full, the request waits; or, with `note`, it is counted in memory that the
writer reads.  If nobody reads any more, what is to be recorded is refused with EIO.
"""

import struct

import cython
from cython.cimports.cpython.buffer import PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.libc.errno import EACCES, EAGAIN, EINTR, EIO, EPERM, EROFS, errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.time import clock_gettime, timespec
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.inodes import ROOT_INDEX, Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fs.passthrough.marks import path_of
from cython.cimports.virtiofs.fs.passthrough.policynodes import node_of
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_FH,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FSYNCDIR,
    FUSE_LINK,
    FUSE_READ,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_RELEASEDIR,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_SETATTR,
    FUSE_SYMLINK,
    FUSE_WRITE,
    fuse_copy_file_range_in,
    fuse_link_in,
    fuse_rename_in,
    fuse_setattr_in,
    fuse_write_out,
)
from cython.cimports.virtiofs.fuse.request import OPCODES, Handler, Request
from cython.cimports.virtiofs.virtqueue.atomics import fetch_add_u64

from virtiofs.fuse import abi

# time, node, inode number, bytes, opcode, error, uid, gid, pid, sizes of the paths, which were cut
RECORD = struct.Struct("=QQQQIiIIIHHHHI")
REFUSALS = "refusals"
# Operations whose structure begins with a handle.
BY_HANDLE = ("read", "write", "release", "fsync", "flush", "releasedir", "fsyncdir", "fallocate", "lseek", "ioctl",
             "getlk", "setlk", "setlkw", "readdir", "readdirplus")  # fmt: skip
handled = cython.declare(uint8_t[OPCODES])
named = cython.declare(uint8_t[OPCODES])


@cython.cfunc
def build() -> cython.void:
    for name in BY_HANDLE:
        handled[cython.cast(cython.int, abi.BY_NAME[name].opcode)] = 1
    for operation in abi.OPERATIONS:
        named[cython.cast(cython.int, operation.opcode)] = abi.NAME in operation.names


build()


@cython.cclass
class Audit:
    """Tells `fd` of `operations` (their names, and `REFUSALS`: whatever is refused).

    `note`: count what finds no room in `lost`, 8 bytes of memory shared with who reads, instead of waiting.  `log` is
    told when nobody reads.  Raises `ValueError` for an operation that there is not.
    """

    def __cinit__(self, fd: int, operations: object, note: bool, lost: object, log: object):
        view: Py_buffer
        auditing: cython.pointer(Auditing) = cython.address(self.auditing)
        auditing.fd = fd
        auditing.note = note
        self.log = log
        self.lost = lost
        auditing.log = cython.cast(cython.p_void, self.log)
        PyObject_GetBuffer(lost, cython.address(view), PyBUF_WRITABLE)
        auditing.lost = cython.cast(cython.pointer(uint64_t), view.buf)
        PyBuffer_Release(cython.address(view))  # an mmap stays where it is as long as there is one
        for name in operations:
            if name == REFUSALS:
                auditing.refusals = True
            elif name in abi.BY_NAME:
                auditing.wanted[cython.cast(cython.int, abi.BY_NAME[name].opcode)] = 1
            else:
                raise ValueError(f"there is no operation {name}")
        for operation in abi.OPERATIONS:
            auditing.changes[cython.cast(cython.int, operation.opcode)] = operation.flags & abi.MUTATES != 0

    @cython.cfunc
    def begin(self, share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
        """Stand in front of the handlers in `table`."""
        opcode: cython.int
        share.auditing = cython.address(self.auditing)
        for opcode in range(OPCODES):
            self.auditing.inner[opcode] = table[opcode]
            if table[opcode] != cython.NULL and (self.auditing.wanted[opcode] or self.auditing.refusals):
                table[opcode] = watch


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def watch(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Serve a request, and tell of it.  A share that is read-only refuses here what is refused elsewhere before."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    auditing: cython.pointer(Auditing) = cython.cast(cython.pointer(Auditing), share.auditing)
    opcode: uint32_t = request.header.opcode
    error: cython.int
    refused: cython.bint
    nodeid: uint64_t
    if auditing.broken and auditing.wanted[opcode]:
        return -EIO
    nodeid = node_named(share, request)
    if share.read_only and auditing.changes[opcode]:
        error = -EROFS
    else:
        error = auditing.inner[opcode](context, request)
    if error > 0:
        return error  # it is not done yet
    refused = auditing.refusals and (error == -EACCES or error == -EPERM or error == -EROFS)
    if (auditing.wanted[opcode] or refused) and not tell(share, auditing, request, nodeid, error):
        return -EIO
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def node_named(share: cython.pointer(Share), request: cython.pointer(Request)) -> uint64_t:
    """The node that a request is about: that of its handle, if it has one, whatever it says besides."""
    opcode: uint32_t = request.header.opcode
    fh: uint64_t = 0
    nodeid: uint64_t = 0
    copied: cython.pointer(fuse_copy_file_range_in)
    if handled[opcode]:
        memcpy(cython.address(fh), request.args, 8)
        nodeid = node_of(
            share,
            request,
            fh,
            opcode in (FUSE_READDIR, FUSE_READDIRPLUS, FUSE_RELEASEDIR, FUSE_FSYNCDIR),
        )
    elif opcode in (FUSE_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE_64):
        copied = cython.cast(cython.pointer(fuse_copy_file_range_in), request.args)
        nodeid = node_of(share, request, copied.fh_out, False)
    elif (
        opcode == FUSE_SETATTR and cython.cast(cython.pointer(fuse_setattr_in), request.args).valid & FATTR_FH
    ):
        fh = cython.cast(cython.pointer(fuse_setattr_in), request.args).fh
        nodeid = node_of(share, request, fh, False)
    return nodeid if nodeid else request.header.nodeid


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def put_path(
    share: cython.pointer(Share),
    nodeid: uint64_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    record: cython.pointer(Record),
    which: cython.int,
    where: cython.p_char,
) -> cython.void:
    """Write the path of a node, or of a name in it, to `where` (PATH_CUT bytes); what has none is left empty."""
    path: cython.char[4400]
    length: cython.Py_ssize_t = 0
    fd: cython.int
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    record.sizes[which] = 0
    if inode != cython.NULL:
        if which == 0:
            record.ino = inode.ino
        if cython.cast(uint32_t, nodeid) != ROOT_INDEX:
            fd = inode_descriptor(cython.address(share.inodes), inode)
            length = fd if fd < 0 else path_of(share, fd, path)
            if length <= 0:
                length = -1
        inode_unpin(cython.address(share.inodes), inode)
    else:
        length = -1
    if name != cython.NULL and length >= 0:
        if length:
            path[length] = ord("/")
            length += 1
        memcpy(path + length, name, size)
        length += size
    elif name != cython.NULL:
        memcpy(path, name, size)
        length = size
        record.cut |= 1 << which
    elif length == 0:
        path[0] = ord(".")
        length = 1
    if length < 0:
        return
    if length > PATH_CUT:
        length = PATH_CUT
        record.cut |= 1 << which
    memcpy(where, path, length)
    record.sizes[which] = cython.cast(uint16_t, length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tell(
    share: cython.pointer(Share),
    auditing: cython.pointer(Auditing),
    request: cython.pointer(Request),
    nodeid: uint64_t,
    error: cython.int,
) -> cython.bint:
    """Send the record of a request that is done.  False if nobody reads."""
    record: Record
    first: cython.char[1700]
    second: cython.char[1700]
    opcode: uint32_t = request.header.opcode
    time: timespec
    source: uint64_t
    memset(cython.address(record), 0, cython.sizeof(Record))
    clock_gettime(CLOCK_REALTIME, cython.address(time))
    record.time = cython.cast(uint64_t, time.tv_sec) * 1000000000 + time.tv_nsec
    record.nodeid = nodeid
    record.opcode = opcode
    record.error = error
    record.uid = request.header.uid
    record.gid = request.header.gid
    record.pid = request.header.pid
    if opcode == FUSE_LINK:
        source = cython.cast(cython.pointer(fuse_link_in), request.args).oldnodeid
        put_path(share, source, cython.NULL, 0, cython.address(record), 0, first)
        put_path(share, nodeid, request.names[0], request.name_sizes[0], cython.address(record), 1, second)
    elif named[opcode]:
        put_path(share, nodeid, request.names[0], request.name_sizes[0], cython.address(record), 0, first)
    else:
        put_path(share, nodeid, cython.NULL, 0, cython.address(record), 0, first)
    if opcode in (FUSE_RENAME, FUSE_RENAME2):
        put_path(
            share,
            cython.cast(cython.pointer(fuse_rename_in), request.args).newdir,
            request.names[1],
            request.name_sizes[1],
            cython.address(record),
            1,
            second,
        )
    elif opcode == FUSE_SYMLINK:
        record.sizes[1] = PATH_CUT if request.name_sizes[1] > PATH_CUT else request.name_sizes[1]
        record.cut |= (request.name_sizes[1] > PATH_CUT) << 1
        memcpy(second, request.names[1], record.sizes[1])
    if not error:
        if opcode in (FUSE_WRITE, FUSE_COPY_FILE_RANGE):
            record.bytes = cython.cast(cython.pointer(fuse_write_out), request.reply).size
        elif opcode == FUSE_COPY_FILE_RANGE_64:
            memcpy(cython.address(record.bytes), request.reply, 8)
        elif opcode == FUSE_READ:
            record.bytes = request.reply_size
    return send(auditing, cython.address(record), first, second)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def send(
    auditing: cython.pointer(Auditing),
    record: cython.pointer(Record),
    first: cython.p_char,
    second: cython.p_char,
) -> cython.bint:
    pieces: iovec[3]
    message: msghdr
    flags: cython.int = MSG_NOSIGNAL | (MSG_DONTWAIT if auditing.note else 0)
    pieces[0].iov_base = record
    pieces[0].iov_len = cython.sizeof(Record)
    pieces[1].iov_base = first
    pieces[1].iov_len = record.sizes[0]
    pieces[2].iov_base = second
    pieces[2].iov_len = record.sizes[1]
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    message.msg_iov = pieces
    message.msg_iovlen = 3
    while sendmsg(auditing.fd, cython.address(message), flags) < 0:
        if errno == EAGAIN and auditing.note:
            fetch_add_u64(auditing.lost, 1)
            return True
        if errno != EINTR:
            if not auditing.broken:
                auditing.broken = True
                with cython.gil:
                    complain(auditing)
            return False
    return True


@cython.cfunc
@cython.exceptval(check=False)
def complain(auditing: cython.pointer(Auditing)) -> cython.int:
    try:
        cython.cast(object, auditing.log)(
            "nobody writes the audit any more: what it should hold is refused with EIO; start the daemon again"
        )
    except BaseException:
        pass  # there is nobody to tell
    return 0
