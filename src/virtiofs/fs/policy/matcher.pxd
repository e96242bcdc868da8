# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.host cimport pthread_mutex_t

cdef enum:
    MOST_LISTS = 64          # a verdict is a word with a bit for each
    MOST_STATES = 1 << 16
    MOST_ITEMS = 1 << 24     # in all states
    KNOWN_NAMES = 1 << 14    # a power of two
    NAME_ROOM = 96

cdef extern from *:
    """
    #define NO_STATE 0xFFFFFFFFu
    #define NO_PATTERN 0xFFFFFFFFu
    """
    const uint32_t NO_STATE
    const uint32_t NO_PATTERN

# What a segment is, the cheapest way to compare it first.
cdef enum Kind:
    SEGMENT_LITERAL          # these bytes
    SEGMENT_PREFIX           # these bytes, then any
    SEGMENT_SUFFIX           # any, then these bytes
    SEGMENT_GLOB             # tokens
    SEGMENT_DEEP             # any number of components

cdef struct Segment:
    uint32_t offset          # into the matcher's tokens
    uint32_t size            # tokens, or bytes
    uint32_t pattern
    uint32_t next            # floating one in the same place: see Tables
    uint8_t kind
    uint8_t last             # of its pattern

cdef struct PatternHead:
    uint8_t list
    uint8_t negated
    uint8_t directories

# What holds below a directory: the segments that its entries are compared with, besides the floating ones.
cdef struct State:
    uint64_t inherited       # lists that it is in itself, and all below it
    uint32_t first           # of its items
    uint32_t count
    uint32_t next            # state of the same hash
    uint32_t unused

cdef struct Known:           # 128 bytes: the verdict of a name
    uint32_t lock            # odd: being written
    uint32_t state
    uint32_t below           # the state of a directory of this name; NO_STATE: nobody asked yet
    uint32_t size
    uint64_t file
    uint64_t directory
    char name[NAME_ROOM]

cdef struct Tables:
    PatternHead* patterns
    uint32_t pattern_count
    Segment* segments
    uint32_t segment_count
    uint16_t* tokens
    uint8_t* bytes           # the same tokens, where they are bytes
    uint8_t (*classes)[256]
    uint32_t* literals       # buckets of floating literals; what is in a place is linked, and counted from 1
    uint32_t literal_mask
    uint32_t by_first[256]   # other floating segments, by the byte that they begin with
    uint32_t by_last[256]    # or, where that may be any, end with
    uint32_t by_none         # or neither
    uint32_t list_count
    pthread_mutex_t lock     # over what follows
    State* states
    uint32_t state_count
    uint32_t* items
    uint32_t item_count
    uint32_t* buckets        # of states
    uint32_t* scratch
    Known* known

# What a name may be: the lists that it is in as a file and as a directory.
cdef struct Verdict:
    uint64_t file
    uint64_t directory

# The last pattern of each list that matches a name, as a file and as a directory; counted from 1, 0 for none.
cdef struct Best:
    uint32_t file[MOST_LISTS]
    uint32_t directory[MOST_LISTS]

cdef class Matcher:
    cdef Tables tables
    cdef uint32_t free_token     # while the tables are made
    cdef uint32_t free_class

    cdef uint32_t allocate(self, object lists) except? 0
    cdef int home_of(self, object tokens, Segment* segment, uint32_t** home) except? -1
    cdef int add(self, object pattern, uint32_t number, uint8_t list) except? -1

cdef void name_verdict(Tables* tables, uint32_t state, const char* name, uint32_t size, Verdict* verdict) noexcept nogil
cdef uint32_t state_below(Tables* tables, uint32_t state, const char* name, uint32_t size) noexcept nogil
