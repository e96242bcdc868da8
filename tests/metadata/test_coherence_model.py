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

STEPS = int(os.environ.get("VIRTIOFS_MODEL_STEPS", "200"))
SEED = int(os.environ.get("VIRTIOFS_MODEL_SEED", "1"))
SETTLE_EVERY, KILL_EVERY = 40, 60 if STEPS < 10000 else 5000
SECONDS = 30.0
DIRECTORIES = ("", "d1/", "d2/")
NAMES = ("a", "b", "c")
TOKEN = 16  # bytes at the beginning of a file, which say when it was written

Names = tuple[str, ...]


class Model:
    """What there ever was, in order: files that a path led to (None: none), their attributes and data, listings."""

    def __init__(self) -> None:
        self.paths: dict[str, list[int | None]] = {}
        self.attributes: dict[int, list[Any]] = {}  # size and mode
        self.data: dict[int, list[Any]] = {}  # a token
        self.listings: dict[str, list[Names]] = {}

    def file(self, path: str) -> int | None:
        """The file that is there now."""
        return self.paths.setdefault(path, [None])[-1]

    def now(self, path: str) -> Any:
        """Attributes and data of what is there now; None twice for nothing."""
        file = self.file(path)
        return (None, None) if file is None else (self.attributes[file][-1], self.data[file][-1])

    def lead(self, path: str, file: int | None) -> None:
        self.paths.setdefault(path, [None]).append(file)

    def note_names(self) -> None:
        """The listings that follow from what is there."""
        for directory in DIRECTORIES:
            names = [name for name in NAMES if self.file(directory + name) is not None]
            if not directory:
                names += ["d1", "d2", "victim"]
            listing = self.listings.setdefault(directory, [])
            if not listing or listing[-1] != tuple(sorted(names)):
                listing.append(tuple(sorted(names)))


