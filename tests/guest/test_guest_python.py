# SPDX-License-Identifier: Apache-2.0
"""A file system in Python as a guest sees it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.guest

# Exercises names, data, links and an open file without a name, and says what is left.
WORK = """
set -e
cd /m
mkdir d
echo data >d/a
ln d/a d/b
ln -s b d/l
mv d/a c
exec 3<c
rm c d/b
cat <&3
ls d
dd if=/dev/zero of=big bs=64k count=20 2>/dev/null
stat -c %s big
dd if=/dev/zero of=more bs=64k count=64 2>/dev/null || echo full
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtiofs", "run", "--timeout", "60", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def test_file_systems_of_others_are_read_in_a_guest(tmp_path):
    for needed in ("fsspec", "ratarmount"):
        pytest.importorskip(needed)
    data = os.urandom(3_000_000)
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/file", data)
    words = [f"zip://{tmp_path / 'a.zip'}:/zip", f"file://{tmp_path / 'tree'}:/local", "memory://:/memory"]
    words = [word for share in (*words, "ratarmount.FuseMount:FuseMount:/tar") for word in ("--share", share)]
    words += ["--option", f"pathToMount={tmp_path / 'a.zip'}", "--option", f"mountPoint={tmp_path}"]
    done = run(*words, "--", "sh", "-c", "cp -r /zip/deep /memory && md5sum /*/deep/file | sort")
    expected = hashlib.md5(data).hexdigest()
    said = [line.split() for line in done.stdout.splitlines()]
    names = ["/local/deep/file", "/memory/deep/file", "/tar/deep/file", "/zip/deep/file"]
    assert sorted(said) == [[expected, name] for name in names], done.stderr


class Ranges(http.server.SimpleHTTPRequestHandler):
    """What web servers do and this module's handler does not: pieces of a file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        whole = path.read_bytes()
        first, last = int(asked[1]), min(int(asked[2]), len(whole) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(whole[first : last + 1])
        self.server.pieces += 1  # type: ignore[attr-defined]


def test_a_web_server_is_read_in_a_guest(tmp_path):
    for needed in ("fsspec", "aiohttp"):
        pytest.importorskip(needed)
    files = {"tree/file": os.urandom(7_000_000), "tree/deep/small": b"small\n", "tree/deep/empty": b""}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    handler = functools.partial(Ranges, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.pieces = 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        share = f"http://127.0.0.1:{server.server_address[1]}/tree/:/web"
        script = "find /web -type f | sort | xargs md5sum; tail -c 9 /web/file | md5sum; touch /web/x || echo refused"
        done = run("--share", share, "--", "sh", "-c", script)
        server.shutdown()
    said = [line.split() for line in done.stdout.splitlines()]
    expected = [[hashlib.md5(files[f"tree/{name}"]).hexdigest(), f"/web/{name}"]
                for name in ("deep/empty", "deep/small", "file")]  # fmt: skip
    last = hashlib.md5(files["tree/file"][-9:]).hexdigest()
    assert said == [*expected, [last, "-"], ["refused"]], (done.stdout, done.stderr)
    assert server.pieces > 1  # type: ignore[attr-defined]


def test_a_tree_in_memory_works_in_a_guest():
    share = f"{EXAMPLES / 'memory.py'}:MemoryFilesystem:/m"
    done = run("--share", share, "--option", "size=4194304", "--", "sh", "-c", WORK)
    assert (done.returncode, done.stdout) == (0, "data\nl\n1310720\nfull\n"), done.stderr
