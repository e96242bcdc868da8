# SPDX-License-Identifier: Apache-2.0
"""KVM or TCG: which one really runs a guest here.

That /dev/kvm opens says little: under some hypervisors KVM answers every ioctl and yet boots no stock
kernel.  So the kernel in question is booted once with KVM, and the outcome kept until the host boots again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virtiofs.vm.kernel import Kernel, cache_directory

__all__ = ["choose"]


def choose(
    kernel: Kernel, qemu: str, boots_with_kvm: Callable[[], bool], environ: Mapping[str, str] = os.environ
) -> str:
    """Give "kvm" if `kernel` runs with it (`boots_with_kvm()`, asked once a host boot), else "tcg"."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    memory = cache_directory(environ) / "kvm.json"
    key = _identity(kernel, qemu)
    known = _recall(memory)
    if known.get("host_boot") != key[0]:
        known = {"host_boot": key[0], "works": {}}
    if not isinstance(known["works"].get(key[1]), bool):
        known["works"][key[1]] = boots_with_kvm()
        _remember(memory, known)
    return "kvm" if known["works"][key[1]] else "tcg"


def _identity(kernel: Kernel, qemu: str) -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    files = [os.stat(path) for path in (kernel.path, qemu)]
    stamps = ":".join(f"{file.st_dev}.{file.st_ino}.{file.st_mtime_ns}" for file in files)
    return boot, f"{kernel.version}:{stamps}:{os.getuid()}"


def _recall(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("works"), dict) else {}


def _remember(memory: Path, known: dict[str, Any]) -> None:
    """Best effort: without a cache directory the next guest only has to ask again."""
    replacement = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        replacement.write_text(json.dumps(known), encoding="ascii")
        replacement.replace(memory)
    except OSError:
        pass
