# SPDX-License-Identifier: Apache-2.0
"""What a process inside the walls can still reach, and what it takes to get in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inside import child, needs_root, outcome, walled

from virtiofs.sandbox import capabilities, landlock
from virtiofs.sandbox.walls import HANDLES, MODES, SHARE, Walls

NOWHERE = {"No such file or directory", "Permission denied"}
pytestmark = needs_root


def walls(outside, **options):
    return Walls(str(outside / "share"), **options)


@pytest.mark.parametrize("file_handles", [True, False])
def test_in_a_namespace_no_path_leads_out(outside, file_handles):
    secret = str(outside / "secret")

    def act(place):
        return [
            os.listdir("/"),
            outcome(lambda: os.open(secret, os.O_RDONLY)),
            outcome(lambda: os.open("../" * 20 + secret[1:], os.O_RDONLY)),
            outcome(lambda: os.open("../" * 20 + secret[1:], os.O_RDONLY, dir_fd=place.proc)),
            outcome(lambda: os.open("/proc/self/root" + secret, os.O_RDONLY)),
            os.stat("..", dir_fd=place.proc).st_ino == os.stat(place.proc).st_ino,
            sorted(os.listdir(place.directory)),
        ]

    said, ended = walled(walls(outside, file_handles=file_handles), act)
    assert ended == 0
    assert said[0] == ["file"] == said[6]
    assert set(said[1:5]) <= NOWHERE
    assert said[5] is True


@pytest.mark.parametrize("mode", ["chroot", "none"])
def test_in_the_other_modes_landlock_refuses_paths_that_lead_out(outside, mode):
    if landlock.version() < 2:
        pytest.skip("this kernel has no Landlock")
    secret = str(outside / "secret")
    root = os.open("/", os.O_PATH)  # a leak of the kind that undoes a chroot: but `enter` closes it

    def act(place):
        return [
            outcome(lambda: os.open(secret, os.O_RDONLY)),
            outcome(lambda: os.open("../" * 20 + secret[1:], os.O_RDONLY)),
            outcome(lambda: os.open("../" * 20 + secret[1:], os.O_RDONLY, dir_fd=place.proc)),
            outcome(lambda: os.open(secret[1:], os.O_RDONLY, dir_fd=root)),
            outcome(lambda: os.mkdir("../" * 20 + str(outside)[1:] + "/new")),
            sorted(os.listdir(place.directory)),
        ]

    try:
        said, ended = walled(walls(outside, mode=mode, file_handles=False, filter="none"), act)
    finally:
        os.close(root)
    assert ended == 0
    assert set(said[:3]) <= NOWHERE
    assert said[3] == "Bad file descriptor"
    assert said[4] in NOWHERE
    assert said[5] == ["file"]
    assert not (outside / "new").exists()


def test_absolute_links_in_the_share_lead_back_into_it(outside):
    (outside / "share/link").symlink_to(outside / "secret")
    (outside / "share/root").symlink_to("/")
    said, _ = walled(
        walls(outside),
        lambda place: [outcome(lambda: os.open("/link", os.O_RDONLY)), sorted(os.listdir("/root"))],
    )
    assert said == ["No such file or directory", ["file", "link", "root"]]


@pytest.mark.parametrize("mode", ["namespace", "chroot", "none"])
def test_a_share_may_be_named_by_a_symbolic_link(outside, mode):
    (outside / "link").symlink_to("share")
    link = Walls(str(outside / "link"), mode=mode)
    said, ended = walled(link, lambda place: os.listdir(place.directory))
    assert (said, ended) == (["file"], 0)


def test_a_device_in_the_share_can_not_be_opened(outside):
    os.mknod(outside / "share/null", 0o666 | 0o020000, os.makedev(1, 3))
    said, _ = walled(walls(outside), lambda place: outcome(lambda: os.open("/null", os.O_RDONLY)))
    assert said == "Permission denied"


def test_a_read_only_share_is_a_read_only_mount(outside):
    def act(place):
        return [
            outcome(lambda: os.open("/file", os.O_WRONLY)),
            outcome(lambda: os.mkdir("/new")),
            outcome(lambda: os.utime("/file")),
        ]

    said, _ = walled(walls(outside, read_only=True, filter="none"), act)
    assert said == ["Read-only file system"] * 3


def test_no_module_is_imported_from_what_the_guest_can_write(outside):
    for path in sys.path:
        if path.startswith("/"):
            planted = outside / "share" / path[1:]
            planted.mkdir(parents=True, exist_ok=True)
            (planted / "colorsys.py").write_text("raise SystemExit('the guest runs code')")
    sys.modules.pop("colorsys", None)

    def act(place):
        try:
            import colorsys  # noqa: F401
        except ImportError:
            return "refused"
        return "imported"

    assert walled(walls(outside), act) == ("refused", 0)


def test_the_capabilities_are_those_a_share_needs(outside):
    def kept(**options):
        return walled(walls(outside, filter="none", **options), lambda place: capabilities.permitted())[0]

    assert kept(file_handles=False) == SHARE & capabilities.permitted()
    assert kept(file_handles=True) == (SHARE | HANDLES) & capabilities.permitted()
    changed = kept(file_handles=False, changes="-mknod:+CAP_SYS_ADMIN")
    assert changed == SHARE & ~capabilities.mask("mknod") | capabilities.mask("sys_admin")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [("mknod", "+NAME or -NAME"), ("+fly", "no capability fly"), ("+chown:", "+NAME or -NAME")],
)
def test_a_change_of_capabilities_that_makes_no_sense_is_refused(outside, changes, reason):
    with pytest.raises(ValueError, match=reason.replace("+", r"\+")):
        walls(outside, changes=changes)


def test_a_capability_that_nobody_has_can_not_be_added(outside):
    def act():
        capabilities.keep(SHARE | capabilities.mask("sys_admin"))
        try:
            walls(outside, changes="+sys_boot")
        except ValueError as error:
            return str(error)

    said, _ = child(act)
    assert "sys_boot" in said


@pytest.mark.parametrize(("mode", "needed"), [("namespace", "sys_admin"), ("chroot", "sys_chroot")])
def test_root_without_the_privilege_is_told_what_to_do(outside, mode, needed):
    def act():
        capabilities.keep(SHARE)
        try:
            walls(outside, mode=mode)
        except OSError as error:
            return str(error)

    said, _ = child(act)
    assert needed in said and "--sandbox" in said


def test_no_core_file_is_ever_left(outside):
    import resource

    said, _ = walled(
        walls(outside, filter="none"), lambda place: list(resource.getrlimit(resource.RLIMIT_CORE))
    )
    assert said == [0, 0]


def test_a_whole_host_can_be_shared(outside):
    """The directory may be the root itself."""
    said, ended = walled(
        Walls("/", file_handles=False, filter="none"),
        lambda place: [sorted(os.listdir("/")) != [], (outside / "secret").read_text()],
    )
    assert ended == 0
    assert said == [True, "secret"]


def test_no_mount_is_left_on_the_host(outside):
    before = Path("/proc/self/mountinfo").read_text()
    walled(walls(outside), lambda place: None)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_directory_that_vanished_is_named(outside):
    made = walls(outside)
    (outside / "share/file").unlink()
    (outside / "share").rmdir()
    said, _ = walled(made, lambda place: "inside")
    assert str(outside / "share") in said and "No such file" in said


def test_chroot_works_without_the_privilege_to_mount(outside):
    """As in a container: then the descriptor of /proc/self/fd is of the host's procfs, and Landlock guards it."""
    needed = SHARE | capabilities.mask("sys_chroot", "setpcap")

    def act():
        capabilities.keep(needed)
        said, ended = walled(
            walls(outside, mode="chroot", file_handles=False),
            lambda place: [
                os.listdir("/"),
                outcome(lambda: os.open("../../../etc", os.O_RDONLY, dir_fd=place.proc)),
            ],
        )
        return [said, ended]

    said, _ = child(act)
    assert said[1] == 0
    assert said[0][0] == ["file"]
    if landlock.version() >= 2:
        assert said[0][1] in NOWHERE


