# SPDX-License-Identifier: Apache-2.0
"""QEMU's other ways to have the device: without PCI, memory in several pieces, rings as they can be asked for."""

from __future__ import annotations

import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import another_root
import power_off_image
import pytest

from virtiofs.vm.kernel import find_kernel

pytestmark = pytest.mark.guest
SECONDS = 240


class Form(NamedTuple):
    """Words for QEMU, and for the kernel; `newer`: for the QEMU of Debian 13."""

    words: str
    append: str = ""
    newer: bool = False


PCI = "-device vhost-user-fs-pci,chardev=share,tag=data"
FORMS = {
    "virtio-mmio": Form(
        "-M microvm,memory-backend=mem -m 512M -object memory-backend-file,id=mem,size=512M,mem-path=/dev/shm,share=on"
        " -global virtio-mmio.force-legacy=false -device vhost-user-fs-device,chardev=share,tag=data",
        append=" tsc_early_khz=2000000",  # the machine has no clock to find that out with
    ),
    "memory in two nodes": Form(
        "-M q35 -smp 2 -m 512M -object memory-backend-memfd,id=one,size=256M,share=on"
        " -object memory-backend-memfd,id=two,size=256M,share=on"
        " -numa node,memdev=one,cpus=0 -numa node,memdev=two,cpus=1"
        f" {PCI},num-request-queues=2"
    ),
    "11.1, shared memory, packed rings in order": Form(
        "-M q35,memory-backend=mem -m 512M -object memory-backend-shm,id=mem,size=512M"
        f" {PCI},packed=on,in_order=on,event_idx=off,queue-size=1024",
        newer=True,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.clients] * form.newer) for name, form in FORMS.items()]
)
def test_a_guest_has_its_share(name: str, virtiofsd: Path, tmp_path: Path) -> None:
    form, kernel = FORMS[name], find_kernel()
    image, ramdisk, share, socket = (tmp_path / part for part in ("kernel", "ramdisk", "share", "socket"))
    share.mkdir()
    (share / "greeting").write_bytes(b"hello" * 100000)
    shutil.copyfile(kernel.path, image)
    script = "sha256sum greeting; dd if=greeting of=reply bs=64k; mv reply kept; grep /mnt /proc/mounts"
    ramdisk.write_bytes(power_off_image.build(kernel, "data", script, ["virtio_mmio"]))
    words = [
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-serial", "stdio", "-kernel", str(image), "-initrd", str(ramdisk)),
        *(
            "-append",
            "console=ttyS0 panic=-1 mitigations=off quiet no_timer_check tsc=reliable" + form.append,
        ),
        *("-chardev", f"socket,id=share,path={socket}", *form.words.split()),
    ]
    command = ["qemu-system-x86_64", *words]
    if form.newer:
        root = another_root.prepared("trixie", "qemu", "usr/bin/qemu-system-x86_64")
        command = [*another_root.command(root, tmp_path, 'exec qemu-system-x86_64 "$@"'), *words]
    with subprocess.Popen(
        [virtiofsd, f"--socket-path={socket}", f"--shared-dir={share}", "--log-level=info"],
        stderr=subprocess.PIPE,
    ) as daemon:
        try:
            assert daemon.stderr is not None
            assert select.select([daemon.stderr], [], [], SECONDS)[0]  # it waits for a connection
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert "data /mnt virtiofs rw" in ended.stdout, ended.stdout + ended.stderr
            assert (share / "kept").read_bytes() == b"hello" * 100000
            assert daemon.wait(SECONDS) == 0
        finally:
            daemon.send_signal(signal.SIGTERM)
