# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.fuse.layout cimport fuse_in_header

cdef enum:
    OPCODES = 64
    ARGS_ROOM = 128          # the largest fixed structure has 88 bytes
    REST_ROOM = 1024 * 1024 + 4096 # names, extensions, an xattr value of 64 KiB, or records of BATCH_FORGET, with which
                             # Linux fills what it is given to write to, and that must not be lost
    REPLY_ROOM = 1024 * 1024 # a READDIR of 256 pages
    MAX_NAMES = 2
    MAX_GROUPS = 32
    HEAD_PIECES = 16         # the reply's header has 16 bytes, each of which may lie in a piece of its own
    WAIT = 1                 # what a handler returns to be called again later, with the same arguments
    WOULD_BLOCK = 2          # and to be called again where it may block
    VERSIONS_REGION = 1      # the shared memory region that holds versions
    AGAIN = 3                # what a handler returns that did nothing, as the queue is about to stop: the chain stays in the ring

cdef extern from *:
    """
    #define VERSIONED (1ULL << 63)
    #define COHERENT_DIRECT_IO (1ULL << 62)
    """
    const uint64_t VERSIONED # a flag of the session beside those of INIT: replies carry versions (versions_out)
    const uint64_t COHERENT_DIRECT_IO # another: the guest drops what it keeps of a file before and after a direct write

cdef enum NameKind:
    KIND_NONE
    KIND_NAME
    KIND_ANY
    KIND_TARGET
    KIND_XATTR

cdef struct Operation:
    bint known
    uint16_t args_size
    uint16_t short_size      # size of the structure in an older form; 0 if there is none
    uint64_t short_unless    # INIT flag that announces the full form; 0: told by the length alone
    uint16_t reply_size
    uint8_t names
    uint8_t kinds[MAX_NAMES]
    uint32_t flags

cdef struct Request

# Reply to the request with `size` bytes of `data`, which the caller keeps there until it returns.
ctypedef void (*Send)(void* carrier, Request* request, const void* data, uint64_t size) noexcept nogil

cdef struct Request:
    fuse_in_header header
    uint8_t* args            # ARGS_ROOM bytes: the fixed structure, zero-filled
    uint8_t* rest            # REST_ROOM bytes: what follows it
    const char* names[MAX_NAMES]
    uint32_t name_sizes[MAX_NAMES]
    uint8_t* tail
    uint32_t tail_size
    uint32_t groups_count
    uint32_t groups[MAX_GROUPS]
    const char* context_name  # security context of what is created (inside `rest`), or NULL
    const uint8_t* context
    uint32_t context_size
    iovec* data              # file data of WRITE, still in the carrier's memory
    uint32_t data_count
    uint64_t data_size
    iovec head[HEAD_PIECES]  # where the reply's header goes
    uint32_t head_count
    iovec* out               # room for the reply's payload, in the carrier's memory
    uint32_t out_count
    uint64_t out_size
    uint8_t* reply           # REPLY_ROOM bytes of our own, for replies that are built before they are copied out
    uint32_t reply_size      # payload bytes of a successful reply, in `reply` or, if `in_place`, in `out`
    bint in_place
    Send send                # how the carrier replies with data that lies elsewhere; NULL: it is to be written in place
    void* carrier            # what `send` is told
    bint sent                # it was called
    bint parsed              # names and structure are this request's own
    int error                # what was answered: 0 or a negative errno
    uint64_t session_flags   # what INIT negotiated
    bint no_wait             # return WOULD_BLOCK rather than wait for a disk; False: all is done at once
    uint64_t plain_in        # bytes that may be touched, and not only be passed to system calls: readable ones
    uint64_t plain_out       # and writable ones

ctypedef int (*Handler)(void* context, Request* request) noexcept nogil
ctypedef void (*Hook)(void* context) noexcept nogil
ctypedef void (*Interrupted)(void* context, uint64_t unique) noexcept nogil

cdef class Handlers:
    cdef Handler table[OPCODES]
    cdef Hook reset
    cdef Interrupted interrupted
    cdef void* context
    cdef uint64_t init_flags
    cdef int version_event       # an eventfd that is told when a guest asked for them
    cdef uint32_t version_bits   # 2 to this power is how many versions region 1 holds; 0: there is none
    cdef public bint read_only

cdef const Operation* operation_of(uint32_t opcode) noexcept nogil
cdef int parse(Request* request, const Operation* operation) noexcept nogil
cdef uint64_t gather(void* target, iovec** pieces, uint32_t* count, uint64_t size) noexcept nogil
cdef uint64_t scatter(const void* source, iovec** pieces, uint32_t* count, uint64_t size) noexcept nogil
cdef bint allocate(Request* request) noexcept nogil
cdef void release(Request* request) noexcept nogil
