# SPDX-License-Identifier: Apache-2.0
"""libvirt, as Debian packages it, starts a domain with a <filesystem> and our daemon as its <binary>.

libvirtd runs in mounts of its own, with empty directories where it keeps things: nothing of the machine's libvirt, if
it has one, is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import power_off_image
import pytest
from started import arguments_of

from virtiofs.vm.kernel import find_kernel

pytestmark = pytest.mark.guest
SECONDS = 120

# The system's daemon, without what it asks of a whole system: its user, cgroups, security labels.
SETUP = """
    set -eu
    for directory in /etc/libvirt /var/log/libvirt /var/lib/libvirt /run/libvirt /var/cache/libvirt; do
        mkdir -p "$directory"
        mount -t tmpfs -o mode=755 tmpfs "$directory"
    done
    mkdir -p /var/log/libvirt/qemu
    (cat /etc/passwd; echo "libvirt-qemu:x:64055:64055::/:/bin/false") >/var/lib/libvirt/passwd
    (cat /etc/group; echo "libvirt-qemu:x:64055:"; echo "kvm:x:64056:") >/var/lib/libvirt/group
    mount --bind /var/lib/libvirt/passwd /etc/passwd
    mount --bind /var/lib/libvirt/group /etc/group
    cat >/etc/libvirt/qemu.conf <<END
    user = "root"
    group = "root"
    dynamic_ownership = 0
    remember_owner = 0
    namespaces = []
    cgroup_controllers = []
    security_driver = "none"
    stdio_handler = "file"
    END
    libvirtd &
    daemon=$!
    trap 'kill $daemon; wait $daemon 2>/dev/null || true' EXIT
    until virsh -q -c qemu:///system version >/dev/null 2>&1; do kill -0 $daemon; done
    virsh -q -c qemu:///system create "$1"
    # A domain that powers off is gone; its console is in a file.
    while virsh -q -c qemu:///system domstate virtiofs-test >/dev/null 2>&1; do kill -0 $daemon; done
    cat /var/log/libvirt/qemu/*-fs0-virtiofsd.log
"""

DOMAIN = """
    <domain type='qemu'>
      <name>virtiofs-test</name>
      <memory unit='MiB'>512</memory>
      <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
      <os>
        <type arch='x86_64' machine='q35'>hvm</type>
        <kernel>{kernel}</kernel>
        <initrd>{ramdisk}</initrd>
        <cmdline>console=ttyS0 panic=-1 mitigations=off cryptomgr.notests quiet</cmdline>
      </os>
      <features><acpi/></features>
      <on_reboot>destroy</on_reboot>
      <on_crash>destroy</on_crash>
      <devices>
        <controller type='usb' model='none'/>
        <memballoon model='none'/>
        <serial type='file'><source path='{console}'/></serial>
        <filesystem type='mount' accessmode='passthrough'>
          <driver type='virtiofs' queue='1024'/>
          <binary path='{virtiofsd}' xattr='on'><cache mode='always'/></binary>
          <source dir='{share}'/>
          <target dir='data'/>
        </filesystem>
      </devices>
    </domain>
"""


def test_a_domain_reads_and_writes_its_share(virtiofsd: Path, tmp_path: Path) -> None:
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        pytest.skip("no libvirtd: install libvirt-daemon-driver-qemu and libvirt-clients (make testbed)")
    kernel = find_kernel()
    ramdisk, share = tmp_path / "ramdisk", tmp_path / "share"
    domain, console = tmp_path / "domain.xml", tmp_path / "console"
    share.mkdir()
    (share / "greeting").write_text("hello from the host\n")
    ramdisk.write_bytes(
        power_off_image.build(kernel, "data", "cat greeting; echo made >reply; grep /mnt /proc/mounts")
    )
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    domain.write_text(
        textwrap.dedent(DOMAIN).format(
            kernel=kernel.path, ramdisk=ramdisk, virtiofsd=virtiofsd, share=share, console=console
        )
    )
    ended = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", textwrap.dedent(SETUP), "sh", domain],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    seen = console.read_text()
    assert "hello from the host" in seen
    assert "data /mnt virtiofs rw" in seen
    assert "the front end disconnected" in ended.stdout
    assert (share / "reply").read_text() == "made\n"
    capabilities, served = arguments_of(virtiofsd)[0], arguments_of(virtiofsd)[-1]
    assert f"{share}" in served, (capabilities, served)
    assert "--fd=" in served
