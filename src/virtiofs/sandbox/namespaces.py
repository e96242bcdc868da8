# SPDX-License-Identifier: Apache-2.0
"""Namespaces (namespaces(7)) and the root directory: what of the host a process can name at all.

The mount API of Linux 5.2 (open_tree, move_mount) is used, as it clones a tree with all that is mounted below
it in one step, and gives a descriptor of it that needs no place among the mounts.
"""

import os

import cython
from cython.cimports.libc.errno import ENOSYS, EPERM, errno
from cython.cimports.libc.string import strerror
from cython.cimports.virtiofs.sandbox.host import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    O_CLOEXEC,
    OPEN_TREE_CLONE,
    SYS_MOUNT_SETATTR,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    MountAttributes,
    SYS_pivot_root,
    fchdir,
    mount,
    syscall,
    umount2,
    unshare,
)

from virtiofs.sandbox.idmaps import IdMaps

# What an ordinary user can do about it; several distributions and container runtimes forbid user namespaces.
USERS_MAY_NOT = (
    "; have the host allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone,"
    " kernel.apparmor_restrict_unprivileged_userns), run as root, or use --sandbox none"
)


def failure(doing: str, advice: str = "") -> OSError:
    """The error of the last system call, saying what could not be done."""
    return OSError(f"cannot {doing}: {strerror(errno).decode()}{advice}")


def new_user() -> None:
    """Enter a new user namespace with our user, under the same number, and no other.

    Files show the ids they have on the host, as without the namespace.  Raises `OSError` where the host does
    not allow that.
    """
    uid = os.geteuid()
    gid = os.getegid()
    if unshare(CLONE_NEWUSER) != 0:
        raise failure("make a user namespace", USERS_MAY_NOT)
    for name, text in (
        ("setgroups", "deny"),  # without it an unprivileged user may not map a group (user_namespaces(7))
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def new_mapped_user(maps: IdMaps) -> None:
    """Enter a new user namespace with these ids, as its user 0.

    A child that stays outside maps them: nobody inside may.  Raises `OSError`.
    """
    pid: int = os.getpid()
    begun, begin = os.pipe()
    report, said = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(begin)
            if os.read(begun, 1):
                maps.write(pid, said)
                status = 0
        except BaseException as error:
            os.write(said, f"{error}\n".encode())
        finally:
            os._exit(status)
    os.close(begun)
    os.close(said)
    entered: cython.bint = unshare(CLONE_NEWUSER) == 0
    error = None if entered else failure("make a user namespace", USERS_MAY_NOT)
    if entered:
        os.write(begin, b"x")
    os.close(begin)
    complaint: str = ""
    with open(report, "rb") as lines:
        complaint = "; ".join(lines.read().decode(errors="replace").splitlines())
    _, status = os.waitpid(child, 0)
    if error is not None:
        raise error
    if status:
        raise OSError(f"cannot map ids: {complaint}")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def new_processes() -> None:
    """Let the next fork make the first process of a new process id namespace.  Raises `OSError`."""
    if unshare(CLONE_NEWPID) != 0:
        raise failure("make a process id namespace")


def new_rest(network: bool = False) -> None:
    """Enter new mount, network and System V IPC namespaces; with `network` the network stays.

    What the host mounts later still arrives; what is mounted here stays here.  Raises `OSError`.
    """
    if unshare(CLONE_NEWNS | CLONE_NEWIPC | (0 if network else CLONE_NEWNET)) != 0:
        raise failure("make mount, network and IPC namespaces", USERS_MAY_NOT)
    if mount(cython.NULL, b"/", cython.NULL, MS_SLAVE | MS_REC, cython.NULL) != 0:
        raise failure("keep mounts from reaching the host")


def new_mounts() -> None:
    """Enter a new mount namespace: what is mounted here from now on is seen by this process and its children only.

    Raises `OSError`.
    """
    if unshare(CLONE_NEWNS) != 0:
        raise failure("make a mount namespace")
    if mount(b"/", b"/", cython.NULL, MS_SLAVE | MS_REC, cython.NULL) != 0:
        raise failure("keep mounts from reaching the host")


def mount_overlay(lower: str, upper: str, work: str, target: str) -> None:
    """Mount the directory `lower` at `target` so that changes go to `upper` (overlayfs).  Raises `OSError`.

    Directories are not renamed by a reference to where they were, and files not copied in part: so `upper` is to
    be understood without the kernel.
    """
    layers: list = []
    place: bytes = os.fsencode(target)
    options: bytes
    try:
        # By descriptor, as a path may hold what separates options.
        for path in (lower, upper, work):
            layers.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        options = (
            f"redirect_dir=off,metacopy=off,index=off,lowerdir=/proc/self/fd/{layers[0]},"
            f"upperdir=/proc/self/fd/{layers[1]},workdir=/proc/self/fd/{layers[2]}"
        ).encode()
        if (
            mount(
                b"overlay",
                cython.cast(cython.p_char, place),
                b"overlay",
                MS_NOSUID | MS_NODEV,
                cython.cast(cython.p_char, options),
            )
            != 0
        ):
            raise failure(f"mount an overlay of {lower} at {target}")
    finally:
        for layer in layers:
            os.close(layer)


@cython.cfunc
def clone(path: bytes, flags: cython.int) -> cython.int:
    target: cython.p_char = path
    fd: cython.int = syscall(SYS_OPEN_TREE, AT_FDCWD, target, OPEN_TREE_CLONE | O_CLOEXEC | flags)
    if fd < 0:
        raise failure(f"clone the mount of {'the shared directory' if path == b'.' else os.fsdecode(path)}")
    return fd


def own_descriptors(mount_proc: bool) -> int:
    """A descriptor of our own /proc/self/fd, as the root of a mount that is nowhere: there is no ".." from it.

    `mount_proc`: let it be of a new procfs, in which only our process id namespace is seen; it hides the old
    one in our mount namespace.  Raises `OSError`.
    """
    # Not allowed where parts of the host's are hidden, as in most containers (mount_too_revealing()).
    if (
        mount_proc
        and mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, cython.NULL) != 0
        and errno != EPERM
    ):
        raise failure("mount a procfs")
    return clone(b"/proc/self/fd", 0)


