# SPDX-License-Identifier: Apache-2.0
"""The guest's kernel: where to find one, which version it is, and where its modules lie.

Sources: the kernel's Documentation/arch/x86/boot.rst (header of a bzImage); hier(7) and kernel packages for
the places.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.modules import ModuleTree

__all__ = ["NEEDED_MODULES", "Kernel", "cache_directory", "find_kernel", "newer_kernel", "open_kernel"]

# What a guest cannot do without.  Stock kernels have them as modules, those made for guests built in.
NEEDED_MODULES = ("virtio_pci", "virtio_console", "fuse", "virtiofs")
_PACKAGE = "run `make testbed`, or install the Debian package linux-image-amd64"


class Kernel(NamedTuple):
    """A kernel to boot.  `modules` is None if no tree of its version was found: all must be built in."""

    path: Path
    version: str
    modules: ModuleTree | None

    def missing(self) -> list[str]:
        """The modules a guest needs that this kernel is known not to have."""
        if self.modules is None:
            return []
        return [name for name in NEEDED_MODULES if name not in self.modules]


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the testbed and what we know of this machine are kept: $VIRTIOFS_CACHE, else as XDG says."""
    if environ.get("VIRTIOFS_CACHE"):
        return Path(environ["VIRTIOFS_CACHE"])
    base = environ.get("XDG_CACHE_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".cache"
    )
    return Path(base, "virtiofs")


def find_kernel(
    explicit: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Kernel:
    """The kernel `explicit` or $VIRTIOFS_KERNEL, else the first with virtiofs in the testbed or /boot.

    Raises MissingPart if there is none at all, GuestError if the kernel cannot be read or has no virtiofs.
    """
    named = explicit or environ.get("VIRTIOFS_KERNEL")
    if named:
        return _with_virtiofs(open_kernel(named))
    problem: GuestError | None = None
    for path in _installed(environ):
        try:
            return _with_virtiofs(open_kernel(path))
        except GuestError as error:
            problem = problem or error
    raise problem or MissingPart(f"no kernel for a guest: {_PACKAGE}, or name one with --kernel")


def newer_kernel(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The testbed's newer kernel, of trixie-backports, if it is there."""
    place = cache_directory(environ) / "kernel-trixie" / "boot"
    return next(iter([*_newest_first(place, "vmlinux-*"), *_newest_first(place, "vmlinuz-*")]), None)


def open_kernel(path: str | os.PathLike[str]) -> Kernel:
    """Look at the kernel image `path`.  Raises GuestError if it is missing, unreadable, or no kernel."""
    image = Path(path)
    try:
        version = _version(image)
    except FileNotFoundError:
        raise MissingPart(f"no kernel {image}: {_PACKAGE}, or name another with --kernel") from None
    except OSError as error:
        raise GuestError(
            f"cannot read kernel {image}: {error.strerror}; name another with --kernel"
        ) from None
    for directory in _module_places(image, version):
        if directory.is_dir():
            return Kernel(image, version, ModuleTree(directory))
    return Kernel(image, version, None)


def _with_virtiofs(kernel: Kernel) -> Kernel:
    missing = kernel.missing()
    if missing:
        raise GuestError(
            f"guest kernel {kernel.version} ({kernel.path}) has no {' and no '.join(missing)}: "
            f"{_PACKAGE}, or name another with --kernel"
        )
    return kernel


def _installed(environ: Mapping[str, str]) -> Iterator[Path]:
    """Kernel images in order of preference: testbed, the running kernel's, newest in /boot."""
    testbed = cache_directory(environ) / "kernel" / "boot"
    yield from _newest_first(testbed, "vmlinux-*")  # nothing to decompress in the guest
    yield from _newest_first(testbed, "vmlinuz-*")
    running = Path("/boot", f"vmlinuz-{os.uname().release}")
    if running.exists():
        yield running
    yield from (path for path in _newest_first(Path("/boot"), "vmlinuz-*") if path != running)


def _newest_first(directory: Path, pattern: str) -> list[Path]:
    def numbers(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    return sorted(directory.glob(pattern), key=numbers, reverse=True)


def _module_places(image: Path, version: str) -> Iterator[Path]:
    # boot/vmlinuz-V beside lib/modules/V (a package as it is unpacked), then the same below the image's own
    # folder.
    for root in (image.resolve().parent.parent, image.resolve().parent, Path("/")):
        yield root / "lib" / "modules" / version
        yield root / "usr" / "lib" / "modules" / version


def _version(image: Path) -> str:
    """The version string of a bzImage, or of an uncompressed vmlinux."""
    with open(image, "rb") as file:
        head = file.read(0x8000)
        if head[0x202:0x206] == b"HdrS":
            (offset,) = struct.unpack_from("<H", head, 0x20E)
            text = head[offset + 0x200 :].partition(b"\0")[0]
            return text.decode("ascii", "replace").split(" ")[0]
        if head[:4] == b"\x7fELF":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                found = re.search(rb"Linux version (\S+) ", whole)
                if found:
                    return found[1].decode("ascii", "replace")
    raise GuestError(f"{image} is no x86 Linux kernel image (bzImage or vmlinux); name another with --kernel")
