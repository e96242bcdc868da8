# SPDX-License-Identifier: Apache-2.0
"""What all operations of a share work on."""
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.account cimport Account
from virtiofs.fs.passthrough.handles cimport Handles
from virtiofs.fs.passthrough.host cimport pthread_mutex_t
from virtiofs.fs.passthrough.idmap cimport IdMap
from virtiofs.fs.passthrough.inodes cimport Store
from virtiofs.fs.passthrough.xattrmap cimport NAME_ROOM, XattrMap
from virtiofs.fuse.request cimport OPCODES, Handler
from virtiofs.metadata.copy cimport Shown
from virtiofs.metadata.journal cimport View

# Whose files are: what the guest sees as owner, mode and device, and where that is kept.
cdef enum Ownership:
    OWNERS_AS_IS             # the host's
    OWNERS_MAPPED            # the host's ids, translated
    OWNERS_STORED            # an attribute of the file (owners.py); the host's say nothing

cdef struct LockOwner:
    uint64_t nodeid
    uint64_t owner
    uint64_t fh              # the handle that it last asked through
    int fd                   # its open-file-description locks are the owner's POSIX locks
    LockOwner* next

cdef struct Share:
    Store inodes
    Handles handles
    int root                 # the shared directory, readable, for SYNCFS
    int proc                 # /proc/self/fd; also the working directory of every queue's thread
    bint read_only
    bint switch_ids          # privileged: create as the guest's user
    uint32_t permitted[2]    # our capabilities, low and high words
    pthread_mutex_t owners_lock
    LockOwner* owners
    uint32_t owner_count
    uint32_t guest_flags     # flags of a guest's open that the host's gets
    uint32_t open_file       # FOPEN_* of every open file
    uint32_t open_to_read    # more of them for a file that is opened only for reading
    uint32_t open_to_write   # and only for writing, where direct writes and the guest's page cache agree
    uint32_t open_directory  # and of every open directory
    char only[256]           # a single file is shared: its name; see single.py
    uint32_t only_size       # 0: the whole tree
    Handler inner[OPCODES]   # what single.py stands in front of
    Account* account         # of a share with a quota, else NULL; see quota.py
    Handler counted[OPCODES] # what quota.py stands in front of
    void* ruling             # the policies there are, a Ruling; see policy.py
    void* auditing           # what is told of, an Auditing; see audit.py
    uint32_t slow            # reads of silent handles that are not tried on a queue's thread (files.py)
    void* window             # the DAX window, a Python object (mappings.py); NULL: there is none
    bint window_exact        # the front end maps read-only what is to be read only
    bint window_used         # something was mapped in this session
    uint64_t dax_from        # the least size of files that the guest is told to use DAX for; 0: none
    Handler unwatched[OPCODES]  # what mappings.py stands in front of
    View* metadata           # the metadata table (changes.py), or NULL
    uint64_t names_valid     # at most, where the table says how long what is told is valid (trust.py), in ns
    Handler untrusted[OPCODES]  # what trust.py stands in front of
    Shown* shown             # what a guest is shown of the metadata table (versions.py), or NULL
    Handler unversioned[OPCODES]  # what versions.py stands in front of
    Handler untold[OPCODES]  # what changes.py stands in front of
    uint64_t valid           # how long the guest may trust names and attributes, in nanoseconds
    bint adaptive            # that grows with the time since the last change (validity.py)
    uint64_t longest         # up to this, if the table knows of the host's changes
    XattrMap xattrs
    char capability[NAME_ROOM]  # the host's name for security.capability where it is mapped, else empty
    bint guarded             # a write may have to take set-id bits or capabilities away (credentials.py)
    Ownership ownership
    IdMap user_to_host
    IdMap group_to_host
    IdMap user_to_guest
    IdMap group_to_guest
    uint32_t user            # our own ids: files of others are nobody's where owners are stored
    uint32_t group
    pthread_mutex_t storing  # one change of a stored owner at a time