def test_the_supervisor_keeps_only_what_its_workers_need(outside):
    def act():
        walls(outside).leave()
        status = Path("/proc/self/status").read_text()
        left = capabilities.names(capabilities.permitted())
        executed = subprocess.run(["/bin/true"], check=False).returncode
        return [status.split("NoNewPrivs:")[1].split()[0], left, executed]

    said, _ = child(act)
    assert said[0] == "1"
    assert "sys_ptrace" not in said[1] and "net_admin" not in said[1] and "sys_module" not in said[1]
    assert "sys_admin" in said[1] and said[2] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_link_that_takes_the_place_of_a_directory_above_is_refused_and_one_that_was_there_is_not(
    outside, mode
):
    """Each worker finds its share anew; whoever may write above it, as another share's guest, could lead it out."""
    (outside / "way").symlink_to(outside / "share")
    made = Walls(str(outside / "way"), mode=mode, file_handles=False, filter="none")
    said, _ = walled(made, lambda place: sorted(os.listdir(place.directory)))
    assert said == ["file"]
    (outside / "share").rename(outside / "moved")
    (outside / "share").symlink_to("/etc")
    said, _ = walled(made, lambda place: "inside")
    assert str(outside / "share") in said and "symbolic link" in said
    # A directory that was made anew is served: that is how a share is emptied.
    (outside / "share").unlink()
    (outside / "share").mkdir()
    said, _ = walled(made, lambda place: sorted(os.listdir(place.directory)))
    assert said == []
