# SPDX-License-Identifier: Apache-2.0
"""Real guests, with shares served by the C virtiofsd, so that what is tested here is the guest and not our daemon."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.cli import run as run_command
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.guest import Guest, GuestError, GuestTimeout, Share
from virtiofs.vm.kernel import find_kernel
from virtiofs.vm.qemu import find_qemu
from virtiofs.vm.ramdisk import find_busybox

pytestmark = pytest.mark.guest
DAEMON = f"{devices.C_VIRTIOFSD} --socket-path={{socket}} -o source={{dir}} -o sandbox=chroot -o cache=auto"


@pytest.fixture(scope="module", autouse=True)
def everything_is_there() -> None:
    try:
        find_qemu(), find_busybox(), find_kernel()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if devices.available("c"):
        pytest.skip(devices.available("c"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    (directory / "file").write_bytes(b"from the host\n")
    return directory


@pytest.fixture(scope="module")
def guest(shared: Path) -> Iterator[Guest]:
    """One guest for the whole module: what a test does to it must not matter to the next."""
    extra = {"/opt/tool": b"#!/bin/sh\necho brought along: $1\n"}
    with devices.start_c_virtiofsd(shared) as device:
        share = Share("data", device.socket, "/mnt")
        with Guest([share], timeout=60, extra_files=extra) as guest:
            yield guest


def boot_id(guest: Guest) -> str:
    return guest.run(["cat", "/proc/sys/kernel/random/boot_id"]).text


def test_a_share_is_read_and_written(guest: Guest, shared: Path) -> None:
    assert guest.run(["cat", "/mnt/file"]) == (0, b"from the host\n", b"")
    assert guest.run("echo from the guest >/mnt/new").status == 0
    assert (shared / "new").read_text() == "from the guest\n"


def test_output_and_errors_arrive_byte_for_byte_and_apart(guest: Guest) -> None:
    everything = bytes(range(1, 256)) * 20
    assert guest.run([b"printf", b"%s", everything]) == (0, everything, b"")
    assert guest.run("echo out; echo err >&2; echo again >/dev/stderr") == (0, b"out\n", b"err\nagain\n")
    zeros = guest.run("dd if=/dev/zero bs=1M count=8 2>/dev/null").output
    assert zeros == bytes(8 << 20)


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 7", 7), ("kill -9 $$", 137), (["/nonesuch"], 127), (["/etc/passwd"], 126), (["--", "x"], 127)],
)
def test_exit_statuses_are_those_of_a_shell(guest: Guest, command: str | list[str], status: int) -> None:
    assert guest.run(command).status == status


def test_output_is_streamed_while_the_command_runs(guest: Guest) -> None:
    seen: list[bytes] = []
    left, right = os.pipe()

    def take(data: bytes) -> None:
        seen.append(data)
        if b"first" in data:
            os.write(right, b"go on\n")
            os.close(right)

    # The command ends only when what it wrote first has come here and been answered.
    result = guest.run("echo first; read -r answer; echo $answer", stdin=left, stdout=take)
    os.close(left)
    assert (result.status, result.output, b"".join(seen)) == (0, b"", b"first\ngo on\n")
    assert guest.run(["wc", "-c"]).output.strip() == b"0"


def test_what_runs_on_in_the_background_does_not_write_into_later_output(guest: Guest) -> None:
    guest.run("mkfifo /tmp/go; (read -r _ </tmp/go; echo late) & echo now")
    # The late line is written before the second command ends, yet belongs to nobody.
    assert guest.run("echo >/tmp/go; wait; echo mine >&2").errors == b"mine\n"
    assert guest.run("rm /tmp/go; echo last").output == b"last\n"


def test_extra_files_are_in_the_guest(guest: Guest) -> None:
    assert guest.run(["/opt/tool", "an argument"]).output == b"brought along: an argument\n"


def test_other_users_can_run_commands(guest: Guest) -> None:
    result = guest.run("su user -c 'id -u; echo err >/dev/stderr'")
    assert result == (0, b"1000\n", b"err\n")


def test_a_paused_guest_goes_on_where_it_was(guest: Guest) -> None:
    guest.pause()
    assert guest.monitor.command("query-status")["running"] is False
    guest.resume()
    assert guest.run("echo on").output == b"on\n"


def test_a_command_that_hangs_is_given_up_and_the_reset_button_helps(guest: Guest) -> None:
    before = boot_id(guest)
    with pytest.raises(GuestTimeout):
        guest.run("echo started; sleep 1000", timeout=0.5)
    with pytest.raises(GuestError, match="still busy"):
        guest.run("true")
    guest.reboot()
    assert boot_id(guest) != before
    assert guest.run(["cat", "/mnt/file"]).output == b"from the host\n"


def test_an_orderly_reboot_mounts_the_shares_again(guest: Guest) -> None:
    before = boot_id(guest)
    guest.reboot(orderly=True)
    assert boot_id(guest) != before
    assert guest.run(["cat", "/mnt/file"]).output == b"from the host\n"


def test_a_guest_that_crashes_is_an_error_with_its_last_words() -> None:
    guest = Guest(timeout=60)
    with guest:
        with pytest.raises(GuestError, match="kernel panicked: sysrq triggered crash"):
            guest.run("echo c >/proc/sysrq-trigger")
        guest.reboot()
        with pytest.raises(GuestError, match="rebooted by itself"):
            guest.run("reboot -f")
        directory = guest._directory
    assert directory is not None
    assert not directory.exists()


def test_a_share_that_cannot_be_mounted_is_named(tmp_path: Path, shared: Path) -> None:
    with devices.start_c_virtiofsd(shared) as device:
        guest = Guest([Share("one", device.socket, "/proc/one")], timeout=60)
        with pytest.raises(GuestError, match="/proc/one"):
            guest.start()
        with pytest.raises(GuestError, match="not running"):
            guest.run("true")


def test_a_socket_nobody_serves_is_said(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"QEMU ended: .*nobody\.sock"):
        Guest([Share("t", str(tmp_path / "nobody.sock"), "/mnt")], accelerator="tcg").start()


def test_no_process_outlives_the_one_that_started_the_guest(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from virtiofs.vm.guest import Guest\n"
        "guest = Guest(accelerator='tcg')\n"
        "guest.start()\n"
        "print(guest.pid, guest._directory, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    killed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environ, timeout=60, check=False
    )
    pid = int(killed.stdout.split()[0])
    deadline = time.monotonic() + 10
    # A zombie that nobody has waited for yet is no process any more.
    while (
        Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    ):
        assert time.monotonic() < deadline
        os.sched_yield()


def virtiofs_run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    status = run_command.main(parser.parse_args(["--daemon", DAEMON, "--timeout", "60", *words]))
    out, err = capfd.readouterr()
    return status, out, err


def test_run_mounts_shares_and_gives_the_status_of_the_command(
    capfd: pytest.CaptureFixture[str], shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("kept\n")
    script = "cat /mnt/file /data/kept; echo no >/data/kept; echo yes >/mnt/written; exit 3"
    started = time.monotonic()
    status, out, err = virtiofs_run(
        capfd, "--share", str(shared), "--share", f"{tmp_path}:/data:ro", "--", "sh", "-c", script
    )
    assert time.monotonic() - started < 15
    assert (status, out) == (3, "from the host\nkept\n")
    assert "Read-only file system" in err
    assert (shared / "written").read_text() == "yes\n"
    assert (tmp_path / "kept").read_text() == "kept\n"


@pytest.mark.parametrize(("mode", "status", "content"), [("", 0, "new\n"), (":ro", 1, "old\n")])
def test_run_boots_from_a_share(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, mode: str, status: int, content: str
) -> None:
    for name in ("bin", "proc", "sys", "dev", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc" / "state").write_text("old\n")
    (tmp_path / "bin" / "busybox").write_bytes(find_busybox().read_bytes())
    (tmp_path / "bin" / "busybox").chmod(0o755)
    (tmp_path / "bin" / "sh").symlink_to("busybox")
    script = "busybox grep ' / ' /proc/mounts; busybox ls /; echo new >/etc/state"
    got, out, _ = virtiofs_run(capfd, "--rootfs", f"{tmp_path}{mode}", "--", "sh", "-c", script)
    assert got == status
    assert out.startswith("rootfs / virtiofs " + (mode[1:] or "rw"))
    assert out.split("\n", 1)[1].split() == ["bin", "dev", "etc", "proc", "sys"]
    assert (tmp_path / "etc" / "state").read_text() == content


def test_run_ends_a_command_that_takes_too_long(capfd: pytest.CaptureFixture[str], shared: Path) -> None:
    words = ("--timeout", "6", "--share", str(shared), "--", "sh", "-c", "echo started; sleep 1000")
    status, out, err = virtiofs_run(capfd, *words)
    assert (status, out) == (run_command.TIMED_OUT, "started\n")
    assert "in time (--timeout 6)" in err
