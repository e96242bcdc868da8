# SPDX-License-Identifier: Apache-2.0
"""A connection to any vhost-user-fs device, with memory and rings of its own: requests and replies as bytes.

A device needs a guest only for its memory.  Here that is a memfd, mapped by both ends, with the rings at its
start and an arena of request buffers behind them.  Guest addresses, the front end's user addresses and
offsets in the memfd all differ on purpose: a device that confuses them fails at once.

The caller chooses how a request lies in memory (`Layout`): a device must take a message split anywhere
(virtio 1.3, section 2.7.4).  The default is what Linux does.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from virtiofs.client.arena import PAGE, Arena
from virtiofs.client.versions import Versions
from virtiofs.client.window import FrontWindow
from virtiofs.fuse.abi import BY_NAME, FUSE_IN_HEADER, FUSE_OUT_HEADER, FUSE_WRITE_IN, NO_REPLY
from virtiofs.metadata import region
from virtiofs.vhostuser import messages
from virtiofs.vhostuser.frontend import WANTED_FEATURES, WANTED_PROTOCOL_FEATURES, FrontEnd, FrontEndError
from virtiofs.vhostuser.payloads import MemoryRegion
from virtiofs.vhostuser.transport import Connection, connect
from virtiofs.virtqueue.driver import DriverQueue, memory_needed
from virtiofs.virtqueue.memory import GuestMemory

GUEST_BASE = 0x1_0000_0000  # where guest memory starts for the guest
USER_OFFSET = 0x7E00_0000_0000  # user address = guest address + this
REGION_GAP = 1 << 30  # the hole between two regions
UNIQUE_STEP = 2  # as Linux counts (FUSE_REQ_ID_STEP)
HIPRIO = 0
NOTIFICATIONS = 1  # where that was agreed; requests begin behind it then
VIRTIO_FS_F_NOTIFICATION = 1 << 0
MOST_NOTIFY_SIZE = 65536
FILLER = 0xA5  # what writable pieces hold before the device writes them
TABLE_ENTRIES = 1024  # of an indirect table at most: what one preadv takes
DRIVER_READY = 0x0F  # virtio device status: acknowledged, driver, features, driver ready
CONFIG_SIZE = 40
TAG_SIZE = 36
WAKE_UP = 0.25  # seconds between two looks at whether the device is still there


class DeviceGone(ConnectionError):
    """The device closed the connection."""


class Caller(NamedTuple):
    """In whose name a request is made: what Linux puts into the header."""

    uid: int = 0
    gid: int = 0
    pid: int = 0


class Layout(NamedTuple):
    """Where the readable and the writable side of a request are split: offsets, each starts a new piece.

    `alignment`: of every piece in guest memory, a power of two; `skew`: bytes it starts behind that.
    """

    readable: Sequence[int] = ()
    writable: Sequence[int] = ()
    alignment: int = 16
    skew: int = 0


class WindowOptions(NamedTuple):
    """How to serve a DAX window.

    `older_size`: speak the older dialect, in which the front end says how large the window is.  `announce`: show what
    is mapped as memory.  `without`: protocol features not to take.
    """

    older_size: int = 0
    announce: bool = True
    without: int = 0

    @property
    def features(self) -> int:
        """The protocol features it takes."""
        needed = messages.PROTOCOL_F_BACKEND_REQ | messages.PROTOCOL_F_BACKEND_SEND_FD
        return needed if self.older_size else needed | messages.PROTOCOL_F_SHMEM_MAP


class Reply(NamedTuple):
    """What came back, unchecked."""

    used_length: int  # bytes the device says it wrote
    length: int  # the out header's fields
    error: int  # 0 or a negative errno
    unique: int
    payload: bytes  # what follows the header, up to `used_length`


class Pending:
    """A request in flight: `reply` is None until it came."""

    def __init__(self, what: str, unique: int, queue: int, reply_at: list[tuple[int, int]]):
        self.what = what
        self.unique = unique
        self.queue = queue
        self.done = False
        self.reply: Reply | None = None  # stays None for a request without writable pieces
        self.used_length = 0
        self._reply_at = reply_at
        self._taken: list[tuple[int, int]] = []


class Queue:
    """One virtqueue of the device: rings, descriptors and what is in flight.  For one thread at a time."""

    def __init__(
        self, index: int, size: int, address: int, memory: GuestMemory, event_idx: bool, tables: int
    ):
        self.index = index
        self.size = size
        self.address = address
        self.tables = tables
        self.event_idx = event_idx
        self.memory = memory
        self.running = False
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.pending: dict[int, Pending] = {}
        self.fresh()

    def fresh(self, base: int = 0) -> None:
        """Zeroed rings whose indices begin at `base`, nothing in flight: what a driver does after a reset."""
        self.ring = DriverQueue(
            self.memory,
            self.address,
            self.size,
            self.event_idx,
            self.tables,
            self.kick_fd,
            self.call_fd,
            base,
        )
        self.pending.clear()

    def is_broken(self) -> bool:
        """Whether the device reported this ring as broken (its err descriptor was written)."""
        return bool(select.select([self.err_fd], [], [], 0)[0])

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


class Device:
    """A connected device, its queues running.  Make one with `Device.connect`; a context manager.

    `tag` and `queue_count` (request queues) come from the config space; None for a device that does not offer
    it to front ends.  Queue 0 is hiprio, the others (`request_queues`) take requests.  Each queue is for one
    thread at a time.
    """

    def __init__(
        self,
        connection: Connection,
        queues: int = 1,
        queue_size: int = 256,
        memory: int = 64 << 20,
        regions: int = 1,
        event_idx: bool = True,
        indirect: bool = True,
        timeout: float = 10.0,
        fewer: bool = False,
        window: WindowOptions | None = None,
        versions: bool = False,
        notifications: bool = False,
    ):
        self._connection = connection
        self.front_end = FrontEnd(connection)
        self.timeout = timeout
        self.memory = GuestMemory()
        self.queues: list[Queue] = []
        self.window: FrontWindow | None = None
        self.first_request = 1  # the first queue for requests
        self.notify_size = 0  # bytes of a buffer for a notification, where there is a queue for them
        self.shows_versions = False
        self._shared: FrontWindow | None = None  # who serves the back-end channel
        self._memory_fds: list[int] = []
        self.config: bytes | None = None
        self._unique = UNIQUE_STEP
        self._watch = select.poll()
        self.tag: str | None = None
        self.queue_count: int | None = None
        unwanted = 0 if event_idx else messages.VIRTIO_RING_F_EVENT_IDX
        unwanted |= 0 if indirect else messages.VIRTIO_RING_F_INDIRECT_DESC
        try:
            wanted = WANTED_PROTOCOL_FEATURES | (window.features if window else 0)
            wanted |= WindowOptions().features if versions else 0
            wanted &= ~(window.without if window else 0)
            more = VIRTIO_FS_F_NOTIFICATION if notifications else 0
            self.front_end.negotiate((WANTED_FEATURES | more) & ~unwanted, wanted)
            features = self.front_end.features
            if features & VIRTIO_FS_F_NOTIFICATION:
                self.first_request = NOTIFICATIONS + 1
            self.event_idx = bool(features & messages.VIRTIO_RING_F_EVENT_IDX)
            self.indirect = bool(features & messages.VIRTIO_RING_F_INDIRECT_DESC)
            self._read_config()
            if fewer:
                queues = min(queues, self.offered_queues)
            tables = min(queue_size, TABLE_ENTRIES) if self.indirect else 0
            ring = (memory_needed(queue_size, tables) + PAGE - 1) // PAGE * PAGE
            count = self.first_request + queues
            self._add_memory(memory, regions, count * ring)
            for index in range(count):
                address = GUEST_BASE + index * ring
                self.queues.append(Queue(index, queue_size, address, self.memory, self.event_idx, tables))
            if window is not None or versions:
                self._open_window(window, versions)
            self._start()
            self._watch.register(self.fileno(), select.POLLRDHUP)
        except BaseException:
            self.disconnect()
            raise

    @classmethod
    def connect(
        cls,
        path: str,
        queues: int = 1,
        queue_size: int = 256,
        memory: int = 64 << 20,
        regions: int = 1,
        event_idx: bool = True,
        indirect: bool = True,
        timeout: float = 10.0,
        fewer: bool = False,
        window: WindowOptions | None = None,
        versions: bool = False,
        notifications: bool = False,
    ) -> Device:
        """Connect to the device that listens at `path` and start `queues` request queues of `queue_size`
        entries.

        `memory`: bytes of guest memory, in `regions` separate regions of equal size.  `event_idx`,
        `indirect`: use these ring features if the device has them.  `timeout`: seconds a reply may take.
        `fewer`: start fewer queues if the device has fewer.
        `window`: map files in a DAX window, if the device has one; then `window` is not None afterwards.
        `versions`: take the device's versions, if it has any; `shows_versions` says so afterwards.
        `notifications`: take its notification queue, if it has one; `notify_size` is not 0 afterwards.
        Raises `TransportError` when nobody listens there, `FrontEndError` when the peer is no vhost-user
        device, and `ValueError` for memory that is too small for the queues.
        """
        return cls(
            connect(path),
            queues,
            queue_size,
            memory,
            regions,
            event_idx,
            indirect,
            timeout,
            fewer,
            window,
            versions,
            notifications,
        )

    def _read_config(self) -> None:
        if self.front_end.protocol_features & messages.PROTOCOL_F_CONFIG:
            more = 4 if self.first_request > 1 else 0
            self.config = self.front_end.get_config(0, CONFIG_SIZE + more)
            self.tag = self.config[:TAG_SIZE].rstrip(b"\0").decode(errors="replace")
            self.queue_count = int.from_bytes(self.config[TAG_SIZE:CONFIG_SIZE], "little")
            self.notify_size = min(int.from_bytes(self.config[CONFIG_SIZE:], "little"), MOST_NOTIFY_SIZE)

    @property
    def offered_queues(self) -> int:
        """Request queues the device has, as far as it says so; at least 1."""
        return max(self.queue_count or (self.front_end.queue_count or 0) - 1, 1)

    @property
    def request_queues(self) -> list[Queue]:
        """All queues but hiprio, and the one for notifications."""
        return self.queues[self.first_request :]

    def _add_memory(self, size: int, regions: int, reserved: int) -> None:
        """Map the memory on both ends; the first `reserved` bytes of it are for the rings."""
        each = size // regions // PAGE * PAGE
        if each < reserved + PAGE:
            raise ValueError(
                f"{size} bytes in {regions} regions do not hold queues of {reserved} bytes; give more memory"
            )
        fds: list[int] = []
        table: list[MemoryRegion] = []
        try:
            for i in range(regions):
                # The region starts one page into its file: an offset that a device forgets shows at once.
                fds.append(os.memfd_create("guest-memory", os.MFD_CLOEXEC))
                os.ftruncate(fds[-1], each + PAGE)
                guest = GUEST_BASE + i * REGION_GAP
                self.memory.add(guest, each, fds[-1], PAGE)
                table.append(MemoryRegion(guest, each, guest + USER_OFFSET, PAGE))
            self.front_end.set_memory(table, fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        self._memory_fds = fds
        self.regions = table
        ranges = [(region.guest_phys, region.size) for region in table]
        ranges[0] = (ranges[0][0] + reserved, ranges[0][1] - reserved)
        self.arena = Arena(ranges)

    def _open_window(self, options: WindowOptions | None, versions: bool) -> None:
        """Give the device a back-end channel, and serve it, in the order QEMU does."""
        wanted = options or WindowOptions()
        if wanted.features & ~self.front_end.protocol_features:
            return
        sizes = () if wanted.older_size else self.front_end.shmem_sizes()
        size = (wanted.older_size or next(iter(sizes), 0)) if options else 0
        versions_size = sizes[region.REGION] if versions and len(sizes) > region.REGION else 0
        if not size and not versions_size:
            return
        others = list(zip(self.regions, self._memory_fds, strict=True))
        self._shared = FrontWindow(
            size, self.front_end, self.memory, wanted.announce, others, versions_size=versions_size
        )
        self.window = self._shared if size else None
        self.shows_versions = versions_size > 0
        self.front_end.set_backend_channel(self._shared.channel.fileno())
        self._shared.channel.close()

    def wait_for_versions(self) -> Versions | None:
        """The device's versions, once it has shown them; None if it does not within `timeout` seconds."""
        return self._shared.wait_for_versions(self.timeout) if self._shared is not None else None

    def fileno(self) -> int:
        """The connection's descriptor: readable at its end when the device closed it."""
        return self._connection.fileno()

    # --- queues ---

    def _start(self) -> None:
        """Start all queues, and tell the device that its driver is ready."""
        for queue in self.queues:
            self.start_queue(queue.index)
        if self.front_end.protocol_features & messages.PROTOCOL_F_STATUS:
            self.front_end.set_status(DRIVER_READY)

    def start_queue(self, index: int, base: int | None = None) -> None:
        """Start a queue where it stopped, or at available index `base`."""
        queue = self.queues[index]
        ring = queue.ring
        self.front_end.setup_vring(
            index,
            queue.size,
            ring.desc_address + USER_OFFSET,
            ring.avail_address + USER_OFFSET,
            ring.used_address + USER_OFFSET,
            ring.next_avail if base is None else base,
            queue.kick_fd,
            queue.call_fd,
            queue.err_fd,
        )
        if self.front_end.features & messages.VHOST_USER_F_PROTOCOL_FEATURES:
            self.front_end.enable(index, True)
        queue.running = True

    def stop_queue(self, index: int) -> int:
        """Stop a queue once the device finished what it took; the available index it stopped at."""
        queue = self.queues[index]
        base = self.front_end.stop_vring(index)
        queue.running = False
        self.drain(queue)
        return base

    def reset(self) -> None:
        """Reset the device and start all queues with empty rings.  The FUSE session is gone, as after a
        reboot."""
        for queue in self.queues:
            if queue.running:
                self.front_end.stop_vring(queue.index)
                queue.running = False
        if self._shared is not None:
            self._shared.drop()
        if self.front_end.protocol_features & messages.PROTOCOL_F_RESET_DEVICE:
            self.front_end.reset_device()
        for queue in self.queues:
            for pending in queue.pending.values():
                self._free(pending)
            for fd in (queue.err_fd, queue.call_fd, queue.kick_fd):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            queue.fresh()
        self._start()

    def close(self) -> None:
        """Stop the queues and close the connection.  A device that is gone already is no error."""
        for queue in self.queues:
            if queue.running:
                with contextlib.suppress(FrontEndError):
                    self.front_end.stop_vring(queue.index)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection without a word, as a VMM that dies."""
        self.front_end.close()
        if self._shared is not None:
            self._shared.close()
        for queue in self.queues:
            queue.close()
        for fd in self._memory_fds:
            os.close(fd)
        self.queues, self._memory_fds = [], []

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- requests ---

    def unique(self) -> int:
        """The number for the next request."""
        self._unique += UNIQUE_STEP
        return self._unique

    def submit(
        self, message: bytes, room: int, queue: int = 1, layout: Layout | None = None, what: str = ""
    ) -> Pending:
        """Put a whole message (in header and all) on a queue with `room` writable bytes for the reply.

        `room` counts the out header; 0 gives no writable piece.  `what` names the request in errors.
        Raises `QueueFull`, `MemoryError`, or `ValueError` for a layout of more pieces than the queue holds.
        """
        target = self.queues[queue]
        taken: list[tuple[int, int]] = []
        try:
            if layout is None:
                layout = self._linux_layout(message, room)
            readable = list(self._pieces(len(message), layout.readable, layout, taken))
            writable = list(self._pieces(room, layout.writable, layout, taken))
            start = 0
            for address, length in readable:
                self.memory.write(address, message[start : start + length])
                start += length
            for address, length in writable:
                self.memory.write(address, bytes([FILLER]) * length)
            unique = int.from_bytes(message[8:16], "little")
            pending = Pending(what or f"{len(message)} bytes", unique, queue, writable)
            pending._taken = taken
            head = target.ring.add(readable, writable)
        except BaseException:
            for address, length in taken:
                self.arena.give(address, length)
            raise
        target.pending[head] = pending
        if target.ring.kick_needed():
            target.ring.kick()
        return pending

    @staticmethod
    def _linux_layout(message: bytes, room: int) -> Layout:
        """In header, arguments, then pages; out header, then pages where the reply is that large
        (virtio_fs.c)."""
        header = FUSE_IN_HEADER.size
        opcode = int.from_bytes(message[4:8], "little")
        start = header
        if opcode == BY_NAME["write"].opcode:
            start += FUSE_WRITE_IN.size
        pages = range(start + PAGE, len(message), PAGE) if len(message) > start + PAGE else ()
        readable = [header, start, *pages] if start > header else [header, *pages]
        out = FUSE_OUT_HEADER.size
        return Layout(readable, [out, *range(out + PAGE, room, PAGE)])

    def _pieces(
        self, total: int, splits: Sequence[int], layout: Layout, taken: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Guest memory for each piece of a side of `total` bytes; what has to be given back goes to
        `taken`."""
        points = [0, *(split for split in splits if 0 < split < total), total]
        for start, end in itertools.pairwise(points):
            length = end - start
            if length == 0:
                continue
            whole = length + layout.skew
            address = self.arena.take(whole, max(layout.alignment, PAGE if length >= PAGE else 1))
            taken.append((address, whole))
            yield address + layout.skew, length

    def request(
        self,
        operation: str | int,
        nodeid: int = 0,
        arguments: bytes = b"",
        room: int = 0,
        queue: int = 1,
        caller: Caller = Caller(),  # noqa: B008
        layout: Layout | None = None,
        extensions: bytes = b"",
        timeout: float | None = None,
    ) -> Reply:
        """Send one request and wait for its reply, which is returned unchecked.

        `operation`: a name of the ABI table or an opcode.  `arguments`: everything after the in header
        (structure, names, data); `extensions`: records appended to it (a multiple of 8 bytes).  `room`:
        writable bytes for the reply behind the out header.
        Raises `TimeoutError` naming the request, and `DeviceGone`.
        """
        pending = self.begin(operation, nodeid, arguments, room, queue, caller, layout, extensions)
        reply = self.finish(pending, timeout)
        if reply is None:
            return Reply(pending.used_length, 0, 0, pending.unique, b"")
        return reply

    def begin(
        self,
        operation: str | int,
        nodeid: int = 0,
        arguments: bytes = b"",
        room: int = 0,
        queue: int = 1,
        caller: Caller = Caller(),  # noqa: B008
        layout: Layout | None = None,
        extensions: bytes = b"",
    ) -> Pending:
        """As `request`, without waiting: `finish` does that.  Many may be in flight on a queue."""
        opcode = BY_NAME[operation].opcode if isinstance(operation, str) else operation
        no_reply = isinstance(operation, str) and bool(BY_NAME[operation].flags & NO_REPLY)
        unique = self.unique()
        header = FUSE_IN_HEADER.pack(
            len=FUSE_IN_HEADER.size + len(arguments) + len(extensions),
            opcode=opcode,
            unique=unique,
            nodeid=nodeid,
            uid=caller.uid,
            gid=caller.gid,
            pid=caller.pid,
            total_extlen=len(extensions) // 8,
        )
        whole = 0 if no_reply else FUSE_OUT_HEADER.size + room
        what = f"{operation} of node {nodeid}"
        return self.submit(header + arguments + extensions, whole, queue, layout, what)

    def finish(self, pending: Pending, timeout: float | None = None) -> Reply | None:
        """Wait for the reply to a request (None: there was no room for one).  Raises as `request` does."""
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        queue = self.queues[pending.queue]
        while not pending.done:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"no reply to {pending.what} (unique {pending.unique}) on queue {pending.queue}"
                    f" within {seconds:g} s",
                )
            found = queue.ring.wait(min(left, WAKE_UP))
            if found is not None:
                self.complete(queue, *found)
            elif self.is_gone():
                raise DeviceGone(
                    errno.ECONNRESET, f"the device closed the connection before it answered {pending.what}"
                )
        return pending.reply

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        """Take `nlookup` lookups of a node back, on the hiprio queue, as Linux does."""
        self.request("forget", nodeid, nlookup.to_bytes(8, "little"), queue=HIPRIO)

    def is_gone(self) -> bool:
        """Whether the device closed the connection."""
        return bool(self._watch.poll(0))

    def drain(self, queue: Queue) -> None:
        """Note all that came back on a queue."""
        while (found := queue.ring.poll()) is not None:
            self.complete(queue, *found)

    def complete(self, queue: Queue, head: int, used_length: int) -> None:
        """Note that the chain `head` came back."""
        pending = queue.pending.pop(head)
        pending.used_length = used_length
        if pending._reply_at:
            raw = bytearray()
            for address, length in pending._reply_at:
                raw += self.memory.read(address, min(length, max(used_length - len(raw), 0)))
            header = FUSE_OUT_HEADER.unpack(bytes(raw[:16]).ljust(16, b"\0"))
            pending.reply = Reply(used_length, header.len, header.error, header.unique, bytes(raw[16:]))
        pending.done = True
        self._free(pending)

    def _free(self, pending: Pending) -> None:
        for address, length in pending._taken:
            self.arena.give(address, length)
        pending._taken = []
