# SPDX-License-Identifier: Apache-2.0
"""What a Linux client sends for a few well-known programs: scripts made by rule from a real directory tree.

The rules are those of a guest whose entries and attributes have expired, as after a second with cache=auto:

- `git_status`: the index is read; every directory and file of the tree is looked up again (lstat(2) of each file in the
  index walks its path); then each directory is opened, asked for a .gitignore, listed and closed.
- `untar`: what tar(1) does as root.  mkdir(2), then open(O_CREAT|O_EXCL), write, utimensat, fchown, close of each file,
  each name being looked up before it is made; and the guest forgets all nodes in the end.
- `smallfile`: the operations of the benchmark of that name, one file after another: create, stat, read, append, rename,
  delete-renamed.

What a device answers with ENOSYS (OPEN, OPENDIR, FLUSH) is left out for it, as Linux does.
"""

from __future__ import annotations

import errno
import filecmp
import os
import random
import shutil
from pathlib import Path

from virtiofs.client.arena import PAGE
from virtiofs.client.script import Answers, From, Numbered, Replies, Script, handle_of, node_of, own_directory
from virtiofs.client.session import Session
from virtiofs.fuse.abi import CONSTANTS, FUSE_ENTRY_OUT

TREE_DIRECTORIES = 24
TREE_FILES = 12  # in each
WRITE_SIZE = 128 << 10  # the most that one write of tar's brings to the device
LISTING_PAGES = 8
SMALL = 1024  # bytes that smallfile writes and appends
SET_TIMES = CONSTANTS["FATTR_ATIME"] | CONSTANTS["FATTR_MTIME"] | CONSTANTS["FATTR_FH"]
SET_OWNER = CONSTANTS["FATTR_UID"] | CONSTANTS["FATTR_GID"] | CONSTANTS["FATTR_FH"]


def tree(directory: Path) -> Path:
    """A tree like that of a program's sources: three levels, files of 200 bytes to 40 KiB, and an index."""
    root = directory / "tree"
    if not root.is_dir():
        generator = random.Random(9)
        (root / ".git").mkdir(parents=True)
        (root / ".git" / "index").write_bytes(generator.randbytes(TREE_DIRECTORIES * TREE_FILES * 72))
        for i in range(TREE_DIRECTORIES):
            place = root / f"part-{i % 6}" / (f"room-{i}" if i >= 6 else "")
            place.mkdir(parents=True, exist_ok=True)
            for k in range(TREE_FILES):
                size = int(200 * 2 ** generator.uniform(0, 7.6))
                (place / f"file-{i:02}-{k:02}.py").write_bytes(generator.randbytes(size))
    return root


def _missing(session: Session, parent: int) -> int:
    """How the device answers a LOOKUP of a name that is not there: an errno, or 0 with a node of 0."""
    try:
        entry = session.lookup(parent, "no such name")
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return errno.ENOENT
    if entry.nodeid:
        raise OSError(errno.EIO, "a name that is not there was found")
    return 0


class _Rules:
    """The client's habits with one device."""

    def __init__(self, session: Session, file: int):
        self.session = session
        self.missing = _missing(session, 1)
        self.answers = Answers.of(session, file)

    def look_for_nothing(self, script: Script, parent: int | From, name: bytes | Numbered) -> None:
        script.add("lookup", parent, [name], error=self.missing)

    def open(self, script: Script, node: int | From, flags: int) -> int | From:
        return handle_of(script.add("open", node, flags=flags)) if self.answers.open else 0

    def close(self, script: Script, node: int | From, handle: int | From, created: bool = False) -> None:
        if self.answers.flush:
            script.add("flush", node, fh=handle)
        if self.answers.open or created:
            script.add("release", node, fh=handle)


