# SPDX-License-Identifier: Apache-2.0
"""A shared directory: what its operations work on, and the table of them.

The records that the guest's node ids and handles stand for lie in one memfd, flat and of fixed size: a page
of header, then the inodes, then the handles.  The file is sparse and as large as the limits allow, so nothing
is ever moved and a record costs memory only when it is first used.

What a cache mode promises the guest stands in `CACHE_MODES`.
"""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset, strcmp, strerror
from cython.cimports.posix.mman import (
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from cython.cimports.virtiofs.fs.filesystem import Filesystem
from cython.cimports.virtiofs.fs.passthrough.account import Quota
from cython.cimports.virtiofs.fs.passthrough.attributes import access, getattr, setattr, statfs, statx_
from cython.cimports.virtiofs.fs.passthrough.audit import Audit
from cython.cimports.virtiofs.fs.passthrough.changes import tell_of_changes
from cython.cimports.virtiofs.fs.passthrough.context import (
    NAME_ROOM,
    OWNERS_AS_IS,
    OWNERS_MAPPED,
    OWNERS_STORED,
)
from cython.cimports.virtiofs.fs.passthrough.credentials import read_permitted
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.directories import (
    fsyncdir,
    opendir,
    readdir,
    readdirplus,
    releasedir,
)
from cython.cimports.virtiofs.fs.passthrough.files import (
    copy_file_range_,
    copy_file_range_64,
    fallocate_,
    flush,
    fsync_,
    lseek_,
    read_,
    release_,
    syncfs_,
    write_,
)
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_release_all, handles_init
from cython.cimports.virtiofs.fs.passthrough.host import (
    CLONE_FS,
    EOPNOTSUPP,
    close,
    fchdir,
    pthread_mutex_init,
    unshare,
)
from cython.cimports.virtiofs.fs.passthrough.idmap import id_map_free, id_map_init
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    WAY_HANDLE,
    Inode,
    inode_forget_all,
    inode_pin,
    inode_unpin,
    store_free,
    store_init,
)
from cython.cimports.virtiofs.fs.passthrough.ioctls import ioctl_
from cython.cimports.virtiofs.fs.passthrough.known import every_node, is_removed, nodes_of
from cython.cimports.virtiofs.fs.passthrough.locks import all_owners_gone, getlk, owners_init, setlk, setlkw
from cython.cimports.virtiofs.fs.passthrough.mappings import forget_mappings, serve_mappings
from cython.cimports.virtiofs.fs.passthrough.names import (
    batch_forget,
    forget,
    link,
    lookup,
    mkdir,
    mknod,
    readlink,
    rename,
    rename2,
    rmdir,
    symlink,
    unlink,
)
from cython.cimports.virtiofs.fs.passthrough.opening import create, open_, tmpfile
from cython.cimports.virtiofs.fs.passthrough.policy import Policies
from cython.cimports.virtiofs.fs.passthrough.quota import count_growth
from cython.cimports.virtiofs.fs.passthrough.removed import store_count
from cython.cimports.virtiofs.fs.passthrough.single import show_only
from cython.cimports.virtiofs.fs.passthrough.trust import NO_LIMIT, trust_table
from cython.cimports.virtiofs.fs.passthrough.versions import show_versions
from cython.cimports.virtiofs.fs.passthrough.xattrmap import to_host_name, xattr_map_free, xattr_map_init
from cython.cimports.virtiofs.fs.passthrough.xattrs import getxattr_, listxattr_, removexattr_, setxattr_
from cython.cimports.virtiofs.fuse import layout
from cython.cimports.virtiofs.metadata.copy import Copy
from cython.cimports.virtiofs.metadata.table import Table

from virtiofs.fs.passthrough.counting import check_counting
from virtiofs.fs.passthrough.modes import cache_mode
from virtiofs.fs.passthrough.xattrrules import USER_ONLY
from virtiofs.fs.policy.reloading import decode

