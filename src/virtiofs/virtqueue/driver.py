# SPDX-License-Identifier: Apache-2.0
"""The driver end of a split virtqueue (virtio 1.3, section 2.7).

`DriverQueue` lays the rings out in guest memory, places chains of any layout, and takes what the device used.
It keeps its own account of every chain and believes the device nothing: what comes back must be in flight and
no longer than the room that was given.  `load.py` drives one with many requests.

Memory at the queue's base address: descriptor table, available ring, used ring, then one indirect table per
descriptor, so that a chain's table needs no allocator.
"""

import cython
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memset
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
from cython.cimports.posix.unistd import close, write
from cython.cimports.virtiofs.virtqueue.atomics import (
    fence,
    load_acquire_u16,
    load_u16,
    store_release_u16,
    store_u16,
)
from cython.cimports.virtiofs.virtqueue.memory import GuestMemory, translate
from cython.cimports.virtiofs.virtqueue.split import (
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    virtq_desc,
    virtq_used_elem,
)


class DriverError(Exception):
    """The device broke the rules of the ring."""


class QueueFull(Exception):
    """There is no room for the chain until the device has used others."""


# What `take` and the loop of a load (load.py) return below zero, and what it means.
REASONS = {
    -1: "the device used more chains than are in flight",
    -2: "the device used a chain that is not in flight",
    -3: "the device says it wrote more bytes than the chain has room for",
    -4: "a reply's length differs from the used length, or is not the expected one",
    -5: "a reply carries an error, or not the expected one",
    -6: "a reply carries another request's number",
    -7: "no reply came in time",
    -8: "the queue has no room for the load's depth",
    -9: "the kick descriptor can not be written",
}
TOO_MANY_USED = cython.declare(cython.int, -1)
NOT_IN_FLIGHT = cython.declare(cython.int, -2)
TOO_MUCH_WRITTEN = cython.declare(cython.int, -3)


def _up(value: int, align: int) -> int:
    return (value + align - 1) // align * align


def memory_needed(size: int, indirect: int = 0) -> int:
    """Bytes of guest memory a `DriverQueue` of `size` descriptors takes with tables of `indirect` entries."""
    return _up(_up(16 * size + 6 + 2 * size, 4) + 6 + 8 * size, 16) + 16 * size * indirect


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def now() -> uint64_t:
    """The monotonic clock in nanoseconds."""
    t: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(t))
    return cython.cast(uint64_t, t.tv_sec) * 1000000000 + cython.cast(uint64_t, t.tv_nsec)


