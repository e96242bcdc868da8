# SPDX-License-Identifier: Apache-2.0
"""The units of contrib/systemd, as far as that shows without systemd as the first process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.sandbox import capabilities
from virtiofs.sandbox.walls import BUILDING, HANDLES, SHARE

UNITS = Path(__file__).resolve().parents[2] / "contrib" / "systemd"
SECONDS = 30.0


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program}")


def values(key: str) -> list[str]:
    """Words of all lines of the service unit with this key."""
    lines = (UNITS / "virtiofs@.service").read_text().splitlines()
    return [word for line in lines if line.startswith(f"{key}=") for word in line.partition("=")[2].split()]


def test_the_unit_leaves_the_capabilities_that_the_walls_need() -> None:
    listed = {name.removeprefix("CAP_").lower() for name in values("CapabilityBoundingSet")}
    assert listed == set(capabilities.names(SHARE | HANDLES | BUILDING))


@needs("systemd-analyze")
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    for name in ("virtiofs@.service", "virtiofs@.socket"):
        text = (UNITS / name).read_text().replace("/usr/local/bin/virtiofs", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    said = [line for line in done.stderr.splitlines() if "virtiofs@" in line]
    assert not said and done.returncode == 0, done.stderr


@needs("systemd-socket-activate")
@needs("setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to bound")
def test_a_vmm_that_connects_starts_the_command_of_the_unit(tmp_path: Path) -> None:
    """Its ExecStart=, with its capabilities, on a socket that is passed as systemd passes it."""
    share = tmp_path / "it"
    share.mkdir()
    (share / "file").write_text("contents")
    path, control = str(tmp_path / "sock"), str(tmp_path / "control")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(SECONDS)
    (line,) = [line for line in (UNITS / "virtiofs@.service").read_text().splitlines() if "ExecStart" in line]
    start = line.partition("=")[2].replace("%i", "it").replace("$OPTIONS", "--readonly")
    words = [word.replace("${DIRECTORY}", str(share)) for word in shlex.split(start)]
    words[words.index("/run/virtiofs/it/control")] = control
    bounds = [f"+{name.removeprefix('CAP_').lower()}" for name in values("CapabilityBoundingSet")]
    command = [
        *("systemd-socket-activate", "-l", path, "-E", "PYTHONPATH", "-E", "NOTIFY_SOCKET", "setpriv"),
        *("--no-new-privs", f"--bounding-set=-all,{','.join(bounds)}"),
        *(sys.executable, "-m", "virtiofs", *words[1:]),
    ]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert devices.wait_until(lambda: os.path.exists(path), SECONDS)
        for _ in range(2):  # it stays for the next VMM
            with Device.connect(path) as device:
                assert device.tag == "it"
                tree = Tree(Session(device))
                assert tree.read_file("/file") == b"contents"
                with pytest.raises(OSError):
                    tree.write_file("/new", b"")
        assert told.recv(4096).startswith(b"READY=1")
    finally:
        process.terminate()
        _, said = process.communicate(timeout=SECONDS)
        told.close()
    assert process.returncode == 0, said


def test_the_discovery_file_is_what_vhost_user_programs_look_for() -> None:
    text = (UNITS.parent / "qemu" / "50-virtiofs.json").read_text()
    assert json.loads(text).items() >= {"type": "fs", "binary": "/usr/local/bin/virtiofsd"}.items()