MAGIC = cython.declare(uint64_t, 0x3173666F69747269)  # "irtiofs1"
VERSION = cython.declare(uint64_t, 1)
HEADER = cython.declare(uint64_t, 4096)
MAX_INODES = cython.declare(uint64_t, 1 << 24)
# Descriptors kept for what is neither an inode nor a handle: rings, guest memory, sockets.
RESERVED_DESCRIPTORS = 1200
CAP_DAC_READ_SEARCH, CAP_FSETID, CAP_SETGID, CAP_SETUID = 2, 4, 6, 7
OWNERSHIP = {"as-is": OWNERS_AS_IS, "mapped": OWNERS_MAPPED, "xattr": OWNERS_STORED}

INIT_FLAGS = (
    layout.FUSE_ASYNC_READ
    | layout.FUSE_ATOMIC_O_TRUNC
    | layout.FUSE_BIG_WRITES
    | layout.FUSE_AUTO_INVAL_DATA
    | layout.FUSE_ASYNC_DIO
    | layout.FUSE_HAS_IOCTL_DIR
    | layout.FUSE_PARALLEL_DIROPS
    | layout.FUSE_CREATE_SUPP_GROUP
    | layout.FUSE_NO_EXPORT_SUPPORT
    | layout.FUSE_ALLOW_IDMAP
)

READDIRPLUS_FLAGS = layout.FUSE_DO_READDIRPLUS | layout.FUSE_READDIRPLUS_AUTO
# What a guest's open may ask of the host's besides what options add; O_APPEND comes with each WRITE.
GUEST_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC


