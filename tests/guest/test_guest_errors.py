# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between a VM and a daemon: one clear line that tells what to do, and a status that is not zero."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shares import directory_for_a_share, serve

import devices
from virtiofs.vm.guest import Guest, Share
from virtiofs.vm.kernel import Kernel, find_kernel
from virtiofs.vm.qemu import find_qemu
from virtiofs.vm.ramdisk import find_busybox

pytestmark = pytest.mark.guest


@pytest.fixture
def directory() -> Iterator[Path]:
    with directory_for_a_share() as path:
        yield path


def virtiofs_run(*words: str | Path) -> tuple[int, str, str]:
    """Status, output and errors of `virtiofs run`."""
    command = [sys.executable, "-m", "virtiofs", "run", "--timeout", "60", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    return done.returncode, done.stdout, done.stderr


def test_a_tag_nobody_serves_cannot_be_mounted(directory: Path, probe: Path) -> None:
    with serve(directory, probe) as served:
        result = served.guest.run("mkdir /m; mount -t virtiofs nosuch /m")
        assert result.status != 0
        assert b"nosuch" in result.errors
        assert b"nosuch" in served.guest.run("dmesg").output
        assert served.guest.run("mount -t virtiofs data /m && ls /m").status == 0
        assert served.daemon.log == []


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        pytest.param("share=on", "share=off", id="share-off"),
        pytest.param(",memory-backend=mem", "", id="no-backend"),
    ],
)
def test_a_vm_that_does_not_share_its_memory_is_told_to(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str, left: str
) -> None:
    # The usual guest, but for what a user forgets on QEMU's command line.
    forgetful = tmp_path / "qemu-system-x86_64"
    forgetful.write_text(f'#!/bin/bash\nexec {find_qemu()} "${{@/{cut}/{left}}}"\n')
    forgetful.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with devices.start_ours(directory) as daemon:
        guest = Guest([Share("data", daemon.socket, "/mnt")], timeout=60)
        guest.start()  # Linux mounts without waiting for an answer
        try:
            said = devices.wait_until(lambda: any("share=on" in line for line in daemon.log), 10)
        finally:
            os.kill(guest.pid, signal.SIGKILL)  # it would wait for its share
            guest.close()
        assert said, daemon.log
        assert daemon.alive
        (line,) = daemon.log
        assert line.startswith("virtiofs: warning: ")
        # The daemon is none the worse for it: the next VM, which shares its memory, is served.
        monkeypatch.undo()
        (directory / "f").write_text("served")
        with Guest([Share("data", daemon.socket, "/mnt")], timeout=60) as next_guest:
            assert next_guest.run("cat /mnt/f").text == "served"


@pytest.fixture
def kernel() -> Kernel:
    """The usual kernel, where virtiofs is a module that can be left away."""
    kernel = find_kernel()
    if kernel.modules is None:
        pytest.skip("this kernel needs no module for virtiofs")
    return kernel


def test_a_kernel_without_virtiofs_is_named_in_one_line(
    directory: Path, tmp_path: Path, kernel: Kernel
) -> None:
    assert kernel.modules is not None
    place = tmp_path / "other" / "boot"
    place.mkdir(parents=True)
    shutil.copy(kernel.path, place)
    modules = tmp_path / "other" / "lib" / "modules" / kernel.version
    shutil.copytree(kernel.modules.directory, modules, symlinks=True)
    for module in modules.rglob("virtiofs.ko*"):
        module.unlink()
    status, out, err = virtiofs_run("--kernel", place / kernel.path.name, "--share", directory, "--", "ls")
    assert (status, out) == (125, "")
    (line,) = err.splitlines()
    assert "no virtiofs" in line
    assert "--kernel" in line


def test_a_booted_kernel_without_virtiofs_is_named_in_one_line(
    directory: Path, tmp_path: Path, kernel: Kernel
) -> None:
    # Nothing lies beside it that could tell before it runs.
    image = shutil.copy(kernel.path, tmp_path / "vmlinux")
    status, out, err = virtiofs_run("--kernel", image, "--share", directory, "--", "ls")
    assert (status, out) == (125, "")
    line = err.splitlines()[-1]
    assert line.startswith(f"virtiofs run: guest kernel {image}: it has no ")
    assert line.endswith("choose another --kernel")


def test_a_share_that_is_gone_before_the_guest_starts_is_named(tmp_path: Path) -> None:
    status, out, err = virtiofs_run("--share", tmp_path / "nosuch", "--", "ls")
    assert (status, out) == (125, "")
    (line,) = err.splitlines()
    assert str(tmp_path / "nosuch") in line


def test_a_daemon_that_dies_ends_the_run_and_is_named(directory: Path) -> None:
    # The command asks its own daemon's end of us: it prints, and we kill.
    command = [
        sys.executable,
        "-m",
        "virtiofs",
        "run",
        "--share",
        directory,
        "--",
        "sh",
        "-c",
        "echo up; sleep 1000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "up\n"
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        (daemon,) = [
            pid for pid in children if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        os.kill(int(daemon), signal.SIGKILL)
        assert run.wait(20) == 125
        last = run.stderr.read().splitlines()[-1]
    assert last.startswith(f"virtiofs run: the daemon of {directory} (virtiofs serve) ended")


@pytest.fixture
def root_tree(directory: Path) -> Path:
    """A root file system: busybox and the directories every program expects."""
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
        (directory / name).mkdir()
    shutil.copy(find_busybox(), directory / "bin" / "busybox")
    for name in ("sh", "cat", "grep", "ls"):
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc" / "state").write_text("old\n")
    return directory


@pytest.mark.parametrize(("mode", "status", "content"), [("", 0, "new\n"), (":ro", 1, "old\n")])
def test_a_guest_runs_with_the_share_as_its_root(
    root_tree: Path, mode: str, status: int, content: str
) -> None:
    script = "grep ' / ' /proc/mounts; ls /; echo new >/etc/state"
    got, out, _ = virtiofs_run("--rootfs", f"{root_tree}{mode}", "--", "/bin/sh", "-c", script)
    assert got == status
    assert out.startswith(f"rootfs / virtiofs {mode[1:] or 'rw'}")
    assert out.split("\n", 1)[1].split() == ["bin", "dev", "etc", "proc", "sys", "tmp"]
    assert (root_tree / "etc" / "state").read_text() == content


def test_several_shares_are_mounted_where_they_are_wanted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    script = "cat /mnt/name /data/name; echo x >/mnt/new; echo x >/data/new"
    shares = ("--share", tmp_path / "a", "--share", f"{tmp_path / 'b'}:/data:ro")
    status, out, err = virtiofs_run(*shares, "--", "sh", "-c", script)
    assert (status, out) == (1, "ab")
    assert "Read-only file system" in err
    assert (tmp_path / "a" / "new").read_text() == "x\n"
    assert not (tmp_path / "b" / "new").exists()
