# SPDX-License-Identifier: Apache-2.0
"""The hiprio queue of a relay, which carries FORGET and INTERRUPT for all its threads (virtio 1.3, section 5.11.6.1).

What is sent here is copied, so nobody waits for it to come back: a later `send` frees the slots of what was used.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.unistd import write
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32
from cython.cimports.virtiofs.virtqueue.driver import DriverQueue, Piece
from cython.cimports.virtiofs.virtqueue.memory import translate

WAIT_MS = cython.declare(cython.int, 10)  # between two looks at whether the relay is to end


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def kick(ring: DriverQueue) -> cython.void:
    """Tell the device of what was placed, if it wants to know.  A counter that is full was not read: it knows."""
    one: uint64_t = 1
    if ring.wants_kick():
        write(ring.kick_fd, cython.address(one), 8)


@cython.cclass
class Hiprio:
    """The queue for FORGET and INTERRUPT, which all relay queues share.

    `address`: `memory_needed(ring.size)` bytes of guest memory.
    """

    def __cinit__(self, ring: DriverQueue, address: int):
        i: uint32_t
        self.ring = ring
        self.address = address
        self.host = translate(cython.address(ring.memory.map), address, Hiprio.memory_needed(ring.size))
        if self.host == cython.NULL:
            raise ValueError(f"no memory for the hiprio queue at {address:#x}")
        self.owners = cython.cast(cython.pointer(uint32_t), calloc(ring.size, cython.sizeof(uint32_t)))
        self.free = cython.cast(cython.pointer(uint32_t), calloc(ring.size, cython.sizeof(uint32_t)))
        if self.owners == cython.NULL or self.free == cython.NULL:
            raise MemoryError
        for i in range(ring.size):
            self.free[i] = i
        self.free_count = ring.size
        pthread_mutex_init(cython.address(self.mutex), cython.NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(cython.address(self.mutex))
        free(self.owners)
        free(self.free)

    @staticmethod
    def memory_needed(size: int) -> int:
        """Bytes of guest memory for a hiprio queue of `size` descriptors."""
        return size * SMALL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reap(self) -> cython.int:
        """Free the slots of what the device used: 0 or a reason.  Under the mutex.

        A reply to INTERRUPT is not passed on: it would have to be written to the descriptor that carried the
        request it is about, and the kernel lives without.
        """
        found: cython.int = self.ring.take()
        while found > 0:
            self.free[self.free_count] = self.owners[self.ring.taken_head]
            self.free_count += 1
            found = self.ring.take()
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(
        self,
        message: cython.pointer(cython.const[uint8_t]),
        length: uint32_t,
        room: uint32_t,
        stopping: cython.pointer(uint32_t),
    ) -> cython.int:
        """Place a message of at most SMALL - `room` bytes, with `room` bytes for a reply: 0 or a reason.

        Waits while the queue is full, unless `stopping` becomes true: then the message is lost.
        """
        pieces: Piece[2]
        slot: uint32_t
        head: int64_t
        found: cython.int
        while True:
            pthread_mutex_lock(cython.address(self.mutex))
            found = self.reap()
            # Without indirect tables a chain takes two descriptors.
            if found < 0 or (self.free_count and self.ring.free_count >= 2):
                break
            if not self.ring.arm():
                pthread_mutex_unlock(cython.address(self.mutex))
                if load_acquire_u32(stopping):
                    return 0
                self.ring.sleep(WAIT_MS)
            else:
                pthread_mutex_unlock(cython.address(self.mutex))
        if found == 0:
            self.ring.disarm()
            slot = self.free[self.free_count - 1]
            memcpy(self.host + cython.cast(uint64_t, slot) * SMALL, message, length)
            pieces[0].address = self.address + cython.cast(uint64_t, slot) * SMALL
            pieces[0].length = length
            pieces[1].address = pieces[0].address + SMALL - room
            pieces[1].length = room
            head = self.ring.place(pieces, 1, 1 if room else 0)
            if head >= 0:
                self.free_count -= 1
                self.owners[head] = slot
                kick(self.ring)
        pthread_mutex_unlock(cython.address(self.mutex))
        return found
