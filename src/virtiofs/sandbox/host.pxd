# SPDX-License-Identifier: Apache-2.0
"""The host's system calls and constants that Cython does not declare itself."""
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_READ, PR_CAPBSET_DROP
        PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)

cdef extern from "<linux/capability.h>" nogil:
    enum: _LINUX_CAPABILITY_VERSION_3

cdef extern from "<linux/seccomp.h>" nogil:
    enum: SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC

cdef extern from "<linux/filter.h>" nogil:
    struct sock_filter:
        uint16_t code
    struct sock_fprog:
        unsigned short len
        sock_filter* filter

cdef extern from "<sched.h>" nogil:
    int unshare(int flags)
    enum: CLONE_FILES, CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC

cdef extern from "<sys/mount.h>" nogil:
    enum: MS_REC, MS_SLAVE, MS_NOSUID, MS_NODEV, MS_NOEXEC, MNT_DETACH
    int mount(const char* source, const char* target, const char* type, unsigned long flags, const void* data)
    int umount2(const char* target, int flags)

cdef extern from "<fcntl.h>" nogil:
    enum: AT_FDCWD, AT_EMPTY_PATH, O_CLOEXEC

cdef extern from "<malloc.h>" nogil:
    enum: M_ARENA_MAX
    int mallopt(int parameter, int value)

cdef extern from "<unistd.h>" nogil:
    int fchdir(int fd)
    int getpid()
    void _exit(int status)
    long syscall(long number, ...)

cdef extern from "<signal.h>" nogil:
    enum: SIGKILL
    ctypedef void (*handler_t)(int)
    handler_t SIG_DFL
    handler_t signal(int number, handler_t handler)
    int kill(int pid, int number)

cdef extern from "<sys/wait.h>" nogil:
    int waitpid(int pid, int* status, int options)
    int WIFSIGNALED(int status)
    int WTERMSIG(int status)
    int WEXITSTATUS(int status)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_capget, SYS_capset, SYS_pivot_root, SYS_seccomp

# These numbers are the same on every architecture (the kernel's scripts/syscall.tbl), and older headers lack some.
cdef enum:
    SYS_OPEN_TREE = 428
    SYS_MOVE_MOUNT = 429
    SYS_MOUNT_SETATTR = 442
    SYS_LANDLOCK_CREATE_RULESET = 444
    SYS_LANDLOCK_ADD_RULE = 445
    SYS_LANDLOCK_RESTRICT_SELF = 446

# include/uapi/linux/mount.h, fcntl.h
cdef enum:
    OPEN_TREE_CLONE = 1
    AT_RECURSIVE = 0x8000
    MOVE_MOUNT_F_EMPTY_PATH = 4
    MOUNT_ATTR_RDONLY = 1
    MOUNT_ATTR_NOSUID = 2
    MOUNT_ATTR_NODEV = 4
    MOUNT_ATTR_NOEXEC = 8

cdef struct MountAttributes:       # struct mount_attr
    uint64_t set
    uint64_t clear
    uint64_t propagation
    uint64_t userns

cdef struct RulesetAttributes:     # struct landlock_ruleset_attr, include/uapi/linux/landlock.h
    uint64_t handled_fs
    uint64_t handled_net
    uint64_t scoped

cdef packed struct PathBeneath:    # struct landlock_path_beneath_attr
    uint64_t allowed
    int32_t parent
