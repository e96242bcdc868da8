# SPDX-License-Identifier: Apache-2.0
"""An OCI container in a guest: the engine's files for the RAM disk, and the bundle it runs.

Sources: the OCI runtime specification 1.0 (config.md, config-linux.md); crun(1).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.ramdisk import ExtraFiles

__all__ = ["Bind", "configuration", "engine_files", "find_engine"]

Bind = tuple[str, str, bool]
"""A volume: the guest's path of it, where the container sees it, whether it may be written."""

# What container engines give a container that asks for nothing (containers/common, moby).
_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"),
)
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_MOUNTS = (
    ("/proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
)
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_engine(name: str) -> str:
    """The path of `crun` or `runc` on this machine.  Raises MissingPart if it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/bin:/usr/sbin")
    if found is None:
        raise MissingPart(
            f"no {name} for the guest: install the Debian package {name} (or run `make testbed`)"
        )
    return found


def engine_files(engine: str) -> ExtraFiles:
    """A container engine of this machine, with the libraries it is linked to, for a guest's RAM disk.

    Raises MissingPart if it is not there, GuestError if the dynamic linker finds a library of it missing.
    """
    program = find_engine(engine)
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    lacking = re.findall(r"(\S+) => not found", said)
    if lacking:
        raise GuestError(f"{program} cannot run: no library {', no '.join(lacking)}")
    files: dict[str, bytes | str | os.PathLike[str]] = {f"/usr/bin/{engine}": program}
    for library in re.findall(r"(/\S+) \(0x", said):
        files[library] = os.path.realpath(library)
    return files


def configuration(
    root: str,
    command: Sequence[str],
    *,
    hostname: str,
    read_only: bool = False,
    binds: Sequence[Bind] = (),
) -> bytes:
    """The config.json of a bundle that runs `command` as root with the directory `root` as its root file system."""
    mounts: list[dict[str, object]] = [
        {"destination": place, "type": kind, "source": kind, "options": options}
        for place, kind, options in _MOUNTS
    ]
    for source, place, writable in binds:
        options = ["rbind", "rprivate", "rw" if writable else "ro"]
        mounts.append({"destination": place, "type": "bind", "source": source, "options": options})
    document = {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [_PATH, "TERM=linux", f"HOSTNAME={hostname}"],
            "cwd": "/",
            "capabilities": {kind: _CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": read_only},
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    return json.dumps(document).encode()
