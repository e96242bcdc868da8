# SPDX-License-Identifier: Apache-2.0
"""A device as a file system of fsspec."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import devices

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["directory", "class"])
def fs(request, tmp_path):
    from virtiofs.client.for_fsspec import VirtiofsFileSystem

    fsspec.register_implementation("virtiofs", VirtiofsFileSystem, clobber=True)
    memory = Path(f"{Path(__file__).parents[2] / 'examples' / 'memory.py'}:MemoryFilesystem")
    what = tmp_path if request.param == "directory" else memory
    with devices.start_ours(what) as running, fsspec.filesystem("virtiofs", socket=running.socket) as fs:
        yield fs


def test_the_entry_point_names_the_class():
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    name = tomllib.loads(text)["project"]["entry-points"]["fsspec.specs"]["virtiofs"]
    module, _, cls = name.rpartition(".")
    assert getattr(__import__(module, fromlist=[cls]), cls).protocol == "virtiofs"


def test_files_are_written_listed_and_read_in_any_order(fs):
    data = os.urandom(5_000_000)
    fs.makedirs("/d/e")
    with fs.open("/d/e/f", "wb") as file:
        file.write(data)
    assert fs.size("virtiofs:///d/e/f") == len(data)
    assert fs.cat_file("/d/e/f", start=1_000_000, end=1_000_010) == data[1_000_000:1_000_010]
    with fs.open("/d/e/f", "rb") as file:
        file.seek(4_999_990)
        assert file.read() == data[-10:]
        file.seek(0)
        assert file.read() == data
    with fs.open("/d/e/f", "ab") as file:
        file.write(b"more")
    assert fs.tail("/d/e/f", 6) == data[-2:] + b"more"
    assert fs.ls("/d", detail=False) == ["/d/e"]
    assert fs.info("/d/e")["type"] == "directory"
    assert fs.find("/") == ["/d/e/f"]
    with pytest.raises(FileNotFoundError):
        fs.info("/none")
    with pytest.raises(NotImplementedError):
        fs.open("/d/e/f", "r+b")


def test_names_are_copied_moved_and_removed(fs):
    fs.pipe("/a", b"one")
    fs.pipe("/b", b"two")
    fs.cp_file("/a", "/c")
    fs.mv("/b", "/a")
    assert {name: fs.cat_file(name) for name in fs.ls("/", detail=False)} == {"/a": b"two", "/c": b"one"}
    fs.mkdir("/x/y")
    fs.pipe("/x/y/z", b"")
    fs.rm("/x", recursive=True)
    fs.touch("/a")
    assert fs.info("/a")["size"] == 0
    fs.rm_file("/a")
    assert fs.find("/") == ["/c"]
    assert fs.modified("/c").year >= 2024
