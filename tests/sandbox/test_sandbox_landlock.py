# SPDX-License-Identifier: Apache-2.0
"""Landlock: a restricted process touches one directory, and no other file, network or process."""

from __future__ import annotations

import os
import socket

import pytest
from inside import child, needs_root, outcome

from virtiofs.sandbox import landlock
from virtiofs.sandbox.process import no_new_privileges

VERSION = landlock.version()
pytestmark = pytest.mark.skipif(VERSION < 2, reason="this kernel has no Landlock, or its first version")
DENIED = "Permission denied"


def restricted(act, directory, read_only=False):
    def run():
        no_new_privileges()
        assert landlock.restrict(str(directory), read_only)
        return act()

    said, ended = child(run)
    assert ended == 0
    return said


def test_nothing_outside_can_be_opened_even_by_a_descriptor_of_its_directory(outside):
    directory = os.open(outside, os.O_RDONLY)
    path = os.open(outside / "secret", os.O_PATH)
    try:
        said = restricted(
            lambda: [
                outcome(lambda: os.open(outside / "secret", os.O_RDONLY)),
                outcome(lambda: os.open("secret", os.O_RDONLY, dir_fd=directory)),
                outcome(lambda: os.open(f"/proc/self/fd/{path}", os.O_RDONLY)),
                outcome(lambda: os.open("../secret", os.O_RDONLY)),
                outcome(lambda: os.mkdir(outside / "new")),
                outcome(lambda: os.unlink(outside / "secret")),
                outcome(lambda: os.listdir(outside)),
            ],
            outside / "share",
        )
    finally:
        os.close(directory)
        os.close(path)
    assert said[:3] == [DENIED] * 3
    assert said[3] != "done"
    assert said[4:] == [DENIED] * 3


def test_all_of_the_directory_can_be_used(outside):
    share = outside / "share"

    def act():
        (share / "a").mkdir()
        (share / "b").mkdir()
        (share / "a/f").write_text("x")
        os.rename(share / "a/f", share / "b/f")
        os.link(share / "b/f", share / "a/g")
        os.symlink("/nowhere", share / "a/s")
        os.mkfifo(share / "a/p")
        os.truncate(share / "b/f", 0)
        fd = os.open(share / "a", os.O_TMPFILE | os.O_RDWR)
        proc = os.open("/proc/self/fd", os.O_PATH)
        os.link(str(fd), share / "b/t", src_dir_fd=proc, follow_symlinks=True)
        os.unlink(share / "a/s")
        return sorted(os.listdir(share / "b"))

    assert restricted(act, share) == ["f", "t"]


def test_a_read_only_directory_can_not_be_changed(outside):
    share = outside / "share"
    said = restricted(
        lambda: [
            (share / "file").read_text(),
            outcome(lambda: os.open(share / "file", os.O_WRONLY)),
            outcome(lambda: os.unlink(share / "file")),
            outcome(lambda: os.mkdir(share / "new")),
        ],
        share,
        read_only=True,
    )
    assert said == ["content", DENIED, DENIED, DENIED]


@pytest.mark.skipif(VERSION < 4, reason="needs Landlock 4")
def test_no_network_even_without_a_directory():
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = restricted(
            lambda: [
                outcome(lambda: socket.create_connection(server.getsockname())),
                outcome(lambda: socket.create_server(("127.0.0.1", 0))),
            ],
            "",
        )
    assert said == [DENIED, DENIED]


@pytest.mark.skipif(VERSION < 6, reason="needs Landlock 6")
def test_no_signal_to_another_process():
    said = restricted(
        lambda: [outcome(lambda: os.kill(os.getppid(), 0)), outcome(lambda: os.kill(os.getpid(), 0))], ""
    )
    assert said == ["Operation not permitted", "done"]


@needs_root
def test_without_a_directory_files_are_as_they_were(outside):
    """A file that is reached by handle would be refused otherwise."""

    def act():
        os.mkdir(outside / "a")
        os.rename(outside / "secret", outside / "a/secret")
        return (outside / "a/secret").read_text()

    assert restricted(act, "") == "secret"
