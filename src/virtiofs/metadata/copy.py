# SPDX-License-Identifier: Apache-2.0
"""A guest's own copy of the words of a table: of those slots that it was told of, and of no others.

No front end keeps a guest from writing to what it maps (seen), so each guest gets a copy of its own, which nothing on
the host ever reads again.  A word goes into it in two ways: the worker puts there what its own guest changed, before
the request is answered, and a thread that follows the journal what others changed.

Both write by `show`, which never lets a word become older: words only grow (table.py).  When a slot is told for the
first time, its word is put down first and then looked at again; whoever changes the table's word looks at the copy
after that.  So one of the two sees the other, and no change is missed in between.
"""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.posix.mman import MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from cython.cimports.virtiofs.metadata.layout import VERSION_SHIFT
from cython.cimports.virtiofs.metadata.table import Table, slot_of, word_of
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u64,
    fence,
    fetch_add_u64,
    load_acquire_u64,
    store_release_u64,
)

from virtiofs.metadata import region

AT_MAGIC = cython.declare(uint64_t, region.AT_MAGIC)
AT_SLOTS = cython.declare(uint64_t, region.AT_SLOTS)
AT_EVERYTHING = cython.declare(uint64_t, region.AT_EVERYTHING)
WORDS_AT = cython.declare(uint64_t, region.HEADER_SIZE // 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def show_slot(copy: cython.pointer(Shown), slot: uint64_t) -> uint64_t:
    """Put the table's word of `slot` into the copy, whether the guest knew of it or not.  Returns what stands there."""
    place: cython.pointer(uint64_t) = copy.words + slot
    word: uint64_t = word_of(copy.view, slot) | SHOWN
    old: uint64_t = load_acquire_u64(place)
    while old < word:
        if cas_u64(place, old, word):
            fence()
            old = word
            word = word_of(copy.view, slot) | SHOWN
        else:
            old = load_acquire_u64(place)
    return old


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def renew_slot(copy: cython.pointer(Shown), slot: uint64_t) -> cython.void:
    """As `show`, but only if the guest was told of the slot.  After every change of the table's word."""
    fence()
    if load_acquire_u64(copy.words + slot):
        show_slot(copy, slot)


@cython.cclass
class Copy:
    """The copy of `table` for one guest, which shows nothing yet.  Raises `OSError` without memory for it.

    `fd`: the file to give to the front end, of `size` bytes, which can neither shrink nor grow.
    """

    def __cinit__(self, table: Table):
        self.table = table
        self.fd = -1
        self.size = region.size_of(table.slots)
        self.fd = os.memfd_create("virtiofs-versions", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        seal(self.fd)
        where: cython.p_void = mmap(cython.NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if where == MAP_FAILED:
            raise OSError(errno, "cannot map a guest's versions")
        self.header = cython.cast(cython.pointer(uint64_t), where)
        self.shown.words = self.header + WORDS_AT
        self.shown.view = cython.address(table.view)
        self.header[AT_SLOTS] = table.slots
        store_release_u64(self.header + AT_MAGIC, region.MAGIC)

    def __dealloc__(self):
        if self.header != cython.NULL:
            munmap(self.header, self.size)
        if self.fd >= 0:
            os.close(self.fd)

    def show(self, dev: int, ino: int) -> int:
        """Tell the guest of the inode's slot, and keep its word up to date from now on.  Returns the word as shown."""
        return show_slot(cython.address(self.shown), slot_of(self.shown.view, dev, ino))

    def renew(self, dev: int, ino: int) -> None:
        """The table's word of this inode has changed."""
        renew_slot(cython.address(self.shown), slot_of(self.shown.view, dev, ino))

    def renew_all(self) -> None:
        """Nobody knows which words of the table have changed."""
        slot: uint64_t
        with cython.nogil:
            for slot in range(self.shown.view.slot_mask + 1):
                renew_slot(cython.address(self.shown), slot)

    def change_everything(self) -> None:
        """Nothing holds that the guest knew before."""
        fetch_add_u64(self.header + AT_EVERYTHING, cython.cast(uint64_t, 1) << VERSION_SHIFT)


def seal(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
