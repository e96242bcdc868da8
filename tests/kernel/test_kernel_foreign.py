# SPDX-License-Identifier: Apache-2.0
"""File systems that were written for others, through the kernel's FUSE client: their data arrives."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import functools
import http.server
import os
import signal
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from expect import failure
from mounting import SECONDS, Mounted, mounted, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
FOREIGN = Path(__file__).parents[1] / "foreign"


@contextlib.contextmanager
def serving(base: Path, what: str, *options: str, **more: object) -> Iterator[Mounted]:
    words = [word for key, value in more.items() for word in ("--option", f"{key}={value}")]
    with mounted(base, *words, *options, python=what) as it:
        yield it


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with what archives and servers are to show."""
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_bytes(os.urandom(3_000_000))
    (tree / "with space & co").write_text("text")
    (tree / "empty").touch()
    return tree


def same(left: Path, right: Path) -> bool:
    """Whether two trees hold the same names and data."""
    found = filecmp.dircmp(left, right)
    _, different, odd = filecmp.cmpfiles(left, right, found.common_files, shallow=False)
    return not (found.left_only or found.right_only or different or odd) and all(
        same(left / name, right / name) for name in found.common_dirs
    )


@contextlib.contextmanager
def web_server(directory: Path, ranges: bool = True) -> Iterator[str]:
    """A server of a directory on loopback: its URL.  `ranges`: it gives parts of files, as most do."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            path = Path(self.translate_path(self.path))
            if not (ranges and wanted.startswith("bytes=") and path.is_file()):
                super().do_GET()
                return
            data = path.read_bytes()
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
            self.send_header("Content-Length", str(end + 1 - begin))
            self.end_headers()
            self.wfile.write(data[begin : end + 1])

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()


# --- fsspec ---


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_archive_by_its_url_shows_what_is_in_it(tmp_path, tree, form):
    pytest.importorskip("fsspec")
    path = tmp_path / f"archive.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in tree.rglob("*"):
                archive.write(file, file.relative_to(tree))
    else:
        with tarfile.open(path, "w") as archive:
            for name in os.listdir(tree):
                archive.add(tree / name, name)
    with serving(tmp_path, f"{form}://{path}") as it:
        assert same(tree, it.place)
        assert failure((it.place / "new").touch) == errno.EROFS
    with serving(tmp_path, f"{form}://deep::file://{path}") as it:
        assert same(tree / "deep", it.place)


def test_a_local_directory_by_its_url_is_read_and_written(tmp_path, tree):
    pytest.importorskip("fsspec")
    with serving(tmp_path, f"file://{tree}") as it:
        assert same(tree, it.place)
        (it.place / "deep" / "new").write_bytes(b"data" * 100_000)
        with open(it.place / "deep" / "new", "r+b") as file:
            file.seek(4)
            file.write(b"DATA")
        assert (tree / "deep" / "new").read_bytes()[:12] == b"dataDATAdata"
        (it.place / "deep" / "new").rename(it.place / "moved")
        (it.place / "moved").unlink()
        assert failure((it.place / "deep").rmdir) == errno.ENOTEMPTY
        assert same(tree, it.place)


def test_memory_by_its_url_is_a_tree_to_work_in(tmp_path):
    pytest.importorskip("fsspec")
    with serving(tmp_path, "memory://") as it:
        (it.place / "d").mkdir()
        data = os.urandom(3_000_000)
        (it.place / "d" / "f").write_bytes(data)
        assert (it.place / "d" / "f").read_bytes() == data
        with open(it.place / "d" / "f", "ab") as file:
            file.write(b"more")
        assert (it.place / "d" / "f").stat().st_size == 3_000_004
        os.truncate(it.place / "d" / "f", 5)
        assert (it.place / "d" / "f").read_bytes() == data[:5]
        (it.place / "d").rename(it.place / "e")
        assert (it.place / "e" / "f").read_bytes() == data[:5]
        (it.place / "other").write_bytes(b"other")
        (it.place / "other").rename(it.place / "e" / "f")
        assert [path.name for path in (it.place / "e").iterdir()] == ["f"]
        assert (it.place / "e" / "f").read_bytes() == b"other"
        assert failure(os.chmod, it.place / "e" / "f", 0o600) == errno.EPERM


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_is_read_behind_walls_that_leave_the_network(tmp_path, tree, ranges):
    pytest.importorskip("aiohttp")
    with web_server(tree, ranges) as url:
        with serving(tmp_path, f"{url}/", cache_type="readahead", block_size=1 << 20) as it:
            assert same(tree, it.place)
            assert failure((it.place / "none").read_bytes) == errno.ENOENT
            assert failure((it.place / "empty").write_bytes, b"x") == errno.EROFS
            assert os.stat(f"/proc/{it.worker}/root").st_nlink == 0  # removed: it has no file of the host
        with serving(tmp_path, f"{url}/deep/er/file") as it:
            assert os.listdir(it.place) == ["file"]
            assert filecmp.cmp(it.place / "file", tree / "deep" / "er" / "file", shallow=False)


def test_an_archive_on_a_web_server_is_read_where_it_is(tmp_path, tree):
    pytest.importorskip("aiohttp")
    with zipfile.ZipFile(tree / "a.zip", "w") as archive:
        archive.write(tree / "deep" / "er" / "file", "inner")
    with web_server(tree) as url, serving(tmp_path, f"zip://::{url}/a.zip") as it:
        assert filecmp.cmp(it.place / "inner", tree / "deep" / "er" / "file", shallow=False)


def test_a_block_cache_has_the_directory_that_it_is_given(tmp_path, tree):
    pytest.importorskip("aiohttp")
    (tmp_path / "cache").mkdir()
    with web_server(tree) as url:
        what = f"blockcache::{url}/"
        with serving(tmp_path, what, cache_storage=tmp_path / "cache") as it:
            found = (it.place / "deep" / "er" / "file").read_bytes()
            assert found == (tree / "deep" / "er" / "file").read_bytes()
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) >= 3_000_000


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing://x", "Protocol not known"),
        ("file:///nowhere/at/all", "no directory"),
        ("zip:///nowhere.zip", "FileNotFoundError"),
        ("simplecache::http://localhost/", "--option cache_storage=DIR"),
        ("http://127.0.0.1:9/", "it does not start"),
    ],
)
def test_a_url_that_can_not_be_served_is_said(tmp_path, what, said):
    pytest.importorskip("aiohttp")
    with pytest.raises(RuntimeError, match=said), serving(tmp_path, what):
        pass


# --- classes of others ---


def test_a_class_for_pyfuse3_is_served_as_it_is(tmp_path):
    pytest.importorskip("pyfuse3")
    with serving(tmp_path, f"{FOREIGN / 'pyfuse3_tree.py'}:Shelf", text="hullo") as it:
        assert sorted(os.listdir(it.place)) == ["cancelled", "hello", "sleepy"]
        assert (it.place / "hello").read_text() == "hullo"
        assert (it.place / "hello").stat().st_mtime_ns == 5_000_000_006
        (it.place / "new").write_bytes(b"data")
        with open(it.place / "new", "ab") as file:
            file.write(b"more")
        assert (it.place / "new").read_bytes() == b"datamore"
        (it.place / "new").unlink()
        assert failure((it.place / "new").stat) == errno.ENOENT
        assert failure(os.mkdir, it.place / "d") == errno.ENOSYS
        # Listed with attributes again and again, it is looked up no more often than the kernel knows of.
        for _ in range(5):
            list(os.scandir(it.place))
        assert 0 < int(os.getxattr(it.place / "hello", "user.lookups")) < 50


def test_interrupting_a_reader_cancels_the_coroutine_of_trio(tmp_path):
    pytest.importorskip("pyfuse3")
    with serving(tmp_path, f"{FOREIGN / 'pyfuse3_tree.py'}:Shelf") as it:
        reader = subprocess.Popen(["cat", it.place / "sleepy"])
        syscall = Path(f"/proc/{reader.pid}/syscall")
        assert devices.wait_until(lambda: syscall.read_text().startswith("0 "))  # read(2)
        assert (it.place / "hello").read_text() == "hello"
        reader.send_signal(signal.SIGINT)
        assert reader.wait(timeout=SECONDS) == -signal.SIGINT
        assert devices.wait_until(lambda: (it.place / "cancelled").stat().st_size == 1)


def test_a_class_for_mfusepy_is_served_as_it_is(tmp_path):
    pytest.importorskip("mfusepy")
    with serving(tmp_path, f"{FOREIGN / 'mfusepy_tree.py'}:Shelf", "--threads", "4") as it:
        (it.place / "d").mkdir()
        data = os.urandom(300_000)
        (it.place / "d" / "f").write_bytes(data)
        assert (it.place / "d" / "f").read_bytes() == data
        os.truncate(it.place / "d" / "f", 3)
        os.utime(it.place / "d" / "f", ns=(5, 1_000_000_007))
        os.chmod(it.place / "d" / "f", 0o600)
        found = (it.place / "d" / "f").stat()
        assert (found.st_size, found.st_mtime_ns, found.st_mode) == (3, 1_000_000_007, 0o100600)
        assert found.st_uid == os.getuid()
        assert failure(os.rename, it.place / "d", it.place / "forbidden") == errno.EXDEV
        (it.place / "d").rename(it.place / "e")
        (it.place / "l").symlink_to("e/f")
        assert (it.place / "l").read_bytes() == data[:3]
        assert sorted(os.listdir(it.place)) == ["e", "l"]
        readers = [
            subprocess.Popen(["md5sum", it.place / "e" / "f"], stdout=subprocess.DEVNULL) for _ in "abcd"
        ]
        assert [reader.wait(timeout=SECONDS) for reader in readers] == [0] * 4
        assert failure(os.link, it.place / "l", it.place / "m") in (errno.ENOSYS, errno.EPERM)


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_ratarmount_shows_an_archive(tmp_path, tree, form):
    pytest.importorskip("ratarmount")
    path = tmp_path / f"archive.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in tree.rglob("*"):
                archive.write(file, file.relative_to(tree))
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tree, ".")
    options = {"pathToMount": path, "mountPoint": tmp_path / "place"}
    (tmp_path / "place").mkdir()
    with serving(tmp_path, "ratarmount.FuseMount:FuseMount", **options) as it:
        assert same(tree, it.place)
