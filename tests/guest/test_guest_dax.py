# SPDX-License-Identifier: Apache-2.0
"""DAX in real guests: QEMU 11.1's generic device and a kernel that maps files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shares import Place, Served, directory_for_a_share, serve

from virtiofs.cli.ctl import ask
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kernel import newer_kernel
from virtiofs.vm.qemu import find_dax_qemu

pytestmark = pytest.mark.guest

PAGE, RANGE = 4096, 2 << 20
SIZES = (0, 1, 4095, 4096, 4097, RANGE - PAGE, RANGE, RANGE + PAGE, RANGE + 1, 64 << 20)
DAEMON = ("--tag", "data", "--queues", "1", "--dax", "always", "--dax-window")


class Control:
    """What a daemon counts, by its control socket."""

    def __init__(self, path: str):
        self.path = path

    def requests(self, operation: str) -> int:
        """Requests of an operation served so far."""
        for line in str(ask(self.path, {"do": "metrics"})["result"]).splitlines():
            if line.startswith("virtiofs_requests_total{") and f'operation="{operation}"' in line:
                return int(line.rpartition(" ")[2])
        return 0

    def filesystem(self) -> dict[str, object]:
        found: dict[str, object] = ask(self.path, {"do": "status"})["result"][0]["filesystem"]
        return found


@pytest.fixture(scope="module", autouse=True)
def dax_is_possible() -> None:
    try:
        find_dax_qemu()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if newer_kernel() is None:
        pytest.skip("no newer kernel for a guest with DAX: run `make testbed` as root")


@contextlib.contextmanager
def guest_with(directory: Path, probe: Path, window: str) -> Iterator[tuple[Served, Control]]:
    """A guest with a DAX window of a size."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-control-") as place:
        control = Control(f"{place}/control")
        options = [*DAEMON, window, "--control", control.path]
        with serve(directory, probe, options, dax=True, cpus=2, memory="256M") as served:
            yield served, control


@pytest.fixture(scope="module")
def mapped(probe: Path) -> Iterator[tuple[Served, Control]]:
    with directory_for_a_share() as directory, guest_with(directory, probe, "32M") as found:
        found[0].guest.run("dmesg -c >/dev/null")
        yield found


@pytest.fixture(scope="module")
def served(mapped: tuple[Served, Control]) -> Served:
    return mapped[0]


@pytest.fixture
def control(mapped: tuple[Served, Control]) -> Control:
    return mapped[1]


@pytest.fixture(scope="module", params=["inode", "always"])
def mount(request: pytest.FixtureRequest, served: Served) -> str:
    """How the guest maps files: those it is told to, or all of them."""
    served.guest.run(f"umount /mnt && mount -t virtiofs -o dax={request.param} data /mnt")
    assert f"dax={request.param}" in served.guest.run("grep ' /mnt ' /proc/mounts").text
    return str(request.param)


def test_files_of_every_size_are_whole(mount: str, place: Place, control: Control) -> None:
    """The largest is larger than the window."""
    for size in SIZES:
        (place.host / f"f{size}").write_bytes(os.urandom(size))
    reads = control.requests("read")
    sums = dict(line.split()[::-1] for line in place.output("md5sum *").splitlines())
    for size in SIZES:
        expected = hashlib.md5((place.host / f"f{size}").read_bytes()).hexdigest()
        assert sums[f"f{size}"] == expected, size
        assert (place.host / f"f{size}").stat().st_size == size
    if mount == "always":
        assert control.requests("read") == reads


def test_whole_pages_are_read_and_written_without_requests(
    mount: str, place: Place, control: Control
) -> None:
    (place.host / "f").write_bytes(bytes(RANGE))
    before = {name: control.requests(name) for name in ("read", "write", "setupmapping")}
    place.output(
        "dd if=/dev/zero bs=4096 count=512 2>/dev/null | tr '\\0' x | dd of=f bs=4096 conv=notrunc 2>/dev/null"
    )
    assert place.output("md5sum <f").split()[0] == hashlib.md5(b"x" * RANGE).hexdigest()
    assert (place.host / "f").read_bytes() == b"x" * RANGE
    assert control.requests("read") == before["read"]
    assert control.requests("write") == before["write"]
    assert control.requests("setupmapping") > before["setupmapping"]


