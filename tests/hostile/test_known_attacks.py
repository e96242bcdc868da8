# SPDX-License-Identifier: Apache-2.0
"""What went wrong in programs of this kind before, tried on ours: one list, one attack each.

docs/security.md has the same list; `FINDINGS` is written into it, and a test compares them.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import resource
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from watching import OPEN, Watch

import devices
from sharing import ROOT, failure, shared
from virtiofs.cli import main, virtiofsd
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import CONSTANTS
from virtiofs.vhostuser.frontend import FrontEndError
from virtiofs.vhostuser.transport import TransportError

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "security.md"
USER, GROUP = 1000, 4242
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)  # cap_sys_admin, effective


class Finding(NamedTuple):
    """One row: its name and where it was found, what an attacker does, why that fails here, and who else tries it."""

    id: str
    where: str
    what: str
    why: str
    attack: Callable[[Path], None]
    also: tuple[str, ...] = ()  # "file::test" below tests/


FINDINGS: list[Finding] = []


def finding(id: str, where: str, what: str, why: str, *also: str) -> Callable[[Callable], Callable]:
    def enter(attack: Callable[[Path], None]) -> Callable[[Path], None]:
        FINDINGS.append(Finding(id, where, what, why, attack, also))
        return attack

    return enter


def beside(place: Path) -> tuple[Path, Path]:
    """A share, and a file beside it that no guest may reach."""
    (place / "share").mkdir()
    (place / "secret").write_text("secret")
    return place / "share", place / "secret"


@finding(
    "CVE-2020-10717",
    "C virtiofsd",
    "looks up and opens more files than the host has descriptors for",
    "a limit of the worker's own, never above a million; a bounded pool for what is looked up, and ENFILE for what is"
    " opened beyond it",
    "fs/test_inodes.py::test_many_known_inodes_cost_few_descriptors_and_all_stay_reachable",
)
def exhaust_descriptors(place: Path) -> None:
    limit = 1500
    with shared("--rlimit-nofile", str(limit)) as guest:
        for number in range(2 * limit):
            (guest.host / f"f{number}").touch()
        nodes = [guest.session.lookup(ROOT, f"f{number}").nodeid for number in range(2 * limit)]
        handles = []
        with pytest.raises(OSError) as caught:
            while len(handles) < 2 * limit:
                handles.append(guest.session.open(nodes[len(handles)]).fh)
        assert caught.value.errno == errno.ENFILE
        worker = guest.running.worker
        assert resource.prlimit(worker, resource.RLIMIT_NOFILE) == (limit, limit)
        assert len(os.listdir(f"/proc/{worker}/fd")) < limit
        # Still served, and well again when it gives some back.
        assert guest.session.getattr(nodes[-1]).size == 0
        guest.session.release(nodes[0], handles[0])
        guest.session.open(nodes[-1])
    with shared() as guest:
        assert resource.prlimit(guest.running.worker, resource.RLIMIT_NOFILE)[1] <= 1_000_000


@finding(
    "CVE-2020-35517",
    "C virtiofsd",
    "opens a device node of the share, which is the host's device",
    "only regular files and directories are opened, after fstat said so; MKNOD makes no devices; the share is mounted"
    " nodev",
    "hostile/test_special_files.py::test_no_request_opens_a_special_file",
    "hostile/test_requests.py::test_a_guest_makes_no_device_nodes_on_the_host",
    "sandbox/test_sandbox_walls.py::test_a_device_in_the_share_can_not_be_opened",
)
def open_a_device(place: Path) -> None:
    with shared("--sandbox", "none") as guest:
        assert (
            failure(guest.session.mknod, ROOT, "made", stat.S_IFBLK | 0o666, os.makedev(7, 0)) == errno.EPERM
        )
        os.mknod(guest.host / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        watch = Watch([guest.host / "zero"], OPEN)
        node = guest.session.lookup(ROOT, "zero").nodeid
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            assert failure(guest.session.open, node, flags) == errno.ENXIO
            assert failure(guest.session.create, ROOT, "zero", flags) == errno.ENXIO
        assert watch.seen() == set()
        watch.close()


@finding(
    "CVE-2023-2861",
    "QEMU 9pfs",
    "makes a FIFO or socket and opens it, or puts one in the place of a file that is being opened",
    "the descriptor that was looked at is the one that is opened, only if it is a regular file, and without waiting",
    "hostile/test_special_files.py::test_no_request_opens_a_special_file",
    "hostile/test_host_races.py::test_links_that_take_turns_with_directories_and_files_are_never_followed",
)
def open_a_fifo(place: Path) -> None:
    with shared("--sandbox", "none") as guest:
        (guest.host / "file").write_text("kept")
        known = guest.session.lookup(ROOT, "file").nodeid
        for type_ in (stat.S_IFIFO, stat.S_IFSOCK):
            node = guest.session.mknod(ROOT, "made", type_ | 0o666).nodeid
            watch = Watch([guest.host / "made"], OPEN)
            guest.session.rename(ROOT, "made", ROOT, "file", 2)  # RENAME_EXCHANGE
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
                assert failure(guest.session.open, node, flags) == errno.ENXIO
                assert failure(guest.session.create, ROOT, "file", flags) == errno.ENXIO
            assert guest.session.read(known, guest.session.open(known).fh, 0, 9) == b"kept"
            assert watch.seen() == set()
            watch.close()
            guest.session.rename(ROOT, "made", ROOT, "file", 2)
            guest.session.unlink(ROOT, "made")


@finding(
    "CVE-2021-20263",
    "C virtiofsd, xattrmap",
    "writes to a program whose file capabilities are kept under another name, so that the host does not drop them",
    "a capability that is mapped is removed by hand before each write, truncation, allocation and change of owner",
    "hostile/test_privileges.py::test_a_capability_of_a_program_goes_when_the_program_is_changed",
)
def keep_a_capability(place: Path) -> None:
    with shared("--xattrmap", "/map/security./user.virtiofs./") as guest:
        entry, handle = guest.session.create(ROOT, "program", mode=0o755)
        guest.session.setxattr(entry.nodeid, "security.capability", CAPABILITY)
        assert guest.session.getxattr(entry.nodeid, "security.capability") == CAPABILITY
        guest.session.write(entry.nodeid, handle.fh, 0, b"evil")
        assert guest.session.listxattr(entry.nodeid) == []
        assert os.listxattr(guest.host / "program") == []


@finding(
    "CVE-2022-0358",
    "C virtiofsd; virtiofsd in Rust to 1.8",
    "makes a set-group-ID program in a directory of a group that the daemon is in, but the guest's user is not",
    "the worker has no supplementary groups but those of a request, for as long as it takes",
    "hostile/test_privileges.py::test_a_program_made_in_a_set_group_id_directory_does_not_get_the_bit",
    "hostile/test_privileges.py::test_groups_of_one_request_do_not_stay_for_the_next",
)
def borrow_the_daemons_group(place: Path) -> None:
    before = os.getgroups()
    os.setgroups([GROUP])
    try:
        with shared() as guest:
            make_in_a_group_directory(guest.session, guest.host, lambda: guest.caller(USER, USER))
    finally:
        os.setgroups(before)


@finding(
    "CVE-2018-13405",
    "Linux",
    "makes a set-group-ID program in a set-group-ID directory of a group that the user is not in",
    "creation is done with the ids of the request's user, so that the host's kernel applies its own rule",
    "hostile/test_privileges.py::test_a_program_made_in_a_set_group_id_directory_does_not_get_the_bit",
)
def inherit_a_group(place: Path) -> None:
    with shared() as guest:
        make_in_a_group_directory(guest.session, guest.host, lambda: guest.caller(USER, USER))


def make_in_a_group_directory(session: Session, host: Path, as_user: Callable) -> None:
    (host / "d").mkdir()
    os.chown(host / "d", 0, GROUP)
    (host / "d").chmod(0o2777)
    node = session.lookup(ROOT, "d").nodeid
    with as_user():
        made = [session.create(node, "a", mode=0o2755)[0], session.mknod(node, "b", stat.S_IFREG | 0o2755)]
        made.append(session.tmpfile(node, mode=0o2755)[0])
    for entry in made:
        assert entry.attr.gid == GROUP and not entry.attr.mode & stat.S_ISGID


@finding(
    "CVE-2026-47243",
    "Kata, virtiofsd --sandbox none",
    "gives an absolute name to SYMLINK, and to every other operation that takes one",
    "a name is one component, checked in one place before any operation sees it; that does not depend on the sandbox",
    "hostile/test_requests.py::test_a_bad_name_is_refused_in_every_place_of_every_operation",
)
def name_a_file_of_the_host(place: Path) -> None:
    share, secret = beside(place)
    with (
        devices.start_ours(share, ["--sandbox", "none"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        (share / "good").touch()
        for bad in (str(place / "new"), str(secret), "../new", "../secret", ".."):
            for act in (
                lambda bad=bad: session.symlink(ROOT, bad, "target"),
                lambda bad=bad: session.lookup(ROOT, bad),
                lambda bad=bad: session.create(ROOT, bad, os.O_RDWR | os.O_TRUNC),
                lambda bad=bad: session.mkdir(ROOT, bad),
                lambda bad=bad: session.mknod(ROOT, bad, stat.S_IFREG),
                lambda bad=bad: session.rename(ROOT, "good", ROOT, bad),
                lambda bad=bad: session.rename(ROOT, bad, ROOT, "taken", 0),
                lambda bad=bad: session.link(session.lookup(ROOT, "good").nodeid, ROOT, bad),
                lambda bad=bad: session.unlink(ROOT, bad),
                lambda bad=bad: session.rmdir(ROOT, bad),
            ):
                assert failure(act) == errno.EINVAL
        assert running.alive
    assert sorted(os.listdir(place)) == ["secret", "share"]
    assert (secret.read_text(), os.listdir(share)) == ("secret", ["good"])


@finding(
    "libkrun 329",
    "libkrun",
    "walks upwards out of the share, by `..` or from a directory that was moved out of it",
    "`..` is no name, and what READDIRPLUS tells of it has no node",
    "hostile/test_host_races.py::test_links_that_take_turns_with_directories_and_files_are_never_followed",
    "sandbox/test_sandbox_walls.py::test_in_a_namespace_no_path_leads_out",
)
def walk_upwards(place: Path) -> None:
    share, secret = beside(place)
    (share / "d").mkdir()
    with (
        devices.start_ours(share, ["--sandbox", "none"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        node = session.lookup(ROOT, "d").nodeid
        (share / "d").rename(place / "moved")
        link = session.symlink(ROOT, "up", "..").nodeid
        for start in (ROOT, node, link):
            for name in ("..", ".", "../secret"):
                assert failure(session.lookup, start, name) == errno.EINVAL
            assert failure(session.lookup, start, "secret") in (errno.ENOENT, errno.ENOTDIR)
        for directory in (ROOT, node):
            handle = session.opendir(directory).fh
            entries = session.readdirplus(directory, handle)
            assert [entry.entry for entry in entries if entry.name in (b".", b"..")] == [None, None]
        assert running.alive
    assert secret.read_text() == "secret"


@finding(
    "CVE-2020-2023 to 2026",
    "Kata",
    "puts a symbolic link in the share where the host, or another guest's share, expects a directory or file",
    "links are never followed; a share's own path is resolved once, so that a link put there later ends in an error,"
    " not in another directory; no module is imported from a share",
    "hostile/test_requests.py::test_a_symbolic_link_out_of_the_share_is_data_and_never_followed",
    "sandbox/test_sandbox_walls.py::test_no_module_is_imported_from_what_the_guest_can_write",
)
def lead_another_share_astray(place: Path) -> None:
    """Two guests work together: the share of one lies inside that of the other, and each connection finds it anew."""
    share, secret = beside(place)
    (share / "inner" / "deep").mkdir(parents=True)
    (place / "deep").mkdir()
    (place / "deep" / "secret").write_text("secret")
    (share / "inner" / "deep" / "secret").write_text("inside")
    for mode in ("namespace", "chroot", "none"):
        options = ["--sandbox", mode]
        with (
            devices.start_ours(share, options) as outer,
            devices.start_ours(share / "inner" / "deep", options) as inner,
            Device.connect(outer.socket) as device,
        ):
            accomplice = Session(device)
            with Device.connect(inner.socket) as one:
                assert Session(one).lookup(ROOT, "secret").attr.size == 6
            accomplice.rename(ROOT, "inner", ROOT, "kept")
            accomplice.symlink(ROOT, "inner", str(place))
            for _ in range(3):  # by a worker that was there before the link, and by those that come after it
                with contextlib.suppress(FrontEndError, TransportError), Device.connect(inner.socket) as one:
                    session = Session(one)
                    node = session.lookup(ROOT, "secret").nodeid
                    assert session.read(node, session.open(node).fh, 0, 9) == b"inside"
                    session.create(ROOT, "new")
            accomplice.unlink(ROOT, "inner")
            accomplice.rename(ROOT, "kept", ROOT, "inner")
            assert outer.alive
            assert os.listdir(place / "deep") == ["secret"]


@finding(
    "GHSA-rr59-xxvx-96qr",
    "Kata annotations",
    "appends options to the daemon's command line: `-o source=/`",
    "two different directories to share are an error; the last does not win",
    "cli/test_virtiofsd_options.py::test_the_last_of_a_repeated_option_wins_but_not_for_what_is_shared",
)
def append_options(place: Path) -> None:
    share, _ = beside(place)
    base = ["--shared-dir", str(share), "--socket-path", str(place / "s")]
    for more in (["-o", "source=/"], ["-osource=/"], ["--shared-dir=/"], ["-o", "xattr,source=/,cache=none"]):
        assert virtiofsd.main([*base, *more]) == 2
    with pytest.raises(SystemExit) as caught:
        main.main(["serve", str(share), "--socket", str(place / "s"), "/"])
    assert caught.value.code == 2
    assert not (place / "s").exists()


@finding(
    "CVE-2026-24834",
    "Kata, Cloud Hypervisor",
    "writes through a mapping of a file that is meant to be read-only",
    "a read-only share has no DAX window, as front ends map every page writable; a handle that is open for reading maps"
    " nothing",
    "dax/test_dax_mapping.py::test_a_mapping_allows_no_more_than_its_handle",
    "hostile/test_read_only.py::test_no_page_of_a_file_is_mapped",
    "hostile/test_read_only.py::test_no_operation_of_the_table_leaves_a_trace",
)
def write_through_a_mapping(place: Path) -> None:
    with shared("--readonly") as guest:
        (guest.host / "image").write_text("image")
        node = guest.session.lookup(ROOT, "image").nodeid
        handle = guest.session.open(node).fh
        for flags in (0, 1, 2, 3):
            body = abi.FUSE_SETUPMAPPING_IN.pack(fh=handle, len=4096, flags=flags)
            reply = guest.session.device.request("setupmapping", node, body, 0)
            assert reply.error in (-errno.ENOSYS, -errno.EROFS, -errno.EOPNOTSUPP)
        assert not guest.session.flags & CONSTANTS["FUSE_MAP_ALIGNMENT"]
        assert (guest.host / "image").read_text() == "image"


@finding(
    "(no number)",
    "C virtiofsd, 2020",
    "forgets an inode that another of its requests is using: use after free",
    "a request holds the record it uses; FORGET only decides what the guest may still name",
    "hostile/test_numbers.py::test_forgetting_a_file_under_a_request_that_uses_it_frees_nothing_in_use",
    "hostile/test_numbers.py::test_forget_of_any_count_leaves_a_count_that_is_right",
)
def forget_what_is_in_use(place: Path) -> None:
    (place / "f").write_text("x" * 4096)
    with (
        devices.start_ours(place, ["--queues", "2", "--max-open", "16"]) as running,
        Device.connect(running.socket, queues=2) as device,
    ):
        session = Session(device)
        for _ in range(300):
            session.queue = 1
            node = session.lookup(ROOT, "f").nodeid
            pending = [("open", session.begin("open", node)), ("getattr", session.begin("getattr", node))]
            session.queue = 2
            pending.append(("setattr", session.begin("setattr", node)))
            device.request("forget", node, (1 << 63).to_bytes(8, "little"), queue=0)
            for name, each in pending:
                if failure(session.finish, each, name) not in (0, errno.ESTALE):
                    raise AssertionError(f"{name}: {each.reply}")
            assert failure(session.getattr, node) == errno.ESTALE
        assert running.alive, running.log


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a privileged daemon is attacked, in other users' names"
)


@needs_root
@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.attack.__name__)
def test_what_went_wrong_elsewhere_fails_here(finding: Finding, tmp_path: Path) -> None:
    finding.attack(tmp_path)


@pytest.mark.parametrize("name", sorted({name for finding in FINDINGS for name in finding.also}))
def test_the_tests_that_the_list_names_exist(name: str) -> None:
    file, _, test = name.partition("::")
    tree = ast.parse((HERE.parent / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rows() -> str:
    """The list as docs/security.md has it."""
    lines = ["| finding | attack | why it fails here | tests |", "|---|---|---|---|"]
    for finding in FINDINGS:
        tests = [
            f"`hostile/{Path(__file__).name}::{finding.attack.__name__}`",
            *(f"`{name}`" for name in finding.also),
        ]
        lines.append(
            f"| {finding.id}, {finding.where} | {finding.what} | {finding.why} | {', '.join(tests)} |"
        )
    return "\n".join(lines) + "\n"


def test_the_document_has_the_same_list() -> None:
    assert rows() in DOCUMENT.read_text(), f"docs/security.md needs this table:\n{rows()}"
