# SPDX-License-Identifier: Apache-2.0
"""systemd-vmspawn, as the next Debian packages it, boots a directory, with our daemon as /usr/libexec/virtiofsd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import another_root
import pytest
from started import arguments_of

from virtiofs.vm.kernel import newer_kernel

pytestmark = [pytest.mark.guest, pytest.mark.clients]
SECONDS = 240

# It counts on the system's bus, and on being a service: without a systemd that makes it one, it is put where it looks.
SETUP = """
    set -eu
    mount -t tmpfs tmpfs /run
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /run/dbus /usr/libexec
    cp "$1" /usr/libexec/virtiofsd
    shift
    service=/sys/fs/cgroup/system.slice/virtiofs-test-$$.service
    mkdir -p "$service"
    dbus-daemon --system --nofork --nopidfile &
    bus=$!
    leave() {
        echo $$ >/sys/fs/cgroup/cgroup.procs
        kill $bus
        rmdir "$service"
        rmdir --ignore-fail-on-non-empty /sys/fs/cgroup/system.slice
    }
    trap leave EXIT
    until [ -S /run/dbus/system_bus_socket ]; do kill -0 $bus; done
    echo $$ >"$service/cgroup.procs"
    systemd-vmspawn "$@"
"""

UNITS = {
    "job.target": """
        [Unit]
        DefaultDependencies=no
        Requires=job.service
    """,
    "job.service": """
        [Unit]
        DefaultDependencies=no
        SuccessAction=poweroff
        FailureAction=poweroff
        [Service]
        Type=oneshot
        User=games
        StateDirectory=job
        ExecStart=/bin/sh -c 'grep " / " /proc/mounts >/var/lib/job/mounts'
    """,
}


def test_a_directory_boots_and_its_services_own_what_they_write(virtiofsd: Path, tmp_path: Path) -> None:
    programs = another_root.prepared(
        "forky", "vmspawn", "usr/bin/systemd-vmspawn", "usr/bin/qemu-system-x86_64"
    )
    system = another_root.prepared("guest-trixie", "guest", "usr/bin/systemctl")
    kernel = newer_kernel()
    if kernel is None:
        pytest.skip("no kernel with virtiofs built in: as root, `tools/trixie kernel` prepares one")
    root, image = tmp_path / "root", tmp_path / "kernel"
    subprocess.run(["cp", "-a", "--reflink=auto", str(system), str(root)], check=True)
    for name, text in UNITS.items():
        lines = [line.strip() for line in text.splitlines()]
        (root / "etc/systemd/system" / name).write_text("\n".join(lines))
    compressed = kernel.with_name(kernel.name.replace("vmlinux", "vmlinuz"))
    shutil.copyfile(compressed if compressed.exists() else kernel, image)
    # No KVM; and nothing that takes a device, a program or a manager besides.
    without = (
        "--kvm=no",
        "--vsock=no",
        "--tpm=no",
        "--register=no",
        "--notify-ready=no",
        "--pass-ssh-key=no",
    )
    ended = subprocess.run(
        [
            *another_root.command(programs, tmp_path, SETUP),
            *(str(virtiofsd), f"--directory={root}", f"--linux={image}", "--firmware=none", "--ram=1G"),
            *(*without, "--keep-unit", "--console=read-only", "--", "systemd.unit=job.target", "panic=-1"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    mounts = root / "var/lib/job/mounts"
    assert "root / virtiofs rw" in mounts.read_text(), ended.stdout
    accounts = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    games = next(int(words[2]) for words in accounts if words[0] == "games")
    assert (mounts.stat().st_uid, mounts.parent.stat().st_uid) == (games, games)
    (served,) = arguments_of(virtiofsd)
    assert f"--shared-dir {root} --xattr --fd " in served
    assert "--translate-uid map:0:0:65536" in served
