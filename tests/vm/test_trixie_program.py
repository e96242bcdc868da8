# SPDX-License-Identifier: Apache-2.0
"""tools/trixie: what it says before it does anything; `make bench` on Debian shows the rest."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("dpkg-query") is None, reason="for Debian on x86-64"
)
PROGRAM = Path(__file__).parents[2] / "tools" / "trixie"


def run(*arguments, cache, **more):
    environ = os.environ | {"VIRTIOFS_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, env=environ, **more
    )


def test_an_unknown_part_is_refused_with_those_there_are(tmp_path):
    done = run("qemu", "floppy", cache=tmp_path)
    assert done.returncode == 2
    assert (
        "floppy" in done.stderr
        and "virtiofsd, qemu, libvirt, kernel, kernel-amd64, guest, vmspawn" in done.stderr
    )
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_is_there_costs_nothing(tmp_path):
    image = tmp_path / "kernel-trixie" / "boot" / "vmlinuz-7.3"
    image.parent.mkdir(parents=True)
    image.touch()
    done = run("kernel", cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"kernel ready: {image}\n")


def test_an_unfinished_package_is_not_taken_for_a_ready_one(tmp_path):
    database = tmp_path / "trixie" / "var" / "lib" / "dpkg"
    database.mkdir(parents=True)
    fields = ("Package: virtiofsd", "Status: install ok {}", "Architecture: amd64", "Version: 1.13")
    record = "\n".join([*fields, "Maintainer: x", "Description: x", "", ""])
    (database / "status").write_text(record.format("installed"))
    done = run(cache=tmp_path)
    assert done.returncode == 0 and "virtiofsd 1.13" in done.stdout
    (database / "status").write_text(record.format("unpacked"))
    program = (
        "import importlib.machinery as m, importlib.util as u, pathlib, sys;"
        "l = m.SourceFileLoader('trixie', sys.argv[1]); p = u.module_from_spec(u.spec_from_loader('trixie', l));"
        "l.exec_module(p); print(repr(p.state(pathlib.Path(sys.argv[2]), 'virtiofsd')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(PROGRAM), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "''\n"
