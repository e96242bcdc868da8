# SPDX-License-Identifier: Apache-2.0
"""libvirt, as Debian packages it, starts a domain with a <filesystem> and our daemon as its <binary>.

libvirtd runs in mounts of its own, with empty directories where it keeps things: nothing of the machine's libvirt, if
it has one, is touched.  A newer one runs in a root file system of its own, of which it changes nothing; as an ordinary
user's it runs beside this machine's programs, so that the daemon is started by that user as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import NamedTuple

import another_root
import power_off_image
import pytest
from started import arguments_of

from virtiofs.vm.kernel import find_kernel

pytestmark = pytest.mark.guest
SECONDS = 240

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
    connection=qemu:///system
    logs=/var/log/libvirt/qemu
"""

# $1 is the newer root file system, whose libvirtd runs here by its own loader.
SESSION = """
    set -eu
    for part in usr/lib/x86_64-linux-gnu/libvirt usr/share/libvirt usr/lib/libvirt; do
        mount --bind "$1/$part" "/$part"
    done
    mount -t tmpfs -o mode=755 tmpfs /mnt  # names of sockets have to be short
    cd /mnt
    mkdir -p home/.config/libvirt run
    chmod 700 run
    echo 'stdio_handler = "file"' >home/.config/libvirt/qemu.conf
    (cat /etc/passwd; echo "tester:x:1234:1234::/mnt/home:/bin/sh") >passwd
    (cat /etc/group; echo "tester:x:1234:") >group
    mount --bind passwd /etc/passwd
    mount --bind group /etc/group
    shift
    unset XDG_CACHE_HOME XDG_CONFIG_HOME
    HOME=/mnt/home XDG_RUNTIME_DIR=/mnt/run exec unshare --user --map-user=1234 --map-group=1234 sh -c "$@"
"""
AS_USER = """
    set -eu
    "$1/lib64/ld-linux-x86-64.so.2" --library-path "$1/usr/lib/x86_64-linux-gnu" "$1/usr/sbin/libvirtd" &
    connection=qemu:///session
    logs=$HOME/.cache/libvirt/qemu/log
    shift
"""

RUN = """
    daemon=$!
    trap 'kill $daemon; wait $daemon 2>/dev/null || true' EXIT
    until virsh -q -c $connection version >/dev/null 2>&1; do kill -0 $daemon; done
    virsh -c $connection version --daemon
    virsh -q -c $connection create "$1"
    # A domain that powers off is gone; its console is in a file.
    while virsh -q -c $connection domstate virtiofs-test >/dev/null 2>&1; do kill -0 $daemon; done
    cat $logs/*-fs0-virtiofsd.log
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
        {more}
      </devices>
    </domain>
"""

# What libvirt 10 and 11 added.
MORE = """
        <filesystem type='mount' accessmode='passthrough'>
          <driver type='virtiofs'/>
          <binary path='{virtiofsd}'>
            <sandbox mode='namespace'/><thread_pool size='2'/><openfiles max='5000'/>
          </binary>
          <source dir='{share}/mapped'/>
          <target dir='mapped'/>
          <idmap><uid start='0' target='100000' count='1000'/><gid start='0' target='200000' count='1000'/></idmap>
        </filesystem>
        <filesystem type='mount' accessmode='passthrough'>
          <driver type='virtiofs'/>
          <binary path='{virtiofsd}'/>
          <source dir='{share}/fixed'/>
          <target dir='fixed'/>
          <readonly/>
        </filesystem>
"""
MORE_SCRIPT = """
    mkdir /mapped /fixed
    mount -t virtiofs mapped /mapped
    mount -t virtiofs fixed /fixed
    stat -c 'owners %u %g' /mapped
    echo made >/mapped/new
    touch /fixed/new
    umount /mapped /fixed
"""


class Libvirt(NamedTuple):
    """`command` sets libvirtd up and runs the domain whose file is added to it; `kind` is that of KINDS."""

    command: list[str]
    kind: str


KINDS = ("installed", "newer", pytest.param("newer, of an ordinary user", marks=pytest.mark.clients))


@pytest.fixture(params=KINDS)
def libvirt(request: pytest.FixtureRequest, tmp_path: Path) -> Libvirt:
    kind = request.param
    if kind != "newer" and (shutil.which("libvirtd") is None or shutil.which("virsh") is None):
        pytest.skip("no libvirtd: install libvirt-daemon-driver-qemu and libvirt-clients (make testbed)")
    alone = [*another_root.ALONE]
    if kind == "installed":
        return Libvirt([*alone, textwrap.dedent(SETUP + RUN), "sh"], kind)
    needed = ("usr/sbin/libvirtd", "usr/bin/virsh", "usr/bin/qemu-system-x86_64")
    root = another_root.prepared("trixie", "libvirt qemu", *needed)
    if kind == "newer":
        return Libvirt(another_root.command(root, tmp_path, SETUP + RUN), kind)
    inner = [textwrap.dedent(AS_USER + RUN), "sh", str(root)]
    return Libvirt([*alone, textwrap.dedent(SESSION), "sh", str(root), *inner], kind)


def test_a_domain_reads_and_writes_its_share(libvirt: Libvirt, virtiofsd: Path, tmp_path: Path) -> None:
    kernel = find_kernel()
    image, ramdisk, share = tmp_path / "kernel", tmp_path / "ramdisk", tmp_path / "share"
    domain, console = tmp_path / "domain.xml", tmp_path / "console"
    for directory in (share, share / "mapped", share / "fixed"):
        directory.mkdir()
    os.chown(share / "mapped", 100000, 200000)
    shutil.copyfile(kernel.path, image)
    (share / "greeting").write_text("hello from the host\n")
    script = "cat greeting; echo made >reply; grep /mnt /proc/mounts"
    ramdisk.write_bytes(
        power_off_image.build(kernel, "data", script + (MORE_SCRIPT if libvirt.kind == "newer" else ""))
    )
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    more = MORE.format(virtiofsd=virtiofsd, share=share) if libvirt.kind == "newer" else ""
    domain.write_text(
        textwrap.dedent(DOMAIN).format(
            kernel=image, ramdisk=ramdisk, virtiofsd=virtiofsd, share=share, console=console, more=more
        )
    )
    ended = subprocess.run(
        [*libvirt.command, domain], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    seen = console.read_text()
    assert "hello from the host" in seen
    assert "data /mnt virtiofs rw" in seen
    # The daemon's log, in libvirt's place for it.  What it says of the end, libvirt's SIGTERM may come before.
    assert re.search(r"process \d+ connected$", ended.stdout, re.MULTILINE)
    assert (share / "reply").read_text() == "made\n"
    lines = arguments_of(virtiofsd)
    served = next(line for line in lines if str(share) in line)
    assert "--fd=" in served
    if libvirt.kind != "installed":
        assert "Running against daemon: 11." in ended.stdout
        assert "--print-capabilities" in lines
    if libvirt.kind == "newer":
        assert "owners 0 0" in seen
        made = (share / "mapped" / "new").stat()
        assert (made.st_uid, made.st_gid) == (100000, 200000)
        assert "/fixed/new: Read-only file system" in seen
        assert not (share / "fixed" / "new").exists()
    if "user" in libvirt.kind:
        assert "--uid-map=:0:1234:1: --gid-map=:0:1234:1:" in served
