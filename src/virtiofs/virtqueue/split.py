# SPDX-License-Identifier: Apache-2.0
"""The device end of a split virtqueue (virtio 1.3, section 2.7).

The guest is hostile: it may change any byte of the rings at any time.  So each field is read once into a
local, checked against what we know (queue size, memory map), and never read again; an indirect table is
copied before it is walked.  A ring that breaks the rules stops: `pop` returns -1, `broken` says why, and the
queue serves nothing more until the device is reset.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.virtqueue.atomics import (
    fence,
    load_acquire_u16,
    load_u16,
    store_release_u16,
    store_u16,
)
from cython.cimports.virtiofs.virtqueue.memory import (
    GuestMemory,
    Region,
    holds,
    region_of,
    translate,
    translate_window,
)

MAX_QUEUE_SIZE = 32768

# Why a queue is broken; the number is what the compiled code stores.
REASONS = {
    1: "the available index jumped by more than the queue size",
    2: "a descriptor index is not below the queue size",
    3: "a descriptor chain is longer than the queue, or loops",
    4: "an indirect table was used without being negotiated",
    5: "an indirect table's length is not a multiple of 16 between 16 and 16 times the queue size",
    6: "an indirect table holds another indirect descriptor",
    7: "a descriptor has both INDIRECT and NEXT set",
    8: "a readable descriptor follows a writable one",
    9: "a descriptor points outside guest memory, or over the end of a region",
    10: "a chain holds 4 GiB or more",
    11: "a descriptor chain was offered again before it was given back",
    12: "a buffer has no room for a notification",
}
INDEX_JUMP = cython.declare(cython.int, 1)
BAD_INDEX = cython.declare(cython.int, 2)
TOO_LONG = cython.declare(cython.int, 3)
NOT_NEGOTIATED = cython.declare(cython.int, 4)
BAD_TABLE = cython.declare(cython.int, 5)
NESTED = cython.declare(cython.int, 6)
INDIRECT_AND_NEXT = cython.declare(cython.int, 7)
BAD_ORDER = cython.declare(cython.int, 8)
OUTSIDE = cython.declare(cython.int, 9)
TOO_LARGE = cython.declare(cython.int, 10)
IN_FLIGHT = cython.declare(cython.int, 11)


@cython.cclass
class SplitQueue:
    """A queue whose rings lie at guest addresses `desc`, `avail` and `used` of `memory`.

    `size`: descriptors, a power of two up to 32768.  `base`: the next available index.  `event_idx`,
    `indirect`: whether VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated. Raises `ValueError` for
    rings that are misaligned or not wholly inside one region of guest memory. Not safe for use by two threads
    at once.
    """

    def __cinit__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int = 0,
        event_idx: bool = True,
        indirect: bool = True,
    ):
        if not 1 <= size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise ValueError(f"queue size {size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")
        for name, address, align, length in (
            ("descriptor table", desc, 16, 16 * size),
            ("available ring", avail, 2, 6 + 2 * size),
            ("used ring", used, 4, 6 + 8 * size),
        ):
            if address % align:
                raise ValueError(f"the {name} at {address:#x} is not aligned to {align}")
            if not memory.contains(address, length):
                raise ValueError(f"the {name} at {address:#x} is outside guest memory")
        self.memory = memory
        self.map = cython.address(memory.map)
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.desc = cython.cast(cython.pointer(virtq_desc), translate(self.map, desc, 16 * size))
        self.avail = translate(self.map, avail, 6 + 2 * size)
        self.used = translate(self.map, used, 6 + 8 * size)
        self.next_avail = base & 0xFFFF
        self.next_used = load_u16(self.used + 2)
        self.chain.readable = cython.cast(cython.pointer(iovec), calloc(size, cython.sizeof(iovec)))
        self.chain.writable = cython.cast(cython.pointer(iovec), calloc(size, cython.sizeof(iovec)))
        self.table = cython.cast(cython.pointer(virtq_desc), calloc(size, cython.sizeof(virtq_desc)))
        self.in_flight = cython.cast(cython.pointer(uint8_t), calloc(size, 1))
        if (
            self.chain.readable == cython.NULL
            or self.chain.writable == cython.NULL
            or self.table == cython.NULL
            or self.in_flight == cython.NULL
        ):
            raise MemoryError

    def __dealloc__(self):
        free(self.chain.readable)
        free(self.chain.writable)
        free(self.table)
        free(self.in_flight)

    @property
    def base(self) -> int:
        """The next available index: what GET_VRING_BASE answers."""
        return self.next_avail

    @property
    def reason(self) -> str:
        """Why the queue is broken; empty while it is not."""
        return REASONS[self.broken] if self.broken else ""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fail(self, reason: cython.int) -> cython.int:
        self.broken = reason
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pop(self) -> cython.int:
        """Take the next available chain into `self.chain`: 1, or 0 if there is none, or -1 for a broken ring."""
        head: uint16_t
        pending: uint16_t
        if self.broken:
            return -1
        pending = load_acquire_u16(self.avail + 2) - self.next_avail
        if pending == 0:
            return 0
        if pending > self.size:
            return self.fail(INDEX_JUMP)
        head = load_u16(self.avail + 4 + 2 * (self.next_avail & (self.size - 1)))
        if head >= self.size:
            return self.fail(BAD_INDEX)
        if self.in_flight[head]:
            return self.fail(IN_FLIGHT)
        if self.walk(head) < 0:
            return -1
        self.in_flight[head] = 1
        self.next_avail += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def walk(self, head: uint16_t) -> cython.int:
        """Check the chain that starts at `head` and translate its pieces into `self.chain`: 0 or -1.

        What goes on where the piece before it ends becomes one with that: a guest names each page of a buffer, and the
        host's kernel looks at each piece.
        """
        chain: cython.pointer(Chain) = cython.address(self.chain)
        copy: virtq_desc
        source: cython.pointer(uint8_t)
        index: uint32_t = head
        limit: uint32_t = self.size  # descriptors in the table being walked
        hops: uint32_t = 0  # over both tables: a chain may not be longer than the queue
        table: cython.pointer(virtq_desc) = self.desc
        piece: cython.pointer(iovec) = chain.readable  # behind the last of the side that is being filled
        region: cython.pointer(Region) = cython.NULL  # where that one lies
        end: cython.pointer(uint8_t) = cython.NULL  # and ends
        host: cython.pointer(uint8_t)
        written: cython.bint = False
        total: uint64_t = 0
        chain.head = head
        chain.readable_plain = chain.writable_plain = ALL_PLAIN
        while True:
            if index >= limit:
                return self.fail(BAD_INDEX)
            hops += 1
            if hops > self.size:
                return self.fail(TOO_LONG)
            memcpy(cython.address(copy), cython.address(table[index]), cython.sizeof(virtq_desc))
            if copy.flags & VIRTQ_DESC_F_INDIRECT:
                if table != self.desc:
                    return self.fail(NESTED)
                if not self.indirect:
                    return self.fail(NOT_NEGOTIATED)
                if copy.flags & VIRTQ_DESC_F_NEXT:
                    return self.fail(INDIRECT_AND_NEXT)
                if copy.len == 0 or copy.len % 16 or copy.len // 16 > self.size:
                    return self.fail(BAD_TABLE)
                source = translate(self.map, copy.addr, copy.len)
                if source == cython.NULL:
                    return self.fail(OUTSIDE)
                memcpy(self.table, source, copy.len)
                table = self.table
                limit = copy.len // 16
                index = 0
                hops -= 1  # the descriptor that names the table is no part of the chain
                continue
            if not copy.flags & VIRTQ_DESC_F_WRITE:
                if written:
                    return self.fail(BAD_ORDER)
            elif not written and copy.len:
                written = True
                chain.readable_count = piece - chain.readable
                chain.readable_bytes = total
                piece = chain.writable
                end = cython.NULL
            if copy.len:
                if region == cython.NULL or not holds(region, copy.addr, copy.len):
                    region = region_of(self.map, copy.addr, copy.len)
                    end = cython.NULL
                if region != cython.NULL:
                    host = region.host + (copy.addr - region.guest)
                else:
                    host = translate_window(self.map, copy.addr, copy.len)
                    if host == cython.NULL:
                        return self.fail(OUTSIDE)
                    if written:
                        chain.writable_plain = min(chain.writable_plain, total - chain.readable_bytes)
                    else:
                        chain.readable_plain = min(chain.readable_plain, total)
                if host == end:
                    (piece - 1).iov_len += copy.len
                else:
                    piece.iov_base = host
                    piece.iov_len = copy.len
                    piece += 1
                end = host + copy.len
                total += copy.len
                if total >= cython.cast(uint64_t, 1) << 32:
                    return self.fail(TOO_LARGE)
            if not copy.flags & VIRTQ_DESC_F_NEXT:
                break
            index = copy.next
        if not written:
            chain.readable_count = piece - chain.readable
            chain.readable_bytes = total
            piece = chain.writable
        chain.writable_count = piece - chain.writable
        chain.writable_bytes = total - chain.readable_bytes
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def leave(self) -> cython.void:
        """Take `pop` back: the chain is the next available one again.  Nothing was popped since."""
        self.next_avail -= 1
        self.in_flight[self.chain.head] = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def push(self, head: uint16_t, length: uint32_t) -> cython.void:
        """Give the chain back with `length` bytes written, and publish it."""
        slot: cython.pointer(virtq_used_elem) = cython.cast(
            cython.pointer(virtq_used_elem), self.used + 4 + 8 * (self.next_used & (self.size - 1))
        )
        slot.id = head
        slot.len = length
        self.in_flight[head] = 0
        self.next_used += 1
        store_release_u16(self.used + 2, self.next_used)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def notify_needed(self) -> cython.bint:
        """Whether the guest asked to be told of what was pushed since the last call (virtio 1.3, section 2.7.7.2)."""
        old: uint16_t = self.signalled_used
        new: uint16_t = self.next_used
        event: uint16_t
        fence()  # the used index must be visible before the guest's wish is read
        if not self.event_idx:
            return not load_u16(self.avail) & VIRTQ_AVAIL_F_NO_INTERRUPT
        event = load_u16(self.avail + 4 + 2 * self.size)
        self.signalled_used = new
        if not self.signalled:
            self.signalled = True
            return True
        return cython.cast(uint16_t, new - event - 1) < cython.cast(uint16_t, new - old)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def arm(self) -> cython.bint:
        """Ask to be kicked for the next available chain; True if one is there already (then do not sleep)."""
        if self.event_idx:
            store_u16(self.used + 4 + 8 * self.size, self.next_avail)
        else:
            store_u16(self.used, 0)
        fence()  # the wish must be visible before the index is read again
        return load_acquire_u16(self.avail + 2) != self.next_avail

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def available(self) -> cython.bint:
        """Whether there is a chain to take, without asking for a kick."""
        return load_acquire_u16(self.avail + 2) != self.next_avail

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def depth(self) -> uint32_t:
        """How many chains there are to take, as the guest says; for people to read.  From any thread."""
        waiting: uint16_t = load_acquire_u16(self.avail + 2) - self.next_avail
        return min(cython.cast(uint32_t, waiting), self.size)