def git_status(session: Session, directory: Path) -> Script:
    root = tree(directory)
    owed: dict[int, int] = {}  # node -> lookups by which it is held
    per_round: dict[int, int] = {}
    nodes: dict[Path, int] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        parent = nodes.get(path.parent, 1)
        nodes[path] = session.lookup(parent, path.name).nodeid
        owed[nodes[path]] = owed.get(nodes[path], 0) + 1
    index = root / ".git" / "index"
    rules = _Rules(session, nodes[index])
    files = [path for path in nodes if path.is_file() and path != index]
    script = Script(session, operations=len(files))
    checks: list[tuple[int, int]] = []  # step of a LOOKUP, inode

    def look_up(path: Path) -> None:
        step = script.add("lookup", nodes.get(path.parent, 1), [os.fsencode(path.name)])
        checks.append((step, path.stat().st_ino))
        per_round[nodes[path]] = per_round.get(nodes[path], 0) + 1

    for path in (root, root / ".git", index):
        look_up(path)
    handle = rules.open(script, nodes[index], os.O_RDONLY)
    size = index.stat().st_size
    pages = (size + PAGE - 1) // PAGE
    content = script.add("read", nodes[index], pages=pages, length=size, fh=handle, size=pages * PAGE)
    rules.close(script, nodes[index], handle)
    for path in sorted(nodes):
        if path not in (root, root / ".git", index):
            look_up(path)
    for path in sorted(path for path in nodes if path.is_dir() and path.name != ".git"):
        listing, names, listed_nodes = _list_once(session, nodes[path], rules.answers.opendir)
        fh: int | From = 0
        if rules.answers.opendir:
            fh = handle_of(script.add("opendir", nodes[path], flags=os.O_DIRECTORY))
        rules.look_for_nothing(script, nodes[path], b".gitignore")
        if names - {b".", b".."} != {os.fsencode(child.name) for child in path.iterdir()}:
            raise OSError(errno.EIO, f"the listing of {path} is wrong")
        for node in listed_nodes:
            owed[node] = owed.get(node, 0) + 1
            per_round[node] = per_round.get(node, 0) + 1
        for cookie, length in listing:
            script.add(
                "readdirplus",
                nodes[path],
                pages=LISTING_PAGES,
                length=length,
                fh=fh,
                offset=cookie,
                size=LISTING_PAGES * PAGE,
            )
        if rules.answers.opendir:
            script.add("releasedir", nodes[path], fh=fh)
    rounds_run = 0

    def verify(replies: Replies) -> bool:
        right = all(
            FUSE_ENTRY_OUT.unpack(replies.payload(step), 0).attr.ino == inode for step, inode in checks
        )
        return right and replies.payload(content)[:size] == index.read_bytes()

    def after(_first: int, rounds: int) -> None:
        nonlocal rounds_run
        rounds_run += rounds

    def close() -> None:
        session.batch_forget((n, count + rounds_run * per_round.get(n, 0)) for n, count in owed.items())

    script.verify, script.after, script.close = verify, after, close
    return script


