# SPDX-License-Identifier: Apache-2.0
"""RAM disk archives.  Oracle: busybox's cpio unpacks what we packed, and an independent reader finds it again."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs.vm.cpio import Archive


def entries(data: bytes) -> dict[bytes, tuple[int, bytes]]:
    """Name -> (mode, contents), read by the rules of the kernel's buffer format."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1]
        assert data[at + 109 + name_size] == 0
        at = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return found
        assert name not in found
        found[name] = (mode, data[at : at + size])
        at = (at + size + 3) & ~3


def test_entries_keep_their_kind_mode_and_contents() -> None:
    archive = Archive()
    archive.add_file("/bin/tool", b"contents", 0o755)
    archive.add_symlink("bin/link", "/bin/tool")
    archive.add_directory("tmp", 0o1777)
    archive.add_node("run/fifo", stat.S_IFIFO, 0o666)
    archive.add_node("dev/console", stat.S_IFCHR, 0o600, 5, 1)
    found = entries(archive.data())
    assert found[b"bin/tool"] == (stat.S_IFREG | 0o755, b"contents")
    assert found[b"bin/link"] == (stat.S_IFLNK | 0o777, b"/bin/tool")
    assert found[b"tmp"] == (stat.S_IFDIR | 0o1777, b"")
    assert found[b"run/fifo"][0] == stat.S_IFIFO | 0o666
    assert found[b"dev/console"][0] == stat.S_IFCHR | 0o600


def test_missing_parents_are_added_before_their_children() -> None:
    archive = Archive()
    archive.add_file("a/b/c/file", b"")
    archive.add_directory("/a/b")
    assert list(entries(archive.data())) == [b"a", b"a/b", b"a/b/c", b"a/b/c/file"]
    assert "/a/b/c" in archive
    assert "a/b/d" not in archive


@pytest.mark.parametrize("path", ["../etc/passwd", "a/../../b", "a\0b"])
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"\.\.|NUL"):
        Archive().add_file(path, b"")


def test_an_entry_given_twice_is_refused() -> None:
    archive = Archive()
    archive.add_file("a", b"1")
    with pytest.raises(ValueError, match="already"):
        archive.add_file("/a", b"2")
    with pytest.raises(ValueError, match="no directory"):
        archive.add_file("a/b", b"3")


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox to unpack with")
def test_busybox_unpacks_what_was_packed(tmp_path: Path) -> None:
    archive = Archive()
    contents = {f"d/{'x' * size}": bytes(range(256)) * size for size in range(1, 9)}
    for name, data in contents.items():
        archive.add_file(name, data, 0o640)
    archive.add_symlink("d/link", "some where")
    subprocess.run(
        ["busybox", "cpio", "-i", "-d"], input=archive.data(), cwd=tmp_path, check=True, capture_output=True
    )
    assert {f"d/{path.name}": path.read_bytes() for path in (tmp_path / "d").glob("x*")} == contents
    assert stat.S_IMODE((tmp_path / "d" / "x").stat().st_mode) == 0o640
    assert (tmp_path / "d" / "link").readlink() == Path("some where")


names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..", b"TRAILER!!!")
)


@given(st.dictionaries(names, st.binary(max_size=100), max_size=10))
def test_any_bytes_in_names_and_contents_are_found_again(files: dict[bytes, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.add_file(name, data)
    assert {name: data for name, (_, data) in entries(archive.data()).items()} == files
