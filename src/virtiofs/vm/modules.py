# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: which files a guest must load, and in which order.

Source: modules.dep(5), kmod; the kernel's Documentation/kbuild/kbuild.rst for modules.builtin.  A tree that
was only unpacked from a package has no modules.dep, because depmod writes that file at installation.  Then
the order comes from the modules themselves: each names what it needs in the `depends=` entry of its .modinfo
section.

This file stands alone, so that tools/testbed can load it before the package is built.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ModuleTree", "read_module"]

_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


class ModuleTree:
    """The modules of one kernel version, below `directory` (.../lib/modules/VERSION).

    Module names are given with "_" or "-", without a suffix, as modprobe(8) takes them.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._builtin = {_name(line) for line in self._lines("modules.builtin")}
        self._files: dict[str, Path] = {}
        self._depends: dict[str, list[str]] = {}
        table = self._lines("modules.dep")
        if table:
            for line in table:
                file, _, needs = line.partition(":")
                self._files[_name(file)] = self.directory / file
                # Written nearest first; what is needed by others stands last.
                self._depends[_name(file)] = [_name(need) for need in reversed(needs.split())]
        else:
            for folder, _, names in os.walk(self.directory):
                self._files |= {_name(name): Path(folder, name) for name in names if name.endswith(_SUFFIXES)}

    def __contains__(self, name: str) -> bool:
        """Whether the kernel has the module, built in or as a file."""
        return _name(name) in self._builtin or _name(name) in self._files

    def load_order(self, names: Iterable[str]) -> list[Path]:
        """The files to load, in this order, so that all of `names` and what they need are there.

        What is built in is left out.  Raises KeyError(name) for a module that the kernel does not have.
        """
        order: dict[str, Path] = {}
        for name in names:
            self._visit(_name(name), order, set())
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Path], above: set[str]) -> None:
        if name in order or name in self._builtin:
            return
        if name not in self._files:
            raise KeyError(name)
        if name in above:
            raise ValueError(f"{self.directory}: module {name} needs itself")
        for need in self._needs(name):
            self._visit(need, order, above | {name})
        order[name] = self._files[name]

    def _needs(self, name: str) -> list[str]:
        if name not in self._depends:
            listed = _modinfo(read_module(self._files[name]), b"depends")
            self._depends[name] = [_name(need) for need in listed.split(",") if need]
        return self._depends[name]

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.directory / name).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return []


def read_module(path: str | os.PathLike[str]) -> bytes:
    """The module as the kernel wants it, decompressed if the file is .ko.gz, .ko.xz or .ko.zst.

    Raises OSError if it cannot be read, ValueError if it cannot be decompressed (naming the missing program).
    """
    data = Path(path).read_bytes()
    suffix = Path(path).suffix
    try:
        if suffix == ".gz":
            return gzip.decompress(data)
        if suffix == ".xz":
            return lzma.decompress(data)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{path}: damaged module: {error}") from error
    if suffix == ".zst":
        if shutil.which("zstd") is None:
            raise ValueError(f"{path}: no zstd to decompress it with; install the Debian package zstd")
        result = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False)
        if result.returncode != 0:
            raise ValueError(f"{path}: damaged module: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout
    return data


def _name(path: str) -> str:
    """kernel/drivers/virtio/virtio-pci.ko.xz -> virtio_pci"""
    return path.rpartition("/")[2].partition(".ko")[0].strip().replace("-", "_")


def _modinfo(module: bytes, key: bytes) -> str:
    """The value of `key` in the module's .modinfo section, "" if there is none."""
    # The section is a run of NUL-ended "key=value" strings; an ELF parser would find the same bytes.
    start = module.find(b"\0" + key + b"=")
    if start < 0:
        return ""
    start += len(key) + 2
    return module[start : module.index(b"\0", start)].decode("ascii", "replace")
