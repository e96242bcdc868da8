# SPDX-License-Identifier: Apache-2.0
"""What the guests of a share have added to the host's disk, and how much of it they may: the arithmetic of a quota.

The account lies in anonymous shared memory that the supervisor makes before it forks workers, so it outlives each
of them.  `used` is what was measured, `reserved` what requests in flight may come to need at most; their sum never
goes over the limit by a reservation.  A reservation ends after its outcome was added to `used`, in this order, so
nobody sees a moment at which neither holds it.

To measure a file before and after a change means something only if nobody else changes it in between: each file has
a lane, a lock chosen by its inode number; who has it may take it again.  A worker that dies with one in hand leaves it
usable (a robust mutex).
`quota.py` says what is measured when.
"""

import cython
from cython.cimports.libc.errno import ENOMEM, errno
from cython.cimports.libc.stdint import int64_t, uint64_t
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    STATX_BASIC_STATS,
    close,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u64,
    fetch_add_u64,
    fetch_sub_u64,
    load_acquire_u64,
    store_release_u64,
)

EOWNERDEAD = cython.declare(cython.int, 130)
# Below this the reservations that a request makes for the host's own blocks would be most of it.
LEAST = 1 << 20
MOST = 1 << 60


@cython.cclass
class Quota:
    """How many bytes the guests of a share may add (`limit`), and have added (`used`).

    Make it before the workers are forked.  Raises `ValueError` for a limit that makes no sense.
    """

    def __cinit__(self, limit: object):
        attributes: pthread_mutexattr_t
        i: cython.int
        if not LEAST <= limit <= MOST:
            raise ValueError(f"a quota is {LEAST} (1M) to {MOST} bytes, not {limit}")
        where: cython.p_void = mmap(
            cython.NULL,
            cython.sizeof(Account),
            PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS,
            -1,
            0,
        )
        if where == MAP_FAILED:
            raise OSError(errno if errno else ENOMEM, "cannot map the account of a quota")
        self.account = cython.cast(cython.pointer(Account), where)
        self.account.limit = limit
        pthread_mutexattr_init(cython.address(attributes))
        pthread_mutexattr_setpshared(cython.address(attributes), PTHREAD_PROCESS_SHARED)
        pthread_mutexattr_setrobust(cython.address(attributes), PTHREAD_MUTEX_ROBUST)
        pthread_mutexattr_settype(cython.address(attributes), PTHREAD_MUTEX_RECURSIVE)
        for i in range(LANES):
            pthread_mutex_init_with(cython.address(self.account.lanes[i]), cython.address(attributes))

    def __dealloc__(self):
        if self.account != cython.NULL:
            munmap(self.account, cython.sizeof(Account))

    @property
    def limit(self) -> int:
        return self.account.limit

    @property
    def used(self) -> int:
        return load_acquire_u64(cython.address(self.account.used))

    def recover(self) -> None:
        """Count what dead workers had reserved as used.  Only while no worker is alive."""
        fetch_add_u64(
            cython.address(self.account.used), load_acquire_u64(cython.address(self.account.reserved))
        )
        store_release_u64(cython.address(self.account.reserved), 0)

    # What tests ask.

    def set_aside(self, size: int) -> bool:
        """Set `size` bytes aside, if there are as many."""
        return reserve(self.account, size)

    def come_to(self, reserved: int, growth: int) -> None:
        """End a reservation that came to `growth` bytes, which may be negative."""
        settle(self.account, reserved, growth)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reserve(account: cython.pointer(Account), size: uint64_t) -> cython.bint:
    """Set `size` bytes aside for a request, if that keeps the limit."""
    taken: uint64_t
    used: uint64_t
    if size > account.limit:
        return False
    taken = fetch_add_u64(cython.address(account.reserved), size) + size
    used = load_acquire_u64(cython.address(account.used))
    if used <= account.limit and taken <= account.limit - used:
        return True
    fetch_sub_u64(cython.address(account.reserved), size)
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def settle(account: cython.pointer(Account), reserved: uint64_t, growth: int64_t) -> cython.void:
    """End a reservation: it came to `growth` bytes."""
    if growth > 0:
        fetch_add_u64(cython.address(account.used), growth)
    elif growth < 0:
        give_back(account, -growth)
    if reserved:
        fetch_sub_u64(cython.address(account.reserved), reserved)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def give_back(account: cython.pointer(Account), size: uint64_t) -> cython.void:
    """Take `size` bytes off what is used.

    Never below zero: what was there before is not the guest's to trade in, and might not even become free (the
    host may have it open, or share its blocks with other files).
    """
    used: uint64_t
    while True:
        used = load_acquire_u64(cython.address(account.used))
        if cas_u64(cython.address(account.used), used, used - size if used > size else 0):
            return


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lock_lane(mutex: cython.pointer(pthread_mutex_t)) -> cython.void:
    if pthread_mutex_lock(mutex) == EOWNERDEAD:
        pthread_mutex_consistent(mutex)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lane_of(ino: uint64_t) -> cython.int:
    return ((ino * cython.cast(uint64_t, 0x9E3779B97F4A7C15)) >> 32) % LANES


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lock_lanes(account: cython.pointer(Account), one: uint64_t, two: uint64_t) -> cython.void:
    """Keep others from changing the files with these inode numbers, which may be the same."""
    low: cython.int = lane_of(one)
    high: cython.int = lane_of(two)
    if low > high:
        low, high = high, low
    lock_lane(cython.address(account.lanes[low]))
    if high != low:
        lock_lane(cython.address(account.lanes[high]))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def unlock_lanes(account: cython.pointer(Account), one: uint64_t, two: uint64_t) -> cython.void:
    low: cython.int = lane_of(one)
    high: cython.int = lane_of(two)
    pthread_mutex_unlock(cython.address(account.lanes[low]))
    if high != low:
        pthread_mutex_unlock(cython.address(account.lanes[high]))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def close_removed(account: cython.pointer(Account), fd: cython.int) -> cython.void:
    """Close the last descriptor of a file that was removed, and give its bytes back.

    It may have got a name again since (LINK of an O_TMPFILE): then it stays, and so does its charge.
    """
    status: statx_t
    known: cython.bint = statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, cython.address(status)) == 0
    close(fd)
    if known and status.stx_nlink == 0:
        give_back(account, status.stx_blocks * 512 + INODE_BYTES_EACH)
