# SPDX-License-Identifier: Apache-2.0
"""Several writers and several readers of one tree, against a model: nobody sees what is older than its mode allows.

Writers: the guests of two daemons, a mount, and the host.  Readers, and what each may see of a path:

- the host itself, and a guest that keeps nothing: what is there now;
- a guest that keeps what its versions allow, and a mount with a table: what is there now after a change of its own;
  after a change by others it may lag, but sees nothing older than it ever saw, and in the end what is there.

Everything happens on one thread, so the model knows all states in their order; the processes that carry the changes
run beside it.  Now and then one of them is killed in the middle of a write.

VIRTIOFS_MODEL_STEPS=100000 for the long form; VIRTIOFS_MODEL_SEED for another one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import devices
import mounting
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.metadata import registry

pytestmark = pytest.mark.skipif(bool(mounting.unavailable()), reason=mounting.unavailable())

STEPS = int(os.environ.get("VIRTIOFS_MODEL_STEPS", "400"))
SEED = int(os.environ.get("VIRTIOFS_MODEL_SEED", "1"))
SETTLE_EVERY, KILL_EVERY = 40, 130 if STEPS < 10000 else 5000
SECONDS = 30.0
DIRECTORIES = ("", "d1/", "d2/")
NAMES = ("a", "b", "c")
TOKEN = 16  # bytes at the beginning of a file, which say when it was written

State = Any  # of a path: None (nothing there), (token, size, mode), or the names in a directory


class Model:
    """All states that each path ever had."""

    def __init__(self) -> None:
        self.history: dict[str, list[State]] = {}

    def put(self, path: str, state: State) -> None:
        states = self.history.setdefault(path, [None])
        if states[-1] != state:
            states.append(state)

    def now(self, path: str) -> State:
        return self.history.setdefault(path, [None])[-1]

    def version(self, path: str) -> int:
        return len(self.history.setdefault(path, [None])) - 1


class Actor(Protocol):
    """What a reader and writer can do; paths are relative to the tree."""

    def state(self, path: str) -> State: ...
    def names(self, directory: str) -> State: ...
    def make(self, path: str, content: bytes) -> None: ...
    def overwrite(self, path: str, content: bytes) -> None: ...
    def resize(self, path: str, size: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...


class Directory:
    """A directory of the host: the shared one, or one where it is mounted."""

    def __init__(self, root: Path):
        self.root = root

    def state(self, path: str) -> State:
        try:
            status = os.stat(self.root / path)
            with open(self.root / path, "rb") as file:
                return file.read(TOKEN), status.st_size, status.st_mode & 0o777
        except FileNotFoundError:
            return None

    def names(self, directory: str) -> State:
        return tuple(sorted(os.listdir(self.root / directory)))

    def make(self, path: str, content: bytes) -> None:
        fd = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)

    def overwrite(self, path: str, content: bytes) -> None:
        with open(self.root / path, "r+b", buffering=0) as file:
            file.write(content)

    def resize(self, path: str, size: int) -> None:
        os.truncate(self.root / path, size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.root / path, mode)

    def rename(self, old: str, new: str) -> None:
        os.rename(self.root / old, self.root / new)

    def unlink(self, path: str) -> None:
        os.unlink(self.root / path)


class Guest:
    """A tree of a device, without a mount."""

    def __init__(self, tree: Tree):
        self.tree = tree

    def state(self, path: str) -> State:
        try:
            status = self.tree.stat(path)
            with self.tree.open(path) as file:
                return file.pread(TOKEN, 0), status.st_size, status.st_mode & 0o777
        except FileNotFoundError:
            return None

    def names(self, directory: str) -> State:
        return tuple(sorted(self.tree.listdir("/" + directory)))

    def make(self, path: str, content: bytes) -> None:
        with self.tree.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.pwrite(content, 0)

    def overwrite(self, path: str, content: bytes) -> None:
        with self.tree.open(path, os.O_WRONLY) as file:
            file.pwrite(content, 0)

    def resize(self, path: str, size: int) -> None:
        self.tree.truncate(path, size)

    def chmod(self, path: str, mode: int) -> None:
        self.tree.chmod(path, mode)

    def rename(self, old: str, new: str) -> None:
        self.tree.rename(old, new)

    def unlink(self, path: str) -> None:
        self.tree.unlink(path)


class Party:
    """An actor with what it has seen of each path: it may see nothing older.  `exact`: only what is there."""

    def __init__(self, actor: Actor, exact: bool = False):
        self.actor = actor
        self.exact = exact
        self.seen: dict[str, int] = {}

    def restarted(self, actor: Actor) -> None:
        """It knows nothing any more."""
        self.actor = actor
        self.seen.clear()


class World:
    """The tree, the processes that serve it, and who works there."""

    def __init__(self, base: Path, stack: contextlib.ExitStack):
        self.base = base
        self.host = base / "share"
        self.host.mkdir()
        for directory in DIRECTORIES[1:]:
            (self.host / directory).mkdir()
        self.stacks = {name: stack.enter_context(contextlib.ExitStack()) for name in ("one", "two", "mount")}
        self.running: dict[str, Any] = {}
        self.parties = {"host": Party(Directory(self.host), exact=True)}
        for name in ("one", "two"):
            tree = self.serve(name)
            self.parties[name] = Party(Guest(tree))
        self.parties["plain"] = Party(Guest(Tree(tree.session, table=False)), exact=True)
        self.parties["mount"] = Party(Directory(self.mount()))
        table = registry.attach(str(self.host))
        assert devices.wait_until(lambda: table.watched, SECONDS)
        table.close()

    def serve(self, name: str) -> Tree:
        stack = self.stacks[name]
        stack.close()
        self.running[name] = stack.enter_context(devices.start_ours(self.host, ("--metadata-table",)))
        device = stack.enter_context(Device.connect(self.running[name].socket, versions=True))
        return Tree(Session(device), table=True)

    def mount(self) -> Path:
        stack = self.stacks["mount"]
        stack.close()
        self.running["mount"] = stack.enter_context(mounting.mounted(self.base, "--metadata-table"))
        place: Path = self.running["mount"].place
        return place

    def kill(self, name: str) -> None:
        """Kill what serves `name` while it writes, and start it anew."""
        party = self.parties[name]
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                with contextlib.suppress(Exception):
                    party.actor.overwrite("victim", b"%016d" % number)

        writer = threading.Thread(target=write)
        writer.start()
        before = (self.host / "victim").read_bytes()
        devices.wait_until(lambda: (self.host / "victim").read_bytes() != before, SECONDS)
        if name == "mount":
            worker = self.running[name].worker
        else:
            worker = worker_of(self.running[name])
        os.kill(worker, signal.SIGKILL)
        stop.set()
        writer.join()
        if name == "mount":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.running[name].wait()
            party.restarted(Directory(self.mount()))
            return
        with contextlib.suppress(OSError):  # what is dead can not be told to end
            self.stacks[name].close()
        tree = self.serve(name)
        party.restarted(Guest(tree))
        if name == "two":
            self.parties["plain"].actor = Guest(Tree(tree.session, table=False))


def worker_of(running: devices.RunningDevice) -> int:
    """The process that serves: the last of the daemon's that has guest memory mapped."""
    for pid in mounting.descendants(running.process.pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            if "guest-memory" in maps.read():
                return pid
    raise RuntimeError("no process of the daemon has guest memory")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(tmp_path, stack)


def look(model: Model, name: str, party: Party, path: str, see: Callable[[str], State]) -> None:
    """Have a reader look at a path; what it sees must not be older than it may."""
    state = see(path)
    states = model.history.setdefault(path, [None])
    least = len(states) - 1 if party.exact else party.seen.get(path, 0)
    version = next((i for i in range(least, len(states)) if states[i] == state), None)
    assert version is not None, f"{name} sees {path!r} as {state}, after {states[least:]}"
    party.seen[path] = version


def change(model: Model, random_: random.Random, party: Party, number: int) -> list[str]:
    """Have a writer do something: the paths that it changed."""
    files = [directory + name for directory in DIRECTORIES for name in NAMES]
    there = [path for path in files if model.now(path) is not None]
    path = random_.choice(files)
    token = b"%016d" % number
    state = model.now(path)
    other = random_.choice(there) if there else path
    # A program that acts on what it knows must know it.
    for needed in (path, other):
        assert devices.wait_until(lambda: party.actor.state(needed) == model.now(needed), SECONDS)  # noqa: B023
    if state is None and (not there or random_.random() < 0.6):
        party.actor.make(path, token)
        model.put(path, (token, TOKEN, 0o644))
        return [path]
    if state is None:
        party.actor.rename(other, path)
        model.put(path, model.now(other))
        model.put(other, None)
        return [other, path]
    token_now, size, mode = state
    what = random_.randrange(5)
    if what == 0:
        party.actor.unlink(path)
        model.put(path, None)
    elif what == 1:
        party.actor.overwrite(path, token)
        model.put(path, (token, size, mode))
    elif what == 2:
        size = random_.randrange(TOKEN, 20000)
        party.actor.resize(path, size)
        model.put(path, (token_now, size, mode))
    elif what == 3:
        mode = 0o600 | random_.randrange(64)
        party.actor.chmod(path, mode)
        model.put(path, (token_now, size, mode))
    elif other != path:  # over what is there
        party.actor.rename(other, path)
        model.put(path, model.now(other))
        model.put(other, None)
        return [other, path]
    return [path]


def note_names(model: Model) -> None:
    """The listings that follow from what is there."""
    for directory in DIRECTORIES:
        names = [name for name in NAMES if model.now(directory + name) is not None]
        if not directory:
            names += ["d1", "d2", "victim"]
        model.put("names of /" + directory, tuple(sorted(names)))


def settle(model: Model, world: World) -> None:
    """In the end everybody sees what is there."""
    for name, party in world.parties.items():
        for directory in DIRECTORIES:
            for path in (directory + file for file in NAMES):
                assert devices.wait_until(
                    lambda: party.actor.state(path) == model.now(path),  # noqa: B023
                    SECONDS,
                ), f"{name} still sees {path} as {party.actor.state(path)}, not {model.now(path)}"
                party.seen[path] = model.version(path)
            listing = "names of /" + directory
            assert devices.wait_until(
                lambda: party.actor.names(directory) == model.now(listing),  # noqa: B023
                SECONDS,
            ), f"{name} still sees {party.actor.names(directory)}, not {model.now(listing)}"
            party.seen[listing] = model.version(listing)
        truth = (world.host / "victim").read_bytes()
        assert devices.wait_until(lambda: party.actor.state("victim")[0] == truth, SECONDS), name  # noqa: B023


def test_nobody_sees_what_is_older_than_its_mode_allows(world: World) -> None:
    random_ = random.Random(SEED)
    model = Model()
    (world.host / "victim").write_bytes(b"%016d" % 0)
    (world.host / "victim").chmod(0o644)
    note_names(model)
    writers = ("one", "two", "mount", "host")
    kills = ["one", "mount", "two"]
    settle(model, world)
    for number in range(1, STEPS + 1):
        writer = world.parties[random_.choice(writers)]
        changed = change(model, random_, writer, number)
        note_names(model)
        for path in changed:
            writer.seen[path] = model.version(path)
            listing = "names of /" + path.rpartition("/")[0] + ("/" if "/" in path else "")
            writer.seen[listing] = model.version(listing)
        for _ in range(3):
            name, party = random_.choice(list(world.parties.items()))
            directory = random_.choice(DIRECTORIES)
            if random_.random() < 0.3:
                listing = "names of /" + directory
                look(model, name, party, listing, lambda _: party.actor.names(directory))  # noqa: B023
            else:
                look(model, name, party, directory + random_.choice(NAMES), party.actor.state)
        if number % SETTLE_EVERY == 0:
            settle(model, world)
        if number % KILL_EVERY == 0:
            kills.append(kills.pop(0))
            world.kill(kills[-1])
            settle(model, world)
    settle(model, world)
