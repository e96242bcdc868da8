# SPDX-License-Identifier: Apache-2.0
"""Paths: what the client makes of them before the device sees anything."""

import os

import pytest

from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree


class Counting(Session):
    """A session that keeps the account of lookups, as a guest's kernel would."""

    def __init__(self, device):
        self.owed = {}
        super().__init__(device)

    def finish(self, pending, name, room=None):
        result = super().finish(pending, name, room)
        if name in ("lookup", "mknod", "mkdir", "symlink", "link"):
            self.owed[result.nodeid] = self.owed.get(result.nodeid, 0) + 1
        elif name in ("create", "tmpfile"):
            self.owed[result.entry.nodeid] = self.owed.get(result.entry.nodeid, 0) + 1
        return result

    def forget(self, nodeid, nlookup=1):
        self.owed[nodeid] -= nlookup
        super().forget(nodeid, nlookup)

    def batch_forget(self, nodes):
        nodes = list(nodes)
        for nodeid, nlookup in nodes:
            self.owed[nodeid] -= nlookup
        super().batch_forget(nodes)


@pytest.fixture
def tree(fresh):
    with Device.connect(fresh.socket) as device:
        session = Counting(device)
        yield Tree(session), fresh.directory
        owed = {node: count for node, count in session.owed.items() if count}
        assert owed == {}, "lookups that were not given back"


def test_every_operation_gives_its_lookups_back(tree):
    tree, host = tree
    tree.mkdir("a")
    tree.mkdir("a/b")
    tree.write_file("a/b/f", b"data")
    tree.write_file("a/b/f", b"more data")
    tree.symlink("b", "a/l")
    assert tree.read_file("a/l/f") == b"more data"
    tree.link("a/b/f", "a/g")
    tree.rename("a/g", "h")
    tree.rename("h", "a/b/f")
    tree.mknod("m")
    tree.chmod("m", 0o600)
    tree.truncate("m", 5)
    tree.setxattr("m", "user.x", b"y")
    assert tree.exists("m")
    assert not tree.exists("a/b/none")
    with pytest.raises(FileNotFoundError):
        tree.read_file("a/none")
    with pytest.raises(NotADirectoryError):
        tree.stat("m/x")
    with pytest.raises(FileExistsError):
        tree.open("m", os.O_CREAT | os.O_EXCL)
    assert sorted(tree.listdir()) == ["a", "h", "m"] if (host / "h").exists() else ["a", "m"]
    tree.unlink("m")
    tree.unlink("a/l")
    assert [path for path, _, _ in tree.walk()] == ["/", "/a", "/a/b"]


@pytest.mark.parametrize(
    "path",
    ["d/f", "/d/f", "//d//f", "./d/./f", "d/../d/f", "../d/f", "../../../d/f", "l/f", "abs/f", "l/../d/f"],
)
def test_paths_to_one_file(tree, path):
    tree, host = tree
    (host / "d").mkdir()
    (host / "d" / "f").write_bytes(b"found")
    (host / "l").symlink_to("d")
    (host / "abs").symlink_to("/d")
    assert tree.read_file(path) == b"found"


def test_links_lead_to_the_root_of_the_tree_and_not_of_the_host(tree):
    tree, host = tree
    (host / "etc").symlink_to("/etc")
    (host / "up").symlink_to("../../../../../etc/passwd")
    for path in ("etc/passwd", "up"):
        with pytest.raises(OSError, match=r"No such file|Too many levels"):
            tree.read_file(path)


def test_errors_name_the_path(tree):
    tree, _ = tree
    with pytest.raises(FileNotFoundError) as caught:
        tree.read_file("some/where")
    assert caught.value.filename == "some/where"
    with pytest.raises(FileNotFoundError) as caught:
        tree.mkdir("missing/x")
    assert caught.value.filename in ("missing", "missing/x")
    tree.write_file("f", b"")
    with pytest.raises(NotADirectoryError) as caught:
        tree.rename("f", "f/g")


@pytest.mark.parametrize("path", ["", "/", ".", "..", "d/.."])
def test_operations_on_names_need_a_name(tree, path):
    tree, _ = tree
    with pytest.raises(OSError, match=r"Invalid argument|No such"):
        tree.mkdir(path)
