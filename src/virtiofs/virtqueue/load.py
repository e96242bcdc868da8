# SPDX-License-Identifier: Apache-2.0
"""A loop that loads a queue with prepared requests, without the interpreter: for benchmarks, and for tests that
need many requests.

A *program* is a list of requests, its *steps*; running all of them once, one after another, is a *round*.
Each *lane* runs rounds of a program and has one request in flight; so `depth` lanes are `depth` in flight.  A second
program may run beside the first, in lanes of its own: other requests while those of interest run.

What a request says may depend on the round and on earlier replies of its round (`Load.number`, `digits`, `copy`,
`forget_entries`): a file that CREATE made is written, closed and forgotten under the ids the device gave it.
Every lane keeps all requests and replies of its round in memory of its own, so the last ones can be looked at.
"""

import os

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.unistd import write
from cython.cimports.virtiofs.virtqueue.driver import DriverQueue, Piece, now, spin_hint
from cython.cimports.virtiofs.virtqueue.memory import translate

from virtiofs.virtqueue.driver import REASONS, DriverError

PAGE = 4096
MAX_PIECE = 0xFFFFFFFF
PAGE_START = 16  # of a reply: where its data begin, behind the out header
RECORD = cython.declare(uint64_t, 16)  # of BATCH_FORGET: node id and count

# What `loop` returns below zero beside the queue's own reasons (driver.REASONS).
WRONG_LENGTH = cython.declare(cython.int, -4)
ERROR_REPLY = cython.declare(cython.int, -5)
WRONG_UNIQUE = cython.declare(cython.int, -6)
TIMED_OUT = cython.declare(cython.int, -7)
NO_ROOM = cython.declare(cython.int, -8)
NO_KICK = cython.declare(cython.int, -9)

# Kinds of edits.
NUMBER = cython.declare(cython.int, 0)
SHUFFLED = cython.declare(cython.int, 1)
DIGITS = cython.declare(cython.int, 2)
COPY = cython.declare(cython.int, 3)
ENTRIES = cython.declare(cython.int, 4)

# The histogram of latencies: each power of two of nanoseconds in 128 parts, so within 1 %.
PART_BITS = cython.declare(cython.int, 7)
PARTS = cython.declare(cython.int, 128)
BUCKETS = cython.declare(cython.int, 128 * 58)

ENTRY_OUT = cython.declare(uint64_t, 128)  # fuse_direntplus: fuse_entry_out, then fuse_dirent
DIRENT = cython.declare(uint64_t, 24)


