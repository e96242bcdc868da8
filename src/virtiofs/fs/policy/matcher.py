# SPDX-License-Identifier: Apache-2.0
"""The compiled tables of a policy: from the state of a directory and a name in it to a verdict.

A path is matched one component after the other, as a guest walks it.  What is left of the patterns at a directory, the
segments that its entries are compared with, is the directory's *state*; states are interned, so that directories where
the same rules hold have the same one, and a state is a number.  Patterns without a slash are compared at every depth
and belong to no state.

A verdict is a word: one bit for each list of patterns (`rules.py` says what they mean).  In a list the last pattern
that matches decides, and what is below a directory that is in the list is in the list too, as git has it.

The verdicts of names that were asked for lately are kept with their directory's state (`known.py`).
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from cython.cimports.virtiofs.fs.passthrough.host import (
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.virtiofs.fs.policy.known import hash_of, place_of, recall, remember
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, store_release_u32

from virtiofs.fs.policy.patterns import ANY, CLASS, DEEP, STAR

ANY_TOKEN = cython.declare(uint16_t, ANY)
STAR_TOKEN = cython.declare(uint16_t, STAR)
CLASS_TOKEN = cython.declare(uint16_t, CLASS)
MOST_PATTERNS = 1 << 16
MOST_CLASSES = 1 << 15
STATE_BUCKETS = cython.declare(uint32_t, 4096)


@cython.cclass
class Matcher:
    """The tables of `lists`, at most 64 sequences of `patterns.Pattern`.

    Raises `ValueError` for more than there is room for, and `MemoryError`.
    """

    def __cinit__(self, lists: object):
        number: uint32_t = 0
        tables: cython.pointer(Tables) = cython.address(self.tables)
        pthread_mutex_init(cython.address(tables.lock), cython.NULL)
        self.allocate(lists)
        for index, patterns in enumerate(lists):
            for pattern in patterns:
                self.add(pattern, number, index)
                number += 1
        begin(tables)

    def __dealloc__(self):
        tables: cython.pointer(Tables) = cython.address(self.tables)
        for where in (
            cython.cast(cython.size_t, tables.patterns),
            cython.cast(cython.size_t, tables.segments),
            cython.cast(cython.size_t, tables.tokens),
            cython.cast(cython.size_t, tables.bytes),
            cython.cast(cython.size_t, tables.classes),
            cython.cast(cython.size_t, tables.literals),
            cython.cast(cython.size_t, tables.buckets),
            cython.cast(cython.size_t, tables.scratch),
            cython.cast(cython.size_t, tables.known),
        ):
            free(cython.cast(cython.p_void, cython.cast(cython.size_t, where)))
        if tables.states != cython.NULL:
            munmap(tables.states, MOST_STATES * cython.sizeof(State))
        if tables.items != cython.NULL:
            munmap(tables.items, MOST_ITEMS * cython.sizeof(uint32_t))

    @cython.cfunc
    @cython.exceptval(0, check=True)
    def allocate(self, lists: object) -> uint32_t:
        """Make room for `lists`."""
        tables: cython.pointer(Tables) = cython.address(self.tables)
        patterns: list = [pattern for one in lists for pattern in one]
        segments: list = [segment for pattern in patterns for segment in pattern.segments]
        tokens: cython.size_t = 1 + sum(len(segment) for segment in segments)
        classes: cython.size_t = 1 + sum(
            isinstance(token, frozenset) for segment in segments for token in segment
        )
        if len(lists) > MOST_LISTS:
            raise ValueError(f"a policy has at most {MOST_LISTS} lists of patterns, not {len(lists)}")
        if len(patterns) > MOST_PATTERNS or classes > MOST_CLASSES:
            raise ValueError(
                f"a policy has at most {MOST_PATTERNS} patterns, with {MOST_CLASSES} classes, not {len(patterns)}"
            )
        count: cython.size_t = len(segments) + 1
        literals: uint32_t = 16
        while literals < 2 * count:
            literals *= 2
        tables.literal_mask = literals - 1
        tables.list_count = len(lists)
        tables.patterns = cython.cast(
            cython.pointer(PatternHead), calloc(len(patterns) + 1, cython.sizeof(PatternHead))
        )
        tables.segments = cython.cast(cython.pointer(Segment), calloc(count, cython.sizeof(Segment)))
        tables.tokens = cython.cast(cython.pointer(uint16_t), calloc(tokens, cython.sizeof(uint16_t)))
        tables.bytes = cython.cast(cython.pointer(uint8_t), calloc(tokens, 1))
        tables.classes = cython.cast(cython.pointer(uint8_t[256]), calloc(classes, 256))
        tables.literals = cython.cast(cython.pointer(uint32_t), calloc(literals, cython.sizeof(uint32_t)))
        tables.buckets = cython.cast(cython.pointer(uint32_t), calloc(STATE_BUCKETS, cython.sizeof(uint32_t)))
        tables.scratch = cython.cast(cython.pointer(uint32_t), calloc(3 * count, cython.sizeof(uint32_t)))
        tables.known = cython.cast(cython.pointer(Known), calloc(KNOWN_NAMES, cython.sizeof(Known)))
        tables.states = cython.cast(cython.pointer(State), reserve(MOST_STATES * cython.sizeof(State)))
        tables.items = cython.cast(cython.pointer(uint32_t), reserve(MOST_ITEMS * cython.sizeof(uint32_t)))
        if (
            tables.patterns == cython.NULL
            or tables.segments == cython.NULL
            or tables.tokens == cython.NULL
            or tables.bytes == cython.NULL
            or tables.classes == cython.NULL
            or tables.literals == cython.NULL
            or tables.buckets == cython.NULL
            or tables.scratch == cython.NULL
            or tables.known == cython.NULL
            or tables.states == cython.NULL
            or tables.items == cython.NULL
        ):
            raise MemoryError
        self.free_token = self.free_class = 0
        return 1

    @cython.cfunc
    @cython.exceptval(-1)
    def add(self, pattern: object, number: uint32_t, list: uint8_t) -> cython.int:
        """Put a pattern and its segments into the tables."""
        tables: cython.pointer(Tables) = cython.address(self.tables)
        head: cython.pointer(PatternHead) = cython.address(tables.patterns[number])
        segment: cython.pointer(Segment) = tables.segments
        bucket: cython.pointer(uint32_t)
        head.list = list
        head.negated = pattern.negated
        head.directories = pattern.directories
        tables.pattern_count = number + 1
        for tokens in pattern.segments:
            segment = cython.address(tables.segments[tables.segment_count])
            segment.pattern = number
            segment.next = NO_PATTERN
            kind, kept = classify(tokens)
            segment.kind = kind
            segment.offset = self.free_token
            segment.size = len(kept)
            for token in kept:
                if isinstance(token, frozenset):
                    for member in token:
                        tables.classes[self.free_class][cython.cast(uint8_t, member)] = 1
                    tables.tokens[self.free_token] = CLASS_TOKEN + self.free_class
                    self.free_class += 1
                else:
                    tables.tokens[self.free_token] = token
                    tables.bytes[self.free_token] = token & 0xFF
                self.free_token += 1
            if pattern.floating:
                self.home_of(tokens, segment, cython.address(bucket))
                segment.next = bucket[0] - 1 if bucket[0] else NO_PATTERN
                bucket[0] = tables.segment_count + 1
            tables.segment_count += 1
        segment.last = 1
        if not pattern.floating:
            # Where all paths begin: kept here until `begin`.
            tables.scratch[tables.item_count] = tables.segment_count - len(pattern.segments)
            tables.item_count += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def home_of(
        self,
        tokens: object,
        segment: cython.pointer(Segment),
        home: cython.pointer(cython.pointer(uint32_t)),
    ) -> cython.int:
        """Where a floating segment is found by a name that it may match."""
        tables: cython.pointer(Tables) = cython.address(self.tables)
        first: object = tokens[0]
        last: object = tokens[len(tokens) - 1]
        hash: uint32_t
        if segment.kind == SEGMENT_LITERAL:
            hash = hash_of(
                cython.cast(cython.p_char, cython.address(tables.bytes[segment.offset])), segment.size
            )
            home[0] = cython.address(tables.literals[hash & tables.literal_mask])
        elif isinstance(first, int) and first < 256:
            home[0] = cython.address(tables.by_first[cython.cast(uint8_t, first)])
        elif isinstance(last, int) and last < 256:
            home[0] = cython.address(tables.by_last[cython.cast(uint8_t, last)])
        else:
            home[0] = cython.address(tables.by_none)
        return 0

    def verdict(self, path: bytes, directory: bool) -> int:
        """The lists that `path`, relative to the shared directory, is in, as a bit each."""
        found: Verdict
        state: uint32_t = 0
        found.file = found.directory = 0
        parts: list = [part for part in path.split(b"/") if part]
        for number, name in enumerate(parts):
            name_verdict(cython.address(self.tables), state, name, len(name), cython.address(found))
            if number < len(parts) - 1:
                state = state_below(cython.address(self.tables), state, name, len(name))
                if state == NO_STATE:
                    raise MemoryError
        return found.directory if directory else found.file

    def deciding(self, path: bytes, directory: bool, list: int) -> int:
        """The number of the pattern that puts `path` or what is above it into a list, or takes it out; -1: none."""
        best: Best
        state: uint32_t = 0
        index: cython.int = list
        bit: uint64_t = cython.cast(uint64_t, 1) << index
        found: Verdict
        pattern: uint32_t = 0
        parts: object = [part for part in path.split(b"/") if part]
        for number, name in enumerate(parts):
            whole: bool = number == len(parts) - 1
            memset(cython.address(best), 0, cython.sizeof(Best))
            compare(cython.address(self.tables), state, name, len(name), cython.address(best))
            name_verdict(cython.address(self.tables), state, name, len(name), cython.address(found))
            pattern = best.directory[index]
            if whole and not directory:
                pattern = best.file[index]
            if whole or found.directory & bit:
                break
            state = state_below(cython.address(self.tables), state, name, len(name))
            if state == NO_STATE:
                raise MemoryError
        return cython.cast(object, pattern) - 1

    @property
    def states(self) -> int:
        return load_acquire_u32(cython.address(self.tables.state_count))


@cython.cfunc
def classify(tokens: object) -> tuple:
    """The kind of a segment, and those of its tokens that have to be compared."""
    if tokens == (DEEP,):
        return SEGMENT_DEEP, ()
    plain: object = [isinstance(token, int) and token < 256 for token in tokens]
    if all(plain):
        return SEGMENT_LITERAL, tokens
    last: cython.Py_ssize_t = len(plain) - 1
    if tokens[last] == STAR and all(plain[:last]):
        return SEGMENT_PREFIX, tokens[:last]
    if tokens[0] == STAR and all(plain[1:]):
        return SEGMENT_SUFFIX, tokens[1:]
    return SEGMENT_GLOB, tokens


@cython.cfunc
def reserve(size: cython.size_t) -> cython.p_void:
    """Memory that costs something only where it is used."""
    where: cython.p_void = mmap(
        cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    return cython.NULL if where == MAP_FAILED else where


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin(tables: cython.pointer(Tables)) -> cython.void:
    """Make the state of the shared directory itself, number 0."""
    count: uint32_t = tables.item_count
    i: uint32_t
    total: uint32_t = 0
    items: cython.pointer(uint32_t) = tables.scratch + tables.segment_count + 1
    tables.item_count = 0
    for i in range(count):
        total = follow(tables, items, total, tables.scratch[i])
    intern(tables, 0, items, total)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def name_verdict(
    tables: cython.pointer(Tables),
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    verdict: cython.pointer(Verdict),
) -> cython.void:
    """What holds for `name` in a directory of this state."""
    place: uint32_t = place_of(state, name, size)
    below: uint32_t = NO_STATE
    if recall(tables, place, state, name, size, verdict, cython.address(below)):
        return
    judge(tables, state, name, size, verdict)
    remember(tables, place, state, name, size, verdict, NO_STATE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def state_below(
    tables: cython.pointer(Tables),
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> uint32_t:
    """The state of the directory `name` in one of this state; NO_STATE if there is no room for it."""
    place: uint32_t = place_of(state, name, size)
    verdict: Verdict
    below: uint32_t = NO_STATE
    if not recall(tables, place, state, name, size, cython.address(verdict), cython.address(below)):
        judge(tables, state, name, size, cython.address(verdict))
    if below == NO_STATE:
        pthread_mutex_lock(cython.address(tables.lock))
        below = step(tables, state, name, size, verdict.directory)
        pthread_mutex_unlock(cython.address(tables.lock))
        remember(tables, place, state, name, size, cython.address(verdict), below)
    return below


# --- matching ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def judge(
    tables: cython.pointer(Tables),
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    verdict: cython.pointer(Verdict),
) -> cython.void:
    """Compare `name` with all patterns."""
    best: Best
    list: uint32_t
    bit: uint64_t
    memset(cython.address(best), 0, cython.sizeof(Best))
    compare(tables, state, name, size, cython.address(best))
    verdict.file = verdict.directory = tables.states[state].inherited
    for list in range(tables.list_count):
        bit = cython.cast(uint64_t, 1) << list
        if best.file[list] and not tables.patterns[best.file[list] - 1].negated:
            verdict.file |= bit
        if best.directory[list] and not tables.patterns[best.directory[list] - 1].negated:
            verdict.directory |= bit


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def compare(
    tables: cython.pointer(Tables),
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    best: cython.pointer(Best),
) -> cython.void:
    """The last pattern of each list that matches: as a file, and as a directory; 1 is the first pattern, 0 none."""
    here: cython.pointer(State) = cython.address(tables.states[state])
    i: uint32_t
    segment: cython.pointer(Segment)
    try_all(tables, tables.literals[hash_of(name, size) & tables.literal_mask], name, size, best)
    try_all(tables, tables.by_first[cython.cast(uint8_t, name[0])], name, size, best)
    try_all(tables, tables.by_last[cython.cast(uint8_t, name[size - 1])], name, size, best)
    try_all(tables, tables.by_none, name, size, best)
    for i in range(here.count):
        segment = cython.address(tables.segments[tables.items[here.first + i]])
        if segment.last and segment_matches(tables, segment, name, size):
            note(tables, segment.pattern, best)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def try_all(
    tables: cython.pointer(Tables),
    first: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    best: cython.pointer(Best),
) -> cython.void:
    """Compare a name with the floating segments of one place."""
    segment: cython.pointer(Segment)
    index: uint32_t = first - 1
    while index != NO_PATTERN:
        segment = cython.address(tables.segments[index])
        if segment_matches(tables, segment, name, size):
            note(tables, segment.pattern, best)
        index = segment.next


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def note(tables: cython.pointer(Tables), pattern: uint32_t, best: cython.pointer(Best)) -> cython.void:
    head: cython.pointer(PatternHead) = cython.address(tables.patterns[pattern])
    if not head.directories and best.file[head.list] <= pattern:
        best.file[head.list] = pattern + 1
    if best.directory[head.list] <= pattern:
        best.directory[head.list] = pattern + 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def segment_matches(
    tables: cython.pointer(Tables),
    segment: cython.pointer(Segment),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.bint:
    bytes: cython.pointer(uint8_t) = tables.bytes + segment.offset
    if segment.kind == SEGMENT_LITERAL:
        return size == segment.size and memcmp(name, bytes, size) == 0
    if segment.kind == SEGMENT_PREFIX:
        return size >= segment.size and memcmp(name, bytes, segment.size) == 0
    if segment.kind == SEGMENT_SUFFIX:
        return size >= segment.size and memcmp(name + (size - segment.size), bytes, segment.size) == 0
    if segment.kind == SEGMENT_DEEP:
        return True
    return glob_matches(
        tables, segment.offset, segment.size, cython.cast(cython.pointer(uint8_t), name), size
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def glob_matches(
    tables: cython.pointer(Tables),
    offset: uint32_t,
    count: uint32_t,
    name: cython.pointer(uint8_t),
    size: uint32_t,
) -> cython.bint:
    """Tokens against a whole name.  After a mismatch only the last star takes one byte more, so the time is bounded by
    the product of the lengths.
    """
    tokens: cython.pointer(uint16_t) = tables.tokens + offset
    token: uint16_t
    at: uint32_t = 0
    i: uint32_t = 0
    star: uint32_t = NO_PATTERN
    star_at: uint32_t = 0
    fits: cython.bint
    while at < size:
        fits = False
        if i < count:
            token = tokens[i]
            if token == STAR_TOKEN:
                star = i
                star_at = at
                i += 1
                continue
            if token >= CLASS_TOKEN:
                fits = tables.classes[token - CLASS_TOKEN][name[at]]
            else:
                fits = token == ANY_TOKEN or token == name[at]
        if fits:
            i += 1
            at += 1
        elif star != NO_PATTERN:
            star_at += 1
            at = star_at
            i = star + 1
        else:
            return False
    while i < count and tokens[i] == STAR_TOKEN:
        i += 1
    return i == count


# --- states ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def step(
    tables: cython.pointer(Tables),
    state: uint32_t,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    inherited: uint64_t,
) -> uint32_t:
    """The state below the directory `name`, which is itself in the lists `inherited`.  Under the lock."""
    here: cython.pointer(State) = cython.address(tables.states[state])
    segment: cython.pointer(Segment)
    items: cython.pointer(uint32_t) = tables.scratch
    total: uint32_t = 0
    index: uint32_t
    i: uint32_t
    for i in range(here.count):
        index = tables.items[here.first + i]
        segment = cython.address(tables.segments[index])
        if inherited >> tables.patterns[segment.pattern].list & 1:
            continue  # nothing takes it out of the list any more
        if segment.kind == SEGMENT_DEEP:
            total = follow(tables, items, total, index)
        elif not segment.last and segment_matches(tables, segment, name, size):
            total = follow(tables, items, total, index + 1)
    return intern(tables, inherited, items, total)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def follow(
    tables: cython.pointer(Tables), items: cython.pointer(uint32_t), total: uint32_t, index: uint32_t
) -> uint32_t:
    """Add a segment to `items`, kept in order, and what can be reached from it without a component: the new length.

    One that is there already brought the others with it.
    """
    at: uint32_t
    while True:
        at = total
        while at and items[at - 1] > index:
            at -= 1
        if at and items[at - 1] == index:
            return total
        i: uint32_t = total
        while i > at:
            items[i] = items[i - 1]
            i -= 1
        items[at] = index
        total += 1
        if tables.segments[index].kind != SEGMENT_DEEP or tables.segments[index].last:
            return total
        index += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def intern(
    tables: cython.pointer(Tables), inherited: uint64_t, items: cython.pointer(uint32_t), count: uint32_t
) -> uint32_t:
    """The number of the state with these items.  Under the lock."""
    bucket: cython.pointer(uint32_t)
    state: cython.pointer(State)
    index: uint32_t
    hash: uint32_t = hash_of(cython.cast(cython.p_char, items), count * 4)
    hash ^= cython.cast(uint32_t, inherited ^ (inherited >> 32)) * cython.cast(uint32_t, 0x9E3779B1)
    bucket = cython.address(tables.buckets[hash & (STATE_BUCKETS - 1)])
    index = bucket[0]
    while index:
        state = cython.address(tables.states[index - 1])
        if (
            state.inherited == inherited
            and state.count == count
            and memcmp(tables.items + state.first, items, count * 4) == 0
        ):
            return index - 1
        index = state.next
    if tables.state_count >= MOST_STATES or tables.item_count + count > MOST_ITEMS:
        return NO_STATE
    index = tables.state_count
    state = cython.address(tables.states[index])
    state.inherited = inherited
    state.first = tables.item_count
    state.count = count
    state.next = bucket[0]
    memcpy(tables.items + state.first, items, count * 4)
    tables.item_count += count
    store_release_u32(cython.address(tables.state_count), index + 1)
    bucket[0] = index + 1
    return index