def test_stores_through_mmap_are_seen_at_once_by_the_host(mount: str, place: Place) -> None:
    (place.host / "f").write_bytes(bytes(4 * PAGE))

    def host_sees_and_answers() -> None:
        with open(place.host / "f", "r+b") as file:
            assert os.pread(file.fileno(), 5, PAGE + 10) == b"guest"
            os.pwrite(file.fileno(), b"host!", 2 * PAGE)

    assert (
        place.do(
            ("open", "f", "f", "rw"),
            ("map", "m", "f", 4 * PAGE, "rw"),
            ("store", "m", PAGE + 10, "guest"),
            ("wait", "stored"),
            ("load", "m", 2 * PAGE, 5),
            answers={"stored": host_sees_and_answers},
        )
        == b"host!"
    )


def test_appended_and_truncated_files_are_right_on_both_sides(mount: str, place: Place) -> None:
    """A storm: by the guest in whole pages and in parts, checked after each step."""
    (place.host / "f").write_bytes(b"a" * PAGE)
    script = """
    md5sum <f >/dev/null
    for n in 1 2 3 4 5 6 7 8 9 10 11 12; do
        dd if=/dev/zero bs=$((n * 1000)) count=1 2>/dev/null | tr '\\0' "$n" >>f
        [ $((n % 4)) = 0 ] && truncate -s 4096 f
        [ $((n % 5)) = 0 ] && truncate -s 20000 f
        md5sum <f
    done
    """
    said = [line.split()[0] for line in place.output(script).splitlines()]
    content, expected = b"a" * PAGE, []
    for n in range(1, 13):
        content += str(n).encode()[:1] * (n * 1000)
        if n % 4 == 0:
            content = content[:PAGE]
        if n % 5 == 0:
            content = content[:20000].ljust(20000, b"\0")
        expected.append(hashlib.md5(content).hexdigest())
    assert said == expected
    assert (place.host / "f").read_bytes() == content


def test_unlinked_and_renamed_files_stay_readable(mount: str, place: Place) -> None:
    (place.host / "f").write_bytes(b"a" * RANGE)
    (place.host / "g").write_bytes(b"b" * RANGE)
    said = place.output("exec 3<f; mv g f; md5sum <&3; md5sum <f; rm f; exec 4<&3; ls")
    assert [line.split()[0] for line in said.splitlines()] == [
        hashlib.md5(letter * RANGE).hexdigest() for letter in (b"a", b"b")
    ]


def test_mappings_are_gone_after_unmounting_and_after_a_reset(
    mount: str, served: Served, place: Place, control: Control
) -> None:
    (place.host / "f").write_bytes(b"a" * RANGE)
    place.output("md5sum f")
    assert control.filesystem()["dax_mappings"]
    served.guest.run("cd / && umount /mnt")
    assert control.filesystem()["dax_mappings"] == 0
    served.guest.run("mount -t virtiofs -o dax=always data /mnt")
    place.output("md5sum f")
    served.guest.reboot()
    served.guest.run("dmesg -c >/dev/null")
    assert place.output("md5sum <f").split()[0] == hashlib.md5(b"a" * RANGE).hexdigest()
    served.guest.run(f"umount /mnt && mount -t virtiofs -o dax={mount} data /mnt")


def test_a_daemon_without_a_window_serves_the_same_device(probe: Path, served: Served) -> None:
    with (
        directory_for_a_share() as directory,
        serve(directory, probe, ["--tag", "data", "--queues", "1"], dax=True, memory="256M") as other,
    ):
        (directory / "f").write_bytes(b"a" * RANGE)
        assert hashlib.md5(b"a" * RANGE).hexdigest() in other.guest.run("md5sum /mnt/f").text


def test_two_guests_see_each_others_stores(probe: Path, served: Served, mount: str) -> None:
    place = served.host / "both"
    place.mkdir()
    (place / "f").write_bytes(bytes(RANGE))
    with guest_with(served.host, probe, "8M") as (other, _):
        here, there = Place(served, "both"), Place(other, "both")

        def other_stores() -> None:
            assert (
                there.do(("open", "f", "f", "rw"), ("map", "m", "f", RANGE, "rw"), ("load", "m", 0, 3))
                == b"one"
            )
            there.do(("open", "f", "f", "rw"), ("map", "m", "f", RANGE, "rw"), ("store", "m", 100, "other"))

        assert (
            here.do(
                ("open", "f", "f", "rw"),
                ("map", "m", "f", RANGE, "rw"),
                ("store", "m", 0, "one"),
                ("wait", "stored"),
                ("load", "m", 100, 5),
                answers={"stored": other_stores},
            )
            == b"other"
        )
    shutil.rmtree(place)
