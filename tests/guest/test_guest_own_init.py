# SPDX-License-Identifier: Apache-2.0
"""A Debian whose root file system is a share boots by itself: systemd is process 1 of the guest.

Two boots reach Debian's own target, without what looks for hardware: that halves the half minute they take without KVM.
The others reach a target with next to nothing in it.
"""

from __future__ import annotations

import os
import pty
import pwd
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtiofs.vm.kernel import cache_directory

pytestmark = pytest.mark.guest

SECONDS = 400
RUN = [sys.executable, "-m", "virtiofs", "run", "--timeout", str(SECONDS - 50)]
NO_HARDWARE = " ".join(
    f"systemd.mask={unit}"
    for unit in (
        *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
        *("systemd-udev-trigger.service", "systemd-logind.service", "getty@tty1.service"),
        *(
            "modprobe@configfs.service",
            "modprobe@drm.service",
            "modprobe@efi_pstore.service",
            "modprobe@fuse.service",
        ),
    )
)
UNITS = {
    # As a service of Debian's does: a directory of its own, and a user who is not root.
    "written.service": """
        [Service]
        Type=oneshot
        User=games
        StateDirectory=written
        ExecStart=/bin/sh -c 'id -un >/var/lib/written/by; ln /var/lib/written/by /var/lib/written/again'
        [Install]
        WantedBy=multi-user.target
    """,
    "nothing.target": """
        [Unit]
        DefaultDependencies=no
    """,
    "job.target": """
        [Unit]
        DefaultDependencies=no
        Requires=job.service
    """,
    "job.service": """
        [Unit]
        DefaultDependencies=no
        SuccessAction=poweroff
        [Service]
        Type=oneshot
        ExecStart=/bin/sh -c 'echo done >/srv/job'
    """,
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian with systemd and the units of this module."""
    prepared = cache_directory() / "guest-trixie"
    if not (prepared / "usr").is_dir():
        pytest.skip(f"no {prepared}: as root, `tools/trixie guest` prepares it")
    root = tmp_path_factory.mktemp("system") / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(prepared), str(root)], check=True)
    for place in ("etc", "var"):  # as the first boot leaves them: nothing has to be brought up to date
        (root / place / ".updated").touch()
    units = root / "etc/systemd/system"
    for name, text in UNITS.items():
        (units / name).write_text("\n".join(line.strip() for line in text.splitlines()))
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "written.service").symlink_to("../written.service")
    return root


def virtiofs(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def tree(root: Path) -> dict[str, tuple[int, ...]]:
    """All that a change of a file would change, but times of access."""
    seen = {}
    for folder, directories, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in [*directories, *files])):
            found = os.lstat(path)
            seen[path] = (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return seen


def test_a_read_only_system_reaches_its_target_and_changes_nothing(system: Path) -> None:
    before = tree(system)
    ended = virtiofs(
        *("--rootfs", f"{system}:ro", "--init", "--append", NO_HARDWARE, "--", "sh", "-c"),
        "systemctl is-system-running; systemctl --failed -q; cat /var/lib/written/by; touch /made",
    )
    assert (ended.returncode, ended.stdout) == (1, "running\ngames\n"), ended.stderr
    assert "Read-only file system" in ended.stderr
    assert tree(system) == before


def test_a_writable_system_reaches_its_target_and_its_services_own_what_they_write(system: Path) -> None:
    ended = virtiofs(
        *("--rootfs", system, "--init", "--append", NO_HARDWARE, "--", "sh", "-c"),
        "cat /proc/1/comm; systemctl is-system-running; systemctl --failed -q; systemctl is-active multi-user.target;"
        " findmnt -no SOURCE,FSTYPE,OPTIONS /; exit 7",
    )
    assert ended.returncode == 7, ended.stderr
    *lines, root = ended.stdout.splitlines()
    assert lines == ["systemd", "running", "active"]
    assert root.split()[:2] == ["rootfs", "virtiofs"]
    assert root.split()[2].startswith("rw")
    # As the guest's accounts are: its games is not this machine's.
    accounts = [line.split(":") for line in (system / "etc/passwd").read_text().splitlines()]
    games = next(int(words[2]) for words in accounts if words[0] == "games")
    written = system / "var/lib/written"
    assert (written.stat().st_uid, stat.S_IMODE(written.stat().st_mode)) == (games, 0o755)
    assert (written / "by").read_text() == "games\n"
    assert (written / "by").stat().st_uid == games
    assert (written / "again").samefile(written / "by")
    journals = list((system / "var/log/journal").glob("*/system.journal"))
    assert journals and pwd.getpwuid(journals[0].stat().st_uid).pw_name == "root"


def test_a_system_without_a_command_runs_until_it_powers_itself_off(system: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    ended = virtiofs(
        "--rootfs", system, "--workspace", workspace, "--init", "--append", "systemd.unit=job.target"
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert not (system / "srv/job").exists()
    shown = subprocess.run(
        [sys.executable, "-m", "virtiofs", "workspace", "diff", str(workspace)],
        capture_output=True,
        text=True,
    )
    assert "A srv/job\n" in shown.stdout


def test_an_interactive_shell_beside_the_services_ends_with_the_guest(system: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*RUN, "--rootfs", f"{system}:ro", "--init", "/usr/lib/systemd/systemd", "--append"]
    command.append("systemd.unit=nothing.target")
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + SECONDS
        # Bytes are typed one after another: each command when the prompt for it is there.
        for typed in (b"echo $((6 * 7)), $(cat /proc/1/comm)\n", b"systemctl poweroff\n"):
            while not shown.endswith(b"# "):
                shown += read(ours, deadline)
            os.write(ours, typed)
            shown += read(ours, deadline)
        while data := read(ours, deadline):
            shown += data
        assert process.wait() == 0, shown
    os.close(ours)
    assert b"42, systemd" in shown


def read(terminal: int, deadline: float) -> bytes:
    """What a terminal shows next; nothing once its last program has ended."""
    assert select.select([terminal], [], [], deadline - time.monotonic())[0]
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO, pty(7)
        return b""


def test_an_init_that_is_not_there_is_said(system: Path) -> None:
    ended = virtiofs("--rootfs", f"{system}:ro", "--init", "/sbin/nothing", "--", "true")
    assert ended.returncode == 125
    assert "no program /sbin/nothing to start" in ended.stderr.splitlines()[-1]
