# SPDX-License-Identifier: Apache-2.0
"""Whose files are: the host's ids, translated ids, or what an attribute says."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import devices
from sharing import ROOT, USER, Shared, failure, refusal, shared
from virtiofs.client.device import Device
from virtiofs.client.session import OFFER, Session
from virtiofs.fs.passthrough.idmap import Translator
from virtiofs.fs.passthrough.idrules import MAX_ID, TYPES, parse_id_rules
from virtiofs.fs.passthrough.owners import read_text, write_text
from virtiofs.fuse.abi import CONSTANTS

NAME = "user.containers.override_stat"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files need root")
IDS = st.integers(0, MAX_ID)


# --- rules of translation ---


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        (["nonsense:0:1:2"], "type"),
        (["map:0:1"], "map:FROM:TO:COUNT"),
        (["map:0:1:2:3"], "map:FROM:TO:COUNT"),
        (["forbid-guest:0:1:2"], "forbid-guest:FROM:COUNT"),
        (["map:0:0:0"], "zero"),
        (["map:0:4294967295:1"], "from 0 to"),
        (["map:4294967294:0:2"], "from 0 to"),
        (["map:x:0:1"], "decimal"),
        (["map:-1:0:1"], "decimal"),
        (["map"], "map:FROM:TO:COUNT"),
        (["guest:0:100:10", "map:9:500:1"], "overlap at 9"),
        (["host:0:100:10", "squash-host:5:0:1"], "overlap at 5"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_a_reason(rules, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_id_rules(rules)


@given(
    st.lists(
        st.text(alphabet="map-guesthorqbidfx:0123456789 ", max_size=30)
        | st.builds(
            lambda kind, numbers: ":".join([kind, *map(str, numbers)]),
            st.sampled_from([*TYPES, "MAP"]),
            st.lists(st.integers(0, 1 << 33) | st.integers(0, 50), min_size=1, max_size=4),
        ),
        max_size=4,
    )
)
def test_any_texts_are_ranges_or_a_value_error(rules):
    try:
        translation = parse_id_rules(rules)
    except ValueError:
        return
    for ranges in translation:
        for one, two in pairwise(ranges):
            assert one.base + one.count <= two.base
        for entry in ranges:
            assert entry.count > 0 and entry.base + entry.count - 1 <= MAX_ID


@given(IDS, IDS, st.integers(1, 1 << 20), st.integers(0, 1 << 20))
def test_what_is_mapped_comes_back_as_it_was(guest, host, count, offset):
    count = min(count, MAX_ID + 1 - guest, MAX_ID + 1 - host)
    translation = parse_id_rules([f"map:{guest}:{host}:{count}"])
    id = guest + offset % count
    there = Translator(translation.to_host).translate(id)
    assert there == host + offset % count
    assert Translator(translation.to_guest).translate(there) == id


def test_each_type_of_rule_does_what_it_says():
    rules = parse_id_rules(
        [
            "guest:0:1000:10",
            "squash-guest:10:77:10",
            "forbid-guest:20:4294967295",
            "host/5/6/1",
            "squash-host:50:9:9",
        ]
    )
    to_host, to_guest = Translator(rules.to_host), Translator(rules.to_guest)
    assert [to_host.translate(id) for id in (0, 9, 10, 19)] == [1000, 1009, 77, 77]
    assert [to_guest.translate(id) for id in (5, 50, 58)] == [6, 9, 9]
    assert failure(to_host.translate, 20) == failure(to_host.translate, MAX_ID) == errno.EPERM
    assert failure(to_guest.translate, 1000) == errno.EOVERFLOW
    assert Translator(rules.to_guest, keep=True).translate(1000) == 1000
    assert Translator([]).translate(1000) == 1000, "a direction without rules changes nothing"


def test_options_that_make_no_sense_together_are_refused_with_a_reason():
    assert "need --ownership mapped" in refusal("--translate-uid", "map:0:1000:1")
    assert "need --ownership mapped" in refusal("--ownership", "xattr", "--translate-gid", "map:0:1000:1")
    assert "say what is mapped" in refusal("--ownership", "mapped")
    assert "overlap" in refusal(
        "--ownership", "mapped", "--translate-uid", "map:0:1000:2", "--translate-uid", "map:1:5:1"
    )
    assert "--posix-acl needs" in refusal(
        "--ownership", "mapped", "--translate-uid", "map:0:1000:2", "--posix-acl"
    )
    assert "--unmapped-ids needs" in refusal("--unmapped-ids", "keep")


# --- mapped ---

MAPPED = (
    "--ownership",
    "mapped",
    *("--translate-uid", "map:0:100000:1000", "--translate-uid", "forbid-guest:5000:10"),
    *("--translate-gid", "map:0:200000:1000"),
)


@pytest.fixture(scope="module")
def mapped() -> Iterator[Shared]:
    with shared(*MAPPED) as place:
        place.host.chmod(0o777)
        yield place


@needs_root
def test_what_a_guest_makes_belongs_to_the_translated_user(mapped):
    with mapped.caller(0, 5):
        entry, handle = mapped.session.create(ROOT, "f")
        mapped.session.release(entry.nodeid, handle.fh)
    with mapped.caller(7, 0):
        made = [
            mapped.session.mkdir(ROOT, "d"),
            mapped.session.symlink(ROOT, "l", "t"),
            mapped.session.mknod(ROOT, "p", stat.S_IFIFO | 0o600),
            mapped.session.tmpfile(ROOT)[0],
        ]
    assert (entry.attr.uid, entry.attr.gid) == (0, 5)
    host = (mapped.host / "f").stat()
    assert (host.st_uid, host.st_gid) == (100000, 200005)
    for name, node in zip("dlp", made, strict=False):
        status = (mapped.host / name).lstat()
        assert (status.st_uid, status.st_gid, node.attr.uid, node.attr.gid) == (100007, 200000, 7, 0)
    assert (made[3].attr.uid, made[3].attr.gid) == (7, 0)


@needs_root
def test_every_reply_shows_translated_ids(mapped):
    session = mapped.session
    (mapped.host / "all").mkdir()
    (mapped.host / "all" / "f").touch()
    for path in (mapped.host / "all", mapped.host / "all" / "f"):
        os.chown(path, 100003, 200004)
    directory = session.lookup(ROOT, "all")
    entry = session.lookup(directory.nodeid, "f")
    fh = session.opendir(directory.nodeid).fh
    listed = {one.name: one for one in session.readdirplus(directory.nodeid, fh)}[b"f"].entry
    statx = session.statx(entry.nodeid, mask=0x800)
    assert {
        (found.uid, found.gid)
        for found in (directory.attr, entry.attr, session.getattr(entry.nodeid), listed.attr, statx)
    } == {(3, 4)}
    changed = session.setattr(entry.nodeid, uid=10, gid=11)
    assert (changed.uid, changed.gid) == (10, 11)
    status = (mapped.host / "all" / "f").stat()
    assert (status.st_uid, status.st_gid) == (100010, 200011)


@needs_root
def test_a_host_id_without_a_rule_is_nobodys(mapped):
    (mapped.host / "foreign").touch()
    attr = mapped.session.lookup(ROOT, "foreign").attr
    assert (attr.uid, attr.gid) == (NOBODY, NOBODY)


@needs_root
@pytest.mark.parametrize(
    ("uid", "gid", "expected"),
    [(1000, 0, errno.EOVERFLOW), (0, 1000, errno.EOVERFLOW), (5003, 0, errno.EPERM)],
)
def test_a_guest_id_without_a_rule_makes_nothing(mapped, uid, gid, expected):
    before = sorted(os.listdir(mapped.host))
    with mapped.caller(uid, gid):
        for act in (
            lambda: mapped.session.create(ROOT, "no"),
            lambda: mapped.session.mkdir(ROOT, "no"),
            lambda: mapped.session.symlink(ROOT, "no", "t"),
            lambda: mapped.session.tmpfile(ROOT),
        ):
            assert failure(act) == expected
    (mapped.host / "given").touch()
    node = mapped.session.lookup(ROOT, "given").nodeid
    assert failure(mapped.session.setattr, node, **({"gid": gid} if gid else {"uid": uid})) == expected
    (mapped.host / "given").unlink()
    assert sorted(os.listdir(mapped.host)) == before


@needs_root
def test_supplementary_groups_are_translated(mapped):
    (mapped.host / "grouped").mkdir()
    os.chown(mapped.host / "grouped", 0, 200042)
    (mapped.host / "grouped").chmod(0o770)
    node = mapped.session.lookup(ROOT, "grouped").nodeid
    record = b"".join(n.to_bytes(4, "little") for n in (16, 32, 1, 42))
    refused = b"".join(n.to_bytes(4, "little") for n in (16, 32, 1, 4200))
    with mapped.caller(7, 7):
        assert failure(mapped.session.mkdir, node, "without") == errno.EACCES
        mapped.session.mkdir(node, "with", extensions=record)
        assert failure(mapped.session.mkdir, node, "other", extensions=refused) == errno.EOVERFLOW


@needs_root
def test_ids_without_a_rule_can_be_kept():
    with shared(*MAPPED, "--unmapped-ids", "keep") as place:
        place.host.chmod(0o777)
        with place.caller(1234, 1234):
            attr = place.session.mkdir(ROOT, "d").attr
        assert (attr.uid, attr.gid) == (1234, 1234)
        assert (place.host / "d").stat().st_uid == 1234
        with place.caller(5003, 0):
            assert failure(place.session.mkdir, ROOT, "e") == errno.EPERM


@needs_root
def test_an_unprivileged_daemon_shows_translated_ids():
    rules = ("--translate-uid", f"host:{USER}:0:1", "--translate-gid", f"squash-host:0:7:{MAX_ID}")
    with shared("--ownership", "mapped", *rules, user=USER) as place:
        attr = place.session.mkdir(ROOT, "d").attr
        assert (attr.uid, attr.gid) == (0, 7)
        assert (place.host / "d").stat().st_uid == USER


# --- records of stored owners ---


@given(
    IDS,
    IDS,
    st.integers(0, 0o7777),
    st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK]),
)
def test_a_record_is_read_as_it_was_written(uid, gid, mode, type):
    assert read_text(write_text(uid, gid, mode, type)) == (uid, gid, mode, type, 0, 0)


@given(st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]), st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_a_device_is_read_as_it_was_written(type, major, minor):
    assert read_text(write_text(1, 2, 0o600, type, major, minor)) == (1, 2, 0o600, type, major, minor)


@given(st.binary(max_size=60) | st.text(alphabet=":0123456789abcfhiklopt-", max_size=40).map(str.encode))
def test_any_bytes_are_a_record_or_none(text):
    found = read_text(text)
    if found is not None:
        uid, gid, mode, type, _, _ = found
        fields = text.decode().split(":")
        assert (int(fields[0]), int(fields[1]), int(fields[2], 8) & 0o7777) == (uid, gid, mode)
        assert uid <= MAX_ID and gid <= MAX_ID


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"0:0:0755", (0, 0, 0o755, 0, 0, 0)),
        (b"1000:1001:4711:file", (1000, 1001, 0o4711, stat.S_IFREG, 0, 0)),
        (b"0:0:0100644", (0, 0, 0o644, stat.S_IFREG, 0, 0)),
        (b"0:5:0600:block-8-1", (0, 5, 0o600, stat.S_IFBLK, 8, 1)),
        (b"0:0:0755:nonsense", None),
        (b"0:0:0855", None),
        (b"0:0", None),
        (b"4294967295:0:0755", None),
        (b"-1:0:0755", None),
        (b"0:0:0755:char-4096-0", None),
        (b"0:0:0755:char-1-3 ", None),
    ],
)
def test_records_of_other_tools_are_understood(text, expected):
    assert read_text(text) == expected


# --- stored ---


@pytest.fixture(scope="module")
def stored() -> Iterator[Shared]:
    user = USER if os.geteuid() == 0 else None
    with shared("--ownership", "xattr", user=user) as place:
        yield place


def record(place: Shared, name: str) -> bytes:
    return os.getxattr(place.host / name, NAME)


def test_a_guests_root_owns_what_it_makes_and_can_give_it_away(stored):
    session = stored.session
    entry, handle = session.create(ROOT, "f", mode=0o4755)
    assert (entry.attr.uid, entry.attr.gid, entry.attr.mode) == (0, 0, stat.S_IFREG | 0o4755)
    attr = session.setattr(entry.nodeid, uid=1234, gid=5678, valid=CONSTANTS["FATTR_KILL_SUIDGID"])
    assert (attr.uid, attr.gid, attr.mode & 0o7777) == (1234, 5678, 0o755)
    attr = session.setattr(entry.nodeid, mode=0o2711)
    assert (attr.uid, attr.gid, attr.mode & 0o7777) == (1234, 5678, 0o2711)
    assert record(stored, "f") == b"1234:5678:2711:file"
    host = (stored.host / "f").stat()
    assert (host.st_uid, stat.S_IMODE(host.st_mode)) == (stored.host.stat().st_uid, 0o600)
    session.write(entry.nodeid, handle.fh, 0, b"data")
    assert (stored.host / "f").read_bytes() == b"data"


def test_a_user_of_the_guest_owns_what_he_makes(stored):
    session = stored.session
    with stored.caller(1000, 1001):
        directory = session.mkdir(ROOT, "home", 0o1770)
        entry, _ = session.create(directory.nodeid, "f", mode=0)
        unnamed, _ = session.tmpfile(directory.nodeid, mode=0o640)
    for node, mode in ((directory, 0o41770), (entry, 0o100000), (unnamed, 0o100640)):
        assert (node.attr.uid, node.attr.gid, node.attr.mode) == (1000, 1001, mode)
    assert stat.S_IMODE((stored.host / "home").stat().st_mode) == 0o700
    # The guest's mode says nothing about what we can open.
    session.open(entry.nodeid, os.O_RDWR)
    session.link(unnamed.nodeid, directory.nodeid, "named")
    assert session.lookup(directory.nodeid, "named").attr.mode == 0o100640


@pytest.mark.parametrize(
    ("type", "rdev", "text"),
    [
        (stat.S_IFCHR, 0x103, b"char-1-3"),
        (stat.S_IFBLK, 0x801, b"block-8-1"),
        (stat.S_IFBLK, 0x12345678, b"block-1110-74616"),
        (stat.S_IFCHR, 0, b"char-0-0"),
        (stat.S_IFIFO, 0, b"pipe"),
        (stat.S_IFSOCK, 0, b"socket"),
        (stat.S_IFREG, 0, b"file"),
    ],
)
def test_nodes_are_recorded_and_never_real(stored, type, rdev, text):
    name = text.decode()
    with stored.caller(0, 6):
        entry = stored.session.mknod(ROOT, name, type | 0o640, rdev=rdev)
    assert (entry.attr.mode, entry.attr.rdev, entry.attr.gid) == (type | 0o640, rdev, 6)
    assert stat.S_ISREG((stored.host / name).stat().st_mode)
    assert record(stored, name) == b"0:6:0640:" + text
    attr = stored.session.setattr(entry.nodeid, mode=0o600, uid=3)
    assert (attr.mode, attr.uid, attr.rdev) == (type | 0o600, 3, rdev)
    statx = stored.session.statx(entry.nodeid)
    assert (statx.mode, os.makedev(statx.rdev_major, statx.rdev_minor)) == (type | 0o600, rdev)
    fh = stored.session.opendir(ROOT).fh
    kinds = {one.name.decode(): one.type for one in stored.session.readdir(ROOT, fh)}
    assert kinds[name] == 0, "only a look-up tells the type"
    kinds = {one.name.decode(): one.type for one in stored.session.readdirplus(ROOT, fh)}
    assert kinds[name] == type >> 12


def test_every_reply_shows_the_stored_owner(stored):
    session = stored.session
    (stored.host / "d").mkdir(mode=0o700)
    (stored.host / "d" / "f").touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(stored.host / "d", USER, USER)
        os.chown(stored.host / "d" / "f", USER, USER)
    os.setxattr(stored.host / "d" / "f", NAME, b"11:12:0751:file")
    directory = session.lookup(ROOT, "d").nodeid
    entry = session.lookup(directory, "f")
    handle = session.open(entry.nodeid, os.O_RDWR).fh
    fh = session.opendir(directory).fh
    listed = {one.name: one for one in session.readdirplus(directory, fh)}[b"f"].entry
    found = [
        *(entry.attr, listed.attr, session.getattr(entry.nodeid), session.getattr(entry.nodeid, handle)),
        *(session.setattr(entry.nodeid, size=3), session.statx(entry.nodeid, mask=0x800)),
        session.link(entry.nodeid, directory, "g").attr,
    ]
    assert {(one.uid, one.gid, one.mode) for one in found} == {(11, 12, 0o100751)}


def test_a_file_without_a_record_is_roots_and_has_no_set_id_bits(stored):
    (stored.host / "plain").touch()
    (stored.host / "dir").mkdir()
    for name in ("plain", "dir"):
        if os.geteuid() == 0:
            os.chown(stored.host / name, USER, USER)
        (stored.host / name).chmod(0o6755)
    os.symlink("target", stored.host / "link")
    if os.geteuid() == 0:
        os.chown(stored.host / "link", USER, USER, follow_symlinks=False)
    for name, mode in (("plain", 0o100755), ("dir", 0o40755), ("link", 0o120777)):
        attr = stored.session.lookup(ROOT, name).attr
        assert (attr.uid, attr.gid, attr.mode) == (0, 0, mode)


@needs_root
def test_a_file_of_another_user_of_the_host_is_nobodys_whatever_it_says(stored):
    """Else any user of the host could make a set-user-id program for the guest."""
    (stored.host / "foreign").touch()
    os.setxattr(stored.host / "foreign", NAME, b"0:0:4755:file")
    os.chown(stored.host / "foreign", 4242, 4242)
    (stored.host / "foreign").chmod(0o6777)
    entry = stored.session.lookup(ROOT, "foreign")
    assert (entry.attr.uid, entry.attr.gid, entry.attr.mode) == (NOBODY, NOBODY, 0o100777)
    assert failure(stored.session.setattr, entry.nodeid, uid=0) == errno.EPERM
    assert failure(stored.session.setattr, entry.nodeid, mode=0o4755) == errno.EPERM
    assert record(stored, "foreign") == b"0:0:4755:file"


@pytest.mark.parametrize("text", [b"", b"nonsense", b"0:0:0755:file" + b"x" * 200, b"0:0:0755\0:file"])
def test_a_record_that_is_broken_counts_as_none(stored, text):
    name = f"broken{len(text)}"
    (stored.host / name).touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(stored.host / name, USER, USER)
    os.setxattr(stored.host / name, NAME, text)
    entry = stored.session.lookup(ROOT, name)
    assert (entry.attr.uid, entry.attr.mode) == (0, 0o100600)
    assert stored.session.setattr(entry.nodeid, uid=5).uid == 5
    assert record(stored, name) == b"5:0:0600:file"


def test_a_symbolic_link_has_the_default_owner_and_no_other(stored):
    entry = stored.session.symlink(ROOT, "symlink", "target")
    assert (entry.attr.uid, entry.attr.gid) == (0, 0)
    stored.session.setattr(entry.nodeid, uid=0, gid=0)
    assert failure(stored.session.setattr, entry.nodeid, uid=5) == errno.EPERM
    assert failure(stored.session.setattr, entry.nodeid, mode=0o700) == errno.EOPNOTSUPP


def test_a_directorys_group_is_inherited_where_it_says_so(stored):
    session = stored.session
    node = session.mkdir(ROOT, "sgid", 0o777).nodeid
    session.setattr(node, gid=77)
    session.setattr(node, mode=0o2777)
    with stored.caller(1000, 1000):
        inner = session.mkdir(node, "inner", 0o755)
        program, _ = session.create(node, "program", mode=0o2755)
        mine, _ = session.create(
            node, "mine", mode=0o2755, extensions=b"".join(n.to_bytes(4, "little") for n in (16, 32, 1, 77))
        )
    roots, _ = session.create(node, "roots", mode=0o2755)
    assert (inner.attr.gid, inner.attr.mode) == (77, 0o42755)
    assert (program.attr.gid, program.attr.mode) == (77, 0o100755), "he is not in that group"
    assert (mine.attr.gid, mine.attr.mode) == (77, 0o102755)
    assert (roots.attr.gid, roots.attr.mode) == (77, 0o102755)


def test_the_record_is_not_the_guests_to_see_or_touch():
    for options in ((), ("--xattr",)):
        with shared("--ownership", "xattr", *options) as place:
            session = place.session
            node = session.create(ROOT, "f")[0].nodeid
            session.setxattr(node, "user.x", b"1")
            assert session.listxattr(node) == [b"user.x"]
            assert failure(session.getxattr, node, NAME) == errno.ENODATA
            assert failure(session.setxattr, node, NAME, b"0:0:4777") == errno.EPERM
            assert failure(session.removexattr, node, NAME) == errno.EPERM
            assert record(place, "f") == b"0:0:0644:file"


def test_the_record_can_not_be_reached_through_a_map():
    with shared("--ownership", "xattr", "--xattrmap", ":prefix:all:containers.:user.::ok:all:::") as place:
        node = place.session.create(ROOT, "f")[0].nodeid
        for name in ("containers.override_stat", NAME):
            assert failure(place.session.setxattr, node, name, b"0:0:4777") == errno.EPERM
        assert place.session.listxattr(node) == []


def test_owners_outlive_the_daemon():
    user = USER if os.geteuid() == 0 else None
    with shared("--ownership", "xattr", user=user) as place:
        node = place.session.create(ROOT, "f", mode=0o640)[0].nodeid
        place.session.setattr(node, uid=7, gid=8)
        with (
            devices.start_ours(place.host, ["--ownership", "xattr"], user) as again,
            Device.connect(again.socket) as device,
        ):
            attr = Session(device).lookup(ROOT, "f").attr
            assert (attr.uid, attr.gid, attr.mode) == (7, 8, 0o100640)


def test_a_device_node_is_still_refused_where_it_would_be_real():
    with shared() as place:
        assert failure(place.session.mknod, ROOT, "null", stat.S_IFCHR | 0o666, 0x103) == errno.EPERM


# --- security contexts ---


def context(name: bytes, value: bytes) -> bytes:
    """The record of one security context (struct fuse_secctx_header and what follows)."""
    body = len(value).to_bytes(4, "little") + bytes(4) + name + b"\0" + value
    body += bytes(-len(body) % 8)
    return (8 + len(body)).to_bytes(4, "little") + (1).to_bytes(4, "little") + body


LABELS = OFFER | CONSTANTS["FUSE_SECURITY_CTX"]
LABEL = {"extensions": context(b"security.selinux", b"system_u:object_r:t\0")}


def test_what_is_made_gets_its_label_before_the_guest_can_use_it():
    with shared("--security-label", "--xattrmap", ":map:security.:user.v.:", flags=LABELS) as place:
        session = place.session
        assert session.has("SECURITY_CTX")
        nodes = [
            session.create(ROOT, "f", **LABEL)[0],
            session.mkdir(ROOT, "d", **LABEL),
            session.mknod(ROOT, "n", stat.S_IFREG | 0o600, **LABEL),
            session.tmpfile(ROOT, **LABEL)[0],
        ]
        for node in nodes:
            assert session.getxattr(node.nodeid, "security.selinux") == b"system_u:object_r:t\0"
        for name in "fdn":
            assert os.getxattr(place.host / name, "user.v.security.selinux") == b"system_u:object_r:t\0"
        session.create(ROOT, "empty", extensions=(8).to_bytes(4, "little") + bytes(4))
        assert os.listxattr(place.host / "empty") == []


def test_what_can_not_get_its_label_is_not_made():
    rules = ":bad:all:security.no:security.no::map:security.:user.v.:"
    with shared("--security-label", "--xattrmap", rules, flags=LABELS) as place:
        session = place.session
        refused = {"extensions": context(b"security.no", b"x")}
        for act in (session.create, session.mkdir, session.tmpfile):
            names = () if act == session.tmpfile else ("name",)
            assert failure(act, ROOT, *names, **refused) == errno.EPERM
        assert failure(session.mknod, ROOT, "name", stat.S_IFIFO | 0o600, **refused) == errno.EPERM
        # No user.* attribute fits a symbolic link or a FIFO.
        assert failure(session.symlink, ROOT, "name", "target", **LABEL) == errno.EPERM
        assert failure(session.mknod, ROOT, "name", stat.S_IFIFO | 0o600, **LABEL) == errno.EPERM
        too_big = {"extensions": context(b"security.selinux", b"x" * 65537)}
        assert failure(session.mkdir, ROOT, "name", **too_big) == errno.E2BIG
        assert os.listdir(place.host) == []


def test_a_label_that_was_not_agreed_on_is_not_set():
    with shared("--xattr") as place:
        entry, _ = place.session.create(ROOT, "f", **LABEL)
        assert place.session.listxattr(entry.nodeid) == []


def test_labels_need_attributes_that_can_hold_them():
    assert "--security-label needs security" in refusal("--security-label")
    assert "--security-label needs security" in refusal("--security-label", "--xattrmap", ":bad:all:::")


def test_a_stored_owner_and_a_label_come_together():
    options = ("--ownership", "xattr", "--security-label", "--xattrmap", ":map:security.:user.v.:")
    with shared(*options, flags=LABELS) as place:
        # What stands for a FIFO can carry what a FIFO can not.
        entry = place.session.mknod(ROOT, "p", stat.S_IFIFO | 0o620, **LABEL)
        assert entry.attr.mode == stat.S_IFIFO | 0o620
        assert place.session.getxattr(entry.nodeid, "security.selinux") == b"system_u:object_r:t\0"
