# SPDX-License-Identifier: Apache-2.0
"""The device end of the notification queue (virtio 1.3, section 5.11.6.1): the driver gives buffers, we fill them.

Whoever has something to say waits for a buffer here; nothing is put aside.
"""

import os
import select

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.fuse.request import scatter
from cython.cimports.virtiofs.virtqueue.split import SplitQueue

TOO_SMALL = cython.declare(cython.int, 12)  # virtqueue/split.py


@cython.cclass
class NotificationRing:
    """The rings of `queue`.  `kick` and `call` are eventfds, which are ours from now on; -1 for `call`: none yet.

    One thread sends, and may be stopped by others.
    """

    def __cinit__(self, queue: SplitQueue, kick: int, call: int):
        self.queue = queue
        self.kick = kick
        self.call = call if call >= 0 else os.eventfd(0)
        self.wake = os.eventfd(0)
        # Edge-triggered: nothing has to be read, so nobody who reads the kicks himself can keep us.
        self.watch = select.epoll(2)
        self.watch.register(self.kick, select.EPOLLIN | select.EPOLLET)
        self.watch.register(self.wake, select.EPOLLIN | select.EPOLLET)
        self.enabled = True
        self.stopping = False
        self.requests = 0

    def __dealloc__(self):
        for fd in (self.kick, self.call, self.wake):
            os.close(fd)

    def send(self, message: bytes) -> bool:
        """Put a message into the next buffer, and wait for one.  False: it was stopped, or the driver broke the rules.

        A buffer that is too small for it breaks them.
        """
        found: cython.int = 0
        while not self.stopping:
            if self.enabled:
                with cython.nogil:
                    found = self.queue.pop()
                if found < 0:
                    return False
                if found:
                    return self.fill(message)
                if self.queue.arm():
                    continue
            self.watch.poll()
        return False

    @cython.cfunc
    def fill(self, message: bytes) -> cython.bint:
        pieces: cython.pointer(iovec) = self.queue.chain.writable
        count: uint32_t = self.queue.chain.writable_count
        size: uint64_t = len(message)
        data: cython.pointer(cython.const[uint8_t]) = message
        if self.queue.chain.writable_bytes < size or self.queue.chain.writable_plain < size:
            self.queue.push(self.queue.chain.head, 0)
            self.queue.fail(TOO_SMALL)
            return False
        scatter(data, cython.address(pieces), cython.address(count), size)
        self.queue.push(self.queue.chain.head, size)
        self.requests += 1
        if self.queue.notify_needed():
            os.eventfd_write(self.call, 1)
        return True

    def stop(self) -> None:
        """Make `send` return."""
        self.stopping = True
        os.eventfd_write(self.wake, 1)

    def rearm(self) -> None:
        """After `stop`, once nobody is in `send`."""
        self.stopping = False

    def set_enabled(self, enabled: bool) -> None:
        """Take buffers, or leave them in the ring (SET_VRING_ENABLE)."""
        self.enabled = enabled
        os.eventfd_write(self.wake, 1)

    def set_call(self, fd: int) -> None:
        """Use another descriptor for notifications; `fd` stays the caller's."""
        os.dup2(fd, self.call, inheritable=False)
