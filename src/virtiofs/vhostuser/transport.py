# SPDX-License-Identifier: Apache-2.0
"""Sockets: the only file of this room that does I/O.

`Connection` carries whole messages with their descriptors over a connected AF_UNIX stream.  `listen`,
`adopt` and `connect` make the sockets; whatever hinders them is a `TransportError`, one line that says what
to do.

Descriptors come beside the first byte of a header (QEMU, libvhost-user and rust-vmm all send a message in
one sendmsg), so the header is read with room for them and the rest of the message without: the kernel closes
what a peer attaches elsewhere.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import time

from virtiofs.vhostuser.messages import HEADER_SIZE, Header, ProtocolError, decode_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FDS = 32  # QEMU sends at most 8 with a message, rust-vmm accepts 32
MESSAGE_SECONDS = 10.0
BACKLOG = 8
MAX_PATH = 107  # sizeof(sun_path) - 1, <sys/un.h>

_INT_SIZE = array.array("i").itemsize
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * _INT_SIZE)
_PEER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class TransportError(Exception):
    """A socket that cannot be had; the text is one line that says what to do."""


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class Connection:
    """One connected vhost-user socket, owned: messages in, messages out.

    Waiting for a message is free of time limits unless `receive` gets one; but once its first byte came, or
    the first byte of ours went, the peer has `message_seconds` for the rest.  A single-threaded supervisor
    is not to hang on half a message.
    """

    def __init__(self, sock: socket.socket, message_seconds: float = MESSAGE_SECONDS) -> None:
        self._socket = sock
        self._message_seconds = message_seconds

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send one whole message; `fds` stay the caller's.

        Raises `ConnectionError` when the peer is gone, `ProtocolError` when it does not read.
        """
        deadline = time.monotonic() + self._message_seconds
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        rest = memoryview(message)
        while rest:
            self._limit(deadline, "the peer does not read its messages")
            try:
                sent = self._socket.sendmsg([rest], ancillary)
            except TimeoutError:
                continue  # _limit raises
            except OSError as error:
                if error.errno in _PEER_GONE:
                    raise ConnectionResetError(error.errno, "the peer closed the connection") from None
                raise
            rest, ancillary = rest[sent:], []

    def receive(self, wait: float | None = None) -> tuple[Header, bytes, list[int]] | None:
        """The next message: header, payload, and its descriptors, which are the caller's now.

        None when the peer closed the connection between two messages.  Raises `TimeoutError` when `wait`
        seconds passed without a message, `ProtocolError` for a stream that is of no use any more (close it):
        a bad header, half a message, more than `MAX_FDS` descriptors.  After an error no descriptor is left
        open.
        """
        self._socket.settimeout(wait)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(HEADER_SIZE, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise TimeoutError("no message is waiting") from None
        except OSError as error:
            if error.errno in _PEER_GONE:
                return None
            raise
        fds = _received_fds(ancillary)
        try:
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError(
                    f"descriptors were lost: more than {MAX_FDS} came with a message, or too many are open"
                )
            if not data:
                _close_all(fds)
                return None
            deadline = time.monotonic() + self._message_seconds
            header = decode_header(data + self._receive_rest(HEADER_SIZE - len(data), deadline))
            return header, self._receive_rest(header.size, deadline), fds
        except BaseException:
            _close_all(fds)
            raise

    def maps_privately(self, address: int, file: tuple[int, int]) -> bool:
        """Whether the peer maps `file` (device, inode) copy-on-write at `address`: what it writes there is not shared.

        False also when that cannot be known: the peer may be another user's, or not the process that connected.
        """
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * _INT_SIZE)
        pid = array.array("i", credentials)[0]
        found = _mapping_at(pid, address)
        return found is not None and found[0][3:] == "p" and found[1:] == file

    def _receive_rest(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            self._limit(deadline, "the peer stopped in the middle of a message")
            try:
                piece = self._socket.recv(size - len(data))
            except TimeoutError:
                continue  # _limit raises
            except OSError as error:
                if error.errno not in _PEER_GONE:
                    raise
                piece = b""
            if not piece:
                raise ProtocolError("the peer closed the connection in the middle of a message")
            data += piece
        return data

    def _limit(self, deadline: float, text: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ProtocolError(f"{text} for {self._message_seconds:g} s")
        self._socket.settimeout(left)


def _mapping_at(pid: int, address: int) -> tuple[str, int, int] | None:
    """Permissions, device and inode of what a process maps at an address; None where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
            for line in maps:
                span, permissions, _, device, inode = line.split(None, 5)[:5]
                first, _, end = span.partition("-")
                if int(first, 16) <= address < int(end, 16):
                    major, _, minor = device.partition(":")
                    return permissions, os.makedev(int(major, 16), int(minor, 16)), int(inode)
    except (OSError, ValueError):
        pass  # another user's process, or one in another namespace
    return None


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT_SIZE])
    return list(fds)


# --- making sockets ---


def listen(path: str, group: int = -1) -> socket.socket:
    """A socket that listens at `path`, for this user only, or for the members of a group (its id) as well.

    The file of a dead process is replaced.  Raises `TransportError` when a live process uses it, when it is
    no socket, or when it cannot be made.  Removing the file at the end is the caller's business.
    """
    _check_path(path, "listen on")
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o077 if group < 0 else 0o007)
    try:
        sock.bind(path)
        if group >= 0:
            os.chown(path, -1, group)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise TransportError(f"cannot listen on {path}: {_reason(path, error)}") from None
    finally:
        os.umask(before)
    return sock


def connect(path: str, message_seconds: float = MESSAGE_SECONDS) -> Connection:
    """Connect to the device that listens at `path`.  Raises `TransportError`."""
    _check_path(path, "connect to")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(message_seconds)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise TransportError(f"cannot connect to {path}: {_connect_reason(path, error)}") from None
    return Connection(sock, message_seconds)


def adopt(fd: int) -> tuple[socket.socket, bool]:
    """The socket behind a descriptor that was passed to this process, and whether it listens.

    With `--fd=N` most launchers pass a listening socket, some a connected one: the protocol text leaves it
    open.  The descriptor belongs to the returned socket.  Raises `TransportError`, then it stays the
    caller's.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except (OSError, OverflowError):
        raise TransportError(f"descriptor {fd} is not open; pass one that the launcher keeps open") from None
    wanted = "pass a listening or connected AF_UNIX stream socket"
    if not is_socket:
        raise TransportError(f"descriptor {fd} is not a socket; {wanted}")
    sock = socket.socket(fileno=fd)
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise TransportError(f"descriptor {fd} is a socket of another kind; {wanted}")
        listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if not listening:
            try:
                sock.getpeername()
            except OSError:
                raise TransportError(
                    f"descriptor {fd} is neither listening nor connected; {wanted}"
                ) from None
        sock.set_inheritable(False)
    except BaseException:
        sock.detach()
        raise
    return sock, listening


def _check_path(path: str, what: str) -> None:
    size = len(os.fsencode(path))
    if size == 0 or "\0" in path:
        raise TransportError(f"cannot {what} {path!r}: this is not a file name; choose another --socket")
    if size > MAX_PATH:
        raise TransportError(
            f"cannot {what} {path}: the path has {size} bytes and a socket's may have {MAX_PATH}; "
            "choose a shorter --socket"
        )


def _remove_stale(path: str) -> None:
    """Remove the socket file of a dead process.  Raises `TransportError` when it is anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return  # or its directory is missing: bind says so
    except OSError as error:
        raise TransportError(f"cannot listen on {path}: {_reason(path, error)}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise TransportError(
            f"cannot listen on {path}: it exists and is not a socket; remove it or choose another --socket"
        )
    if _is_alive(path):
        pid = _listener_pid(found)
        who = f"a live process (pid {pid})" if pid else "a live process"
        raise TransportError(
            f"cannot listen on {path}: {who} is using it; stop it or choose another --socket"
        )
    try:
        # Another command may have replaced the file since: what is removed must be what was probed.
        again = os.lstat(path)
        if (again.st_dev, again.st_ino, again.st_ctime_ns) == (found.st_dev, found.st_ino, found.st_ctime_ns):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TransportError(f"cannot replace the stale socket {path}: {_reason(path, error)}") from None


def _is_alive(path: str) -> bool:
    """Whether a process has a socket bound to this file.

    Asked by connecting with the wrong socket type: a bound stream socket answers EPROTOTYPE (unix(7)) and
    never hears of it.  A real connection would end devices that serve one front end and exit with it, as
    QEMU's virtiofsd does, before their VM came.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return False
            if error.errno == errno.EPROTOTYPE:
                return True
            raise TransportError(f"cannot listen on {path}: {_reason(path, error)}") from None
    return True


def _listener_pid(found: os.stat_result) -> int | None:
    """The process that listens on the socket file `found`, where /proc lets us see it."""
    sockets = _listening_sockets(found)
    try:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    except OSError:
        return None
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in sockets:
                    return pid
        except OSError:
            continue  # another user's process, or one that just ended
    return None


def _listening_sockets(found: os.stat_result) -> set[str]:
    """The names /proc/PID/fd shows for sockets that listen on the file `found`.  Source: proc_net_unix(5)."""
    names = set()
    try:
        with open("/proc/net/unix", errors="surrogateescape") as table:
            for line in table:
                fields = line.rstrip("\n").split(None, 7)
                if len(fields) == 8 and fields[3] == "00010000" and _is_file(fields[7], found):
                    names.add(f"socket:[{fields[6]}]")
    except OSError:
        pass
    return names


def _is_file(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), found)
    except (OSError, ValueError):
        return False


def _reason(path: str, error: OSError) -> str:
    directory = os.path.dirname(path) or "."
    reasons = {
        errno.ENOENT: f"the directory {directory} does not exist; create it or choose another --socket",
        errno.ENOTDIR: f"{directory} is not a directory; choose another --socket",
        errno.EACCES: f"this user may not write in {directory}; choose another --socket or run as its owner",
        errno.EADDRINUSE: "another process has just begun to use it; stop that or choose another --socket",
    }
    return reasons.get(error.errno or 0, f"{os.strerror(error.errno or 0)}; choose another --socket")


def _connect_reason(path: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the device there does not accept connections; is it serving another front end?"
    reasons = {
        errno.ENOENT: "there is no such socket; start the device first",
        errno.ECONNREFUSED: "no process listens there any more; start the device again",
        errno.EAGAIN: "the device there does not accept connections; is it serving another front end?",
        errno.EACCES: "permission denied; run as the user who started the device",
        errno.EPROTOTYPE: "the socket there is no stream socket; this is not a vhost-user device",
    }
    return reasons.get(error.errno or 0, os.strerror(error.errno or 0))
