# SPDX-License-Identifier: Apache-2.0
"""What a file system tells the guest's kernel unasked: that it is to forget what it keeps.

Messages leave on a thread of their own.  The kernel takes locks to obey one that it may hold while it waits for a
request to be answered, so a method that delivered it would wait for itself.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable

from virtiofs.fuse import abi

# Messages that wait, and the bytes of data in them.
MOST_MESSAGES = 65536
MOST_BYTES = 16 << 20
MOST_DATA = 1 << 20
END_SECONDS = 2.0
# What the kernel answers where there is nothing to forget.
UNKNOWN = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EBUSY))


class Notifier:
    """Delivers messages by `send`, one after the other.  `log` hears of the first one that can not be delivered."""

    def __init__(self, send: Callable[[bytes], object], log: Callable[[str], None], epoch: int = 0):
        self._send = send
        self._epoch = epoch << 48
        self._log = log
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = False
        self._complained = False

    def _known(self, node: int) -> int:
        """The number by which the guest knows a node (see `Bridge`)."""
        return node if node == abi.FUSE_ROOT_ID else node | self._epoch

    def inode(self, node: int, attributes_only: bool) -> bool:
        # A negative offset: attributes alone; length 0: to the end (fuse_reverse_inval_inode).
        payload = abi.FUSE_NOTIFY_INVAL_INODE_OUT.pack(
            ino=self._known(node), off=-1 if attributes_only else 0
        )
        return self._put("FUSE_NOTIFY_INVAL_INODE", payload)

    def entry(self, parent: int, name: bytes, deleted: int) -> bool:
        if not 0 < len(name) <= 255:
            raise ValueError(f"a name has 1 to 255 bytes: {name!r}")
        if deleted:
            head = abi.FUSE_NOTIFY_DELETE_OUT.pack(
                parent=self._known(parent), child=self._known(deleted), namelen=len(name)
            )
            return self._put("FUSE_NOTIFY_DELETE", head + name + b"\0")
        head = abi.FUSE_NOTIFY_INVAL_ENTRY_OUT.pack(parent=self._known(parent), namelen=len(name))
        return self._put("FUSE_NOTIFY_INVAL_ENTRY", head + name + b"\0")

    def store(self, node: int, offset: int, data: bytes) -> bool:
        if len(data) > MOST_DATA:
            raise ValueError(f"at most {MOST_DATA} bytes are stored at a time, not {len(data)}")
        head = abi.FUSE_NOTIFY_STORE_OUT.pack(nodeid=self._known(node), offset=offset, size=len(data))
        return self._put("FUSE_NOTIFY_STORE", head + data)

    def poll(self, wake: int) -> bool:
        return self._put("FUSE_NOTIFY_POLL", abi.FUSE_NOTIFY_POLL_WAKEUP_OUT.pack(kh=wake))

    def _put(self, code: str, payload: bytes) -> bool:
        """False if there are too many already, or it is over."""
        size = abi.FUSE_OUT_HEADER.size + len(payload)
        message = abi.FUSE_OUT_HEADER.pack(len=size, error=abi.CONSTANTS[code]) + payload
        with self._changed:
            if self._ending or len(self._waiting) >= MOST_MESSAGES or self._bytes + size > MOST_BYTES:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
                self._thread.start()
            self._waiting.append(message)
            self._bytes += size
            self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return
                message = self._waiting.popleft()
                self._bytes -= len(message)
            try:
                self._send(message)
            except OSError as error:
                if error.errno not in UNKNOWN and not self._complained:
                    self._complained = True
                    self._log(f"a notification was not delivered: {error.strerror}")

    def close(self) -> None:
        """Deliver nothing more."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