def clone_tree(read_only: bool) -> int:
    """A descriptor of a copy of the working directory with all that is mounted below it, which is mounted nowhere yet.

    In the copy devices can not be opened and nothing executed; `read_only`: nor anything changed.  What the host
    mounts later comes without these flags.  Needs a mount namespace of our own.  Raises `OSError`.
    """
    attributes: MountAttributes
    nothing: cython.p_char = b""
    tree: cython.int = clone(b".", AT_RECURSIVE)
    attributes.set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    if read_only:
        attributes.set |= MOUNT_ATTR_RDONLY
    attributes.clear = attributes.propagation = attributes.userns = 0
    # Before Linux 5.12 there is no such call; then the rules of the file system stand alone.
    if (
        syscall(
            SYS_MOUNT_SETATTR,
            tree,
            nothing,
            AT_EMPTY_PATH | AT_RECURSIVE,
            cython.address(attributes),
            cython.sizeof(attributes),
        )
        != 0
        and errno != ENOSYS
    ):
        error = failure("restrict the mounts of the shared directory")
        os.close(tree)
        raise error
    return tree


def move_into(tree: int) -> None:
    """Make `tree`, a copy of the working directory, all there is: the root, too.  Raises `OSError`."""
    fd: cython.int = tree
    nothing: cython.p_char = b""
    here: cython.p_char = b"."
    if syscall(SYS_MOVE_MOUNT, fd, nothing, AT_FDCWD, here, MOVE_MOUNT_F_EMPTY_PATH) != 0:
        raise failure("mount the shared directory on itself")
    if fchdir(fd) != 0:
        raise failure("enter the shared directory")
    # The old root ends up on top of the new one, where "." finds it to unmount (pivot_root(2)).
    if syscall(SYS_pivot_root, here, here) != 0 or umount2(here, MNT_DETACH) != 0:
        raise failure("make the shared directory the root")
    os.chdir("/")
