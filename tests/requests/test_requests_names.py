# SPDX-License-Identifier: Apache-2.0
"""LOOKUP and CREATE, and names that are none."""

import errno
import os
import stat

import pytest

from expect import failure, outcome

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
REFUSED = (errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EEXIST, errno.EIO, errno.EBUSY, errno.ENOTEMPTY)


def test_lookup_of_a_missing_name_fails_or_is_negative(place):
    try:
        assert place.session.lookup(place.root, "missing").nodeid == 0
    except FileNotFoundError:
        pass


def test_lookup_in_a_file_fails(place):
    (place.host / "f").touch()
    node = place.lookup("f")
    assert failure(place.session.lookup, node, "x") == errno.ENOTDIR
    place.session.forget(node)


def test_lookup_gives_the_attributes_of_the_host_file(place):
    (place.host / "f").write_bytes(b"12345")
    entry = place.session.lookup(place.root, "f")
    status = (place.host / "f").stat()
    assert (entry.attr.ino, entry.attr.size, entry.attr.mode) == (status.st_ino, 5, status.st_mode)
    assert (entry.attr.mtime, entry.attr.mtimensec) == divmod(status.st_mtime_ns, 10**9)
    place.session.forget(entry.nodeid)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "../x", "/etc", "d/../f"])
@pytest.mark.parametrize(
    "operation", ["create", "mkdir", "mknod", "symlink", "unlink", "rmdir", "link", "rename"]
)
def test_names_that_are_not_one_component_are_refused(place, name, operation):
    session, root = place.session, place.root
    (place.host / "d").mkdir()
    (place.host / "f").touch()
    (place.host / "a").mkdir()
    node = place.lookup("f")
    calls = {
        "create": lambda: session.create(root, name, os.O_RDWR | os.O_EXCL),
        "mkdir": lambda: session.mkdir(root, name),
        "mknod": lambda: session.mknod(root, name, stat.S_IFREG | 0o644),
        "symlink": lambda: session.symlink(root, name, "target"),
        "unlink": lambda: session.unlink(root, name),
        "rmdir": lambda: session.rmdir(root, name),
        "link": lambda: session.link(node, root, name),
        "rename": lambda: session.rename(root, "f", root, name),
    }
    before = sorted(os.walk(place.host))
    assert failure(calls[operation]) in (*REFUSED, errno.EISDIR, errno.ENOTDIR)
    assert sorted(os.walk(place.host)) == before
    session.forget(node)


@pytest.mark.parametrize("name", ["a/b", "/", "../x", "/etc", "/etc/passwd", "d/../f"])
def test_lookup_of_a_path_is_refused(place, name):
    (place.host / "a").mkdir()
    (place.host / "a" / "b").touch()
    assert failure(place.session.lookup, place.root, name) in REFUSED


def test_lookup_of_dots_never_leaves_the_share(place):
    """Allowed only after EXPORT_SUPPORT was agreed; then the root is its own parent."""
    root = place.session.getattr(1).ino
    for name in (".", ".."):
        refused = outcome(place.session.lookup, 1, name)
        assert refused == 0 or refused in REFUSED
        if not refused:
            assert place.session.lookup(1, name).attr.ino == root


def test_a_hard_link_is_the_same_node(place):
    place.tree.write_file("f", b"x")
    first = place.session.lookup(place.root, "f")
    second = place.session.link(first.nodeid, place.root, "g")
    assert second.nodeid == first.nodeid
    place.session.forget(first.nodeid, 2)


def test_rename_moves_a_directory_with_what_is_in_it(place):
    (place.host / "a" / "b").mkdir(parents=True)
    (place.host / "a" / "b" / "f").write_bytes(b"inside")
    node = place.session.lookup(place.root, "a").nodeid
    inner = place.session.lookup(node, "b").nodeid
    place.tree.rename("a", "z")
    # The nodes the client holds are still the same files.
    assert place.session.lookup(inner, "f").attr.size == 6
    assert place.tree.read_file("z/b/f") == b"inside"
    place.session.forget(place.session.lookup(inner, "f").nodeid, 2)
    place.session.forget(inner)
    place.session.forget(node)


@pytest.mark.parametrize("flags", [0, os.O_EXCL])
def test_create_in_a_missing_node_fails(place, flags):
    assert failure(place.session.create, 1 << 40, "f", os.O_RDWR | flags) in (errno.ESTALE, errno.EBADF)
