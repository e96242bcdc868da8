# SPDX-License-Identifier: Apache-2.0
"""For how long a guest may trust names and attributes: a mode's fixed time, or, with --cache adaptive, a tenth of the
time since the last change.

What has not changed for long will probably not change soon, as web caches and NFS assume.  When something changed
last is known from the metadata table (a directory's names, any inode) and from the inode's ctime; what is
changing right now gets no time at all.  The bound is the option's while somebody enters the host's changes into the
table, and else that of --cache auto, as the table then knows only what guests do.
"""

import cython
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.posix.time import timespec
from cython.cimports.virtiofs.fs.passthrough.changes import makedev, table_device
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.host import statx_t
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode
from cython.cimports.virtiofs.metadata.journal import boot_time, clock_gettime
from cython.cimports.virtiofs.metadata.layout import IN_PROGRESS
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u64, load_u32

SECOND = cython.declare(uint64_t, 1000000000)
PART = cython.declare(uint64_t, 10)  # of the time since the last change


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def known_age(view: cython.pointer(View), slot: uint64_t) -> uint64_t:
    """Nanoseconds since the table last knew of a change in a slot; 0 during one.

    Where it knows of none, since it was made.
    """
    now: uint64_t
    since: uint64_t
    everything: uint64_t
    if word_of(view, slot) & IN_PROGRESS:
        return 0
    since = load_acquire_u64(cython.address(view.slots[slot].changed_at))
    everything = load_acquire_u64(cython.address(view.header.everything_at))
    if everything > since:
        since = everything
    if since == 0:
        since = view.header.created
    now = boot_time()
    return now - since if now > since else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bounded(share: cython.pointer(Share), age: uint64_t) -> uint64_t:
    most: uint64_t = share.longest
    if most > share.valid and load_u32(cython.address(share.metadata.header.watcher)) == 0:
        most = share.valid
    return age // PART if age // PART < most else most


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def entry_validity(share: cython.pointer(Share), parent: cython.pointer(Inode)) -> uint64_t:
    """Nanoseconds for which a name in `parent` (NULL: it has no name) leads where it does."""
    if not share.adaptive:
        return share.valid
    if parent == cython.NULL:
        return 0
    return bounded(
        share,
        known_age(share.metadata, slot_of(share.metadata, table_device(parent.dev), parent.ino)),
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def attr_validity(share: cython.pointer(Share), status: cython.pointer(cython.const[statx_t])) -> uint64_t:
    """Nanoseconds for which the attributes in `status` are the inode's."""
    view: cython.pointer(View) = share.metadata
    time: timespec
    slot: uint64_t
    now: uint64_t
    changed: uint64_t
    age: uint64_t
    if not share.adaptive:
        return share.valid
    slot = slot_of(view, makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino)
    clock_gettime(CLOCK_REALTIME, cython.address(time))
    now = cython.cast(uint64_t, time.tv_sec) * SECOND + time.tv_nsec
    changed = cython.cast(uint64_t, status.stx_ctime.tv_sec) * SECOND + status.stx_ctime.tv_nsec
    if status.stx_ctime.tv_sec < 0 or now < changed:
        return 0  # of a future that a clock was set back from
    age = now - changed
    if word_of(view, slot) or load_acquire_u64(cython.address(view.header.everything_at)):
        changed = known_age(view, slot)
        if changed < age:
            age = changed
    return bounded(share, age)