def _up(value: int, align: int) -> int:
    return (value + align - 1) // align * align


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def shuffle(number: uint64_t, count: uint64_t) -> uint64_t:
    """A permutation of 0 to count - 1 (`count`: a power of two) without order: bijective steps, masked."""
    mask: uint64_t = count - 1
    bits: cython.int = 1
    while (cython.cast(uint64_t, 1) << bits) < count:
        bits += 1
    number = (number * cython.cast(uint64_t, 0x9E3779B97F4A7C15) + 0x632BE5AB) & mask
    number ^= number >> ((bits + 1) // 2)
    number = (number * cython.cast(uint64_t, 0xD1342543DE82EF95)) & mask
    number ^= number >> ((bits + 1) // 2)
    return (number * cython.cast(uint64_t, 0x2545F4914F6CDD1D)) & mask


def shuffled(number: int, count: int) -> int:
    """Where `Load.number(..., shuffled=True)` is in round `number`, of `count` (a power of two) places."""
    return shuffle(number, count)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bucket(ns: uint64_t) -> cython.int:
    shift: cython.int = 0
    while (ns >> shift) >= 2 * PARTS:
        shift += 1
    return shift * PARTS + cython.cast(cython.int, ns >> shift)


@cython.cclass
class Load:
    """Programs of requests that are run at a given depth, each reply checked when it comes back.

    `requests`: a program of tuples `(request, readable, writable, expected[, error])`: the request's bytes (in
    header first), the lengths of its readable and writable pieces, the used length its reply must have (-1: any),
    and the error it must carry (0, or a negative errno).  A request without writable pieces has no reply to check.
    `depth`: lanes of this program.  `beside`, `beside_depth`: a second program, and its lanes.  Steps are numbered
    through both.
    `address`: guest memory for the pieces, `Load.memory_needed(...)` bytes from a multiple of 4096 on; pieces of a
    page or more start on a page.
    Raises `ValueError` for requests that do not fit.  Nothing else may be in flight during a run.
    """

    def __cinit__(
        self,
        queue: DriverQueue,
        requests: list,
        depth: int,
        address: int,
        beside: object = (),
        beside_depth: int = 1,
    ):
        steps: list = [*requests, *beside]
        lanes: int = depth + (beside_depth if beside else 0)
        total: uint64_t = Load.memory_needed(requests, depth, beside, beside_depth)
        if address % PAGE or depth < 1 or lanes > queue.size or (beside and beside_depth < 1):
            raise ValueError(f"depth {lanes} or address {address:#x} does not fit the queue of {queue.size}")
        self.host = translate(cython.address(queue.memory.map), address, total)
        if self.host == cython.NULL:
            raise ValueError(f"{total} bytes at {address:#x} are outside guest memory")
        pieces: int = sum(len(step[1]) + len(step[2]) for step in steps)
        longest: int = max(len(step[1]) + len(step[2]) for step in steps)
        self.queue = queue
        self.depth = depth
        self.lane_count = lanes
        self.address = address
        self.lane_size = total // lanes
        self.step_count = len(steps)
        self.programs[0].first, self.programs[0].steps = 0, len(requests)
        self.programs[1].first, self.programs[1].steps = len(requests), len(beside)
        self.steps = cython.cast(cython.pointer(Step), calloc(len(steps), cython.sizeof(Step)))
        self.pieces = cython.cast(cython.pointer(Piece), calloc(pieces, cython.sizeof(Piece)))
        self.placed = cython.cast(cython.pointer(Piece), calloc(longest, cython.sizeof(Piece)))
        self.lanes = cython.cast(cython.pointer(Lane), calloc(lanes, cython.sizeof(Lane)))
        self.ready = cython.cast(cython.pointer(uint32_t), calloc(lanes, cython.sizeof(uint32_t)))
        self.owners = cython.cast(cython.pointer(uint32_t), calloc(queue.size, cython.sizeof(uint32_t)))
        self.histograms = cython.cast(cython.pointer(uint64_t), calloc(2 * BUCKETS, cython.sizeof(uint64_t)))
        if (
            self.steps == cython.NULL
            or self.pieces == cython.NULL
            or self.placed == cython.NULL
            or self.lanes == cython.NULL
            or self.ready == cython.NULL
            or self.owners == cython.NULL
            or self.histograms == cython.NULL
        ):
            raise MemoryError
        self.unique = 2
        self.wanted_edits = []
        self._fill(steps)

    def __dealloc__(self):
        free(self.steps)
        free(self.pieces)
        free(self.placed)
        free(self.lanes)
        free(self.ready)
        free(self.owners)
        free(self.histograms)
        free(self.edits)

    @staticmethod
    def _layout(steps: list) -> tuple:
        """The offset of every piece in a lane, step by step, and the lane's size."""
        offset = 0
        offsets = []
        for request, readable, writable, *_ in steps:
            lengths = [*readable, *writable]
            if (
                sum(readable) != len(request)
                or not readable
                or readable[0] < 40
                or (writable and writable[0] < 16)
            ):
                raise ValueError(
                    "pieces must add up to the request, with each header whole in the first of its side"
                )
            if not all(0 < length <= MAX_PIECE for length in lengths):
                raise ValueError("a piece is 1 to 4294967295 bytes long")
            places = []
            for length in lengths:
                offset = _up(offset, PAGE if length >= PAGE else 16)
                places.append(offset)
                offset += length
            offsets.append(places)
        return offsets, _up(offset, PAGE)

    @staticmethod
    def memory_needed(requests: list, depth: int, beside: object = (), beside_depth: int = 1) -> int:
        """Bytes of guest memory for these programs in so many lanes."""
        if not requests:
            raise ValueError("a load needs a request")
        return Load._layout([*requests, *beside])[1] * (depth + (beside_depth if beside else 0))

    def _fill(self, steps: list) -> None:
        """Remember the layout, and put every lane's copy of every request into guest memory."""
        offsets = Load._layout(steps)[0]
        k: uint32_t
        piece: uint32_t = 0
        for k, (request, readable, writable, expected, *error) in enumerate(steps):
            self.steps[k].first = piece
            self.steps[k].readable = len(readable)
            self.steps[k].writable = len(writable)
            self.steps[k].header = offsets[k][0]
            self.steps[k].reply = offsets[k][len(readable)] if writable else 0
            self.steps[k].expected = expected
            self.steps[k].error = error[0] if error else 0
            start = 0
            for offset, length in zip(offsets[k], [*readable, *writable], strict=True):
                self.pieces[piece].address = offset
                self.pieces[piece].length = length
                piece += 1
                for lane in range(self.lane_count):
                    self.queue.memory.write(
                        self.address + lane * self.lane_size + offset, request[start : start + length]
                    )
                start += length

    # --- what differs from round to round ---

    def _offset(self, step: int, position: int, length: int, of_reply: bool) -> int:
        """Where bytes of a step's request or reply lie in a lane."""
        if not 0 <= step < self.step_count:
            raise ValueError(f"no step {step} of {self.step_count}")
        first: int = self.steps[step].first + (self.steps[step].readable if of_reply else 0)
        count: int = self.steps[step].writable if of_reply else self.steps[step].readable
        start = 0
        for i in range(first, first + count):
            size: int = self.pieces[i].length
            if start <= position and position + length <= start + size:
                return self.pieces[i].address + position - start
            start += size
        side = "reply" if of_reply else "request"
        raise ValueError(f"no {length} bytes at byte {position} in one piece of the {side} of step {step}")

    def _edit(self, step: int, *fields: int) -> None:
        if step >= self.step_count:
            raise ValueError(f"no step {step} of {self.step_count}")
        self.wanted_edits.append((step, *fields))
        free(self.edits)
        self.edits = cython.NULL

    def number(
        self,
        step: int,
        position: int,
        start: int = 0,
        by: int = 1,
        count: int = 1 << 62,
        shuffled: bool = False,
    ) -> None:
        """The 64-bit field at byte `position` of a request is `start + by * (round % count)`.

        `shuffled`: in no order, but each place once in `count` (a power of two) rounds, see `shuffled`.
        Raises `ValueError`, as the other edits do, for a field that is not within one piece.
        """
        if count < 1 or (shuffled and count & (count - 1)):
            raise ValueError(f"{count} places: at least one, and a power of two to be shuffled")
        where = self._offset(step, position, 8, False)
        self._edit(step, SHUFFLED if shuffled else NUMBER, where, 8, 0, start, by, count)

    def digits(self, step: int, position: int, width: int, count: int = 1 << 62, start: int = 0) -> None:
        """The `width` bytes at `position` of a request are the decimal digits of `start + round % count`."""
        if count < 1:
            raise ValueError("digits of no numbers")
        self._edit(step, DIGITS, self._offset(step, position, width, False), width, 0, start, 1, count)

    def copy(self, step: int, position: int, source: int, source_position: int, length: int = 8) -> None:
        """`length` bytes of a request are those at `source_position` of the reply (its out header counts) to an
        earlier step of the round."""
        if not 0 <= source < step or (source < self.programs[1].first <= step):
            raise ValueError(f"step {step} has no step {source} before it")
        where = self._offset(step, position, length, False)
        self._edit(step, COPY, where, length, self._offset(source, source_position, length, True), 0, 0, 0)

    def forget_entries(self, step: int, position: int) -> None:
        """The records of a BATCH_FORGET, from byte `position` on, name the nodes of the reply to the step before, a
        READDIRPLUS.

        There must be as many records as nodes.  The records lie in one piece, the reply in whole pages.
        """
        if step < 1 or step == self.programs[1].first:
            raise ValueError(f"step {step} has no step before it")
        first: int = self.steps[step].first
        size = 0
        for i in range(first, first + self.steps[step].readable):
            size += self.pieces[i].length
        where = self._offset(step, position, size - position, False)
        source = self._offset(step - 1, PAGE_START, 1, True)
        end: int = source
        first = self.steps[step - 1].first + self.steps[step - 1].readable
        for i in range(first + 1, first + self.steps[step - 1].writable):
            if self.pieces[i].address != end:
                raise ValueError(f"the reply to step {step - 1} does not lie in whole pages")
            end += self.pieces[i].length
        self._edit(step, ENTRIES, where, size - position, source, 0, 0, 0)

    def _freeze(self) -> None:
        """The edits as an array, those of a step together."""
        wanted = sorted(self.wanted_edits, key=_step_of)
        self.edits = cython.cast(cython.pointer(Edit), calloc(len(wanted) + 1, cython.sizeof(Edit)))
        if self.edits == cython.NULL:
            raise MemoryError
        i: uint32_t
        for i in range(self.step_count):
            self.steps[i].edit_count = 0
        for i, (step, kind, where, length, source, start, by, count) in enumerate(wanted):
            if self.steps[step].edit_count == 0:
                self.steps[step].first_edit = i
            self.steps[step].edit_count += 1
            self.edits[i].kind = kind
            self.edits[i].where = where
            self.edits[i].length = length
            self.edits[i].source = source
            self.edits[i].start = start & 0xFFFFFFFFFFFFFFFF
            self.edits[i].by = by & 0xFFFFFFFFFFFFFFFF
            self.edits[i].count = count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def apply(
        self, edit: cython.pointer(Edit), base: cython.pointer(uint8_t), number: uint64_t, length: uint64_t
    ) -> cython.void:
        """Write one edit into the lane at `base`.  `length`: bytes of the reply that ENTRIES looks at."""
        value: uint64_t = 0
        i: uint64_t
        at: uint64_t = 0
        done: uint64_t = 0
        one: uint64_t = 1
        name: uint32_t = 0
        if edit.kind == COPY:
            memcpy(base + edit.where, base + edit.source, edit.length)
        elif edit.kind == DIGITS:
            value = edit.start + number % edit.count
            for i in range(edit.length):
                base[edit.where + edit.length - 1 - i] = cython.cast(uint8_t, 48 + value % 10)
                value //= 10
        elif edit.kind == ENTRIES:
            while at + ENTRY_OUT + DIRENT <= length and done + RECORD <= edit.length:
                memcpy(cython.address(value), base + edit.source + at, 8)
                memcpy(cython.address(name), base + edit.source + at + ENTRY_OUT + 16, 4)
                if value != 0:
                    memcpy(base + edit.where + done, cython.address(value), 8)
                    memcpy(base + edit.where + done + 8, cython.address(one), 8)
                    done += RECORD
                at += (ENTRY_OUT + DIRENT + name + 7) // 8 * 8
            memset(base + edit.where + done, 0, edit.length - done)
        else:
            value = number % edit.count
            if edit.kind == SHUFFLED:
                value = shuffle(value, edit.count)
            value = edit.start + edit.by * value
            memcpy(base + edit.where, cython.address(value), 8)

    # --- running ---

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(self, index: uint32_t) -> int64_t:
        """Place the lane's next request: the chain's head, or -1."""
        lane: cython.pointer(Lane) = cython.address(self.lanes[index])
        step: cython.pointer(Step) = cython.address(self.steps[lane.step])
        offset: uint64_t = index * self.lane_size
        base: cython.pointer(uint8_t) = self.host + offset
        i: uint32_t
        head: int64_t
        for i in range(step.edit_count):
            self.apply(cython.address(self.edits[step.first_edit + i]), base, lane.round, lane.last_length)
        lane.unique = self.unique
        memcpy(base + step.header + 8, cython.address(lane.unique), 8)
        for i in range(step.readable + step.writable):
            self.placed[i].address = self.address + offset + self.pieces[step.first + i].address
            self.placed[i].length = self.pieces[step.first + i].length
        lane.started = now()
        head = self.queue.place(self.placed, step.readable, step.writable)
        if head >= 0:
            self.unique += 2
        return head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def check(self, index: uint32_t) -> cython.int:
        """Whether the reply in the lane answers its request as it should: 0 or a reason."""
        lane: cython.pointer(Lane) = cython.address(self.lanes[index])
        step: cython.pointer(Step) = cython.address(self.steps[lane.step])
        where: cython.pointer(uint8_t) = self.host + index * self.lane_size + step.reply
        length: uint32_t = 0
        error: int32_t = 0
        unique: uint64_t = 0
        self.bad_round = lane.round
        self.bad_step = lane.step
        self.bad_length = self.queue.taken_length
        self.bad_error = 0
        if step.writable == 0:
            return 0 if self.queue.taken_length == 0 else WRONG_LENGTH
        memcpy(cython.address(length), where, 4)
        memcpy(cython.address(error), where + 4, 4)
        memcpy(cython.address(unique), where + 8, 8)
        self.bad_error = error
        if self.queue.taken_length < 16 or length != self.queue.taken_length:
            return WRONG_LENGTH
        if unique != lane.unique:
            return WRONG_UNIQUE
        if error != step.error:
            return ERROR_REPLY
        if step.expected >= 0 and length != step.expected:
            return WRONG_LENGTH
        lane.last_length = length - 16
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin_round(self, index: uint32_t) -> cython.bint:
        """Give the lane its program's next round: False when there is none."""
        lane: cython.pointer(Lane) = cython.address(self.lanes[index])
        program: cython.pointer(Program) = cython.address(self.programs[lane.program])
        if program.next >= program.end:
            return False
        lane.round = program.next
        lane.step = program.first
        program.next += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def advance(self, index: uint32_t, seen: uint64_t) -> cython.bint:
        """Account for the lane's finished request: whether it has another one to send."""
        lane: cython.pointer(Lane) = cython.address(self.lanes[index])
        program: cython.pointer(Program) = cython.address(self.programs[lane.program])
        if self.steps[lane.step].writable:
            self.histograms[lane.program * BUCKETS + bucket(seen - lane.started)] += 1
        lane.step += 1
        if lane.step < program.first + program.steps:
            return True
        program.finished += 1
        if lane.program == 0 and program.finished == program.wanted:
            self.programs[1].end = 0  # what runs beside ends with the round it is in
        return self.begin_round(index)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def loop(self, polled: cython.bint, timeout: uint64_t) -> cython.int:
        """Run the programs to their ends: 0 or a negative reason."""
        ready: uint32_t = 0
        flying: uint32_t = 0
        index: uint32_t
        spins: uint32_t = 0
        added: cython.bint
        found: cython.int
        head: int64_t
        one: uint64_t = 1
        seen: uint64_t
        last: uint64_t = now()  # when anything happened
        for index in range(self.lane_count):
            self.lanes[index].program = index >= self.depth
            if self.begin_round(index):
                self.ready[ready] = index
                ready += 1
        self.queue.disarm()
        while ready or flying:
            added = False
            while ready:
                index = self.ready[ready - 1]
                head = self.send(index)
                if head < 0:
                    break
                self.owners[head] = index
                ready -= 1
                flying += 1
                added = True
            if flying == 0:
                return NO_ROOM
            if added and self.queue.wants_kick():
                self.kicks += 1
                if write(self.queue.kick_fd, cython.address(one), 8) != 8:
                    return NO_KICK
            found = self.queue.take()
            if found == 0:
                if polled:
                    spin_hint()
                    spins += 1
                    if spins % 4096 == 0 and now() - last > timeout:
                        return TIMED_OUT
                elif not self.queue.arm():
                    self.wakes += 1
                    if self.queue.sleep(250) == 0 and now() - last > timeout:
                        return TIMED_OUT
                    self.queue.disarm()
                continue
            seen = now()
            last = seen
            while found > 0:
                index = self.owners[self.queue.taken_head]
                found = self.check(index)
                if found < 0:
                    return found
                flying -= 1
                if self.advance(index, seen):
                    self.ready[ready] = index
                    ready += 1
                found = self.queue.take()
            if found < 0:
                return found
        return 0

    def run(self, rounds: int, polled: bool = False, timeout: float = 10.0, first: int = 0) -> int:
        """Run `rounds` rounds of the program, numbered from `first` on; the time taken in ns.

        What runs beside it starts with round 0 and ends when the program has.  The interpreter lock is not held
        meanwhile.  `polled`: watch the used ring; else sleep on the call descriptor.  `timeout`: seconds without
        any reply.  `kicks` and `wakes` count the notifications of all runs.
        Raises `DriverError` naming the request; after that the queue is of no more use.
        """
        if not polled and self.queue.epoll_fd < 0:
            raise ValueError("a queue without a call descriptor can only be polled")
        if self.queue.free_count != self.queue.size:
            raise ValueError("the queue has other requests in flight")
        if self.edits == cython.NULL:
            self._freeze()
        memset(self.histograms, 0, 2 * BUCKETS * cython.sizeof(uint64_t))
        self.programs[0].next, self.programs[0].end = first, first + rounds
        self.programs[0].finished, self.programs[0].wanted = 0, rounds
        self.programs[1].next, self.programs[1].end = 0, 1 << 62 if self.programs[1].steps and rounds else 0
        self.programs[1].finished = 0
        patience: uint64_t = int(timeout * 1e9)
        spin: cython.bint = polled
        result: cython.int
        begin: uint64_t = now()
        with cython.nogil:
            result = self.loop(spin, patience)
        elapsed: uint64_t = now() - begin
        if result < 0:
            raise DriverError(
                f"{REASONS[result]}: step {self.bad_step} of round {self.bad_round}, used length"
                f" {self.bad_length}, error {self.bad_error}"
                + (f" ({os.strerror(-self.bad_error)})" if self.bad_error < 0 else "")
            )
        return elapsed

    # --- what came of it ---

    @property
    def rounds_beside(self) -> int:
        """Rounds of the second program in the last run."""
        return self.programs[1].finished

    def latency(self, share: float, beside: bool = False) -> float:
        """The ns that `share` (0 to 1) of the last run's requests with a reply took at most, within 1 %."""
        base: int = BUCKETS if beside else 0
        i: cython.int
        total: uint64_t = 0
        count: uint64_t = 0
        for i in range(BUCKETS):
            total += self.histograms[base + i]
        wanted: uint64_t = max(1, int(total * share + 0.5))
        for i in range(BUCKETS):
            count += self.histograms[base + i]
            if count >= wanted:
                shift: int = max(i // PARTS - 1, 0)
                return ((i - shift * PARTS) + 0.5) * (1 << shift)
        return 0.0

    def round(self, lane: int = 0) -> int:
        """The last round of a lane."""
        if not 0 <= lane < self.lane_count:
            raise IndexError(f"no lane {lane}")
        return self.lanes[lane].round

    def reply(self, lane: int = 0, step: int = 0) -> bytes:
        """What the writable pieces of a step hold in a lane, to their ends: its last reply comes first."""
        if not (0 <= lane < self.lane_count and 0 <= step < self.step_count):
            raise IndexError(f"no lane {lane} or step {step}")
        first: uint32_t = self.steps[step].first + self.steps[step].readable
        offset: int = self.address + lane * self.lane_size
        return b"".join(
            self.queue.memory.read(offset + self.pieces[first + i].address, self.pieces[first + i].length)
            for i in range(self.steps[step].writable)
        )


def _step_of(edit: tuple) -> int:
    return edit[0]
