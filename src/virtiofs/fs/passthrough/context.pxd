# SPDX-License-Identifier: Apache-2.0
"""What all operations of a share work on."""
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.handles cimport Handles
from virtiofs.fs.passthrough.host cimport pthread_mutex_t
from virtiofs.fs.passthrough.inodes cimport Store

cdef struct LockOwner:
    uint64_t nodeid
    uint64_t owner
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
    uint64_t valid           # how long the guest may trust names and attributes, in nanoseconds
