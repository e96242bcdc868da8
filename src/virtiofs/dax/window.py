# SPDX-License-Identifier: Apache-2.0
"""The window: which ranges of it a guest asked for, and which pieces of files are mapped there.

A *range* is what the guest asked for: 2 MiB of a file, with Linux, usually more than the file has.  *Pieces* of it
are mapped: the whole pages that the file has, and its last partial page as a copy (tail.py).  The rules, with their
reasons:

1. Nothing is mapped past the end of a file: QEMU refuses it, and an empty file it makes larger (seen).  So when a file
   grows, its ranges get the added pages as further pieces, before the guest is told of the new size.
2. When a file shrinks, pieces wholly behind its end are unmapped first, since the front end would die of a touch
   (SIGBUS).  A piece that holds the end stays: unmapping it would leave a hole, for a moment, in pages that the guest
   may be reading.  Until the file is cut nothing behind the new end is mapped.  That is so where the guest cuts the
   file, and knows; where somebody else did, the hole is the smaller evil, and the piece is mapped anew up to the end.
3. An unmapping names exactly what was mapped, and nothing is mapped over something else.
4. At most `MAX_PIECES`: QEMU takes each for a memory region, and dies of the 512th, with memory slots (seen).
5. A mapping is complete a moment after the front end said so (seen): see `Channel.barrier`.
6. The front end may be waiting for us while we wait for its answer: see `standing_still`.

`Place` is the worker's own view of the window: requests may have buffers in it (direct I/O from a mapped file to
another).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from virtiofs.dax.channel import Channel, ChannelError, Interrupted, OlderChannel
from virtiofs.dax.tail import PAGE, Tail
from virtiofs.dax.watch import Watch

MAX_PIECES = 480
INTERRUPTED_SECONDS = 0.001  # until a request that was interrupted comes again
# A file loses by DAX when this many times as many ranges as the window has came back, after they were taken to make
# room, within some time: the guest's own page cache may hold it better, and is no worse at what is read once.
LOSING = 2
LOSING_SECONDS = 60.0
REMEMBERED = 1024  # ranges that were taken, and files whose regions are known for the window's after they were unmapped
RANGE = 2 << 20  # what Linux maps at a time (FUSE_DAX_SHIFT)
MAX_SIZE = MAX_PIECES * RANGE

AGAIN = 3  # what is answered for a request that was interrupted before anything was done (fuse/request.pxd)

Identity = tuple[int, int]  # device and inode


class Place(Protocol):
    """Where the worker maps the window for itself (`virtqueue.memory.GuestMemory`)."""

    def map_window(self, offset: int, fd: int, fd_offset: int, length: int) -> None: ...
    def unmap_window(self, offset: int, length: int) -> None: ...
    def place_window(self, guest: int) -> None: ...


class File:
    """A file with ranges; `fd` is its own."""

    def __init__(self, nodeid: int, fd: int, writable: bool):
        self.nodeid = nodeid
        self.fd = fd
        self.writable = writable
        status = os.fstat(fd)
        self.identity: Identity = (status.st_dev, status.st_ino)
        self.ranges: list[Range] = []
        self.tail: Tail | None = None
        self.ceiling: int | None = None  # a request is about to cut it to this size
        self.fitted = 0  # the size that its ranges were made to fit
        self.seen = 0  # the size it had when it was last looked at
        self.believed = 0  # the size the guest may still believe it to have
        self.unsettled = False  # it changed, and its ranges could not be made to fit

    def size(self) -> int:
        size = os.fstat(self.fd).st_size
        return size if self.ceiling is None else min(size, self.ceiling)

    def close(self) -> None:
        if self.tail is not None:
            self.tail.close()
        os.close(self.fd)


class Range:
    """`length` bytes of the window from `start`, which stand for those of a file from `foffset`."""

    def __init__(self, file: File, start: int, length: int, foffset: int, writable: bool):
        self.file = file
        self.start = start
        self.length = length
        self.foffset = foffset
        self.writable = writable
        self.gone = False
        self.pieces: list[tuple[int, int]] = []  # offset in the range and length: without gaps, from 0 on
        self.tail_at: int | None = None  # offset in the range

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def covered(self) -> int:
        return self.pieces[-1][0] + self.pieces[-1][1] if self.pieces else 0


class Refused(OSError):
    """A request for a mapping is refused; `reason` is a word for the counters."""

    def __init__(self, number: int, reason: str, text: str):
        super().__init__(number, text)
        self.reason = reason


class Shrank(Refused):
    """Others cut the file while it was being mapped."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "shrank", "the file shrank meanwhile")


