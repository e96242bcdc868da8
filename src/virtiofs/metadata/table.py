# SPDX-License-Identifier: Apache-2.0
"""The table of a tree in shared memory: a word for each inode, and what a change does to it.

An inode's slot is a keyed hash of its device and number.  A slot has no owner: two inodes that meet in one
invalidate each other more often than they had to, never less; so nothing is claimed, given back or full.

**The word** counts the changes in progress (bits 0-15) and, above them, versions.  To begin a change is to add
one to both; to end it is to add one to the version and take one from the count.  A reader loads the word, then asks
the host.  What it learns it may keep only if the count was zero, and for as long as the word stays the same:

- Who saw the old state asked the host before the change was made.  Its load of the word was still earlier (acquire:
  nothing after it is done before it), so it found either a change in progress, and keeps nothing, or the word
  from before `begin`, which is never the word again.
- `begin` is a full fence before the host is asked to change anything, `end` is a release after it answered.  So from
  the moment at which `end` returns, and even from the first effect of the change, the word is another one.

**A process that dies** in the middle leaves a count that nobody lowers: its slots are not cacheable, which is safe.
To tidy up, each member writes down what it has begun, in a list of its own, with a phase:

    BEGINNING  written before the word is changed         it may or may not have been
    BEGUN      written after                              it was: whoever tidies up ends the change
    ENDING     written before the word is changed back    it may or may not have been
    0          after that, and after the journal

For the two doubtful phases whoever tidies up looks at everyone's lists: if no one else has anything begun in that
slot, all that the word counts is the dead member's, and a compare-and-swap from exactly the word that was read ends
it.  Whoever begins meanwhile wrote that down before it changed the word, so either it is found in the lists or
the swap fails.  If there is someone else, the doubtful entry stays for the next time.  A tidier that dies leaves its
work in the same phases.
"""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset, strerror
from cython.cimports.posix.mman import MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, madvise, mmap, munmap
from cython.cimports.virtiofs.metadata.journal import (
    Change,
    View,
    any_member,
    boot_time,
    change_everything,
    journal_void,
    journal_write,
    mark_member,
    sched_yield,
    wake_all,
)
from cython.cimports.virtiofs.metadata.layout import (
    BEGINNING,
    BEGUN,
    DATA,
    ENDING,
    IN_PROGRESS,
    MEMBERS,
    MEMBERS_AT,
    NAME,
    PENDING,
    PHASE_MASK,
    PHASE_SHIFT,
    RECORDS,
    RECORDS_AT,
    SLOTS_AT,
    VERSION_SHIFT,
    Header,
    Member,
    Record,
    Slot,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    cas_u64,
    fence_after_change,
    fetch_add_u64,
    load_acquire_u64,
    load_u32,
    load_u64,
    store_release_u32,
    store_release_u64,
    store_u32,
    store_u64,
)

ONE = cython.declare(uint64_t, 1)
TRIES = cython.declare(cython.int, 50)  # behind the door, so others wait; what is left is tried the next time


