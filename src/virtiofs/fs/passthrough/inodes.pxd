# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from virtiofs.fs.passthrough.account cimport Account
from virtiofs.fs.passthrough.host cimport pthread_mutex_t, statx_t

cdef enum:
    INODE_BYTES = 176
    MAX_HANDLE_SZ = 128
    MAX_MOUNTS = 256
    ROOT_INDEX = 1
    IDENTITY_MASK = 0x1FFF   # STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    OPENS = 0x7FFFFFFF       # of a mark

cdef extern from *:
    """
    #define REMOVED 0x80000000u
    """
    const uint32_t REMOVED   # of a mark: give the file's bytes back when it goes

# How to come back to a file whose descriptor was closed.
cdef enum Way:
    WAY_DESCRIPTOR           # not at all: the descriptor is kept
    WAY_HANDLE               # `bytes` is a file handle
    WAY_NAME                 # `bytes` is a name in `parent`

# Whether a file handle is that of the file whose identity stands beside it.
cdef enum Trust:
    HANDLE_SURE              # taken from a descriptor, or used and compared
    HANDLE_BY_NAME           # taken by a name that might have changed its meaning since: compare at the first use
    HANDLE_WRONG             # compared: it had changed; the next LOOKUP takes another

cdef struct Inode:           # 256 bytes
    uint64_t word            # see slots.py
    uint64_t lookups         # what the guest must FORGET; under the store's lock
    uint64_t dev
    uint64_t ino
    int64_t born             # birth time in ns; 0 where the file system has none
    uint32_t mount           # index into the store's mounts
    uint32_t next            # next of the same hash, or next free
    int32_t fd               # O_PATH descriptor, or one for reading (`readable`), or -1
    int32_t place            # index into the store's pool while fd >= 0
    uint32_t parent
    uint32_t parent_generation
    uint16_t type            # S_IFMT bits of the mode
    uint8_t way
    uint8_t keep             # unlinked: the descriptor is the only way left
    uint16_t size            # of `bytes`
    uint8_t recent           # used since the clock hand last came by
    uint8_t trust            # in the handle
    int32_t handle_type
    uint8_t readable         # `fd` is open for reading
    uint8_t silent           # as of a handle (handles.pxd), for a file that is read without one
    uint8_t mapped           # the guest mapped it (mappings.py)
    uint8_t unused
    uint8_t bytes[INODE_BYTES]

cdef struct HandleBuffer:    # struct file_handle with room for the largest handle
    unsigned int handle_bytes
    int handle_type
    uint8_t bytes[MAX_HANDLE_SZ]

cdef struct Mount:
    uint64_t id              # STATX_MNT_ID
    uint64_t dev
    int fd                   # any open file on it, for open_by_handle_at
    uint8_t way
    uint8_t unborn           # birth times do not identify its files

cdef struct Store:
    pthread_mutex_t lock
    Inode* inodes
    uint32_t* high           # number of records ever used (in the shared header)
    uint32_t limit
    uint32_t free
    uint32_t live
    uint32_t* buckets
    uint32_t bucket_mask
    uint32_t* pool           # inode indices that hold a descriptor
    uint32_t pool_size
    uint32_t pool_limit
    uint32_t hand
    uint32_t named           # inodes of WAY_NAME
    uint64_t evictions
    Mount mounts[MAX_MOUNTS]
    uint32_t mount_count
    int proc                 # /proc/self/fd
    bint use_handles
    Account* account         # where there is a quota (quota.py), else NULL
    uint32_t* marks          # and then for each inode: how many files the guest has open of it, and REMOVED

cdef int store_init(Store* store, Inode* inodes, uint32_t* high, uint32_t limit, uint32_t pool_limit,
                    int root, int proc, bint use_handles) noexcept nogil
cdef void store_free(Store* store) noexcept nogil
cdef uint64_t node_id(Store* store, Inode* inode) noexcept nogil
cdef Inode* inode_pin(Store* store, uint64_t nodeid) noexcept nogil
cdef void inode_unpin(Store* store, Inode* inode) noexcept nogil
cdef int inode_lookup(Store* store, Inode* parent, const char* name, uint32_t size,
                      statx_t* status, uint64_t* nodeid) noexcept nogil
cdef int inode_adopt(Store* store, int fd, Inode* parent, const char* name, uint32_t size,
                     statx_t* status, uint64_t* nodeid) noexcept nogil
cdef void inode_forget(Store* store, uint64_t nodeid, uint64_t count) noexcept nogil
cdef void inode_forget_all(Store* store) noexcept nogil
cdef void inode_renamed(Store* store, Inode* parent, int fd, const char* name, uint32_t size) noexcept nogil
cdef Inode* find(Store* store, statx_t* status, uint32_t mount) noexcept nogil
cdef uint32_t* bucket_of(Store* store, uint64_t dev, uint64_t ino) noexcept nogil
cdef bint end_unused(Store* store, Inode* inode) noexcept nogil
