# SPDX-License-Identifier: Apache-2.0
"""The QEMU command line, the choice of accelerator, and QEMU's monitor (with a real QEMU, where there is one)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiofs.vm import accelerator
from virtiofs.vm.errors import GuestError, GuestTimeout, MissingPart
from virtiofs.vm.kernel import Kernel
from virtiofs.vm.qemu import Channels, Machine, Share, command_line, find_qemu, memory_size
from virtiofs.vm.qmp import Monitor


def machine(**changes: object) -> Machine:
    shares = [Share("data", "/run/a,b.sock", "/mnt"), Share("more", "/run/c.sock", "/mnt1", True)]
    channels = Channels(monitor=3, stdin=4, stdout=5, stderr=6, control=7)
    default = Machine(["qemu"], "tcg", "/boot/vmlinuz", "/tmp/ramdisk", "/tmp/console", shares, channels)
    return default._replace(**changes)  # type: ignore[arg-type]


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_each_share_gets_a_device_with_shared_guest_memory() -> None:
    words = command_line(machine(queues=3))
    assert "memory-backend-memfd,id=mem,size=524288K,share=on" in values(words, "-object")
    assert values(words, "-m") == ["524288K"]
    assert any("memory-backend=mem" in value for value in values(words, "-machine"))
    assert "socket,id=share1,path=/run/c.sock" in values(words, "-chardev")
    for index, tag in enumerate(("data", "more")):
        assert (
            f"vhost-user-fs-pci,chardev=share{index},tag={tag},num-request-queues=3,queue-size=1024"
        ) in values(words, "-device")


def test_a_comma_in_a_path_does_not_end_it() -> None:
    assert "socket,id=share0,path=/run/a,,b.sock" in values(command_line(machine()), "-chardev")


def test_the_kernel_log_is_quiet_unless_it_is_asked_for() -> None:
    (quiet,) = values(command_line(machine(append="extra=1")), "-append")
    (verbose,) = values(command_line(machine(verbose=True)), "-append")
    assert quiet.split()[-2:] == ["quiet", "extra=1"]
    assert "quiet" not in verbose.split()


def test_a_terminal_is_only_there_when_it_is_wanted() -> None:
    assert not any("virtconsole" in word for word in command_line(machine()))
    with_terminal = machine(channels=machine().channels._replace(terminal=9))
    assert "virtconsole,bus=ports.0,nr=0,chardev=terminal" in values(command_line(with_terminal), "-device")


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("2G", 2 << 30), ("1024", 1 << 30), ("1gib", 1 << 30)]
)
def test_memory_is_read_as_qemu_reads_it(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "512X", "1.5G", "1M", "512M,share=off"])
def test_memory_that_makes_no_guest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="memory"):
        memory_size(text)


def test_a_missing_qemu_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPart, match="qemu-system-x86"):
        find_qemu()


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm: it is never asked for")
@pytest.mark.parametrize(("works", "name"), [(True, "kvm"), (False, "tcg")])
def test_kvm_is_tried_once_for_a_kernel(tmp_path: Path, works: bool, name: str) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(b"1")
    environ = {"VIRTIOFS_CACHE": str(tmp_path / "cache")}
    kernel = Kernel(image, "6.9.1", None)
    trials = []

    def boots() -> bool:
        trials.append(1)
        return works

    for _ in range(3):
        assert accelerator.choose(kernel, "/bin/sh", boots, environ) == name
    assert len(trials) == 1
    (tmp_path / "cache" / "kvm.json").write_text("damaged")
    assert accelerator.choose(kernel, "/bin/sh", boots, environ) == name
    os.utime(image, (1, 1))  # another kernel under the same name
    assert accelerator.choose(kernel, "/bin/sh", boots, environ) == name
    assert len(trials) == 3


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """The monitor of a real QEMU with an empty machine."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64")
    ours, theirs = socket.socketpair()
    with theirs:
        command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
        command += ["-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", "chardev=m,mode=control"]
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    monitor = Monitor(ours)
    try:
        monitor.negotiate()
        yield monitor
    finally:
        monitor.close()
        qemu.kill()
        qemu.wait()


def test_the_monitor_answers_and_tells_of_events(monitor: Monitor) -> None:
    assert monitor.command("query-status")["running"] is True
    monitor.command("stop")
    assert [event["event"] for event in monitor.events()] == ["STOP"]
    assert monitor.events() == []
    assert monitor.command("query-status")["running"] is False


def test_a_command_that_qemu_refuses_is_an_error(monitor: Monitor) -> None:
    with pytest.raises(GuestError, match="refused no-such-command"):
        monitor.command("no-such-command")
    assert monitor.command("query-name") == {}


def ask_until_it_fails(monitor: Monitor) -> None:
    while True:
        monitor.command("query-status")


def test_a_qemu_that_is_gone_is_noticed(monitor: Monitor) -> None:
    monitor.command("quit")
    with pytest.raises(GuestError, match="QEMU"):
        ask_until_it_fails(monitor)
    assert monitor.closed


def test_a_monitor_that_says_nothing_is_not_waited_for_forever() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        silent = Monitor(ours)
        with pytest.raises(GuestTimeout):
            silent.negotiate(timeout=0.01)
        silent.close()
