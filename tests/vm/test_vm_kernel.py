# SPDX-License-Identifier: Apache-2.0
"""Finding a kernel and its modules, on kernels and module trees made here."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.kernel import NEEDED_MODULES, cache_directory, find_kernel, open_kernel
from virtiofs.vm.modules import ModuleTree, read_module

VERSION = "6.9.1-test"
NEEDS = {
    "virtio_ring": "",
    "virtio": "virtio_ring",
    "virtio_pci_modern_dev": "",
    "virtio-pci": "virtio_ring,virtio_pci_modern_dev,virtio",
    "virtio_console": "virtio,virtio_ring",
    "fuse": "",
    "virtiofs": "fuse,virtio,virtio_ring",
}


def module(name: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + NEEDS[name].encode() + b"\0name=" + name.encode() + b"\0"


def bzimage(path: Path, version: str = VERSION) -> Path:
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x400)
    text = version.encode() + b" (builder@host) #1 SMP\0"
    image[0x600 : 0x600 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def module_tree(root: Path, names: tuple[str, ...] = tuple(NEEDS), builtin: str = "") -> Path:
    directory = root / "lib" / "modules" / VERSION
    (directory / "kernel" / "drivers").mkdir(parents=True)
    (directory / "modules.builtin").write_text(builtin)
    for name in names:
        (directory / "kernel" / "drivers" / f"{name}.ko").write_bytes(module(name))
    return directory


def stems(paths: list[Path]) -> list[str]:
    return [path.name.partition(".ko")[0] for path in paths]


def test_what_a_module_needs_is_loaded_before_it(tmp_path: Path) -> None:
    order = stems(ModuleTree(module_tree(tmp_path)).load_order(NEEDED_MODULES))
    assert sorted(order) == sorted(NEEDS)
    for name, needs in NEEDS.items():
        for need in filter(None, needs.split(",")):
            assert order.index(need) < order.index(name)


def test_modules_dep_is_believed_where_it_is(tmp_path: Path) -> None:
    directory = module_tree(tmp_path)
    (directory / "modules.dep").write_text(
        "kernel/drivers/fuse.ko:\n"
        "updates/virtiofs.ko.xz: kernel/drivers/virtio.ko kernel/drivers/virtio_ring.ko kernel/drivers/fuse.ko\n"
        "kernel/drivers/virtio.ko: kernel/drivers/virtio_ring.ko\n"
        "kernel/drivers/virtio_ring.ko:\n"
    )
    tree = ModuleTree(directory)
    assert tree.load_order(["virtiofs"]) == [
        directory / "kernel/drivers/fuse.ko",
        directory / "kernel/drivers/virtio_ring.ko",
        directory / "kernel/drivers/virtio.ko",
        directory / "updates/virtiofs.ko.xz",
    ]


def test_what_is_built_in_is_there_and_not_loaded(tmp_path: Path) -> None:
    builtin = (
        "kernel/fs/fuse/fuse.ko\nkernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_ring.ko\n"
    )
    tree = ModuleTree(module_tree(tmp_path, ("virtiofs",), builtin))
    assert "fuse" in tree
    assert stems(tree.load_order(["virtiofs", "fuse"])) == ["virtiofs"]


def test_a_module_the_kernel_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nonesuch"):
        ModuleTree(module_tree(tmp_path)).load_order(["fuse", "nonesuch"])


def test_compressed_modules_are_read_as_they_were(tmp_path: Path) -> None:
    plain = module("virtiofs")
    packed = {".ko": plain, ".ko.gz": gzip.compress(plain), ".ko.xz": lzma.compress(plain)}
    if shutil.which("zstd"):
        packed[".ko.zst"] = subprocess.run(
            ["zstd", "-c"], input=plain, capture_output=True, check=True
        ).stdout
    for suffix, data in packed.items():
        path = tmp_path / f"virtiofs{suffix}"
        path.write_bytes(data)
        assert read_module(path) == plain


@pytest.mark.parametrize("suffix", [".ko.gz", ".ko.xz", ".ko.zst"])
def test_a_damaged_module_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fuse{suffix}"
    path.write_bytes(b"this is not compressed")
    with pytest.raises(ValueError, match=rf"fuse{suffix}.*(damaged|zstd)"):
        read_module(path)


def test_the_modules_beside_a_kernel_are_found(tmp_path: Path) -> None:
    directory = module_tree(tmp_path)
    kernel = open_kernel(bzimage(tmp_path / "boot" / f"vmlinuz-{VERSION}"))
    assert kernel.version == VERSION
    assert kernel.modules is not None
    assert kernel.modules.directory == directory
    assert kernel.missing() == []


def test_an_uncompressed_kernel_tells_its_version(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(
        b"\x7fELF" + bytes(70000) + f"Linux version {VERSION} (builder@host) #1".encode() + bytes(99)
    )
    kernel = open_kernel(image)
    assert (kernel.version, kernel.modules) == (VERSION, None)


def test_a_kernel_without_virtiofs_is_refused_in_one_line_that_tells_what_to_do(tmp_path: Path) -> None:
    module_tree(tmp_path, tuple(name for name in NEEDS if name != "virtiofs"))
    image = bzimage(tmp_path / "boot" / "vmlinuz-x")
    with pytest.raises(GuestError, match=rf"guest kernel {VERSION} .*has no virtiofs: .*--kernel") as caught:
        find_kernel(image)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(GuestError, match="is no x86 Linux kernel"):
        find_kernel(tmp_path / "file")


def test_a_missing_kernel_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match="linux-image-amd64"):
        find_kernel(tmp_path / "nowhere")


def test_kernels_are_looked_for_in_the_promised_order(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    module_tree(cache / "kernel")
    old = bzimage(cache / "kernel" / "boot" / "vmlinuz-6.9.1")
    new = bzimage(cache / "kernel" / "boot" / "vmlinuz-6.10.1")
    named = bzimage(tmp_path / "named")
    environ = {"VIRTIOFS_CACHE": str(cache), "HOME": str(tmp_path)}
    assert find_kernel(None, environ).path == new
    assert find_kernel(None, environ | {"VIRTIOFS_KERNEL": str(named)}).path == named
    assert find_kernel(old, environ | {"VIRTIOFS_KERNEL": str(named)}).path == old


def test_the_cache_directory_follows_the_environment() -> None:
    assert cache_directory({"VIRTIOFS_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/c")
    assert cache_directory({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/virtiofs")
    assert cache_directory({"HOME": "/h"}) == Path("/h/.cache/virtiofs")
