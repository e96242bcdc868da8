# SPDX-License-Identifier: Apache-2.0
"""A place of the host where the kernel's own FUSE client is mounted, and the descriptor that its requests come from.

Whoever may mounts by mount(2); everybody else asks fusermount3, which sends the descriptor back over a socket
($_FUSE_COMMFD).  A *guardian* is forked before anything is mounted.  It does nothing but wait until the last
descriptor of its pipe's other end is closed, which is when this process ends in whatever way, SIGKILL included; then it
unmounts.  So no mount point is left behind whose programs get "Transport endpoint is not connected".  `unmount`
goes the same way: this process may have given up by then what unmounting takes (fusermount3 is a set-user-ID program).
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

DEVICE = "/dev/fuse"
TYPE = "fuse.virtiofs"
FUSE_DEV_IOC_CLONE = 0x8004E500  # _IOR(229, 0, uint32_t), include/uapi/linux/fuse.h
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
ABORT = b" abort"  # what the guardian is told besides
FUSERMOUNT = "fusermount3"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE)


class MountError(OSError):
    """Something cannot be mounted.  The text says why, and what to do."""


class Mountpoint:
    """A FUSE file system mounted at `path`, a directory; nothing is answered before somebody reads `fd`.

    `path` itself must not be touched by the process that is to answer, nor by its ancestors while they wait for it.

    `name` is what the mount table shows as its source.  `read_only`: the kernel refuses every change.
    `allow_other`: users besides ours may enter (as an ordinary user, only if /etc/fuse.conf has user_allow_other).
    `default_permissions`: the kernel checks permissions by mode and owner; without it all checks are the file
    system's, and INIT may not answer ALLOW_IDMAP.  `max_read`: bytes of the largest READ (None: no limit but
    the kernel's).

    The descriptor is for one process: after a fork, whichever side does not serve calls `release`, so that the
    kernel ends requests with ENOTCONN when the other dies.  Raises `MountError`.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str,
        read_only: bool = False,
        allow_other: bool = False,
        default_permissions: bool = True,
        max_read: int | None = None,
    ):
        self.fd = -1
        self._pipe = -1
        self.path, mode = check_place(path)
        options = [] if max_read is None else [f"max_read={max_read}"]
        if default_permissions:
            options.append("default_permissions")
        if allow_other:
            options.append("allow_other")
        load_libc()
        self._guardian, self._pipe = start_guardian(self.path, name)
        try:
            self.fd = mount_directly(self.path, name, mode, read_only, options)
            if self.fd < 0:
                self.fd = mount_by_program(self.path, name, read_only, options)
            found = [mount for mount in mounts(self.path) if mount[1:] == (TYPE, name)]
            if not found:
                raise MountError(
                    f"{self.path} is not in /proc/self/mountinfo after it was mounted; is /proc there?"
                )
            os.write(self._pipe, found[-1][0].encode())
        except BaseException:
            self.release()
            self.unmount()
            raise

    def clone(self) -> int:
        """Another descriptor for the same requests, for another thread: its reads have a queue of replies of their own.

        It is the caller's.  Raises `OSError` where /dev/fuse may not be opened (another thread can then read
        from a duplicate of `fd`).
        """
        import fcntl

        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, FUSE_DEV_IOC_CLONE, struct.pack("I", self.fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def release(self) -> None:
        """Close our descriptor; the mount stays.  Requests that nobody can answer any more end with ENOTCONN."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def sync(self) -> None:
        """Have the kernel write what it still keeps for us.  Whoever serves must be serving.  Raises `OSError`."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if load_libc().syncfs(fd) != 0:
                raise last_error()
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount, if it is still mounted.  Programs that have files open there keep them as long as somebody serves.

        For the process that mounted.  Raises `MountError` if it stays mounted.
        """
        if self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        _, status = os.waitpid(self._guardian, 0)
        if status:
            raise MountError(f"{self.path} could not be unmounted; use: umount -l {self.path}")

    def abort(self) -> None:
        """Have the kernel fail all requests, now and later: nobody serves, and somebody may be stuck in the kernel."""
        if self._pipe >= 0:
            os.write(self._pipe, ABORT)

    def __enter__(self) -> Mountpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()
        self.release()


def check_place(path: str) -> tuple[str, int]:
    """The real path of a place to mount at, and its file type (stat.S_IFMT).  Raises `MountError`."""
    import errno
    import stat

    try:
        real = os.path.realpath(path)
        mode = os.stat(real).st_mode
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"{path} is still mounted by a daemon that is dead; unmount it: {how_to_unmount(path)}"
            ) from None
        if error.errno == errno.ENOENT:
            raise MountError(f"there is no directory {path}; make it: mkdir -p {path}") from None
        raise MountError(f"cannot mount at {path}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"{path} is not a directory; mount at one")
    if any(mount[1] == TYPE for mount in mounts(real)[-1:]):
        raise MountError(f"a share is mounted at {path} already; unmount it first: {how_to_unmount(path)}")
    return real, stat.S_IFMT(mode)


def how_to_unmount(path: str) -> str:
    return f"umount {path}" if os.geteuid() == 0 else f"{FUSERMOUNT} -u {path}"


def mounts(path: str) -> list[tuple[str, str, str]]:
    """What is mounted at `path`, the uppermost last: device number ("0:53"), type and source of each."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
            left, _, right = line.rstrip(b"\n").partition(b" - ")
            place = left.split(b" ")
            if unescape(place[4]) == path:
                kind, source = right.split(b" ")[:2]
                found.append((place[2].decode(), os.fsdecode(kind), unescape(source)))
    return found


def unescape(field: bytes) -> str:
    """A field of mountinfo, where blanks and backslashes are written in octal."""
    first, *rest = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest))