def _list_once(
    session: Session, node: int, opens: bool
) -> tuple[list[tuple[int, int]], set[bytes], list[int]]:
    """One listing: cookies and lengths of its replies, the names, and the nodes that it holds now."""
    handle = session.opendir(node).fh if opens else 0
    replies, names, nodes = [], set(), []
    cookie, room = 0, LISTING_PAGES * PAGE
    while True:
        before = cookie
        entries = session.readdirplus(node, handle, cookie, room)
        length = sum((152 + len(entry.name) + 7) // 8 * 8 for entry in entries)
        replies.append((before, length))
        if not entries:
            break
        names |= {entry.name for entry in entries}
        nodes += [entry.entry.nodeid for entry in entries if entry.entry]
        cookie = entries[-1].cookie
    if opens:
        session.releasedir(node, handle)
    return replies, names, nodes


def untar(session: Session, directory: Path) -> Script:
    root = tree(directory)
    entry = session.lookup(1, root.name)
    git = session.lookup(entry.nodeid, ".git")
    probe = session.lookup(git.nodeid, "index")
    rules = _Rules(session, probe.nodeid)
    files = [path for path in root.rglob("*") if path.is_file()]
    script = Script(session, operations=len(files))
    script.most = 200
    top = Numbered(b"untar-")
    place, place_node, remove_place = own_directory(session, directory)
    rules.look_for_nothing(script, place_node, top)
    made: dict[Path, From] = {root: node_of(script.add("mkdir", place_node, [top], mode=0o755))}
    for path in sorted(root.rglob("*")):
        name, parent = os.fsencode(path.name), made[path.parent]
        rules.look_for_nothing(script, parent, name)
        if path.is_dir():
            made[path] = node_of(script.add("mkdir", parent, [name], mode=0o755))
            continue
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        step = script.add("create", parent, [name], flags=flags, mode=0o100644)
        made[path] = node = node_of(step)
        handle = handle_of(step, created=True)
        data = path.read_bytes()
        for start in range(0, len(data), WRITE_SIZE):
            part = data[start : start + WRITE_SIZE]
            script.add("write", node, tail=part, fh=handle, offset=start, size=len(part), flags=os.O_WRONLY)
        seconds = int(path.stat().st_mtime)
        script.add("setattr", node, valid=SET_TIMES, fh=handle, atime=seconds, mtime=seconds)
        script.add("setattr", node, valid=SET_OWNER, fh=handle, uid=os.getuid(), gid=os.getgid())
        rules.close(script, node, handle, created=True)
    for node in reversed(made.values()):
        script.add("forget", node, nlookup=1)

    def verify(replies: Replies) -> bool:
        return same_tree(root, place / top.at(replies.round))

    def after(first: int, rounds: int) -> None:
        for number in range(first, first + rounds):
            shutil.rmtree(place / top.at(number))

    def close() -> None:
        session.batch_forget([(node.nodeid, 1) for node in (probe, git, entry)])
        remove_place()

    script.verify, script.after, script.close = verify, after, close
    return script


def same_tree(one: Path, other: Path) -> bool:
    """Whether two trees hold the same names, files of the same bytes and of the same time of change."""
    comparison = filecmp.dircmp(one, other, ignore=[], hide=[])
    if comparison.left_only or comparison.right_only or comparison.common_funny:
        return False
    same, different, strange = filecmp.cmpfiles(one, other, comparison.common_files, shallow=False)
    times = all(int((one / name).stat().st_mtime) == int((other / name).stat().st_mtime) for name in same)
    return (
        not different
        and not strange
        and times
        and all(same_tree(one / name, other / name) for name in comparison.common_dirs)
    )


def smallfile(session: Session, directory: Path) -> Script:
    place, parent, remove_place = own_directory(session, directory)
    (place / "probe").touch()
    probe = session.lookup(parent, "probe").nodeid
    rules = _Rules(session, probe)
    name, renamed = Numbered(b"file-"), Numbered(b"renamed-")
    content, more = os.urandom(SMALL), os.urandom(SMALL)
    script = Script(session, operations=1)
    # create
    rules.look_for_nothing(script, parent, name)
    made = script.add("create", parent, [name], flags=os.O_WRONLY | os.O_CREAT, mode=0o100644)
    node = node_of(made)
    handle: int | From = handle_of(made, created=True)
    script.add("write", node, tail=content, fh=handle, size=SMALL, flags=os.O_WRONLY)
    rules.close(script, node, handle, created=True)
    # stat
    script.add("lookup", parent, [name])
    # read
    script.add("lookup", parent, [name])
    handle = rules.open(script, node, os.O_RDONLY)
    read = script.add("read", node, pages=1, length=SMALL, fh=handle, size=PAGE)
    rules.close(script, node, handle)
    # append
    script.add("lookup", parent, [name])
    handle = rules.open(script, node, os.O_RDWR)
    script.add("getattr", node)
    script.add("write", node, tail=more, fh=handle, offset=SMALL, size=SMALL, flags=os.O_RDWR)
    reread = script.add("read", node, pages=1, length=2 * SMALL, fh=handle, size=PAGE)
    rules.close(script, node, handle)
    # rename
    rules.look_for_nothing(script, parent, renamed)
    script.add("rename2", parent, [name, renamed], newdir=parent)
    # delete-renamed
    script.add("lookup", parent, [renamed])
    script.add("unlink", parent, [renamed])
    script.add("forget", node, nlookup=5)

    def verify(replies: Replies) -> bool:
        return (
            replies.payload(read)[:SMALL] == content
            and replies.payload(reread)[: 2 * SMALL] == content + more
            and [path.name for path in place.iterdir()] == ["probe"]
        )

    def close() -> None:
        session.forget(probe)
        remove_place()

    script.verify, script.close = verify, close
    return script