class MetadataError(OSError):
    """The metadata table of a tree can not be used; the text says why and what to do."""


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def rotate(value: uint64_t, bits: cython.int) -> uint64_t:
    return value << bits | value >> (64 - bits)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_of(view: cython.pointer(View), dev: uint64_t, ino: uint64_t) -> uint64_t:
    """The slot of an inode: SipHash-1-3 of its 16 bytes, so that nobody without the key can aim at a slot."""
    a: uint64_t = view.key[0] ^ cython.cast(uint64_t, 0x736F6D6570736575)
    b: uint64_t = view.key[1] ^ cython.cast(uint64_t, 0x646F72616E646F6D)
    c: uint64_t = view.key[0] ^ cython.cast(uint64_t, 0x6C7967656E657261)
    d: uint64_t = view.key[1] ^ cython.cast(uint64_t, 0x7465646279746573)
    block: uint64_t
    step: cython.int
    for step in range(6):
        block = dev if step == 0 else ino if step == 1 else cython.cast(uint64_t, 16) << 56
        if step < 3:
            d ^= block
        elif step == 3:
            c ^= 0xFF
        a += b
        b = rotate(b, 13) ^ a
        a = rotate(a, 32)
        c += d
        d = rotate(d, 16) ^ c
        a += d
        d = rotate(d, 21) ^ a
        c += b
        b = rotate(b, 17) ^ c
        c = rotate(c, 32)
        if step < 3:
            a ^= block
    return (a ^ b ^ c ^ d) & view.slot_mask


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def word_of(view: cython.pointer(View), slot: uint64_t) -> uint64_t:
    return load_acquire_u64(cython.address(view.slots[slot].word))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin_(view: cython.pointer(View), slot: uint64_t) -> cython.int:
    """Begin a change of whatever is in `slot`; returns what `end_` wants to know."""
    pending: cython.pointer(uint64_t) = view.members[view.member].pending
    entry: cython.int = hint()[0]
    tried: cython.int = 0
    while load_u64(pending + entry) or not cas_u64(pending + entry, 0, slot << PHASE_SHIFT | BEGINNING):
        if tried == 0:  # threads that begin at the same time come to lie apart
            entry = cython.cast(uintptr_t, hint()) // 64 % PENDING
        entry = entry + 1 if entry + 1 < PENDING else 0
        tried += 1
        if tried % PENDING == 0:
            sched_yield()  # as many threads of this process are in the middle of a change
    hint()[0] = entry
    fetch_add_u64(cython.address(view.slots[slot].word), (ONE << VERSION_SHIFT) + 1)
    fence_after_change()
    store_release_u64(pending + entry, slot << PHASE_SHIFT | BEGUN)
    return entry


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def end_(view: cython.pointer(View), entry: cython.int, change: cython.pointer(Change)) -> cython.void:
    """End what `begin_` returned `entry` for.  `change`: what to tell those who follow (kind 0: nothing)."""
    pending: cython.pointer(uint64_t) = view.members[view.member].pending + entry
    finish(view, pending, change)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def finish(
    view: cython.pointer(View), pending: cython.pointer(uint64_t), change: cython.pointer(Change)
) -> cython.void:
    slot: uint64_t = (load_u64(pending) >> PHASE_SHIFT) & view.slot_mask
    time: uint64_t = boot_time()
    word: uint64_t
    store_release_u64(pending, slot << PHASE_SHIFT | ENDING)
    # Before the count goes down: who sees that nothing is in progress sees the time of the last change.
    store_u64(cython.address(view.slots[slot].changed_at), time)
    word = fetch_add_u64(cython.address(view.slots[slot].word), (ONE << VERSION_SHIFT) - 1)
    if change.kind and any_member(view.header.followers):
        journal_write(view, change, word + (ONE << VERSION_SHIFT) - 1, time)
    store_release_u64(pending, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begun_by_others(view: cython.pointer(View), slot: uint64_t, dead: uint32_t) -> cython.bint:
    """Whether any member but `dead` has something in `slot` in whatever phase."""
    member: uint32_t
    entry: cython.int
    for member in range(MEMBERS):
        if member == dead or not load_u32(cython.address(view.members[member].state)):
            continue
        for entry in range(PENDING):
            pending: uint64_t = load_acquire_u64(cython.address(view.members[member].pending[entry]))
            if pending and (pending >> PHASE_SHIFT) & view.slot_mask == slot:
                return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def settle(view: cython.pointer(View), slot: uint64_t, dead: uint32_t) -> cython.bint:
    """End whatever `dead` may have begun in `slot`.  False: others are at it, so it can not be told what is whose."""
    word: uint64_t
    _tries: cython.int
    for _tries in range(TRIES):
        word = word_of(view, slot)
        if word & IN_PROGRESS == 0:
            return True
        if not begun_by_others(view, slot, dead):
            store_u64(cython.address(view.slots[slot].changed_at), boot_time())
            if cas_u64(
                cython.address(view.slots[slot].word), word, ((word >> VERSION_SHIFT) + 1) << VERSION_SHIFT
            ):
                return True
        sched_yield()
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bury(view: cython.pointer(View), dead: uint32_t) -> cython.int:
    """End what a dead member had begun, and free its record.  The number of changes, or -1 if some are left for later.

    Only behind the door: one at a time, and nobody becomes a member meanwhile.
    """
    nothing: Change
    member: cython.pointer(Member) = view.members + dead
    phase: uint64_t
    slot: uint64_t
    entry: cython.int
    ended: cython.int = 0
    left: cython.bint = False
    lost: cython.bint = journal_void(view, dead)
    memset(cython.address(nothing), 0, cython.sizeof(Change))
    for entry in range(PENDING):
        if load_u64(cython.address(member.pending[entry])) & PHASE_MASK == BEGUN:
            finish(view, cython.address(member.pending[entry]), cython.address(nothing))
            lost = True  # those who follow were not told
            ended += 1
    for entry in range(PENDING):
        phase = load_u64(cython.address(member.pending[entry]))
        if phase == 0:
            continue
        slot = (phase >> PHASE_SHIFT) & view.slot_mask
        if settle(view, slot, dead):
            store_release_u64(cython.address(member.pending[entry]), 0)
            lost = True
            ended += 1
        else:
            left = True
    mark_member(view.header.followers, dead, False)
    mark_member(view.header.sleepers, dead, False)
    watch(view, dead, False)
    if lost:
        change_everything(view)
    if left:
        return -1
    store_u32(cython.address(member.worker), 0)
    store_release_u32(cython.address(member.state), 0)
    return ended


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def watch(view: cython.pointer(View), member: uint32_t, on: cython.bint) -> cython.void:
    """Note that `member` enters the host's changes, or no longer does.  Who has the lock on that byte, or the door.

    What was believed on the strength of a watcher does not hold without one.
    """
    if on:
        store_release_u32(cython.address(view.header.watcher), member + 1)
    elif load_u32(cython.address(view.header.watcher)) == member + 1:
        store_release_u32(cython.address(view.header.watcher), 0)
        change_everything(view)


def namespace() -> int:
    """The number of our namespace of process ids; 0 if /proc does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino & 0xFFFFFFFF
    except OSError:
        return 0


@cython.cclass
class Table:
    """The metadata table of a tree, mapped.  Made by `registry.attach`, which says what the arguments are.

    An inode is `dev, ino`, as os.stat says.  Any thread may call anything; nothing waits for anyone.  What `begin`
    began must be ended: `end` of the same inode, also if the change failed.
    Raises `MetadataError` if it can not be mapped; each method does after `close`.
    """

    def __cinit__(self, fd: cython.int, path: str, slots: int, key: tuple[int, int], member: int):
        size: cython.size_t = SLOTS_AT + slots * cython.sizeof(Slot)
        where: cython.p_void = mmap(cython.NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if where == MAP_FAILED:
            raise MetadataError(errno, f"cannot map {path}: {strerror(errno).decode()}")
        base: cython.p_char = cython.cast(cython.p_char, where)
        self.view.header = cython.cast(cython.pointer(Header), base)
        self.view.members = cython.cast(cython.pointer(Member), base + MEMBERS_AT)
        self.view.records = cython.cast(cython.pointer(Record), base + RECORDS_AT)
        self.view.slots = cython.cast(cython.pointer(Slot), base + SLOTS_AT)
        self.view.slot_mask = slots - 1
        self.view.record_mask = RECORDS - 1
        self.view.key[0], self.view.key[1] = key
        self.view.member = member
        self.size = size
        self.fd = fd
        self.path = path
        self.slots = slots
        self.pid = os.getpid()
        self.following = self.sleeping = 0
        record: cython.pointer(Member) = self.view.members + self.view.member
        memset(record.pending, 0, cython.sizeof(record.pending))  # whatever there was, it is nobody's
        record.pid = self.pid
        record.worker = 0
        record.namespace = namespace()
        record.attached = boot_time()
        store_release_u32(cython.address(record.state), 1)

    def __dealloc__(self):
        if self.size:
            munmap(self.view.header, self.size)

    @cython.cfunc
    @cython.exceptval(-1)
    def check(self) -> cython.int:
        if self.fd == -2:
            raise MetadataError(0, f"{self.path} was detached")
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def check_slot(self, slot: object) -> cython.int:
        self.check()
        if not 0 <= slot < self.slots:
            raise IndexError(f"there is no slot {slot} in a table of {self.slots}")
        return 0

    @property
    def member(self) -> int:
        """Our number, which is the `origin` of our changes."""
        return self.view.member

    def slot(self, dev: int, ino: int) -> int:
        """Where to find the word of an inode."""
        return slot_of(cython.address(self.view), dev, ino)

    def word(self, slot: int) -> int:
        """The word of a slot: changes in progress (`layout.IN_PROGRESS`), and version.  Raises `IndexError`."""
        self.check_slot(slot)
        return word_of(cython.address(self.view), slot)

    def changed_at(self, slot: int) -> int:
        """When a change in this slot last ended: ns of CLOCK_BOOTTIME; 0: none is known.  Raises `IndexError`."""
        self.check_slot(slot)
        return load_u64(cython.address(self.view.slots[cython.cast(uint64_t, slot)].changed_at))

    @property
    def everything(self) -> int:
        """The word of the whole tree: what was learned under another value of it does not hold."""
        self.check()
        return load_acquire_u64(cython.address(self.view.header.everything))

    @property
    def everything_at(self) -> int:
        """When `everything` last changed: ns of CLOCK_BOOTTIME; 0: never."""
        self.check()
        return load_u64(cython.address(self.view.header.everything_at))

    def begin(self, dev: int, ino: int) -> None:
        """An inode, or the names of a directory, are about to change."""
        self.check()
        begin_(cython.address(self.view), slot_of(cython.address(self.view), dev, ino))

    def end(self, dev: int, ino: int, kind: int, name: bytes = b"", child: tuple[int, int] = (0, 0)) -> None:
        """What `begin` announced has happened, or will not.  `kind`: layout.ATTRIBUTES, DATA, ENTRY or GONE.

        For names, the inode is the directory, and `child` what the name leads to, if that is known; for GONE, what
        was removed with its last name.
        Raises `MetadataError` if this process has not begun such a change.
        """
        self.check()
        slot: uint64_t = slot_of(cython.address(self.view), dev, ino)
        pending: cython.pointer(uint64_t) = self.view.members[self.view.member].pending
        entry: cython.int
        change: Change
        fill(cython.address(change), dev, ino, kind, name, child)
        for entry in range(PENDING):
            # Any of those begun in this slot is as good as another.
            if load_u64(pending + entry) == slot << PHASE_SHIFT | BEGUN and cas_u64(
                pending + entry, slot << PHASE_SHIFT | BEGUN, slot << PHASE_SHIFT | ENDING
            ):
                end_(cython.address(self.view), entry, cython.address(change))
                return
        raise MetadataError(0, f"no change of inode {ino} has begun")

    def bump(self, dev: int, ino: int, kind: int, name: bytes = b"", child: tuple[int, int] = (0, 0)) -> None:
        """`begin` and `end` at once: of a change that somebody else made already."""
        self.check()
        change: Change
        slot: uint64_t = slot_of(cython.address(self.view), dev, ino)
        fill(cython.address(change), dev, ino, kind, name, child)
        end_(
            cython.address(self.view),
            begin_(cython.address(self.view), slot),
            cython.address(change),
        )

    def cost(self, count: int) -> float:
        """Nanoseconds that one change costs where no interpreter is in its way: of `count`, each of another inode."""
        self.check()
        view: cython.pointer(View) = cython.address(self.view)
        change: Change
        changes: uint64_t = count
        i: uint64_t
        started: uint64_t
        memset(cython.address(change), 0, cython.sizeof(Change))
        change.kind = DATA
        with cython.nogil:
            started = boot_time()
            for i in range(changes):
                change.ino = i
                end_(view, begin_(view, slot_of(view, 1, i)), cython.address(change))
            started = boot_time() - started
        return started / count

    def bump_everything(self) -> None:
        """Anything may have changed."""
        self.check()
        change_everything(cython.address(self.view))

    def follow(self) -> "Follower":
        """Somebody who is told of each change from now on."""
        from virtiofs.metadata.follower import Follower

        self.check()
        return Follower(self)

    @property
    def changes(self) -> int:
        """How many records were written to the journal so far."""
        self.check()
        return load_u64(cython.address(self.view.header.head))

    def followers(self) -> list[int]:
        """The numbers of the members that follow the journal."""
        self.check()
        return [
            number
            for number in range(MEMBERS)
            if self.view.header.followers[cython.cast(cython.int, number) // 64] >> (number % 64) & 1
        ]

    def taken(self) -> list[int]:
        """The numbers of the members that are alive or not yet buried."""
        self.check()
        return [
            number for number in range(MEMBERS) if self.view.members[cython.cast(cython.int, number)].state
        ]

    def pending(self) -> int:
        """How many changes this member has begun and not ended."""
        self.check()
        entry: cython.int
        count: cython.int = 0
        for entry in range(PENDING):
            count += load_u64(self.view.members[self.view.member].pending + entry) != 0
        return count

    def set_worker(self, pid: int) -> None:
        """Note the process whose changes enter by way of this member, as the supervisor sees it (0: none)."""
        self.check()
        store_u32(cython.address(self.view.members[self.view.member].worker), pid)

    def worker_pids(self) -> set[int]:
        """The processes whose changes enter by themselves: those who watch the host may leave them out.

        Those of our namespace of process ids only: in another the same number is another process.
        """
        ours: uint32_t = self.view.members[self.view.member].namespace
        numbers: set = set()
        for number in self.taken():
            member: cython.pointer(Member) = self.view.members + cython.cast(cython.int, number)
            if member.namespace == ours != 0:
                numbers.add(member.worker)
        return numbers - {0}

    def bury(self, member: int) -> int:
        """End what a dead member had begun: the number of changes, or -1 if some must wait.  See `registry.tidy`."""
        self.check()
        if not 0 <= member < MEMBERS:
            raise IndexError(f"there is no member {member}")
        return bury(cython.address(self.view), member)

    def take_watch(self, block: bool = False) -> bool:
        """Become the one who enters the host's changes into this table; whether we are.

        With `block`, waits until whoever has the role is gone, which no other thread is kept from doing anything by.
        Who takes over calls `bump_everything`, as nobody may have watched for a while.
        """
        from virtiofs.metadata import registry

        self.check()
        return registry.take_watch(self, block)

    def announce_watch(self, on: bool) -> None:
        """Say that the host's changes enter the table from now on, or no longer do.  Only who has the watch may.

        Whoever believes it trusts what the table says for longer; when we die, who takes over or tidies up takes
        it back.
        """
        self.check()
        watch(cython.address(self.view), self.view.member, on)

    @property
    def watched(self) -> bool:
        """Whether the host's changes enter the table."""
        self.check()
        return load_u32(cython.address(self.view.header.watcher)) != 0

    @property
    def watcher(self) -> int:
        """The member that enters the host's changes; -1 if nobody does."""
        self.check()
        return cython.cast(int, load_u32(cython.address(self.view.header.watcher))) - 1

    def worker(self, member: int) -> int:
        """The process whose changes enter by way of a member, 0 if it has none (see `set_worker`)."""
        self.check()
        if not 0 <= member < MEMBERS:
            raise IndexError(f"there is no member {member}")
        return load_u32(cython.address(self.view.members[cython.cast(cython.int, member)].worker))

    def keep_mapping_only(self) -> None:
        """Close the descriptor: membership then lasts as long as the mapping, which is until this process ends.

        For a worker, behind whose walls no descriptor leads out of the share.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def keep_from_children(self) -> None:
        """Leave the mapping out of processes that are forked from now on, where nothing may use the table then."""
        self.check()
        if madvise(self.view.header, self.size, MADV_DONTFORK) != 0:
            raise MetadataError(errno, f"cannot keep {self.path} from children: {strerror(errno).decode()}")

    def close(self) -> None:
        """Leave the table; the last one removes its file.  Nothing may be using it; followers are at their end.

        In a process that was forked after attaching, only that process's copy is closed.
        """
        if self.fd == -2:
            return
        if self.fd >= 0:
            from virtiofs.metadata import registry

            if self.pid == os.getpid():
                registry.detach(self)
            os.close(self.fd)
        self.fd = -2
        wake_all(cython.address(self.view))
        if not self.following:
            munmap(self.view.header, self.size)
            self.size = 0


@cython.cfunc
@cython.exceptval(-1)
def fill(
    change: cython.pointer(Change),
    dev: uint64_t,
    ino: uint64_t,
    kind: object,
    name: bytes,
    child: tuple[int, int],
) -> cython.int:
    """`name` must outlive `change`."""
    if not 0 < kind < 5:
        raise ValueError(f"there is no kind of change {kind}")
    if len(name) > NAME:
        raise ValueError(f"a name has at most {NAME} bytes, not {len(name)}")
    change.kind = kind
    change.dev = dev
    change.ino = ino
    change.child_dev, change.child_ino = child
    change.name = name
    change.name_size = len(name)
    return 0
