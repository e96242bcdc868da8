# SPDX-License-Identifier: Apache-2.0
"""A sandbox as Kata's runtimes make it: their command lines, their directories, containers that come and go."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiofs.vm.container import find_engine
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kata import RUNTIMES, Sandbox, Volume
from virtiofs.vm.ramdisk import find_busybox

pytestmark = pytest.mark.guest

DAEMON = [sys.executable, "-m", "virtiofs.cli.virtiofsd"]
SECONDS = 60.0


@pytest.fixture(scope="module", autouse=True)
def engine_is_there() -> None:
    try:
        find_engine("crun")
    except MissingPart as missing:
        pytest.skip(str(missing))


@pytest.fixture
def rootfs() -> Iterator[Path]:
    """A root file system with busybox; in /tmp, as a container's may not lie below what only root may enter."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-rootfs-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        for name in ("bin", "dev", "proc", "sys", "tmp", "data", "etc"):
            (root / name).mkdir()
        shutil.copy2(find_busybox(), root / "bin" / "busybox")
        for applet in ("sh", "cat", "ls", "stat", "touch", "mkdir", "id", "hostname"):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc" / "word").write_text("from the host\n")
        yield root


def worker_of(pid: int) -> int:
    """The process behind a daemon's first one that has the files."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pod_from_its_start_to_its_end(runtime: str, rootfs: Path, tmp_path: Path) -> None:
    """One boot for all of it: what a pod goes through stands in one order only."""
    base = tmp_path / "sandboxes"
    volume, secret = tmp_path / "volume", tmp_path / "secret"
    volume.mkdir()
    secret.write_text("s3cret\n")
    volumes = [Volume(str(volume), "/data"), Volume(str(secret), "/etc/secret", writable=False)]
    with Sandbox(runtime, DAEMON, base=base) as sandbox:
        # The root file system is mounted while the guest runs, into a daemon that was started before.
        sandbox.add("web", rootfs, volumes=volumes)
        seen = sandbox.run(
            "web", ["/bin/sh", "-c", "cat /etc/word /etc/secret; hostname; id -u; echo made >/data/out; ls /"]
        )
        assert seen.status == 0, seen.errors
        assert seen.text.split("\n")[:4] == ["from the host", "s3cret", "web", "0"]
        assert (volume / "out").read_text() == "made\n"
        # A mount below the share is a mount in the guest, with a device number of its own.
        top, root = (
            sandbox.guest.run(["stat", "-c", "%d", path]).text
            for path in (f"{sandbox.in_guest}/web/.", f"{sandbox.in_guest}/web/rootfs/.")
        )
        assert top != root

        # The top is read-only, the root file system is not, a read-only volume is, each by its own mount.
        assert sandbox.guest.run(["mkdir", f"{sandbox.in_guest}/made"]).status != 0
        assert sandbox.run("web", ["/bin/touch", "/tmp/written"]).status == 0
        assert (rootfs / "tmp" / "written").exists()
        refused = sandbox.run("web", ["/bin/sh", "-c", "echo no >/etc/secret"])
        assert refused.status != 0
        by_guest = sandbox.guest.run(f"echo no >{sandbox.in_guest}/web-*1-secret")
        assert b"Read-only file system" in by_guest.errors
        assert secret.read_text() == "s3cret\n"

        # Hot-added beside the first, from the same directory of the host, and read-only this time.
        sandbox.add("job", rootfs, read_only=True)
        seen = sandbox.run("job", ["/bin/sh", "-c", "cat /etc/word; touch /tmp/again"])
        assert seen.text == "from the host\n"
        assert seen.status != 0
        direct = sandbox.guest.run(["touch", f"{sandbox.in_guest}/job/rootfs/tmp/again"])
        assert b"Read-only file system" in direct.errors
        assert not (rootfs / "tmp" / "again").exists()

        # Removed: the host's directories can go at once, and the guest sees that when its second is over.
        sandbox.remove("web")
        deadline = time.monotonic() + SECONDS
        while sandbox.guest.run(["stat", f"{sandbox.in_guest}/web/rootfs"]).status == 0:
            assert time.monotonic() < deadline
        sandbox.guest.run("echo 3 >/proc/sys/vm/drop_caches")
        inside = {
            os.readlink(entry.path) for entry in os.scandir(f"/proc/{worker_of(sandbox.daemon_pid)}/fd")
        }
        assert not [path for path in inside if "/web" in path]
        assert sandbox.run("job", ["/bin/cat", "/etc/word"]).text == "from the host\n"
        assert set(sandbox.times) == {"daemon", "guest", "web", "job"}
        assert sandbox.close() == 0  # the daemon ended with its connection, before it was killed
    assert not base.exists()


def test_a_killed_daemon_leaves_no_process_and_the_guest_is_given_up(rootfs: Path, tmp_path: Path) -> None:
    with Sandbox("go", DAEMON, base=tmp_path / "sandboxes") as sandbox:
        sandbox.add("web", rootfs)
        assert sandbox.run("web", ["/bin/cat", "/etc/word"]).text == "from the host\n"
        worker = os.pidfd_open(worker_of(sandbox.daemon_pid))
        os.kill(sandbox.daemon_pid, signal.SIGKILL)
        assert select.select([worker], [], [], SECONDS)[0]
        os.close(worker)
    assert not (tmp_path / "sandboxes").exists()


def test_the_command_tells_the_times_and_leaves_nothing_mounted(tmp_path: Path) -> None:
    report = tmp_path / "times.json"
    command = [sys.executable, "-m", "virtiofs", "kata-sim", "--runtime", "rust", "--json", str(report)]
    ended = subprocess.run(
        [*command, "--", "/bin/sh", "-c", "echo $HOSTNAME; exit 7"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (7, "one\ntwo\n"), ended.stderr
    told = json.loads(report.read_text())
    assert told["failed"] == []
    seconds = told["seconds"]
    assert 0 < seconds["daemon ready"] < seconds["guest up"] < seconds["first output of the first container"]
    assert "kata" not in Path("/proc/mounts").read_text()
