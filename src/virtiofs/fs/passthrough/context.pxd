# SPDX-License-Identifier: Apache-2.0
"""What all operations of a share work on."""
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fs.passthrough.handles cimport Handles
from virtiofs.fs.passthrough.inodes cimport Store
from virtiofs.fuse.request cimport OPCODES, Handler

cdef struct Share:
    Store inodes
    Handles handles
    int root                 # the shared directory, readable, for SYNCFS
    int proc                 # /proc/self/fd; also the working directory of every queue's thread
    bint read_only
    bint switch_ids          # privileged: create as the guest's user
    uint32_t permitted[2]    # our capabilities, low and high words
    uint32_t guest_flags     # flags of a guest's open that the host's gets
    uint32_t open_file       # FOPEN_* of every open file
    uint32_t open_directory  # and of every open directory
    char only[256]           # a single file is shared: its name; see single.py
    uint32_t only_size       # 0: the whole tree
    Handler inner[OPCODES]   # what single.py stands in front of
    uint64_t valid           # how long the guest may trust names and attributes, in nanoseconds
