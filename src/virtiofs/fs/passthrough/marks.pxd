# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.host cimport pthread_mutex_t
from virtiofs.fs.policy.matcher cimport MOST_LISTS, Tables
from virtiofs.fuse.request cimport Handler, Request

# The bits of a verdict, as in fs/policy/rules.py.
cdef enum:
    HIDE = 1
    DENY = 2
    READ_ONLY = 4
    ASK = 8
    STRICT = 15
    FOLLOWS = 7              # a file to its other names
    FIRST_OWNER = 4
    NOT_YET = 1 << 16        # in place of an answer: ask where it may be waited for

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC_COARSE

cdef struct Mark:            # 64 bytes: what is known of an inode
    uint32_t life            # its generation + 1; 0: nothing
    uint32_t state           # of a directory: see fs/policy/matcher.py
    uint64_t verdict
    char* path               # of a file that is asked about, as it was when it was last looked up; or NULL
    int64_t until            # how long the answer holds (ns)
    int64_t checked          # when a directory's path was last looked at (ns)
    int32_t answer           # bits of a verdict, or a negative errno
    uint32_t compared        # how many files with a rule of their own there were when it was compared with them
    uint64_t unused[2]

cdef struct Ruled:           # a file whose rule follows it
    uint64_t dev
    uint64_t ino
    int64_t born
    uint64_t verdict         # 0: a free place

cdef struct Policing:
    Share* share
    bint late                # the guest knew files before there was this policy
    Tables* tables
    Mark* marks
    uint32_t limit
    pthread_mutex_t lock     # over changes of marks, and over what follows
    uint32_t named           # marks from here on have no path
    Ruled* ruled             # by inode number
    uint32_t ruled_mask
    uint32_t ruled_count
    uint64_t has_uid         # lists that show an owner
    uint64_t has_gid
    uint32_t uids[MOST_LISTS]
    uint32_t gids[MOST_LISTS]
    void* asker              # a Python object, or NULL
    Handler* inner           # what policy.py stands in front of

cdef Mark* mark_of(Policing* policing, uint64_t nodeid) noexcept nogil
cdef Mark* known_mark(Policing* policing, uint64_t nodeid) noexcept nogil
cdef int directory_mark(Policing* policing, uint64_t nodeid, Mark** mark) noexcept nogil
cdef int compare_ruled(Policing* policing, uint64_t nodeid, Mark* mark) noexcept nogil
cdef int set_mark(Policing* policing, uint64_t nodeid, bint directory, uint32_t state, uint64_t verdict,
                  uint64_t parent, const char* name, uint32_t size) noexcept nogil
cdef int answer_node(Policing* policing, Request* request, Mark* mark) noexcept nogil
cdef int answer_name(Policing* policing, Request* request, uint64_t parent, const char* name, uint32_t size) noexcept nogil
cdef void show_owner(Policing* policing, uint64_t verdict, uint32_t* uid, uint32_t* gid) noexcept nogil
cdef Py_ssize_t path_of(Share* share, int fd, char* path) noexcept nogil
cdef bint may_wait(Request* request) noexcept nogil
