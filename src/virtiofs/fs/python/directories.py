# SPDX-License-Identifier: Apache-2.0
"""Steps of operations on directories.

A listing is what the method yielded when it began, so that telldir(3) and what is removed meanwhile are no concern of
the method's; the guest's handle is the listing's, and the method's is kept in it.
"""

import itertools
import stat

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING
from cython.cimports.libc.errno import EBADF, EINVAL, ENFILE, ENOENT
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.virtiofs.fs.python.calls import Calls
from cython.cimports.virtiofs.fs.python.packing import is_entry, put_entry, put_opened
from cython.cimports.virtiofs.fs.python.replies import Entry
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_FSYNC_FDATASYNC,
    FUSE_READDIRPLUS,
    fuse_dirent,
    fuse_direntplus,
    fuse_entry_out,
    fuse_fsync_in,
    fuse_open_out,
    fuse_read_in,
    fuse_release_in,
)
from cython.cimports.virtiofs.fuse.request import Request, scatter

# Open directories of a guest, entries in one listing, and in all that are kept; what is over is read again.
MOST_LISTINGS = cython.declare(cython.int, 4096)
MOST_ENTRIES = cython.declare(cython.int, 1 << 20)
MOST_LISTED = cython.declare(uint64_t, 4 << 20)
# d_ino of an entry whose inode number nobody knows yet; 0 would be skipped by readdir(3).
UNKNOWN_INO = cython.declare(uint64_t, 0xFFFFFFFF)


@cython.cclass
class Listing:
    """An open directory: the file system's handle, and what it yielded."""


@cython.cfunc
def entries_of(calls: Calls, listing: Listing) -> list:
    """Read a directory: (name, type, inode number) of each entry, with "." and ".." first."""
    found: list = [(b".", stat.S_IFDIR, listing.node), (b"..", stat.S_IFDIR, 0)]
    entries = calls.result(calls.fs.readdir(listing.node, listing.handle))
    for row in itertools.islice(entries, MOST_ENTRIES):
        name, mode, *number = row
        if not isinstance(name, bytes) or not 0 < len(name) <= 255 or b"/" in name or b"\0" in name:
            raise ValueError(f"readdir yields a name that is none: {name!r}")
        if name not in (b".", b".."):
            found.append((name, int(mode), int(number[0]) if number else 0))
    if len(found) > MOST_ENTRIES:
        raise ValueError(f"readdir yields more than {MOST_ENTRIES} entries")
    if calls.listed + len(found) > MOST_LISTED:
        for other in calls.listings.values():
            cython.cast(Listing, other).entries = None
        calls.listed = 0
    calls.listed += len(found)
    listing.entries = found
    return found


@cython.cfunc
@cython.exceptval(-1)
def opendir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_open_out) = cython.cast(cython.pointer(fuse_open_out), request.reply)
    if len(calls.listings) >= MOST_LISTINGS:
        raise OSError(ENFILE, "too many open directories")
    found = 0 if "opendir" in calls.absent else calls.result(calls.fs.opendir(request.header.nodeid))
    put_opened(out, found)
    listing = Listing()
    listing.node = request.header.nodeid
    listing.handle = out.fh
    out.fh = calls.next_listing
    calls.next_listing += 1
    calls.listings[out.fh] = listing
    request.reply_size = cython.sizeof(fuse_open_out)
    return 0


@cython.cfunc
def listing_of(calls: Calls, handle: uint64_t) -> Listing:
    listing = calls.listings.get(handle)
    if listing is None:
        raise OSError(EBADF, "no open directory")
    return listing


@cython.cfunc
@cython.exceptval(0)
def handle_of(calls: Calls, handle: uint64_t) -> uint64_t:
    """The file system's handle of an open directory."""
    return listing_of(calls, handle).handle


@cython.cfunc
@cython.exceptval(-1)
def releasedir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_release_in) = cython.cast(cython.pointer(fuse_release_in), request.args)
    listing: Listing = listing_of(calls, asked.fh)
    del calls.listings[asked.fh]
    if listing.entries is not None:
        calls.listed -= min(calls.listed, cython.cast(uint64_t, len(listing.entries)))
    if "releasedir" not in calls.absent:
        calls.result(calls.fs.releasedir(listing.node, listing.handle))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def fsyncdir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_fsync_in) = cython.cast(cython.pointer(fuse_fsync_in), request.args)
    listing: Listing = listing_of(calls, asked.fh)
    datasync = bool(asked.fsync_flags & FUSE_FSYNC_FDATASYNC)
    calls.result(calls.fs.fsyncdir(listing.node, listing.handle, datasync))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def readdir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    """READDIR and READDIRPLUS: each entry goes into the reply's room as it is packed."""
    asked: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    record: uint8_t[512]
    plus: cython.bint = request.header.opcode == FUSE_READDIRPLUS
    whole: cython.pointer(fuse_direntplus) = cython.cast(cython.pointer(fuse_direntplus), record)
    entry: cython.pointer(fuse_dirent)
    text: bytes
    position: uint64_t = asked.offset
    room: uint64_t = asked.size
    done: uint64_t = 0
    head: uint32_t
    size: uint32_t
    listing: Listing = listing_of(calls, asked.fh)
    entries: list = listing.entries
    if listing.node != request.header.nodeid:
        raise OSError(EBADF, "another directory's handle")
    if room > request.out_size:
        room = request.out_size
    if position == 0 or entries is None:
        if entries is not None:
            calls.listed -= min(calls.listed, cython.cast(uint64_t, len(entries)))
        entries = entries_of(calls, listing)
    request.in_place = True
    head = cython.sizeof(fuse_direntplus) if plus else cython.sizeof(fuse_dirent)
    entry = cython.address(whole.dirent) if plus else cython.cast(cython.pointer(fuse_dirent), record)
    while position < cython.cast(uint64_t, len(entries)):
        text, mode, number = entries[position]
        size = (head + cython.cast(uint32_t, len(text)) + 7) & ~cython.cast(uint32_t, 7)
        if done + size > room:
            if not done:
                raise OSError(EINVAL, "no room for an entry")
            break
        memset(record, 0, 512)
        entry.ino = number if number else UNKNOWN_INO
        if plus and text != b"." and text != b"..":
            try:
                found = look_up_entry(calls, request.header.nodeid, text)
                if found is None:  # it went away meanwhile
                    position += 1
                    continue
                put_entry(cython.address(whole.entry_out), found)
                if whole.entry_out.nodeid:
                    entry.ino = whole.entry_out.attr.ino
                else:  # as if it were not a READDIRPLUS: the guest asks when it wants to know
                    memset(cython.address(whole.entry_out), 0, cython.sizeof(fuse_entry_out))
            except Exception as error:
                # What was packed counts lookups that the guest must be told of.
                if not done:
                    raise
                calls.tell(request, error)
                break
        position += 1
        entry.off = position
        entry.namelen = len(text)
        entry.type = cython.cast(uint32_t, mode) >> 12 & 15
        memcpy(cython.address(record[head]), PyBytes_AS_STRING(text), len(text))
        scatter(record, cython.address(request.out), cython.address(request.out_count), size)
        done += size
    request.reply_size = cython.cast(uint32_t, done)
    return 0


@cython.cfunc
def look_up_entry(calls: Calls, node: uint64_t, name: bytes) -> Entry:
    """The entry of a listed name: None if it is gone, no node if there is another reason not to know."""
    try:
        return is_entry(calls.result(calls.fs.lookup(node, name)), "lookup")
    except OSError as error:
        if error.errno == ENOENT:
            return None
        return Entry(0, None)