class Actor(Protocol):
    """What a reader and writer can do; paths are relative to the tree."""

    def attributes(self, path: str) -> Any: ...
    def data(self, path: str) -> Any: ...
    def names(self, directory: str) -> Names: ...
    def make(self, path: str, content: bytes) -> None: ...
    def overwrite(self, path: str, content: bytes) -> None: ...
    def resize(self, path: str, size: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...


def absent(look: Callable[[], Any]) -> Any:
    """What `look` finds; None if there is nothing."""
    try:
        return look()
    except FileNotFoundError:
        return None


class Directory:
    """A directory of the host: the shared one, or one where it is mounted."""

    def __init__(self, root: Path):
        self.root = root

    def attributes(self, path: str) -> Any:
        status = absent(lambda: os.stat(self.root / path))
        return status and (status.st_size, status.st_mode & 0o777)

    def data(self, path: str) -> Any:
        return absent(lambda: (self.root / path).read_bytes()[:TOKEN])

    def names(self, directory: str) -> Names:
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

    def attributes(self, path: str) -> Any:
        status = absent(lambda: self.tree.stat(path))
        return status and (status.st_size, status.st_mode & 0o777)

    def data(self, path: str) -> Any:
        return absent(lambda: self.tree.read_file(path)[:TOKEN])

    def names(self, directory: str) -> Names:
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
    """An actor, and how far it has seen: it may see nothing older.  `exact`: only what is there.

    A name and what it leads to are two things: who knows of a file by the name it had sees what the file is now.  And
    what it knows is not what it asks for: opening a file shows what the host changed before the table can tell.
    """

    def __init__(self, actor: Actor, exact: bool = False):
        self.exact = exact
        self.restarted(actor)

    def restarted(self, actor: Actor) -> None:
        """It knows nothing any more."""
        self.actor = actor
        self.paths: dict[tuple[str, str], int] = {}  # by what is looked at, and path
        self.attributes: dict[int, int] = {}
        self.data: dict[int, int] = {}
        self.listings: dict[str, int] = {}

    def is_current(self, model: Model, path: str) -> None:
        """It knows all of a path."""
        for what in ("attributes", "data"):
            self.paths[what, path] = len(model.paths.setdefault(path, [None])) - 1
        file = model.file(path)
        if file is not None:
            self.attributes[file] = len(model.attributes[file]) - 1
            self.data[file] = len(model.data[file]) - 1

    def knows(self, model: Model, path: str) -> bool:
        """Whether it sees what is there."""
        return (self.actor.attributes(path), self.actor.data(path)) == model.now(path)


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


def look(model: Model, name: str, party: Party, path: str, what: str) -> None:
    """Have a reader look at the attributes or the data of a path; it must not see what is older than it may."""
    found = getattr(party.actor, what)(path)
    files = model.paths.setdefault(path, [None])
    states: dict[int, list[Any]] = getattr(model, what)
    floors: dict[int, int] = getattr(party, what)
    for version in range(len(files) - 1 if party.exact else party.paths.get((what, path), 0), len(files)):
        file = files[version]
        if file is None:
            if found is None:
                party.paths[what, path] = version
                return
            continue
        least = len(states[file]) - 1 if party.exact else floors.get(file, 0)
        if found in states[file][least:]:
            party.paths[what, path] = version
            floors[file] = least + states[file][least:].index(found)
            return
    raise AssertionError(
        f"{name} sees {what} {found} of {path}, which led to {files[party.paths.get((what, path), 0) :]}:"
        f" {[(file, states[file][floors.get(file, 0) :]) for file in files[-5:] if file is not None]}"
    )


def look_at_names(model: Model, name: str, party: Party, directory: str) -> None:
    """The same of a listing."""
    found = party.actor.names(directory)
    states = model.listings[directory]
    least = len(states) - 1 if party.exact else party.listings.get(directory, 0)
    assert found in states[least:], f"{name} sees {found} in /{directory}, after {states[least:]}"
    party.listings[directory] = least + states[least:].index(found)


def change(model: Model, random_: random.Random, party: Party, number: int) -> list[str]:
    """Have a writer do something: the paths that it changed."""
    paths = [directory + name for directory in DIRECTORIES for name in NAMES]
    there = [path for path in paths if model.file(path) is not None]
    path = random_.choice(paths)
    other = random_.choice(there) if there else path
    token = b"%016d" % number
    # A program that acts on what it knows must know it.
    for needed in (path, other):
        assert devices.wait_until(lambda: party.knows(model, needed), SECONDS)  # noqa: B023
    file = model.file(path)
    if file is None and (not there or random_.random() < 0.6):
        party.actor.make(path, token)
        model.attributes[number], model.data[number] = [(TOKEN, 0o644)], [token]
        model.lead(path, number)
        return [path]
    what = "rename" if file is None else random_.choice(("rename", "unlink", "overwrite", "resize", "chmod"))
    if what == "rename":
        if other == path:
            return []
        party.actor.rename(other, path)
        model.lead(path, model.file(other))
        model.lead(other, None)
        return [other, path]
    assert file is not None
    size, mode = model.attributes[file][-1]
    if what == "unlink":
        party.actor.unlink(path)
        model.lead(path, None)
    elif what == "overwrite":
        party.actor.overwrite(path, token)
        model.data[file].append(token)
    elif what == "resize":
        size = random_.randrange(TOKEN, 20000)
        party.actor.resize(path, size)
        model.attributes[file].append((size, mode))
    else:
        mode = 0o600 | random_.randrange(64)
        party.actor.chmod(path, mode)
        model.attributes[file].append((size, mode))
    return [path]


def settle(model: Model, world: World) -> None:
    """In the end everybody sees what is there."""
    for name, party in world.parties.items():
        for directory in DIRECTORIES:
            for path in (directory + file for file in NAMES):
                assert devices.wait_until(lambda: party.knows(model, path), SECONDS), (  # noqa: B023
                    f"{name} still sees {path} as {party.actor.attributes(path)}, {party.actor.data(path)},"
                    f" not {model.now(path)}"
                )
                party.is_current(model, path)
            listing = model.listings[directory]
            assert devices.wait_until(
                lambda: party.actor.names(directory) == listing[-1],  # noqa: B023
                SECONDS,
            ), f"{name} still sees {party.actor.names(directory)}, not {listing[-1]}"
            party.listings[directory] = len(listing) - 1
        truth = (world.host / "victim").read_bytes()
        assert devices.wait_until(lambda: party.actor.data("victim") == truth, SECONDS), name  # noqa: B023


def test_nobody_sees_what_is_older_than_its_mode_allows(world: World) -> None:
    random_ = random.Random(SEED)
    model = Model()
    (world.host / "victim").write_bytes(b"%016d" % 0)
    (world.host / "victim").chmod(0o644)
    model.note_names()
    writers = ("one", "two", "mount", "host")
    kills = ["one", "mount", "two"]
    settle(model, world)
    for number in range(1, STEPS + 1):
        writer = world.parties[random_.choice(writers)]
        changed = change(model, random_, writer, number)
        before = {directory: len(states) for directory, states in model.listings.items()}
        model.note_names()
        for path in changed:
            writer.is_current(model, path)
        for directory, states in model.listings.items():
            if (
                len(states) > before[directory]
            ):  # its own change; of others' in the same place it may not know yet
                writer.listings[directory] = len(states) - 1
        for _ in range(3):
            name, party = random_.choice(list(world.parties.items()))
            directory = random_.choice(DIRECTORIES)
            if random_.random() < 0.3:
                look_at_names(model, name, party, directory)
            else:
                what = random_.choice(("attributes", "data"))
                look(model, name, party, directory + random_.choice(NAMES), what)
        if number % SETTLE_EVERY == 0:
            settle(model, world)
        if number % KILL_EVERY == 0:
            kills.append(kills.pop(0))
            world.kill(kills[-1])
            settle(model, world)
    settle(model, world)