@cython.cclass
class DriverQueue:
    """A queue of `size` descriptors (a power of two up to 32768) whose rings start at guest address `base`.

    `base`: a multiple of 16 with `memory_needed(size, indirect)` bytes after it; the rings are zeroed.
    `event_idx`: whether VIRTIO_F_EVENT_IDX was negotiated.
    `indirect`: entries of each indirect table; 0 where VIRTIO_F_INDIRECT_DESC was not negotiated.
    `kick_fd`, `call_fd`: eventfds to and from the device, -1 for none; they stay the caller's.
    `first`: where the ring indices begin, 0 to 65535; the device is told by SET_VRING_BASE.
    Raises `ValueError` for a size or place that can not be.  For one thread at a time.
    """

    def __cinit__(
        self,
        memory: GuestMemory,
        base: int,
        size: int,
        event_idx: bool = True,
        indirect: int = 0,
        kick_fd: int = -1,
        call_fd: int = -1,
        first: int = 0,
    ):
        self.epoll_fd = -1
        if not 1 <= size <= 32768 or size & (size - 1):
            raise ValueError(f"queue size {size} is not a power of two from 1 to 32768")
        if not 0 <= indirect <= 65536:
            raise ValueError(f"an indirect table of {indirect} entries: 0 to 65536 are possible")
        length: uint64_t = memory_needed(size, indirect)
        host: cython.pointer(uint8_t) = translate(cython.address(memory.map), base, length)
        if base % 16 or host == cython.NULL:
            raise ValueError(
                f"no place for a queue of {length} bytes at {base:#x}: not aligned, or outside memory"
            )
        memset(host, 0, memory_needed(size))  # tables are written before they are used
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.table_entries = indirect
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.desc_address = base
        self.avail_address = base + 16 * size
        self.used_address = base + _up(16 * size + 6 + 2 * size, 4)
        self.tables_address = base + memory_needed(size)
        self.desc = cython.cast(cython.pointer(virtq_desc), host)
        self.avail = host + (self.avail_address - self.desc_address)
        self.used = host + (self.used_address - self.desc_address)
        self.tables = cython.cast(
            cython.pointer(virtq_desc), host + (self.tables_address - self.desc_address)
        )
        self.following = cython.cast(cython.pointer(uint16_t), calloc(size, cython.sizeof(uint16_t)))
        self.flights = cython.cast(cython.pointer(Flight), calloc(size, cython.sizeof(Flight)))
        self.scratch = cython.cast(cython.pointer(Piece), calloc(max(size, indirect), cython.sizeof(Piece)))
        if self.following == cython.NULL or self.flights == cython.NULL or self.scratch == cython.NULL:
            raise MemoryError
        i: uint32_t
        for i in range(self.size):
            self.following[i] = i + 1
        self.free_count = size
        self.next_avail = first & 0xFFFF
        self.next_used = self.next_avail
        self.kicked = self.next_avail
        store_u16(self.avail + 2, self.next_avail)
        store_u16(self.used + 2, self.next_used)
        store_u16(self.used + 4 + 8 * self.size, self.next_used)  # where the device wants its first kick
        if call_fd >= 0:
            self._watch_calls()

    def _watch_calls(self) -> None:
        """Edge-triggered: each write to the call eventfd wakes once, and nobody has to read it."""
        event: epoll_event
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = 0
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if (
            self.epoll_fd < 0
            or epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.call_fd, cython.address(event)) != 0
        ):
            raise OSError(errno, f"cannot wait on the call descriptor {self.call_fd}")

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        free(self.following)
        free(self.flights)
        free(self.scratch)

    @property
    def in_flight(self) -> int:
        """Chains the device has not given back."""
        i: uint32_t
        count: uint32_t = 0
        for i in range(self.size):
            count += self.flights[i].busy
        return count

    # --- placing chains ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def place(
        self, pieces: cython.pointer(cython.const[Piece]), readable: uint32_t, writable: uint32_t
    ) -> int64_t:
        """Write and publish one chain: its head, or -1 when the ring has no room.

        An indirect table is used for two pieces and more, as Linux does; a chain that no table holds goes
        direct.
        """
        count: uint32_t = readable + writable
        slots: uint32_t = 1 if 2 <= count <= self.table_entries else count
        head: uint16_t = self.free_head
        index: uint16_t = head
        i: uint32_t
        table: cython.pointer(virtq_desc) = self.desc
        room: uint64_t = 0
        if slots > self.free_count:
            return -1
        if slots < count:
            table = self.tables + cython.cast(uint64_t, head) * self.table_entries
            self.desc[head].addr = self.tables_address + cython.cast(uint64_t, head) * self.table_entries * 16
            self.desc[head].len = count * 16
            self.desc[head].flags = VIRTQ_DESC_F_INDIRECT
            self.desc[head].next = 0
            self.free_head = self.following[head]
            index = 0
        for i in range(count):
            table[index].addr = pieces[i].address
            table[index].len = pieces[i].length
            table[index].flags = (VIRTQ_DESC_F_WRITE if i >= readable else 0) | (
                VIRTQ_DESC_F_NEXT if i + 1 < count else 0
            )
            if i >= readable:
                room += pieces[i].length
            if slots < count:
                table[index].next = index + 1 if i + 1 < count else 0
                index += 1
            else:
                table[index].next = self.following[index] if i + 1 < count else 0
                self.free_head = self.following[index]
                index = self.following[index]
        self.free_count -= slots
        self.flights[head].busy = True
        self.flights[head].descriptors = slots
        self.flights[head].room = room
        store_u16(self.avail + 4 + 2 * (self.next_avail & (self.size - 1)), head)
        self.next_avail += 1
        store_release_u16(self.avail + 2, self.next_avail)
        return head

    def add(self, readable: list, writable: list) -> int:
        """Make a chain of pieces `(guest address, length)` available; its head, which names it until used.

        Raises `QueueFull`, or `ValueError` for a chain the queue can never hold.
        """
        count: uint32_t = len(readable) + len(writable)
        if count == 0 or count > max(self.size, self.table_entries):
            raise ValueError(f"a chain of {count} pieces does not fit a queue of {self.size}")
        i: uint32_t
        for i, (address, length) in enumerate([*readable, *writable]):
            self.scratch[i].address = address
            self.scratch[i].length = length
        head: int64_t = self.place(self.scratch, len(readable), len(writable))
        if head < 0:
            raise QueueFull(f"{count} pieces, {self.free_count} of {self.size} descriptors are free")
        return head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wants_kick(self) -> cython.bint:
        """Whether the device asked to be told of what was placed since the last call (section 2.7.10)."""
        old: uint16_t = self.kicked
        new: uint16_t = self.next_avail
        event: uint16_t
        fence()  # the available index must be visible before the device's wish is read
        if not self.event_idx:
            return not load_u16(self.used) & VIRTQ_USED_F_NO_NOTIFY
        event = load_u16(self.used + 4 + 8 * self.size)
        self.kicked = new
        return cython.cast(uint16_t, new - event - 1) < cython.cast(uint16_t, new - old)

    def kick_needed(self) -> bool:
        """Whether the device wants a kick for the chains added since the last call."""
        return self.wants_kick()

    def kick(self) -> None:
        """Kick the device, wanted or not.  Raises `OSError`."""
        one: uint64_t = 1
        if write(self.kick_fd, cython.address(one), 8) != 8:
            raise OSError(errno, f"cannot write the kick descriptor {self.kick_fd}")

    # --- taking used chains ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self) -> cython.int:
        """Take the next used chain into `taken_*`: 1, 0 if there is none, or a negative reason."""
        element: cython.pointer(virtq_used_elem)
        flight: cython.pointer(Flight)
        last: uint16_t
        pending: uint16_t = load_acquire_u16(self.used + 2) - self.next_used
        if pending == 0:
            return 0
        if pending > cython.cast(uint16_t, self.next_avail - self.next_used):
            return TOO_MANY_USED
        element = cython.cast(
            cython.pointer(virtq_used_elem), self.used + 4 + 8 * (self.next_used & (self.size - 1))
        )
        self.taken_head = element.id
        self.taken_length = element.len
        if self.taken_head >= self.size or not self.flights[self.taken_head].busy:
            return NOT_IN_FLIGHT
        flight = cython.address(self.flights[self.taken_head])
        if self.taken_length > flight.room:
            return TOO_MUCH_WRITTEN
        last = self.taken_head
        for _i in range(flight.descriptors - 1):
            last = self.following[last]
        self.following[last] = self.free_head
        self.free_head = self.taken_head
        self.free_count += flight.descriptors
        flight.busy = False
        self.next_used += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def arm(self) -> cython.bint:
        """Ask to be called for the next used chain; True if one is there already (then do not sleep)."""
        if self.event_idx:
            store_u16(self.avail + 4 + 2 * self.size, self.next_used)
        else:
            store_u16(self.avail, 0)
        fence()  # the wish must be visible before the used index is read again
        return load_acquire_u16(self.used + 2) != self.next_used

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """Ask not to be called.  With the event index this is a hint that lapses after 65536 chains."""
        if self.event_idx:
            store_u16(self.avail + 4 + 2 * self.size, self.next_used - 1)
        else:
            store_u16(self.avail, VIRTQ_AVAIL_F_NO_INTERRUPT)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self, milliseconds: cython.int) -> cython.int:
        """Wait for a call: 1, or 0 when the time is over."""
        event: epoll_event
        found: cython.int = epoll_wait(self.epoll_fd, cython.address(event), 1, milliseconds)
        return found if found >= 0 else errno == EINTR

    def poll(self) -> tuple | None:
        """The next used chain as `(head, used length)`, or None.  Raises `DriverError`."""
        found: cython.int = self.take()
        if found < 0:
            raise DriverError(
                f"{REASONS[found]}: used index {load_u16(self.used + 2)}, ours {self.next_used},"
                f" id {self.taken_head}, length {self.taken_length}"
            )
        return (self.taken_head, self.taken_length) if found else None

    def wait(self, timeout: float) -> tuple | None:
        """As `poll`, but waits up to `timeout` seconds for the device to call; None when the time is over."""
        deadline: uint64_t = now() + cython.cast(uint64_t, timeout * 1e9)
        left: int64_t
        if self.epoll_fd < 0:
            raise ValueError("a queue without a call descriptor can only be polled")
        while True:
            found = self.poll()
            if found is not None or self.arm():
                if found is not None:
                    return found
                continue
            left = cython.cast(int64_t, deadline - now())
            if left <= 0:
                return None
            milliseconds: cython.int = cython.cast(cython.int, min(left // 1000000 + 1, 1000000))
            with cython.nogil:
                self.sleep(milliseconds)
