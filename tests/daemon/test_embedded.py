# SPDX-License-Identifier: Apache-2.0
"""`virtiofs.serve` from somebody's own program, and what importing `virtiofs` costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree

PROGRAM = """
import os, stat, sys
import virtiofs

class Greeting(virtiofs.PathFilesystem):
    def __init__(self, text):
        self.text = text

    def getattr(self, path, handle):
        if path == "/":
            return virtiofs.Attributes(stat.S_IFDIR | 0o755)
        return virtiofs.Attributes(stat.S_IFREG | 0o444, len(self.text))

    def readdir(self, path, handle):
        return ["greeting"]

    def read(self, path, handle, offset, size):
        return self.text[offset : offset + size]

sys.exit(virtiofs.serve(Greeting(b"hi"), socket=sys.argv[1], ready=lambda: os.write(1, b"ready")))
"""


def test_a_program_serves_an_object_of_its_own(tmp_path):
    socket = str(tmp_path / "v.sock")
    command = [sys.executable, "-c", PROGRAM, socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 10) == b"ready"
        with Device.connect(socket) as device:
            tree = Tree(Session(device))
            assert tree.listdir("/") == ["greeting"]
            assert tree.read_file("/greeting") == b"hi"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=devices.END_SECONDS) == 0
    assert not os.path.exists(socket)


def test_importing_virtiofs_imports_nothing_else_until_it_is_asked_for():
    program = (
        "import sys; before = set(sys.modules); import virtiofs;"
        "print(sorted(m for m in set(sys.modules) - before if m != 'virtiofs'));"
        "from virtiofs import Filesystem; print('asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"
