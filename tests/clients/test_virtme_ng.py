# SPDX-License-Identifier: Apache-2.0
"""virtme-ng, from PyPI, boots a kernel with this machine's root file system on our daemon, as kernel developers do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from started import arguments_of

from virtiofs.vm.kernel import cache_directory, newer_kernel

pytestmark = pytest.mark.guest
SECONDS = 240


def test_a_kernel_boots_with_the_hosts_root_read_only_and_a_directory_writable(
    virtiofsd: Path, tmp_path: Path
) -> None:
    vng = cache_directory() / "clients" / "bin" / "vng"
    if not vng.exists():
        pytest.skip(f"no {vng}: make testbed installs virtme-ng there")
    kernel = newer_kernel()
    if kernel is None:
        pytest.skip("virtme-ng wants a kernel with virtiofs built in: make testbed prepares one")
    if shutil.which("depmod") is None:
        pytest.skip("no depmod: install kmod (make testbed)")
    image = next(
        (path for path in [kernel.with_name(kernel.name.replace("vmlinux", "vmlinuz"))] if path.exists()),
        kernel,
    )
    share = tmp_path / "share"
    share.mkdir()
    (share / "greeting").write_text("hello from the host\n")
    command = f"cat {share}/greeting; echo made >{share}/reply; grep virtiofs /proc/mounts; touch /made"
    path = f"{virtiofsd.parent}:{vng.parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        [vng, "--disable-kvm", "--memory", "1G", "--run", image, f"--rwdir={share}", "--", command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": path},
    )
    said = ended.stdout + ended.stderr
    assert "hello from the host" in said, said
    assert "ROOTFS / virtiofs ro" in said
    assert "Read-only file system" in said
    assert (share / "reply").read_text() == "made\n"
    lines = [line for line in arguments_of(virtiofsd) if "--shared-dir" in line]
    assert len(lines) == 2
    assert "--shared-dir / --sandbox none" in lines[0]
    assert "--readonly" in lines[0]