@cython.cclass
class Passthrough(Filesystem):
    """The tree below `directory` of the host, for one guest.

    `read_only`: every change is refused, and opening leaves no access time.  `max_open`: descriptors kept for
    inodes (0: a quarter of what the process may have, at most 8192).  `file_handles`: whether to come back to
    files by handle: "never", "prefer" (where it works), "mandatory".  `only`: show this one file of the
    directory (see single.py).  `proc`: a descriptor of this process's /proc/self/fd, which is the share's from now
    on, for a process that can no longer reach it by name (-1).

    `shared_locks`: take the guest's locks on the host, where other guests and programs see them; otherwise it keeps
    them to itself (None: shared, but where OPEN can be spared without); a wait for one ends after `wait_limit`
    seconds.  `announce_submounts`: mounts of the host below
    the directory are mounts in the guest, too, with device numbers of their own.

    `xattr_rules`: which extended attributes the guest has, and what they are called on the host
    (`xattrrules.Rule`; None: user.* as they are).  `posix_acl`: access lists are the host's.  `kill_priv`: the
    guest leaves it to us to take set-id bits and capabilities away when a file is written.  `security_label`:
    new files get the security context that the guest sends.
    `ownership`: "as-is", "mapped" with `users` and `groups` (`idrules.Translation`; ids without a rule are
    refused, or stay as they are with `keep_unmapped`), or "xattr" (see owners.py).

    What the guest may keep: `cache`, a key of `CACHE_MODES`; `valid` and `readdirplus` override what the mode
    says.  `writeback`: the guest keeps what it writes for a while, which needs that nobody else changes the
    files.  `direct_io`: O_DIRECT in the guest is O_DIRECT on the host.  `mmap`: shared mappings also of files
    whose data is not cached.  `noatime`: O_NOATIME in the guest is passed on.

    `metadata`: the metadata table (`metadata.table.Table`), which is told what the guest changes; with the mode
    "adaptive" it says how long the guest may trust what, `longest` seconds at most.

    `quota`: what the guest may add (`account.Quota`).
    `pool_threads`: who reads what is not cached, and waits for the disk (0: the queues' own threads).
    `dax_from`: the device has a DAX window, once `use_window` says which, and the guest is told to use it for files of
    at least so many bytes (0: for none, but its mount may ask for it; None: there is no window).
    `policy`: what the guest may see and do (`policy.rules.Policy`); `log` is given a line for what goes wrong in it.
    `audit`: who is told of what the guest does (`audit.Audit`).

    Raises `OSError` if the directory can not be opened, mandatory handles do not work, or owners can not be
    stored; `ValueError` for an unknown mode or a name that is too long.
    """

    def __cinit__(
        self,
        directory: str,
        read_only: bool = False,
        valid: float | None = None,
        max_open: int = 0,
        file_handles: str = "prefer",
        shared_locks: bool | None = None,
        wait_limit: float = 600.0,
        announce_submounts: bool = True,
        proc: int = -1,
        xattr_rules: object = None,
        posix_acl: bool = False,
        kill_priv: bool = True,
        security_label: bool = False,
        ownership: str = "as-is",
        users: object = ((), ()),
        groups: object = ((), ()),
        keep_unmapped: bool = False,
        cache: str = "auto",
        readdirplus: bool | None = None,
        writeback: bool = False,
        direct_io: bool = False,
        mmap: bool = False,
        noatime: bool = False,
        only: str = "",
        quota: Quota | None = None,
        pool_threads: int = 0,
        dax_from: int | None = None,
        metadata: Table | None = None,
        longest: float = 60.0,
        policy: object = None,
        log: object = None,
        audit: Audit | None = None,
    ):
        import resource

        mode: CacheMode = cache_mode(cache)
        if cache == "adaptive" and metadata is None:
            raise ValueError("--cache adaptive needs a metadata table to know what changed when")
        name: bytes = os.fsencode(only)
        if len(name) > 255:
            raise ValueError(f"a file name has at most 255 bytes: {only}")

        share: cython.pointer(Share) = cython.address(self.share)
        error: cython.int
        share.root = share.proc = -1
        share.window = cython.NULL
        self.records = cython.NULL
        self.directory = directory
        xattr_map_init(cython.address(share.xattrs), USER_ONLY if xattr_rules is None else xattr_rules)
        self.init_owners(OWNERSHIP[ownership], users, groups, keep_unmapped)
        root: cython.int = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            share.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            if proc < 0:
                proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            share.proc = proc
            self.look_at_ourselves()
            permitted: uint64_t = cython.cast(uint64_t, share.permitted[1]) << 32 | share.permitted[0]
            limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            spare: int = max(limit - RESERVED_DESCRIPTORS, 64)
            pool: int = max(min(max_open or 8192, spare // 4), 16)
            self.map_records(MAX_INODES, spare - pool)
            share.read_only = self.read_only = read_only
            share.valid = int((mode.valid if valid is None else valid) * 1_000_000_000)
            share.adaptive = cache == "adaptive"
            share.longest = int(longest * 1_000_000_000)
            share.open_file = mode.open_file
            share.open_directory = mode.open_directory
            share.open_to_read = 0
            share.open_to_write = 0 if writeback else mode.open_to_write
            share.guest_flags = (
                GUEST_FLAGS | (os.O_DIRECT if direct_io else 0) | (os.O_NOATIME if noatime else 0)
            )
            share.only_size = len(name)
            memcpy(share.only, cython.cast(cython.p_char, name), len(name))
            if share.ownership == OWNERS_STORED:
                self.check_storing(directory)
            header: cython.pointer(uint32_t) = cython.cast(cython.pointer(uint32_t), self.records) + 8
            inodes: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), self.records) + HEADER
            handles: cython.pointer(uint8_t) = inodes + cython.sizeof(Inode) * (MAX_INODES + 1)
            owners_init(share)
            handles_init(
                cython.address(share.handles),
                cython.cast(cython.pointer(Handle), handles),
                header + 1,
                spare - pool,
                cython.address(share.inodes),
            )
            error = store_init(
                cython.address(share.inodes),
                cython.cast(cython.pointer(Inode), inodes),
                header,
                MAX_INODES,
                pool,
                root,
                share.proc,
                file_handles != "never" and permitted >> CAP_DAC_READ_SEARCH & 1,
            )
            if error:
                raise OSError(-error, strerror(-error).decode(), directory)
            if file_handles == "mandatory" and share.inodes.mounts[0].way != WAY_HANDLE:
                root = -1  # the store's
                store_free(cython.address(share.inodes))
                raise OSError(
                    EOPNOTSUPP, "file handles can not be used here: no privilege, or none", directory
                )
        except BaseException:
            if root >= 0:
                os.close(root)
            raise
        self.wait_limit = wait_limit
        self.pool_threads = pool_threads
        self.pool_yields = True  # what the pool does has waited for the disk already
        self.context = share
        self.reset = drop_all
        self.init_flags = INIT_FLAGS | mode.init_flags
        if read_only and mode.unopened and audit is None:
            self.init_flags |= layout.FUSE_NO_OPENDIR_SUPPORT
            # Nobody gives an flock(2) back that a guest takes without a handle; O_DIRECT comes with OPEN only.
            if not shared_locks and not direct_io:
                shared_locks = False
                # Without OPEN the guest would take a file for truncated that it can not truncate.
                self.init_flags = self.init_flags & ~layout.FUSE_ATOMIC_O_TRUNC | layout.FUSE_NO_OPEN_SUPPORT
        if shared_locks is None:
            shared_locks = True
        if not shared_locks:
            # Closing a file that was only read can report nothing, and gives no lock back.
            share.open_to_read = layout.FOPEN_NOFLUSH
        if mode.readdirplus if readdirplus is None else readdirplus:
            self.init_flags |= READDIRPLUS_FLAGS
        if writeback:
            self.init_flags |= layout.FUSE_WRITEBACK_CACHE
        if mmap:
            self.init_flags |= layout.FUSE_DIRECT_IO_ALLOW_MMAP
        if announce_submounts:
            self.init_flags |= layout.FUSE_SUBMOUNTS
        if posix_acl:
            # The guest leaves the umask to us, as a directory's default ACL takes its place.
            self.init_flags |= layout.FUSE_POSIX_ACL | layout.FUSE_DONT_MASK | layout.FUSE_SETXATTR_EXT
        if kill_priv:
            self.init_flags |= layout.FUSE_HANDLE_KILLPRIV_V2
        if security_label:
            self.init_flags |= layout.FUSE_SECURITY_CTX
        self.fill_table(shared_locks)
        if quota is not None:
            self.keep_quota(quota)
        if metadata is not None:
            self.metadata = metadata
            share.metadata = cython.address(metadata.view)
            if not read_only:
                tell_of_changes(share, self.table)
        if dax_from is not None:
            share.dax_from = dax_from
            serve_mappings(share, self.table)
        if share.only_size:
            self.init_flags &= ~READDIRPLUS_FLAGS
            show_only(share, self.table)
        if policy is not None:
            self.policies = Policies(log)
            self.policies.begin(share, self.table, policy)
        if audit is not None:
            self.audit = audit
            audit.begin(share, self.table)
            self.read_only = False  # it refuses what changes, so that it is told of

    def __dealloc__(self):
        share: cython.pointer(Share) = cython.address(self.share)
        self.free()
        xattr_map_free(cython.address(share.xattrs))
        id_map_free(cython.address(share.user_to_host))
        id_map_free(cython.address(share.group_to_host))
        id_map_free(cython.address(share.user_to_guest))
        id_map_free(cython.address(share.group_to_guest))

    @cython.cfunc
    @cython.exceptval(-1)
    def init_owners(
        self, ownership: uint32_t, users: object, groups: object, keep: cython.bint
    ) -> cython.int:
        """Note whose files are whose, and what capabilities of files are called."""
        share: cython.pointer(Share) = cython.address(self.share)
        name: bytes = b"security.capability"
        share.ownership = cython.cast(Ownership, ownership)
        id_map_init(cython.address(share.user_to_host), users[0], keep)
        id_map_init(cython.address(share.user_to_guest), users[1], keep)
        id_map_init(cython.address(share.group_to_host), groups[0], keep)
        id_map_init(cython.address(share.group_to_guest), groups[1], keep)
        pthread_mutex_init(cython.address(share.storing), cython.NULL)
        if (
            to_host_name(cython.address(share.xattrs), name, len(name), share.capability) < 0
            or strcmp(share.capability, name) == 0
        ):
            memset(share.capability, 0, NAME_ROOM)
        return 0

    @cython.cfunc
    def look_at_ourselves(self) -> cython.void:
        """Note who the calling thread is and what it may: a sandbox may have changed that."""
        share: cython.pointer(Share) = cython.address(self.share)
        read_permitted(share)
        low: uint32_t = share.permitted[0]
        share.user = os.geteuid()
        share.group = os.getegid()
        share.switch_ids = share.ownership != OWNERS_STORED and low >> CAP_SETUID & low >> CAP_SETGID & 1
        share.guarded = (
            share.capability[0] != 0 or share.ownership == OWNERS_STORED or low >> CAP_FSETID & 1 != 0
        )

    @cython.cfunc
    @cython.exceptval(-1)
    def keep_quota(self, quota: Quota) -> cython.int:
        """Count what the guest adds.  Raises `OSError` where the host does not say at once what a file takes."""
        share: cython.pointer(Share) = cython.address(self.share)
        self.quota = quota
        check_counting(share.root, self.directory)
        if store_count(cython.address(share.inodes), quota.account):
            raise MemoryError
        share.account = quota.account
        count_growth(share, self.table)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def check_storing(self, directory: str) -> cython.int:
        """Raises `OSError` where the shared directory can not carry the attribute that owners are kept in."""
        try:
            os.getxattr(self.share.root, "user.containers.override_stat")
        except OSError as error:
            if error.errno == EOPNOTSUPP:
                raise OSError(
                    EOPNOTSUPP,
                    "owners can not be stored: this file system has no user.* attributes",
                    directory,
                ) from None
        return 0

    @cython.cfunc
    def free(self) -> cython.void:
        share: cython.pointer(Share) = cython.address(self.share)
        if self.context != cython.NULL:
            self.context = cython.NULL
            all_owners_gone(share)
            handle_release_all(cython.address(share.handles))
            store_free(cython.address(share.inodes))
        if self.records != cython.NULL:
            munmap(self.records, self.records_size)
            self.records = cython.NULL
            close(share.root)
            close(share.proc)

    @cython.cfunc
    @cython.exceptval(-1)
    def map_records(self, inodes: uint64_t, handles: uint64_t) -> cython.int:
        """Make the memfd that holds the records, and map it."""
        size: uint64_t = (
            (HEADER + (inodes + 1) * cython.sizeof(Inode) + (handles + 1) * cython.sizeof(Handle) + 4095)
            // 4096
            * 4096
        )
        fd: cython.int = os.memfd_create("virtiofs-records", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            where: cython.p_void = mmap(
                cython.NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0
            )
            if where == MAP_FAILED:
                raise OSError(errno, "cannot map the records of a share")
        finally:
            os.close(fd)
        self.records = where
        self.records_size = size
        words: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), where)
        words[0] = MAGIC
        words[1] = VERSION
        words[2] = cython.sizeof(Inode)
        words[3] = cython.sizeof(Handle)
        return 0

    @cython.cfunc
    def fill_table(self, shared_locks: cython.bint) -> cython.void:
        self.table[layout.FUSE_LOOKUP] = lookup
        self.table[layout.FUSE_FORGET] = forget
        self.table[layout.FUSE_GETATTR] = getattr
        self.table[layout.FUSE_SETATTR] = setattr
        self.table[layout.FUSE_READLINK] = readlink
        self.table[layout.FUSE_SYMLINK] = symlink
        self.table[layout.FUSE_MKNOD] = mknod
        self.table[layout.FUSE_MKDIR] = mkdir
        self.table[layout.FUSE_UNLINK] = unlink
        self.table[layout.FUSE_RMDIR] = rmdir
        self.table[layout.FUSE_RENAME] = rename
        self.table[layout.FUSE_LINK] = link
        self.table[layout.FUSE_OPEN] = open_
        self.table[layout.FUSE_READ] = read_
        self.table[layout.FUSE_WRITE] = write_
        self.table[layout.FUSE_STATFS] = statfs
        self.table[layout.FUSE_RELEASE] = release_
        self.table[layout.FUSE_FSYNC] = fsync_
        self.table[layout.FUSE_SETXATTR] = setxattr_
        self.table[layout.FUSE_GETXATTR] = getxattr_
        self.table[layout.FUSE_LISTXATTR] = listxattr_
        self.table[layout.FUSE_REMOVEXATTR] = removexattr_
        self.table[layout.FUSE_FLUSH] = flush
        self.table[layout.FUSE_OPENDIR] = opendir
        self.table[layout.FUSE_READDIR] = readdir
        self.table[layout.FUSE_RELEASEDIR] = releasedir
        self.table[layout.FUSE_FSYNCDIR] = fsyncdir
        self.table[layout.FUSE_ACCESS] = access
        self.table[layout.FUSE_CREATE] = create
        self.table[layout.FUSE_BATCH_FORGET] = batch_forget
        self.table[layout.FUSE_FALLOCATE] = fallocate_
        self.table[layout.FUSE_READDIRPLUS] = readdirplus
        self.table[layout.FUSE_RENAME2] = rename2
        self.table[layout.FUSE_LSEEK] = lseek_
        self.table[layout.FUSE_COPY_FILE_RANGE] = copy_file_range_
        self.table[layout.FUSE_SYNCFS] = syncfs_
        self.table[layout.FUSE_TMPFILE] = tmpfile
        self.table[layout.FUSE_STATX] = statx_
        self.table[layout.FUSE_COPY_FILE_RANGE_64] = copy_file_range_64
        self.table[layout.FUSE_IOCTL] = ioctl_
        if shared_locks:
            self.table[layout.FUSE_GETLK] = getlk
            self.table[layout.FUSE_SETLK] = setlk
            self.table[layout.FUSE_SETLKW] = setlkw
            self.init_flags |= layout.FUSE_POSIX_LOCKS | layout.FUSE_FLOCK_LOCKS

    def start_thread(self) -> None:
        """Give the thread a working directory of its own, /proc/self/fd (see xattrs.py).

        Raises `OSError` if the kernel refuses.
        """
        if unshare(CLONE_FS) != 0 or fchdir(self.share.proc) != 0:
            raise OSError(errno, "cannot give a thread its own working directory")
        self.look_at_ourselves()

    def use_window(self, window: object, exact: bool) -> None:
        """Map files in `window` (`dax.window.Window`); `exact`: read-only mappings are read-only there."""
        self.window = window
        self.share.window_exact = exact
        self.share.window = cython.cast(cython.p_void, window)
        self.init_flags |= layout.FUSE_MAP_ALIGNMENT | layout.FUSE_HAS_INODE_DAX

    def close(self) -> None:
        """Close every descriptor of the share."""
        self.free()

    def path_of(self, nodeid: int) -> str | None:
        """Where the host's kernel says that the file is now, from the shared directory; None: it is not known."""
        node: uint64_t = nodeid
        inode: cython.pointer(Inode) = inode_pin(cython.address(self.share.inodes), node)
        if inode == cython.NULL:
            return None
        try:
            fd = inode_descriptor(cython.address(self.share.inodes), inode)
            if fd < 0:
                return None
            root = os.readlink(str(self.share.root), dir_fd=self.share.proc)
            path = os.readlink(str(fd), dir_fd=self.share.proc)
        except OSError:
            return None
        finally:
            inode_unpin(cython.address(self.share.inodes), inode)
        return path.removeprefix(root.rstrip("/")) or "/"

    def trust_metadata(self, names: float | None) -> None:
        """The guest is told of every change that others enter into the table, and may trust what it knows meanwhile.

        `names`: seconds that it may trust names at most.  A share that lets its guest keep nothing stays so.
        """
        if self.share.valid and not self.share.adaptive:
            self.share.names_valid = NO_LIMIT if names is None else int(names * 1_000_000_000)
            # A listing that the guest keeps then costs no request at all, as in the mode that trusts everything.
            self.init_flags |= layout.FUSE_HAS_EXPIRE_ONLY | layout.FUSE_NO_OPENDIR_SUPPORT
            trust_table(cython.address(self.share), self.table)

    def use_versions(self, copy: Copy, asked: int) -> None:
        """Tell a guest that asks which words of `copy` each reply rests on, and the eventfd `asked` that it did."""
        self.version_event = asked
        self.copy = copy
        self.share.shown = cython.address(copy.shown)
        self.version_bits = copy.table.slots.bit_length() - 1
        show_versions(cython.address(self.share), self.table)

    def nodes_of(self, dev: int, ino: int) -> list[int]:
        """The node ids that the guest holds of the host's file with this st_dev and st_ino."""
        return nodes_of(cython.address(self.share.inodes), os.major(dev) << 32 | os.minor(dev), ino)

    def every_node(self) -> list[int]:
        """All node ids that the guest holds."""
        return every_node(cython.address(self.share.inodes))

    def is_removed(self, nodeid: int) -> bool:
        """Whether no name of the host's leads to a node that the guest holds any more."""
        removed: cython.bint
        node: uint64_t = nodeid
        with cython.nogil:
            removed = is_removed(cython.address(self.share.inodes), node)
        return removed

    def prepare_policy(self, encoded: bytes) -> None:
        """Make another policy ready.  Raises `ValueError`, `OSError` and `MemoryError`."""
        if self.policies is None:
            raise ValueError("this share was started without a policy; start it with one")
        self.policies.prepare(decode(encoded, self.policies.policy))

    def use_policy(self) -> None:
        """Let the policy that was made ready hold for requests that begin from now on.  Raises `OSError`."""
        self.policies.use()

    def verdicts_of(self, nodes: list) -> list:
        """What the policy says of nodes that the guest knows, as bits; -1 of one that no path leads to."""
        return self.policies.judge(nodes)

    def place_of(self, nodeid: int) -> tuple[int, bytes] | None:
        """The node of the directory, and the name there, where the host's kernel says that a file is."""
        path = self.path_of(nodeid)
        if path is None or path == "/":
            return None
        directory, name = os.path.split(path)
        try:
            status = os.stat(directory.strip("/") or ".", dir_fd=self.share.root, follow_symlinks=False)
        except OSError:
            return None
        nodes = self.nodes_of(status.st_dev, status.st_ino)
        return (nodes[0], os.fsencode(name)) if nodes else None

    def statistics(self) -> dict[str, int]:
        """Inodes and handles the guest holds, descriptors in the pool and how often one was taken from it."""
        return {
            "inodes": self.share.inodes.live,
            "handles": self.share.handles.live,
            "descriptors": self.share.inodes.pool_size,
            "evictions": self.share.inodes.evictions,
            **({} if self.policies is None else self.policies.statistics()),
        }


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def drop_all(context: cython.p_void) -> cython.void:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    forget_mappings(share)
    all_owners_gone(share)
    handle_release_all(cython.address(share.handles))
    inode_forget_all(cython.address(share.inodes))