def load_libc() -> ctypes.CDLL:
    """The C library, for the calls that `os` does not have."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def last_error() -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def mount_directly(path: str, name: str, mode: int, read_only: bool, options: list[str]) -> int:
    """Mount by mount(2): the descriptor, or -1 if that takes more privilege than we have.  Raises `MountError`."""
    import errno

    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
            return -1
        raise no_device(error) from None
    ours = [f"fd={fd}", f"rootmode={mode:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}", *options]
    done = load_libc().mount(
        os.fsencode(name),
        os.fsencode(path),
        TYPE.encode(),
        MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0),
        ",".join(ours).encode(),
    )
    if done == 0:
        return fd
    problem = last_error()
    os.close(fd)
    if problem.errno == errno.EPERM:
        if os.geteuid() != 0:
            return -1
        raise MountError(f"cannot mount at {path}: this takes the capability sys_admin, which we do not have")
    if problem.errno == errno.ENODEV:
        raise MountError(f"cannot mount at {path}: this kernel has no FUSE; load it: modprobe fuse")
    raise MountError(f"cannot mount at {path}: {problem.strerror}")


def no_device(error: OSError) -> MountError:
    return MountError(
        f"cannot open {DEVICE}: {error.strerror}; load the module (modprobe fuse), or give the container the device"
    )


def mount_by_program(path: str, name: str, read_only: bool, options: list[str]) -> int:
    """Have fusermount3 mount: the descriptor it sends.  Raises `MountError` with what it says."""
    import shutil

    program = shutil.which(FUSERMOUNT)
    if program is None:
        raise MountError(
            f"only root may mount without {FUSERMOUNT}, which is not here; install it: apt-get install fuse3"
        )
    source = name.replace("\\", "\\\\").replace(",", "\\,")
    wanted = [
        "ro" if read_only else "rw",
        "nosuid",
        "nodev",
        f"fsname={source}",
        "subtype=virtiofs",
        *options,
    ]
    ours, its = socket.socketpair()
    said, saying = os.pipe()
    with ours, its, open(said, "rb") as complaints:
        its.set_inheritable(True)
        pid = os.posix_spawn(
            program,
            [program, "-o", ",".join(wanted), "--", path],
            os.environ | {"_FUSE_COMMFD": str(its.fileno()), "LC_ALL": "C"},
            file_actions=[(os.POSIX_SPAWN_DUP2, saying, 2)],
        )
        os.close(saying)
        its.close()
        fds = socket.recv_fds(ours, 1, 1)[1]
        text = complaints.read().decode(errors="replace").strip().removeprefix(f"{program}: ")
        os.waitpid(pid, 0)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    if "user_allow_other" in text:
        raise MountError(
            "--allow-other takes a line user_allow_other in /etc/fuse.conf, which only root can add; or leave it out"
        )
    if not os.path.exists(DEVICE):
        raise no_device(FileNotFoundError(2, os.strerror(2)))
    raise MountError(f"cannot mount at {path}: {text or f'{program} failed without a word'}")


# --- the guardian ---


def start_guardian(path: str, name: str) -> tuple[int, int]:
    """Fork the guardian of what will be mounted at `path`: its process id, and the end of the pipe to keep.

    It is told the device number of the mount over the pipe.  If we die between mounting and telling, it goes by
    `name`.  It ends with status 0 once nothing of ours is mounted there.
    """
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    status = 1
    device = b""
    try:
        os.setsid()  # whatever is done to our terminal or process group does not reach it
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != theirs:
                try:
                    os.close(fd)
                except OSError:
                    pass  # the one that listed them
        while part := os.read(theirs, 64):
            device += part
            if device.endswith(ABORT):
                device = device.removesuffix(ABORT)
                abort(path, device.decode())
        status = 0 if detach(path, name, device.decode()) else 1
    finally:
        os._exit(status)


def abort(path: str, device: str) -> None:
    """Abort the connection of our mount at `path`, which is of `device`."""
    minor = device.rpartition(":")[2]
    try:
        with open(f"/sys/fs/fuse/connections/{minor}/abort", "w") as file:
            file.write("1")
    except OSError:  # that file system is not mounted
        load_libc().umount2(os.fsencode(path), MNT_FORCE | UMOUNT_NOFOLLOW)


def detach(path: str, name: str, device: str) -> bool:
    """Unmount our mount at `path`, lazily: whether it is gone.  What somebody else has mounted there stays.

    Ours is the one of `device` that shows our `name` ("": of any device; we died before we knew).
    """

    def ours() -> list[bool]:
        return [
            (kind, source) == (TYPE, name) and device in ("", number) for number, kind, source in mounts(path)
        ]

    if not any(ours()):
        return True
    if ours()[-1] and load_libc().umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
        import shutil

        program = shutil.which(FUSERMOUNT)
        if program is not None:
            os.waitpid(os.posix_spawn(program, [program, "-u", "-z", "--", path], os.environ), 0)
    return not any(ours())
