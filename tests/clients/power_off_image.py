# SPDX-License-Identifier: Apache-2.0
"""A RAM disk for guests that others start: mounts a share, runs a script in it, powers off."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from virtiofs.vm.cpio import Archive
from virtiofs.vm.kernel import NEEDED_MODULES, Kernel
from virtiofs.vm.modules import read_module
from virtiofs.vm.ramdisk import find_busybox

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod "$module"; done
mkdir -p /mnt
mount -t virtiofs @TAG@ /mnt || echo "no share"
cd /mnt
(
@SCRIPT@
) 2>&1
cd /
umount /mnt
poweroff -f
"""


def build(kernel: Kernel, tag: str, script: str, modules: Sequence[str] = ()) -> bytes:
    """A RAM disk for `kernel` in which `script` runs with the share `tag` as its directory.

    `modules` are loaded besides those a share takes on PCI.
    """
    archive = Archive()
    for directory in ("bin", "dev", "proc", "sys", "modules", "mnt"):
        archive.add_directory(directory)
    archive.add_node("dev/console", stat.S_IFCHR, 0o600, 5, 1)
    archive.add_file("bin/busybox", find_busybox().read_bytes(), 0o755)
    order = []
    if kernel.modules is not None:
        for path in kernel.modules.load_order([*NEEDED_MODULES, *modules]):
            name = f"/modules/{Path(path.name.partition('.ko')[0]).name}.ko"
            archive.add_file(name, read_module(path))
            order.append(name)
    archive.add_file("modules/order", "\n".join(order).encode())
    archive.add_file("init", _INIT.replace("@TAG@", tag).replace("@SCRIPT@", script).encode(), 0o755)
    return archive.data()
