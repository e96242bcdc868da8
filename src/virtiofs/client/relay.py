# SPDX-License-Identifier: Apache-2.0
"""Carries the FUSE messages of a mount on this host to a vhost-user-fs device, and its replies back.

One `RelayQueue` for each request queue, run by one thread without the GIL.  It reads a message from its own
descriptor of /dev/fuse into a slot of the memory that it shares with the device, makes the slot available as a
chain, and writes the reply from the slot to the descriptor: file data is copied by the kernel only.  FORGET and
INTERRUPT go to the hiprio queue, which all threads share (`hiprio.py`).

The device is believed nothing.  It can change what is in shared memory at any time, so the start of each
message, which decides what room a reply needs, is read into private memory and only copied to the slot; a reply's
header is copied out once, checked (`carried.py`), and written to the kernel from the copy.  How long a used chain may
be, and whether it was in flight, `DriverQueue` checks.  A device that breaks the rules ends the relay.

With every slot in use the relay does not read on, so that the kernel keeps what waits, and can take it back.
"""

import os

import cython
from cython.cimports.libc.errno import (
    EAGAIN,
    ECONNABORTED,
    EINTR,
    EIO,
    ENODEV,
    ENOENT,
    EPERM,
    errno,
)
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.uio import iovec, readv, writev
from cython.cimports.posix.unistd import close, write
from cython.cimports.virtiofs.client.carried import (
    BODY,
    NO_SESSION,
    NOT_READ,
    NOT_TAKEN,
    PAGE,
    SLOT,
    START,
    WRONG_LENGTH,
    Start,
    limit,
    offer,
    room_of,
    wrong,
)
from cython.cimports.virtiofs.client.hiprio import SMALL, Hiprio, kick
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_BATCH_FORGET,
    FUSE_DESTROY,
    FUSE_FORGET,
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_WRITE,
    fuse_batch_forget_in,
    fuse_forget_one,
    fuse_in_header,
    fuse_init_out,
    fuse_out_header,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    load_acquire_u16,
    load_acquire_u32,
    relax,
    store_release_u32,
)
from cython.cimports.virtiofs.virtqueue.driver import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLET,
    EPOLLIN,
    DriverQueue,
    Piece,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    now,
)
from cython.cimports.virtiofs.virtqueue.memory import translate

from virtiofs.client.carried import NAMES, REASONS

# How a relay ends; below zero are the reasons.
STOPPED = 0
UNMOUNTED = 1
FULL = cython.declare(cython.int, -40)  # no reason: the ring has no room

DESTROY_LOOK = cython.declare(cython.int, 10)  # ms
# As in fuse/loop.py: after a sleep shorter than SHORT_SLEEP the next begins with a look around for SPIN (ns).
SHORT_SLEEP = cython.declare(int64_t, 50000)
SPIN = cython.declare(int64_t, 20000)
LONGEST_PENALTY = cython.declare(uint32_t, 4096)


