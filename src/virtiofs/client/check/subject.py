# SPDX-License-Identifier: Apache-2.0
"""The device under check: how to come to a connection again and again, and whether it still lives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from virtiofs.client.check.case import Failed, NotApplicable
from virtiofs.client.device import Device, DeviceGone
from virtiofs.client.peers import Peer
from virtiofs.client.session import Session
from virtiofs.fuse.abi import FUSE_ROOT_ID
from virtiofs.vhostuser.frontend import FrontEnd, FrontEndError
from virtiofs.vhostuser.transport import Connection, TransportError, connect

REPLY_SECONDS = 10.0
START_SECONDS = 20.0
END_SECONDS = 0.5  # for a daemon to end with its connection
AGAIN_SECONDS = 3.0  # a device that serves one connection after the other is back by then
PROBE_SECONDS = 0.002
SECRET = b"not for the guest"


class Subject:
    """One device.  `socket` listens already, or `peer` is a daemon to be started on `host`.

    `host` is the shared directory, where that is known; with `outside`, a file beside it that nobody may reach.
    `own_tree`: the peer serves what it makes itself, anew for each connection; what it lacks is no fault.

    Checks take `session` (made on demand, shared by checks that do no harm) and `place`, a directory of the share
    that belongs to this run; `fresh` gives a connection of one's own.  A context manager.
    """

    def __init__(
        self,
        name: str,
        socket: str = "",
        peer: Peer | None = None,
        host: Path | None = None,
        own_tree: bool = False,
    ):
        self.own_tree = own_tree
        self.name = name
        self.host = host
        self.outside: Path | None = None
        self._peer = peer
        self._run = Path(tempfile.mkdtemp(prefix="virtiofs-check-"))
        self._socket = socket or str(self._run / "socket")
        if peer and host is None and not own_tree:
            self.host = self._run / "share"
            self.host.mkdir()
            self.outside = self._run / "secret"
            self.outside.write_bytes(SECRET)
        self._process: subprocess.Popen[bytes] | None = None
        self._device: Device | None = None
        self._session: Session | None = None
        self._place_name = f".virtiofs-check-{os.getpid()}"
        self._place = 0
        self._count = 0
        self._connected = False
        self._single = False  # the daemon ends with its connection

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what the run left in the share; end the connection and the daemon, if it was started here."""
        with contextlib.suppress(Exception):
            self._clear()
        self.leave()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._run, ignore_errors=True)

    def _clear(self) -> None:
        from virtiofs.client.tree import Tree

        if self.host is not None:
            shutil.rmtree(self.host / self._place_name, ignore_errors=True)
        else:
            tree = Tree(self.session)
            for place, directories, files in reversed(list(tree.walk(self._place_name))):
                for name in files:
                    tree.unlink(f"{place}/{name}")
                for name in directories:
                    tree.rmdir(f"{place}/{name}")
            tree.rmdir(self._place_name)

    # --- connections ---

    def connection(self) -> Connection:
        """A new connection; an earlier one is closed first.  Raises `NotApplicable` when there is none to be had."""
        self.leave()
        if self._peer is not None and (self._process is None or self._process.poll() is not None):
            if crash := self.crash():
                raise Failed(crash)
            self._start(self._peer)
        deadline = time.monotonic() + (START_SECONDS if self._peer else AGAIN_SECONDS)
        while True:
            try:
                found = connect(self._socket)
            except TransportError as error:
                if self._peer is not None and self._process is not None and self._process.poll() is not None:
                    self._start(self._peer)  # it ended while we knocked
                if time.monotonic() > deadline:
                    if not self._connected:
                        raise
                    raise NotApplicable(
                        "the device ended with an earlier connection; give its command line (--peer) "
                        f"so that it can be started again ({error})"
                    ) from None
                time.sleep(PROBE_SECONDS)
            else:
                self._connected = True
                return found

    def front_end(self) -> FrontEnd:
        """A front end that has not said anything yet."""
        return FrontEnd(self.connection(), REPLY_SECONDS)

    def fresh(self, **options: Any) -> Device:
        """A connected device with queues of its own (`Device`'s options); nobody else uses it."""
        self._device = Device(self.connection(), **({"timeout": REPLY_SECONDS} | options))
        return self._device

    def leave(self) -> None:
        """End the current connection, if there is one, and wait for a daemon that ends with it."""
        self._session = None
        self._place = 0
        if self._device is not None:
            with contextlib.suppress(FrontEndError, OSError):
                self._device.close()
            self._device = None
        if self._single and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)

    def learn_whether_it_stays(self) -> None:
        """Find out whether the daemon ends with its connection; called when the first one was just closed."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
                self._single = True

    def _start(self, peer: Peer) -> None:
        words = [
            word.replace("{socket}", self._socket).replace("{dir}", str(self.host)) for word in peer.command
        ]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket)
        with (self._run / "log").open("ab") as log:
            try:
                self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:
                raise TransportError(f"cannot run {words[0]}: {error.strerror}") from None

    # --- sessions ---

    @property
    def session(self) -> Session:
        """A session with the device, after INIT, shared by checks that leave it in order."""
        if self._session is None:
            device = self.fresh()
            self._session = Session(device)
        return self._session

    @property
    def place(self) -> int:
        """The node id of a directory that belongs to this run."""
        session = self.session
        if not self._place:
            try:
                self._place = session.mkdir(FUSE_ROOT_ID, self._place_name).nodeid
            except FileExistsError:
                self._place = session.lookup(FUSE_ROOT_ID, self._place_name).nodeid
        return self._place

    def name_for(self, what: str) -> str:
        """A name that is new in `place`."""
        self._count += 1
        return f"{what}-{self._count}"

    def file(self, data: bytes = b"") -> tuple[str, int]:
        """Make a file in `place` that holds `data`: its name and node id."""
        name = self.name_for("file")
        entry, opened = self.session.create(self.place, name)
        if data:
            self.session.write(entry.nodeid, opened.fh, 0, data)
        self.session.release(entry.nodeid, opened.fh)
        return name, entry.nodeid

    # --- life ---

    def processes(self) -> list[int]:
        """The daemon's processes, if it was started here."""
        tree = [self._process.pid] if self._process is not None and self._process.poll() is None else []
        for pid in tree:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    tree += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        return tree

    def crash(self, disorder: bool = False) -> str:
        """How the daemon crashed, once the connection of the last check is over; empty if it did not.  Told once.

        `disorder`: something went wrong; the shared session is given up, and a daemon that is dying may take its time.
        """
        if disorder or self._session is None:
            self.leave()
        if disorder and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        if self._process is None or (self._process.poll() or 0) >= 0:
            return ""
        told = f"the daemon was killed by {signal.Signals(-self._process.returncode).name}"
        self._process = None
        return told

    def complaints(self) -> list[str]:
        """What the daemon that was started here has said of mistakes, each once."""
        try:
            lines = (self._run / "log").read_text(errors="replace").splitlines()
        except OSError:
            return []
        return list(dict.fromkeys(line for line in lines if " failed: " in line))

    def must_live(self) -> None:
        """End the connection; raise `Failed` if the daemon crashed."""
        self.leave()
        if crash := self.crash():
            raise Failed(crash)

    def must_serve(self) -> None:
        """Raise `Failed` unless the device, reset or connected to again, serves a new session."""
        try:
            root = self.session.getattr(FUSE_ROOT_ID)
        except (OSError, FrontEndError, DeviceGone, TimeoutError) as error:
            raise Failed(f"it does not serve afterwards: {error}") from None
        if root.mode & 0o170000 != 0o040000:
            raise Failed("its root is no directory afterwards")
