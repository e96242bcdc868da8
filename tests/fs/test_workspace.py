# SPDX-License-Identifier: Apache-2.0
"""Workspaces: what was changed on an overlay is listed, and taken over so that the directory becomes what was seen."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fs.workspace import Workspace, WorkspaceError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

# In a process of its own: what it mounts ends with it.  It runs the script of steps and says what the tree is then.
OVERLAY = """
import json, sys
from virtiofs.cli.workspace import mount
sys.path.insert(0, {here!r})
import test_workspace
workspace = mount({workspace!r}, {directory!r})
test_workspace.play(workspace.merged, {seed})
json.dump(test_workspace.picture(workspace.merged), sys.stdout)
"""
NAMES = ("a", "b", "c", "d")


def picture(directory: str) -> dict[str, list[object]]:
    """Everything about a tree that a program can see, apart from numbers of inodes and times of reading."""
    tree: dict[str, list[object]] = {}
    names: dict[int, str] = {}
    for path, directories, files in os.walk(directory):
        for name in sorted(directories) + sorted(files) + ([""] if path == directory else []):
            full = os.path.join(path, name).rstrip("/")
            found = os.lstat(full)
            what: object = ""
            if stat.S_ISREG(found.st_mode):
                what = Path(full).read_text()
            elif stat.S_ISLNK(found.st_mode):
                what = os.readlink(full)
            here = os.path.relpath(full, directory)
            is_file = not stat.S_ISDIR(found.st_mode)
            first = names.setdefault(found.st_ino, here) if is_file and found.st_nlink > 1 else here
            extended = {
                key: os.getxattr(full, key).hex()
                for key in (os.listxattr(full) if stat.S_ISREG(found.st_mode) else [])
                if key.startswith("user.")
            }
            owner = [found.st_mode, found.st_uid, found.st_gid]
            tree[here] = [
                *owner,
                what,
                extended,
                first if is_file else "",
                found.st_mtime_ns if is_file else 0,
            ]
    return dict(sorted(tree.items()))


def play(directory: str, seed: int) -> None:
    """Make, change, rename and remove things in a tree, in an order of chance."""
    chance = random.Random(seed)

    def some() -> str:
        return os.path.join(directory, *(chance.choice(NAMES) for _ in range(chance.randint(1, 3))))

    def write(path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | chance.choice([os.O_TRUNC, os.O_APPEND])
        with open(path, "w", opener=lambda name, _: os.open(name, flags)) as file:
            file.write(f"{chance.randint(0, 99)}")

    steps = [
        lambda: os.mkdir(some()),
        lambda: os.makedirs(some(), exist_ok=True),
        lambda: write(some()),
        lambda: write(some()),
        lambda: os.unlink(some()),
        lambda: subprocess.run(["rm", "-rf", some()], check=False, stderr=subprocess.DEVNULL),
        lambda: os.rename(some(), some()),
        lambda: os.link(some(), some()),
        lambda: os.symlink(chance.choice(NAMES), some()),
        lambda: os.mkfifo(some()),
        lambda: os.chmod(some(), chance.choice([0o600, 0o755, 0o4711])),
        lambda: os.chown(some(), chance.randint(0, 3), chance.randint(0, 3), follow_symlinks=False),
        lambda: os.setxattr(some(), "user.word", b"%d" % chance.randint(0, 9), follow_symlinks=False),
        lambda: os.truncate(some(), chance.randint(0, 9000)),
        lambda: os.utime(some(), ns=(1, chance.randint(1, 10**18)), follow_symlinks=False),
    ]
    for _ in range(60):
        try:
            chance.choice(steps)()
        except OSError:
            pass  # as it would be in any tree


@pytest.mark.parametrize("seed", range(12))
def test_after_a_commit_the_directory_is_what_was_seen(tmp_path: Path, seed: int) -> None:
    directory, place = tmp_path / "directory", tmp_path / "workspace"
    directory.mkdir()
    play(str(directory), 1000 + seed)
    before = picture(str(directory))
    script = OVERLAY.format(
        here=os.path.dirname(__file__), workspace=str(place), directory=str(directory), seed=seed
    )
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert picture(str(directory)) == before
    with Workspace(str(place)) as workspace:
        changes = list(workspace.changes())
        told = {os.fsdecode(change.path) for change in changes}
        # Whatever looks different is told, or lies below something that is.
        for path in {
            path for path in seen | before if (seen.get(path) is None) != (before.get(path) is None)
        }:
            assert told & {path, *(os.fspath(above) for above in Path(path).parents)}, path
        workspace.commit()
        assert list(workspace.changes()) == []
    # A commit takes names of one file over together only if all of them were changed: so no names of files below.
    assert picture(str(directory)) == seen


def test_a_discarded_workspace_is_as_new(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o750)
    os.chown(directory, 5, 6)
    with Workspace(str(tmp_path / "w"), str(directory), create=True) as workspace:
        Path(workspace.upper, "made").write_text("x")
        os.mknod(os.path.join(workspace.upper, "gone"), stat.S_IFCHR, 0)
        assert [(change.kind, change.path) for change in workspace.changes()] == [("added", b"made")]
        workspace.discard()
        assert list(workspace.changes()) == []
        root = os.stat(workspace.upper)
        assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o750, 5, 6)


def test_what_is_no_workspace_or_anothers_or_in_use_is_refused(tmp_path: Path) -> None:
    directory, other, full = tmp_path / "directory", tmp_path / "other", tmp_path / "full"
    for made in (directory, other, full):
        made.mkdir()
    (full / "file").touch()
    with pytest.raises(WorkspaceError, match="no workspace"):
        Workspace(str(tmp_path / "w"))
    with pytest.raises(WorkspaceError, match="not empty"):
        Workspace(str(full), str(directory), create=True)
    with pytest.raises(WorkspaceError, match="side by side"):
        Workspace(str(directory / "w"), str(directory), create=True)
    with pytest.raises(WorkspaceError, match="no directory"):
        Workspace(str(tmp_path / "w"), str(tmp_path / "missing"), create=True)
    with (
        Workspace(str(tmp_path / "w"), str(directory), create=True),
        pytest.raises(WorkspaceError, match="in use"),
    ):
        Workspace(str(tmp_path / "w"))
    with pytest.raises(WorkspaceError, match="a workspace of"):
        Workspace(str(tmp_path / "w"), str(other), create=True)


def test_a_served_workspace_leaves_the_directory_alone_and_is_locked(tmp_path: Path) -> None:
    directory, place = tmp_path / "share", tmp_path / "workspace"
    directory.mkdir()
    (directory / "old").write_text("old")
    with devices.start_ours(directory, ["--workspace", str(place)]) as running:
        with Device.connect(running.socket) as device:
            tree = Tree(Session(device))
            tree.write_file("/new", b"new")
            tree.write_file("/old", b"changed")
            assert sorted(tree.listdir("/")) == ["new", "old"]
            assert tree.read_file("/old") == b"changed"
        assert os.listdir(directory) == ["old"]
        assert (directory / "old").read_text() == "old"
        assert os.listdir(place / "merged") == []  # mounted for the daemon only
        refused = subprocess.run(
            [sys.executable, "-m", "virtiofs", "workspace", "diff", place],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 2
        assert "in use" in refused.stderr
    diff = [sys.executable, "-m", "virtiofs", "workspace", "diff", "--exit-code", place]
    shown = subprocess.run(diff, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout) == (1, "A new\nM old\n")
    subprocess.run(
        [sys.executable, "-m", "virtiofs", "workspace", "commit", place], check=True, capture_output=True
    )
    assert (directory / "old").read_text() == "changed"
    assert subprocess.run(diff, capture_output=True, check=False).returncode == 0