@cython.cclass
class RelayQueue:
    """Relays what is read from `fd`, a descriptor of /dev/fuse that is mounted, to the request queue `ring`.

    `address`: `memory_needed(depth)` bytes of guest memory from a multiple of 4096 on; `depth`: requests in
    flight at most.  `fd` must not block; it and the queues' descriptors stay the caller's.
    Raises `OSError` and `ValueError` for what can not be.
    """

    def __cinit__(self, ring: DriverQueue, hiprio: Hiprio, fd: int, address: int, depth: int):
        i: uint32_t
        self.wake = self.poll_all = self.poll_replies = -1
        self.ring = ring
        self.hiprio = hiprio
        self.fd = fd
        self.address = address
        self.host = translate(cython.address(ring.memory.map), address, RelayQueue.memory_needed(depth))
        if self.host == cython.NULL or address % PAGE:
            raise ValueError(f"no memory for a relay at {address:#x}")
        # A chain has up to five pieces, each a descriptor of the ring where tables can not be used.
        if not 1 <= depth <= (ring.size if ring.table_entries >= 5 else ring.size // 5):
            raise ValueError(f"a queue of {ring.size} descriptors does not carry {depth} requests")
        self.depth = depth
        self.slots = cython.cast(cython.pointer(Slot), calloc(depth, cython.sizeof(Slot)))
        self.owners = cython.cast(cython.pointer(uint32_t), calloc(ring.size, cython.sizeof(uint32_t)))
        self.free = cython.cast(cython.pointer(uint32_t), calloc(depth, cython.sizeof(uint32_t)))
        if self.slots == cython.NULL or self.owners == cython.NULL or self.free == cython.NULL:
            raise MemoryError
        for i in range(self.depth):
            self.free[i] = i
        self.free_count = depth
        self.penalty = 1
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Of all the threads that wait for messages one is woken for each.
        self.poll_all = self._watch(
            ((self.wake, EPOLLIN), (ring.call_fd, EPOLLIN | EPOLLET), (fd, EPOLLIN | EPOLLEXCLUSIVE))
        )
        self.poll_replies = self._watch(((self.wake, EPOLLIN), (ring.call_fd, EPOLLIN | EPOLLET)))

    def _watch(self, watched: tuple) -> int:
        event: epoll_event
        poll: cython.int = epoll_create1(EPOLL_CLOEXEC)
        if poll < 0:
            raise OSError(errno, "cannot watch a queue")
        memset(cython.address(event), 0, cython.sizeof(epoll_event))
        for fd, events in watched:
            event.events = events & 0xFFFFFFFF  # EPOLLET is the sign bit of a C enumerator
            if epoll_ctl(poll, EPOLL_CTL_ADD, fd, cython.address(event)) != 0:
                close(poll)
                raise OSError(errno, "cannot watch a queue's descriptor")
        return poll

    def __dealloc__(self):
        fd: cython.int
        for fd in (self.wake, self.poll_all, self.poll_replies):
            if fd >= 0:
                close(fd)
        free(self.slots)
        free(self.owners)
        free(self.free)

    @staticmethod
    def memory_needed(depth: int) -> int:
        """Bytes of guest memory for `depth` requests in flight; only what is used gets touched."""
        return depth * SLOT

    @property
    def in_flight(self) -> int:
        """Requests the device has not answered."""
        return self.depth - self.free_count

    @property
    def reason(self) -> str:
        """Why `run` ended, if that was the device's fault or the kernel's; else empty."""
        if self.outcome >= 0:
            return ""
        text = REASONS[self.outcome]
        if self.outcome == NOT_READ or self.outcome == NOT_TAKEN:
            text = f"{text}: {os.strerror(self.failed_value)}"
        elif self.outcome <= WRONG_LENGTH:
            text = f"{text} ({self.failed_value})"
        name = NAMES.get(self.failed_opcode, "")
        return f"{name.upper()}: {text}" if name else text

    def run(self) -> int:
        """Relay until `stop`, the end of the mount, or a device that breaks the rules: then see `reason`.

        Returns STOPPED, UNMOUNTED or a key of REASONS.  Runs without the GIL.  Unless the mount has ended,
        the requests that are still in flight fail with EIO.
        """
        with cython.nogil:
            self.outcome = self.serve()
            if self.outcome != 1:
                self.refuse_all()
        return self.outcome

    def stop(self) -> None:
        """Make `run` return.  May be called from any thread."""
        one: uint64_t = 1
        store_release_u32(cython.address(self.stopping), 1)
        write(self.wake, cython.address(one), 8)

    def destroy(self, timeout: float = 2.0) -> bool:
        """End the session on the device (DESTROY), waiting for at most `timeout` seconds: whether it answered.

        Linux says so to a guest's device when it unmounts, but not to /dev/fuse.  No thread may be in `run`.
        """
        deadline: uint64_t = now() + cython.cast(uint64_t, timeout * 1e9)
        slot: uint32_t
        found: cython.int
        done: cython.bint = False
        if not self.free_count:
            return False
        memset(cython.address(self.start), 0, cython.sizeof(Start))
        self.start.header.len = cython.sizeof(fuse_in_header)
        self.start.header.opcode = FUSE_DESTROY
        self.start.header.unique = (cython.cast(uint64_t, 1) << 63) - 2
        slot = self.free[self.free_count - 1]
        memcpy(
            self.host + cython.cast(uint64_t, slot) * SLOT + PAGE - START,
            cython.address(self.start),
            START,
        )
        if self.forward(slot, self.start.header.len, 0) < 0:
            return False
        with cython.nogil:
            while not done:
                found = self.ring.take()
                if found < 0:
                    break
                if found:
                    done = self.owners[self.ring.taken_head] == slot
                elif now() >= deadline:
                    break
                elif not self.ring.arm():
                    self.ring.sleep(DESTROY_LOOK)
        return done

    # --- the loop ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self) -> cython.int:
        did: cython.int
        got: cython.int
        while not load_acquire_u32(cython.address(self.stopping)):
            did = self.take_replies()
            if did < 0:
                return did
            got = 0
            if self.free_count:
                got = self.take_request()
                if got == 2:
                    return 1
                if got < 0:
                    return got
            if did or got or (self.spinning and self.spin()) or self.ring.arm():
                continue
            self.sleep()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def spin(self) -> cython.bint:
        """Look for replies for SPIN nanoseconds: whether one came (as `QueueLoop.spin`)."""
        _i: cython.int
        end: uint64_t = now() + SPIN
        if self.free_count == self.depth:
            return False
        while not load_acquire_u32(cython.address(self.stopping)):
            for _i in range(32):
                if load_acquire_u16(self.ring.used + 2) != self.ring.next_used:
                    self.penalty = 1
                    return True
                relax()
            if now() >= end:
                break
        self.spinning = False
        self.patience = self.penalty
        if self.penalty < LONGEST_PENALTY:
            self.penalty *= 2
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self) -> cython.void:
        event: epoll_event
        slept: uint64_t = now()
        epoll_wait(self.poll_all if self.free_count else self.poll_replies, cython.address(event), 1, -1)
        slept = now() - slept
        if self.patience:
            self.patience -= 1
        elif slept < SHORT_SLEEP:
            self.spinning = True
        self.ring.disarm()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fail(self, reason: cython.int, opcode: uint32_t, value: int64_t) -> cython.int:
        self.failed_opcode = opcode
        self.failed_value = value
        return reason

    # --- messages of the kernel ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_request(self) -> cython.int:
        """Read one message and place it: 1, 0 if there is none, 2 for the end of the mount, or a reason.

        There must be a free slot.
        """
        pieces: iovec[2]
        slot: uint32_t = self.free[self.free_count - 1]
        host: cython.pointer(uint8_t) = self.host + cython.cast(uint64_t, slot) * SLOT
        length: int64_t
        room: int64_t
        opcode: uint32_t
        pieces[0].iov_base = cython.address(self.start)
        pieces[0].iov_len = START
        pieces[1].iov_base = host + PAGE
        pieces[1].iov_len = BODY
        length = readv(self.fd, pieces, 2)
        if length < 0:
            if errno == EAGAIN:
                return 0
            if errno in (EINTR, ENOENT):  # ENOENT: its caller gave it up while it was read
                return 1
            # EPERM: not mounted (any more); ECONNABORTED: ended through /sys/fs/fuse/connections
            if errno in (ENODEV, ECONNABORTED, EPERM):
                return 2
            return self.fail(NOT_READ, 0, errno)
        if length < cython.sizeof(fuse_in_header) or length != self.start.header.len:
            return self.fail(NOT_READ, 0, EIO)
        if length < START:
            memset(
                cython.cast(cython.pointer(uint8_t), cython.address(self.start)) + length, 0, START - length
            )
        opcode = self.start.header.opcode
        self.requests += 1
        if opcode == FUSE_INIT:
            self.offered = offer(cython.address(self.start))
        memcpy(host + PAGE - START, cython.address(self.start), START)
        if opcode in (FUSE_FORGET, FUSE_BATCH_FORGET):
            return self.forget(host + PAGE - START, length)
        if opcode == FUSE_INTERRUPT:
            return self.after_hiprio(
                self.hiprio.send(
                    cython.cast(cython.pointer(uint8_t), cython.address(self.start)),
                    length if length < START else START,
                    cython.sizeof(fuse_out_header),
                    cython.address(self.stopping),
                )
            )
        room = room_of(cython.address(self.start), length)
        if room < 0:
            self.refuse(self.start.header.unique, room)
            return 1
        if self.forward(slot, length, room) < 0:
            self.refuse(self.start.header.unique, -EIO)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def after_hiprio(self, found: cython.int) -> cython.int:
        return self.fail(found, 0, 0) if found < 0 else 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def forward(self, slot: uint32_t, length: uint32_t, room: uint32_t) -> cython.int:
        """Make the message of `length` bytes in `slot`, the last free one, available: 0 or FULL.

        Split as Linux does in a guest (virtio_fs.c): header, arguments, data; out header, results.
        """
        pieces: Piece[5]
        readable: uint32_t = 1
        total: uint32_t = 1
        head: int64_t
        base: uint64_t = self.address + cython.cast(uint64_t, slot) * SLOT
        begin: uint64_t = PAGE - START
        args: uint32_t = length - cython.sizeof(fuse_in_header)
        reply: uint64_t = begin + length
        if room >= PAGE:  # file data behind the out header starts on a page
            reply = (reply + cython.sizeof(fuse_out_header) + PAGE - 1) // PAGE * PAGE - cython.sizeof(
                fuse_out_header
            )
        else:
            reply = (reply + 15) // 16 * 16
        pieces[0].address = base + begin
        pieces[0].length = cython.sizeof(fuse_in_header)
        if self.start.header.opcode == FUSE_WRITE and length > START:
            args = START - cython.sizeof(fuse_in_header)
            pieces[2].address = base + PAGE
            pieces[2].length = length - START
            readable = 3
        elif args:
            readable = 2
        pieces[1].address = base + begin + cython.sizeof(fuse_in_header)
        pieces[1].length = args
        total = readable + 1
        pieces[readable].address = base + reply
        pieces[readable].length = cython.sizeof(fuse_out_header)
        if room:
            pieces[total].address = base + reply + cython.sizeof(fuse_out_header)
            pieces[total].length = room
            total += 1
        head = self.ring.place(pieces, readable, total - readable)
        if head < 0:
            return FULL
        self.owners[head] = slot
        self.slots[slot].busy = True
        self.slots[slot].opcode = self.start.header.opcode
        self.slots[slot].unique = self.start.header.unique
        self.slots[slot].reply = reply
        self.free_count -= 1
        kick(self.ring)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def forget(self, host: cython.pointer(uint8_t), length: uint32_t) -> cython.int:
        """Send the FORGET or BATCH_FORGET at `host` on the hiprio queue: 1 or a reason."""
        small: uint8_t[4096]
        header: cython.pointer(fuse_in_header) = cython.cast(cython.pointer(fuse_in_header), small)
        batch: cython.pointer(fuse_batch_forget_in)
        front: uint32_t = cython.sizeof(fuse_in_header) + cython.sizeof(fuse_batch_forget_in)
        most: uint32_t = (SMALL - front) // cython.sizeof(fuse_forget_one)
        left: uint32_t = self.start.args[0]
        count: uint32_t
        found: cython.int
        if self.start.header.opcode == FUSE_FORGET or length < front:
            return self.after_hiprio(
                self.hiprio.send(host, length if length < START else START, 0, cython.address(self.stopping))
            )
        if left > (length - front) // cython.sizeof(fuse_forget_one):
            left = (length - front) // cython.sizeof(fuse_forget_one)
        batch = cython.cast(cython.pointer(fuse_batch_forget_in), small + cython.sizeof(fuse_in_header))
        host += front
        while left:
            count = left if left < most else most
            header[0] = self.start.header
            header.len = front + count * cython.cast(uint32_t, cython.sizeof(fuse_forget_one))
            batch.count = count
            batch.dummy = 0
            memcpy(small + front, host, count * cython.sizeof(fuse_forget_one))
            found = self.hiprio.send(small, header.len, 0, cython.address(self.stopping))
            if found < 0:
                return self.after_hiprio(found)
            host += count * cython.sizeof(fuse_forget_one)
            left -= count
        return 1

    # --- replies of the device ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_replies(self) -> cython.int:
        """Pass all replies there are to the kernel: their number, or a reason."""
        count: cython.int = 0
        slot: uint32_t
        found: cython.int
        error: cython.int
        while True:
            found = self.ring.take()
            if found == 0:
                return count
            if found < 0:
                return self.fail(found, 0, 0)
            slot = self.owners[self.ring.taken_head]
            error = self.answer(slot, self.ring.taken_length)
            if error < 0:
                return error
            self.slots[slot].busy = False
            self.free[self.free_count] = slot
            self.free_count += 1
            self.replies += 1
            count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def answer(self, slot: uint32_t, length: uint32_t) -> cython.int:
        """Check the reply in `slot`, `length` bytes, and write it to the kernel: 0 or a reason."""
        pieces: iovec[2]
        out: fuse_out_header
        limited: fuse_init_out
        value: int64_t = 0
        error: cython.int
        opcode: uint32_t = self.slots[slot].opcode
        reply: cython.pointer(uint8_t) = (
            self.host + cython.cast(uint64_t, slot) * SLOT + self.slots[slot].reply
        )
        if length >= cython.sizeof(fuse_out_header):
            memcpy(cython.address(out), reply, cython.sizeof(fuse_out_header))
        error = wrong(cython.address(out), length, self.slots[slot].unique, cython.address(value))
        if error < 0:
            return self.fail(error, opcode, value)
        pieces[0].iov_base = cython.address(out)
        pieces[0].iov_len = cython.sizeof(fuse_out_header)
        pieces[1].iov_base = reply + cython.sizeof(fuse_out_header)
        pieces[1].iov_len = length - cython.sizeof(fuse_out_header)
        if opcode == FUSE_INIT:
            if out.error:
                return self.fail(NO_SESSION, opcode, out.error)
            error = limit(reply, length, self.offered, cython.address(limited), cython.address(value))
            if error < 0:
                return self.fail(error, opcode, value)
            self.initialised = True
            pieces[1].iov_base = cython.address(limited)
        # ENOENT: the request was given up; ENODEV: the mount has ended, which the next read will say as well.
        if writev(self.fd, pieces, 2) < 0 and errno != ENOENT and errno != ENODEV:
            return self.fail(NOT_TAKEN, opcode, errno)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def refuse(self, unique: uint64_t, error: cython.int) -> cython.void:
        """Answer a request without the device."""
        out: fuse_out_header
        out.len = cython.sizeof(fuse_out_header)
        out.error = error
        out.unique = unique
        write(self.fd, cython.address(out), cython.sizeof(fuse_out_header))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def refuse_all(self) -> cython.void:
        """Let what is in flight fail: nobody will answer it."""
        i: uint32_t
        for i in range(self.depth):
            if self.slots[i].busy:
                self.refuse(self.slots[i].unique, -EIO)
