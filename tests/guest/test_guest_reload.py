# SPDX-License-Identifier: Apache-2.0
"""A class in Python that is changed while a real guest has it mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

import devices
from virtiofs.vm.guest import Guest, Share

pytestmark = pytest.mark.guest

CLASS = """
import stat
from virtiofs import Attributes, PathFilesystem

class Versioned(PathFilesystem):
    valid = 1e9
    def getattr(self, path, handle):
        if path in ("/", "/d"):
            return Attributes(stat.S_IFDIR | 0o755, valid=1e9)
        return Attributes(stat.S_IFREG | 0o644, 1, valid=1e9)
    def readdir(self, path, handle):
        return ["d", "same"]
    def read(self, path, handle, offset, size):
        return b"VERSION"[offset : offset + size]
"""


def test_programs_of_a_guest_go_on_with_the_next_class(tmp_path: Path) -> None:
    module = tmp_path / "versioned.py"
    module.write_text(CLASS.replace("VERSION", "1"))
    options = ["--reload", "--log-level", "info"]
    with (
        devices.start_ours(Path(f"{module}:Versioned"), options) as running,
        Guest([Share("virtiofs", running.socket, "/mnt")]) as guest,
    ):

        def says(script: str) -> str:
            result = guest.run(["sh", "-c", script])
            return (result.output + result.errors).decode()

        assert says("cat /mnt/same /mnt/d/same; ls /mnt/d") == "11d\nsame\n"
        # A shell that stands in a directory and has a file open waits meanwhile.
        shell = "cd /mnt/d && exec 3<same && mkfifo /tmp/go && cat /tmp/go; cat same; cat <&3; cd /mnt/d; cat same; ls"
        assert says(f"({shell}) >/tmp/said 2>&1 </dev/null &") == ""
        (tmp_path / "new").write_text(CLASS.replace("VERSION", "2"))
        (tmp_path / "new").rename(module)
        assert devices.wait_until(lambda: any("was loaded again" in line for line in running.log), 20.0)
        assert says("cat /mnt/same /mnt/d/same; ls /mnt/d") == "22d\nsame\n"
        said = says("echo >/tmp/go; while ! grep -q 2d /tmp/said; do :; done; cat /tmp/said").split()
        assert said.count("Stale") == 2 and "2d" in said, said