class Window:
    """The window of one device, `size` bytes.  Safe for threads; `log` takes one line for each trouble."""

    def __init__(self, size: int, place: Place, log: Callable[[str], None]):
        self.size = size
        self._place = place
        self._log = log
        self._lock = threading.RLock()
        self._channel: Channel | None = None
        self._ranges: dict[int, Range] = {}  # by start
        self._files: dict[int, File] = {}  # by node id
        self._stale: list[tuple[int, int]] = []  # pieces of ranges that were forgotten, still to be unmapped
        self._still = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # What the front end announces, by other threads than those that map: under `_announcing` alone.
        self._announcing = threading.Lock()
        self._expected: dict[int, tuple[Identity, int, int]] = {}  # by window offset
        self._regions: dict[tuple[int, int], Identity] = {}  # by guest address and size
        self._known: OrderedDict[Identity, None] = OrderedDict()
        self._base: int | None = None
        self._refused: dict[str, int] = {}
        self._evictions = 0
        self._taken: OrderedDict[tuple[Identity, int], None] = (
            OrderedDict()
        )  # ranges lately taken from a full window
        self._returned: dict[Identity, tuple[int, float]] = {}  # how many ranges came back, since when
        self._losing: set[Identity] = set()
        self._cuts = 0
        self._watch = Watch(self.look, log)

    # --- what the supervisor says, by the worker's main thread ---

    def connect(self, fd: int, older: bool, barriers: bool) -> None:
        """Ask the front end through this socket, which is the window's from now on; see channel.py."""
        with self.standing_still(), self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = (OlderChannel if older else Channel)(fd, self._wake, barriers)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let no thread wait for the front end, which waits for us: to be used around what waits for such a thread.

        Their requests are left in the ring, or finished without the answer.
        """
        with self._announcing:
            self._still += 1
            if self._still == 1:
                os.eventfd_write(self._wake, 1)
        try:
            yield
        finally:
            with self._announcing:
                self._still -= 1
                if self._still == 0:
                    os.eventfd_read(self._wake)

    def announced(self, guest: int, size: int, fd: int, offset: int) -> bool:
        """Whether a memory region that the front end announces is a piece of the window, and not guest memory."""
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        with self._announcing:
            if identity not in self._known:
                return False
            self._regions[guest, size] = identity
            bases = {guest - at for at, what in self._expected.items() if what == (identity, offset, size)}
            if len(bases) == 1 and bases != {self._base}:
                self._base = bases.pop()
                self._place.place_window(self._base)
            return True

    def withdrawn(self, guest: int, size: int) -> bool:
        """Whether a region that the front end takes back was a piece of the window."""
        with self._announcing:
            return self._regions.pop((guest, size), None) is not None

    def forget_regions(self) -> None:
        """The front end begins a new table of memory."""
        with self._announcing:
            self._regions.clear()

    # --- what the guest asks ---

    @property
    def usable(self) -> bool:
        """Whether there is a front end to ask."""
        return self._channel is not None

    @property
    def exact(self) -> bool:
        """Whether the front end maps read-only what is to be read only."""
        return self._channel is not None and self._channel.exact

    def setup(self, nodeid: int, fd: int, foffset: int, length: int, start: int, writable: bool) -> int:
        """Serve SETUPMAPPING; `fd` is the file's, and the window's from now on.  0, a negative errno, or AGAIN."""
        file: File | None = None
        try:
            with self._asking():
                file = self._file(nodeid, fd, writable)
                self._setup(file, foffset, length, start, writable)
            return 0
        except Interrupted:
            return AGAIN
        except Refused as refused:
            self.count_refusal(refused.reason)
            return -(refused.errno or errno.EIO)
        except OSError as error:
            self.count_refusal("front-end" if isinstance(error, ChannelError) else "error")
            self._log(f"a mapping failed: {error.strerror or error}")
            return -(error.errno or errno.EIO)
        finally:
            if file is None:
                os.close(fd)

    def remove(self, records: bytes) -> int:
        """Serve REMOVEMAPPING: pairs of offset and length.  0, a negative errno, or AGAIN."""
        words = memoryview(records).cast("Q")
        try:
            with self._asking():
                for i in range(0, len(words), 2):
                    if words[i + 1] == 0 or words[i] + words[i + 1] > self.size:
                        return -errno.EINVAL
                    self._clear(words[i], words[i] + words[i + 1])
        except Interrupted:
            return AGAIN
        except OSError as error:
            self._log(f"an unmapping failed: {error.strerror or error}")
            return -(error.errno or errno.EIO)
        return 0

    def before(self, nodeid: int, size: int) -> int:
        """A request is about to look at a file, or to change it; `size` is what it cuts it to, or -1.

        0, a negative errno, or AGAIN.
        """
        try:
            with self._asking():
                file = self._files.get(nodeid)
                if file is not None:
                    if file.tail is not None:
                        file.tail.sync(file.fd)
                    if size >= 0:
                        self._lower(file, size)
        except Interrupted:
            return AGAIN
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0

    def _lower(self, file: File, size: int) -> None:
        """Let nothing of a file be mapped behind `size`."""
        file.ceiling = size
        try:
            self._fit(file)
        except BaseException:
            file.ceiling = None
            raise

    def after(self, nodeid: int) -> None:
        """The request was served: make the ranges of the file fit what it is now."""
        file = self._files.get(nodeid)
        if file is not None:
            file.ceiling = None
            self.refit(nodeid)

    def refit(self, nodeid: int) -> None:
        """The guest is about to be told the size of a file: make its ranges fit."""
        file = self._files.get(nodeid)
        if file is None:
            return
        try:
            with self._asking():
                file.unsettled = False
                self._fit(file)
                file.believed = file.fitted
        except Interrupted:
            file.unsettled = True  # when the queues run again
        except Shrank:
            pass  # the watch has that before it
        except OSError as error:
            self._log(f"a mapped file changed, and its mappings could not follow: {error.strerror or error}")

    def show(self, region: int, fd: int, size: int) -> bool:
        """Have the front end map a whole file as another shared memory region; whether it does.  Raises `OSError`."""
        done: list[bool] = []
        while not done:
            with contextlib.suppress(Interrupted), self._asking():
                if self._channel is None:
                    return False
                if not done:  # the answer may have come late
                    self._channel.map(0, fd, 0, size, True, done.append, region)
        return done[0]

    def catch_up(self) -> None:
        """The queues run again: do what had to wait for that."""
        for file in [file for file in self._files.values() if file.unsettled]:
            self.refit(file.nodeid)

    def look(self) -> bool:
        """A file with ranges was written to, by anyone: let nothing be mapped behind an end that came nearer.

        When what was cut off grows again, it is mapped as far as the guest may believe the file to reach all the
        time, but not while it is still growing: it may be cut again, and QEMU makes an empty file larger (seen).
        Whether that is done; if not, it is to be tried again.
        """
        done = True
        try:
            with self._asking():
                for file in list(self._files.values()):
                    size = file.size()
                    grows = file.fitted < min(size, file.believed)
                    if file.ceiling is None and (size < file.fitted or (grows and size == file.seen)):
                        self._fit(file)
                    elif grows:
                        done = False
                    file.seen = size
        except (Interrupted, Shrank):
            return False
        except OSError as error:
            self._log(f"a mapped file was cut, and its mappings could not follow: {error.strerror or error}")
        return done

    def clear(self) -> None:
        """The session is over: no mapping is left, now or, if the front end can not be asked, before the next."""
        with self._lock:
            for range in list(self._ranges.values()):
                self._forget(range)
            with self._announcing:
                self._base = None
            self._drop_idle()
            with contextlib.suppress(Interrupted, OSError), self._asking():
                pass

    def close(self) -> None:
        """Give everything back; the front end is gone."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.clear()
        self._watch.close()
        os.close(self._wake)

    def statistics(self) -> dict[str, Any]:
        """Mappings now, ranges taken from files, and requests refused by reason."""
        return {
            "dax_mappings": len(self._ranges),
            "dax_evictions": self._evictions,
            "dax_cuts": self._cuts,
            "dax_refused": dict(self._refused),
        }

    def loses(self, dev: int, ino: int) -> bool:
        """Whether a file is better served without DAX, as the window is too small for how it is read."""
        return (dev, ino) in self._losing

    def count_refusal(self, reason: str) -> None:
        self._refused[reason] = self._refused.get(reason, 0) + 1

    # --- inside: under the lock ---

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Hold the lock, with nothing left over from before."""
        with self._lock:
            if self._still:
                time.sleep(INTERRUPTED_SECONDS)
                raise Interrupted
            if self._channel is not None:
                self._channel.settle()
                # Most front ends forget at reset; those that do not are asked.  The latest piece is the likeliest left.
                while self._stale:
                    at, length = self._stale[-1]
                    self._ask_unmap(at, length, self._stale_is_gone)
            try:
                yield
            finally:
                self._drop_idle()

    def _stale_is_gone(self, done: bool) -> None:
        self._stale.pop()
        if not done:
            self._stale.clear()

    @property
    def _pieces(self) -> int:
        return sum(len(self._parts(range)) for range in self._ranges.values()) + len(self._stale)

    def _file(self, nodeid: int, fd: int, writable: bool) -> File:
        file = self._files.get(nodeid)
        if file is None:
            file = self._files[nodeid] = File(nodeid, fd, writable)
            self._watch.add(fd)
            with self._announcing:
                self._known[file.identity] = None
                self._known.move_to_end(file.identity)
                while len(self._known) > REMEMBERED + len(self._files):
                    self._known.popitem(last=False)
        elif writable and not file.writable:
            os.close(file.fd)
            file.fd, file.writable = fd, True
        else:
            os.close(fd)
        return file

    def _drop_idle(self) -> None:
        """Let go of files without ranges."""
        for file in [file for file in self._files.values() if not file.ranges]:
            del self._files[file.nodeid]
            if all(other.identity != file.identity for other in self._files.values()):
                self._watch.remove(file.fd)
            file.close()

    def _setup(self, file: File, foffset: int, length: int, start: int, writable: bool) -> None:
        if self._channel is None:
            raise Refused(errno.EOPNOTSUPP, "front-end", "the front end has no window")
        if length == 0 or (foffset | length | start) % PAGE or foffset + length >= 1 << 63:
            raise Refused(errno.EINVAL, "invalid", "not whole pages")
        if start + length > self.size:
            raise Refused(errno.EINVAL, "invalid", "outside the window")
        present = self._ranges.get(start)
        if (
            present is not None
            and (present.file, present.length, present.foffset) == (file, length, foffset)
            and (present.writable or not writable)
        ):
            self._fit(file)
            return
        self._clear(start, start + length)
        if self._pieces + 2 > MAX_PIECES or len(self._ranges) >= MAX_PIECES:
            raise Refused(errno.ENOMEM, "full", "no room for more mappings")
        self._judge(file, foffset)
        range = Range(file, start, length, foffset, writable)
        self._ranges[start] = range
        file.ranges.append(range)
        try:
            self._fit(file)
        except Interrupted:
            raise
        except OSError:
            self._forget(range)
            raise
        file.believed = max(file.believed, file.fitted)

    def _judge(self, file: File, foffset: int) -> None:
        """A range is mapped: it is no gain if it was taken away before, to make room."""
        if self._taken.pop((file.identity, foffset), False) is False:
            return
        now = time.monotonic()
        count, since = self._returned.pop(file.identity, (0, now))
        count, since = (count + 1, since) if now - since < LOSING_SECONDS else (1, now)
        if count >= LOSING * self.size // RANGE and len(self._losing) < REMEMBERED:
            self._losing.add(file.identity)
        elif len(self._returned) < REMEMBERED:
            self._returned[file.identity] = count, since

    def _clear(self, start: int, end: int) -> None:
        """Make [start, end) empty; of a range that reaches beyond, the rest stays."""
        for range in [r for r in self._ranges.values() if r.start < end and start < r.end]:
            file = range.file
            if file.tail is not None:
                file.tail.sync(file.fd)
            rests = []
            if range.start < start:
                rests.append((range.start, start, range.foffset))
            if end < range.end:
                rests.append((end, range.end, range.foffset + end - range.start))
            self._unmap_from(range, 0)
            if 4 * len(self._ranges) * RANGE >= 3 * self.size:
                self._taken[file.identity, range.foffset] = None
                while len(self._taken) > REMEMBERED:
                    self._taken.popitem(last=False)
            self._remove(range)
            self._evictions += 1
            for first, last, foffset in rests:
                rest = Range(file, first, last - first, foffset, range.writable)
                self._ranges[first] = rest
                file.ranges.append(rest)
            if rests:
                self._fit(file)
            else:
                self._drop_tail_if_unused(file)

    def _forget(self, range: Range) -> None:
        """Take a range away without asking the front end; its pieces are to be unmapped later."""
        file = range.file
        if file.tail is not None:
            with contextlib.suppress(OSError):
                file.tail.sync(file.fd)
        for offset, length in self._parts(range):
            self._stale.append((range.start + offset, length))
            self._unexpect(range.start + offset, length)
        range.pieces.clear()
        range.tail_at = None
        self._remove(range)
        self._drop_tail_if_unused(file)

    def _remove(self, range: Range) -> None:
        range.gone = True
        del self._ranges[range.start]
        range.file.ranges.remove(range)

    @staticmethod
    def _parts(range: Range) -> list[tuple[int, int]]:
        return range.pieces + ([] if range.tail_at is None else [(range.tail_at, PAGE)])

    def _fit(self, file: File) -> None:
        """Map and unmap pieces until the ranges of a file are what they should be for its size now."""
        if not file.ranges:
            return
        size = file.size()
        cut_by_others = file.ceiling is None and size < file.fitted
        whole = size // PAGE * PAGE
        tail = whole if size % PAGE else None
        if file.tail is not None:
            file.tail.sync(file.fd)
        for range in list(file.ranges):
            wanted = max(0, min(range.length, whole - range.foffset))
            end = max(0, min(range.length, (size + PAGE - 1) // PAGE * PAGE - range.foffset))
            self._unmap_from(range, end)
            if cut_by_others and range.covered > end:
                self._unmap(range, *range.pieces[-1])
            tail_at = None
            if tail is not None and 0 <= tail - range.foffset < range.length:
                tail_at = tail - range.foffset
                if tail_at < range.covered:
                    tail_at = None  # it lies in a piece of the file, from when that was larger
            if range.tail_at is not None and range.tail_at != tail_at:
                self._unmap(range, range.tail_at, PAGE)
            if range.covered < wanted:
                if self._pieces >= MAX_PIECES:
                    self._unmap_from(range, 0)  # many small steps become one piece
                self._map(range, range.covered, wanted - range.covered, file.fd, range.foffset)
            if tail_at is not None and range.tail_at is None:
                if file.tail is None or file.tail.start != tail:
                    self._drop_tail(file)
                    file.tail = Tail(file.fd, range.foffset + tail_at)
                self._map(range, tail_at, PAGE, file.tail.fd, None)
        self._drop_tail_if_unused(file)
        self._cuts += cut_by_others
        file.fitted = size

    def _unmap_from(self, range: Range, end: int) -> None:
        """Unmap the pieces of a range that lie wholly at or behind `end`."""
        for offset, length in reversed(self._parts(range)):
            if offset >= end:
                self._unmap(range, offset, length)

    def _drop_tail_if_unused(self, file: File) -> None:
        if all(range.tail_at is None for range in file.ranges):
            self._drop_tail(file)

    def _drop_tail(self, file: File) -> None:
        if file.tail is not None:
            for range in file.ranges:
                if range.tail_at is not None:
                    self._unmap(range, range.tail_at, PAGE)
            file.tail.close()
            file.tail = None

    # --- one request to the front end each ---

    def _map(self, range: Range, offset: int, length: int, fd: int, foffset: int | None) -> None:
        """Map a piece of the file, or its tail (`foffset` None), at `offset` of a range.  Raises `OSError`."""
        assert self._channel is not None
        at = range.start + offset
        from_ = 0 if foffset is None else foffset + offset
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if status.st_size < from_ + length:
            raise Shrank
        theirs, fd = fd, os.dup(fd)  # for a late answer the file may be closed already
        answers = []

        def effect(done: bool) -> None:
            answers.append(done)
            try:
                if not done or range.gone:
                    self._unexpect(at, length)
                if done and range.gone:
                    self._stale.append((at, length))
                elif done:
                    if foffset is None:
                        range.tail_at = offset
                    else:
                        range.pieces.append((offset, length))
                    with contextlib.suppress(OSError):  # a request with a buffer there gets EFAULT
                        self._place.map_window(at, fd, from_, length)
            finally:
                os.close(fd)

        with self._announcing:
            self._known[identity] = None
            self._expected[at] = (identity, from_, length)
        self._channel.map(at, fd, from_, length, range.writable, effect)
        if not answers[0]:
            now = os.fstat(theirs)
            if now.st_size < from_ + length or now.st_mtime_ns != status.st_mtime_ns:
                raise Shrank  # it may have grown again since the front end looked
            raise Refused(errno.EIO, "front-end", "the front end refused it")
        self._channel.barrier()

    def _unmap(self, range: Range, offset: int, length: int) -> None:
        """Unmap the piece at `offset` of a range; what was stored in a tail until then goes to the file."""

        def effect(done: bool) -> None:
            if not done:
                self._log("the front end knows nothing of a mapping; it is taken for gone")
            if range.tail_at == offset:
                range.tail_at = None
            elif (offset, length) in range.pieces:
                range.pieces.remove((offset, length))

        is_tail = range.tail_at == offset
        self._ask_unmap(range.start + offset, length, effect)
        if is_tail and range.file.tail is not None:
            range.file.tail.sync(range.file.fd)

    def _ask_unmap(self, at: int, length: int, effect: Callable[[bool], None]) -> None:
        assert self._channel is not None
        self._unexpect(at, length)
        self._channel.unmap(at, length, effect)
        self._channel.barrier()

    def _unexpect(self, at: int, length: int) -> None:
        with self._announcing:
            if self._expected.pop(at, None) is not None:
                self._place.unmap_window(at, length)
