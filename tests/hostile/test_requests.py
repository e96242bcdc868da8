# SPDX-License-Identifier: Apache-2.0
"""Requests that no kernel would send: refused by the rules of fuse.h, and nothing outside the share is reached."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtiofs.client.device import Caller, Device, Layout
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import BY_NAME, FUSE_IN_HEADER, OPERATIONS

ROOT = 1
# Every string that a request may hold, by its kind in the table, and what a bad one is answered with.
BAD = {
    abi.NAME: {
        b"": errno.EINVAL,
        b".": errno.EINVAL,
        b"..": errno.EINVAL,
        b"/etc/passwd": errno.EINVAL,
        b"../secret": errno.EINVAL,
        b"a/b": errno.EINVAL,
        b"/": errno.EINVAL,
        b"trailing/": errno.EINVAL,
        b"nul\0inside": errno.EINVAL,
        b"x" * 256: errno.ENAMETOOLONG,
        b"x" * 5000: errno.ENAMETOOLONG,
    },
    abi.TARGET: {
        b"": errno.EINVAL,
        b"nul\0inside": errno.EINVAL,
        b"x" * 4096: errno.ENAMETOOLONG,
        b"x" * 70000: errno.ENAMETOOLONG,
    },
    abi.XATTR: {
        b"": errno.EINVAL,
        b"user." + b"x" * 251: errno.ERANGE,
        b"user." + b"x" * 70000: errno.ERANGE,
        b"/etc/passwd": errno.EOPNOTSUPP,
        b"..": errno.EOPNOTSUPP,
    },
    abi.ANY_NAME: {b"nul\0inside": errno.EINVAL},
}
NAMED = [operation for operation in OPERATIONS if operation.names]
BAD_NAMES = [
    pytest.param(operation, position, bad, answer, id=f"{operation.name}-{position}-{bad[:12]!r}-{len(bad)}")
    for operation in NAMED
    for position, kind in enumerate(operation.names)
    for bad, answer in BAD[kind].items()  # a kind that is new has to say here what is bad
]


def arguments(operation: abi.Operation, names: list[bytes]) -> bytes:
    """The body of a request with these strings."""
    structure = operation.args.pack() if operation.args else b""
    if operation.name == "setxattr":
        structure = structure[:8]
    return structure + b"".join(name + b"\0" for name in names)


def send(session: Session, operation: abi.Operation, body: bytes, nodeid: int = ROOT, **more: int) -> int:
    """The errno a request is answered with, 0 for success."""
    room = operation.reply.size if operation.reply else 4096
    reply = session.device.request(operation.name, nodeid, body, room, **more)
    assert reply.error == 0 or reply.used_length == 16
    return -reply.error


def listing(path: os.PathLike[str]) -> set[str]:
    return {os.path.join(place, name) for place, dirs, files in os.walk(path) for name in dirs + files}


@pytest.mark.parametrize(("operation", "position", "bad", "answer"), BAD_NAMES)
def test_a_bad_name_is_refused_in_every_place_of_every_operation(
    served, session, operation, position, bad, answer
):
    before = listing(served.directory.parent)
    names = [b"user.good%d" % i for i in range(len(operation.names))]
    names[position] = bad
    assert send(session, operation, arguments(operation, names)) == answer
    assert listing(served.directory.parent) == before


@pytest.mark.parametrize("name", [b"", b"/", b"..", b"../new", b"/tmp/new", b"x" * 300])
def test_a_name_that_means_nothing_names_nothing(served, session, name):
    before = listing(served.directory.parent)
    body = abi.FUSE_CREATE_IN.pack(flags=os.O_RDWR, mode=0o600) + name + b"\0"
    made = abi.FUSE_CREATE_OUT.unpack(session.device.request("tmpfile", ROOT, body, 144).payload)
    assert made.entry.attr.nlink == 0
    assert listing(served.directory.parent) == before
    session.release(made.entry.nodeid, made.open.fh)
    session.forget(made.entry.nodeid)


@pytest.mark.parametrize("operation", NAMED, ids=lambda operation: operation.name)
def test_a_name_without_its_nul_is_refused(session, operation):
    body = arguments(operation, [b"name"] * len(operation.names))[:-1]
    assert send(session, operation, body) == errno.EINVAL


def test_a_symbolic_link_out_of_the_share_is_data_and_never_followed(served, session):
    link = session.symlink(ROOT, "out", "../secret")
    assert session.readlink(link.nodeid) == b"../secret"
    for act in (
        lambda: session.open(link.nodeid),
        lambda: session.opendir(link.nodeid),
        lambda: session.create(ROOT, "out", os.O_RDWR),
        lambda: session.lookup(link.nodeid, "x"),
        lambda: session.setattr(link.nodeid, size=0),
        lambda: session.setattr(link.nodeid, mode=0o777),
    ):
        with pytest.raises(OSError):
            act()
    session.setattr(link.nodeid, uid=12, gid=13)
    assert os.lstat(served.directory / "out").st_uid == 12
    secret = served.directory.parent / "secret"
    assert secret.read_text() == "secret"
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (os.geteuid(), 0o644)
    session.unlink(ROOT, "out")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_truncation_of_a_request_is_refused_or_complete(session, operation):
    """A request cut short anywhere is answered with an error, or was complete by the table (INIT's short form)."""
    body = arguments(operation, [b"name"] * len(operation.names))
    least = len(body)
    for name, short, flag in abi.SHORT_ARGS:
        if name == operation.name and not flag:
            least = short
    for size in range(least):
        if operation.flags & abi.NO_REPLY:
            session.device.request(operation.name, 999, body[:size], queue=0)
        else:
            assert send(session, operation, body[:size]) == errno.EINVAL


@pytest.mark.parametrize("claimed", [0, 1, 39, 57, 4096, 0xFFFFFFFF])
def test_a_length_that_disagrees_with_the_descriptors_is_refused(session, claimed):
    body = abi.FUSE_GETATTR_IN.pack()
    header = FUSE_IN_HEADER.pack(len=claimed, opcode=BY_NAME["getattr"].opcode, unique=44, nodeid=ROOT)
    pending = session.device.submit(header + body, 120)
    reply = session.device.finish(pending)
    assert reply is not None
    assert (reply.error, reply.unique, reply.used_length) == (-errno.EINVAL, 44, 16)


@pytest.mark.parametrize("size", [0, 1, 16, 39])
def test_a_message_shorter_than_a_header_is_refused(session, size):
    reply = session.device.finish(session.device.submit(bytes(size), 120))
    assert reply is not None
    assert (reply.error, reply.used_length) == (-errno.EINVAL, 16)


@pytest.mark.parametrize("room", [0, 1, 15])
def test_a_request_without_room_for_a_header_is_not_carried_out(served, session, room):
    body = abi.FUSE_MKDIR_IN.pack(mode=0o755) + b"never\0"
    header = FUSE_IN_HEADER.pack(len=40 + len(body), opcode=BY_NAME["mkdir"].opcode, unique=5, nodeid=ROOT)
    pending = session.device.submit(header + body, room)
    session.device.finish(pending)
    assert pending.used_length == 0
    assert not (served.directory / "never").exists()


def test_a_request_without_room_for_its_reply_is_not_carried_out(served, session):
    reply = session.device.request("mkdir", ROOT, abi.FUSE_MKDIR_IN.pack(mode=0o755) + b"never\0", room=127)
    assert reply.error == -errno.EINVAL
    assert not (served.directory / "never").exists()


@pytest.mark.parametrize("opcode", [0, 7, 19, 41, 54, 63, 64, 4096, 436207616, 0xFFFFFFFF])
def test_an_unknown_opcode_is_enosys(session, opcode):
    assert session.device.request(opcode, ROOT, b"", 128).error == -errno.ENOSYS


def test_nothing_is_served_before_init(served):
    with Device.connect(served.socket) as device:
        for operation in OPERATIONS:
            if operation.name == "init" or operation.flags & abi.NO_REPLY:
                continue
            body = arguments(operation, [b"name"] * len(operation.names))
            assert device.request(operation.name, ROOT, body, 4096).error == -errno.EIO


def test_an_older_major_version_is_refused_and_a_newer_one_answered_with_ours(served):
    with Device.connect(served.socket) as device:
        old = device.request("init", 0, abi.FUSE_INIT_IN.pack(major=6, minor=9), 64)
        assert old.error == -errno.EPROTO
        new = device.request("init", 0, abi.FUSE_INIT_IN.pack(major=8, minor=0), 64)
        assert (new.error, abi.FUSE_INIT_OUT.unpack(new.payload).major) == (0, 7)
        assert device.request("getattr", ROOT, abi.FUSE_GETATTR_IN.pack(), 104).error == -errno.EIO


NODES = [0, 2, 999, 1 << 32, (1 << 32) + 1, (7 << 32) + 2, (1 << 64) - 1, 0xFFFFFFFF]


@pytest.mark.parametrize("node", NODES, ids=hex)
def test_an_unknown_node_is_estale(session, node):
    """ESTALE makes Linux repeat the walk from the root; any other error would reach the program."""
    for name in ("getattr", "lookup", "readlink", "mkdir", "unlink", "open", "opendir", "create", "statfs"):
        operation = BY_NAME[name]
        assert (
            send(session, operation, arguments(operation, [b"x"] * len(operation.names)), node)
            == errno.ESTALE
        )


def test_a_node_is_estale_once_it_is_forgotten_and_its_number_is_never_used_again(served, session):
    (served.directory / "f").touch()
    seen = set()
    for _ in range(50):
        node = session.lookup(ROOT, "f").nodeid
        assert node not in seen
        seen.add(node)
        session.forget(node)
        with pytest.raises(OSError) as caught:
            session.getattr(node)
        assert caught.value.errno == errno.ESTALE


def test_forget_never_counts_below_zero_and_never_frees_the_root(served, session):
    (served.directory / "f").touch()
    session.forget(ROOT, 1 << 63)
    node = session.lookup(ROOT, "f").nodeid
    session.forget(node, (1 << 64) - 1)
    session.forget(node, 1)
    again = session.lookup(ROOT, "f").nodeid
    assert again != node
    assert session.getattr(again).size == 0
    session.batch_forget([(again, 1), (again, 1), (ROOT, 5), (12345, 1)])
    assert session.getattr(ROOT).nlink >= 2


HANDLES = [0, 1, 2, 999, 1 << 32, (1 << 64) - 1]


@pytest.mark.parametrize("fh", HANDLES, ids=hex)
@pytest.mark.parametrize(
    "name",
    ["read", "write", "release", "flush", "fsync", "readdir", "releasedir", "fsyncdir", "fallocate", "lseek"],
)
def test_an_unknown_handle_is_ebadf(session, name, fh):
    operation = BY_NAME[name]
    assert operation.args is not None
    more = {"whence": os.SEEK_DATA} if name == "lseek" else {}
    assert send(session, operation, operation.args.pack(fh=fh, **more)) == errno.EBADF


def test_a_directory_handle_is_no_file_handle_and_the_other_way_round(served, session):
    (served.directory / "f").write_text("text")
    node = session.lookup(ROOT, "f").nodeid
    file, directory = session.open(node).fh, session.opendir(ROOT).fh
    for act in (
        lambda: session.read(ROOT, directory, 0, 10),
        lambda: session.release(ROOT, directory),
        lambda: session.readdir(node, file),
        lambda: session.releasedir(node, file),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.EBADF
    session.release(node, file)
    with pytest.raises(OSError, match="release"):
        session.release(node, file)
    session.releasedir(ROOT, directory)
    session.forget(node)


@pytest.mark.parametrize("type_", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_devices_fifos_and_sockets_are_never_opened(served, session, type_):
    """CVE-2020-35517: the device node would be the host's; a FIFO would hang the daemon."""
    path = served.directory / "special"
    os.mknod(path, type_ | 0o666, os.makedev(1, 3))
    try:
        node = session.lookup(ROOT, "special").nodeid
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(OSError) as caught:
                session.open(node, flags)
            assert caught.value.errno == errno.ENXIO
        with pytest.raises(OSError):
            session.create(ROOT, "special", os.O_RDWR)
        with pytest.raises(OSError):
            session.setattr(node, size=0)
        session.forget(node)
    finally:
        path.unlink()


@pytest.mark.parametrize("type_", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_guest_makes_no_device_nodes_on_the_host(served, session, type_):
    with pytest.raises(OSError) as caught:
        session.mknod(ROOT, "device", type_ | 0o666, os.makedev(1, 3))
    assert caught.value.errno == errno.EPERM
    assert not (served.directory / "device").exists()


def test_a_whiteout_can_be_made(served, session):
    """The 0/0 character device of overlayfs opens nothing."""
    session.mknod(ROOT, "whiteout", stat.S_IFCHR, 0)
    status = os.lstat(served.directory / "whiteout")
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0)
    session.unlink(ROOT, "whiteout")


@pytest.mark.parametrize("uid_gid", [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (1000, 0xFFFFFFFF)])
def test_nobody_creates_files_as_the_unknown_user(served, session, uid_gid):
    """To the host 0xffffffff means "keep", which would be root."""
    session.caller = Caller(*uid_gid, 1)
    for name in ("mkdir", "mknod", "symlink", "create", "tmpfile"):
        operation = BY_NAME[name]
        body = arguments(operation, [b"unknown"] * len(operation.names))
        reply = session.device.request(name, ROOT, body, 144, caller=session.caller)
        assert reply.error == -errno.EINVAL
    assert not (served.directory / "unknown").exists()


def test_an_owner_of_the_unknown_id_is_refused(served, session):
    (served.directory / "f").touch()
    node = session.lookup(ROOT, "f").nodeid
    with pytest.raises(OSError) as caught:
        session.setattr(node, uid=0xFFFFFFFF)
    assert caught.value.errno == errno.EINVAL
    session.forget(node)


@pytest.mark.parametrize(
    "name", ["security.capability", "security.selinux", "trusted.x", "system.posix_acl_access"]
)
def test_attributes_that_act_on_the_host_are_out_of_reach(served, session, name):
    (served.directory / "f").touch()
    node = session.lookup(ROOT, "f").nodeid
    for act in (
        lambda: session.setxattr(node, name, b"value"),
        lambda: session.getxattr(node, name),
        lambda: session.removexattr(node, name),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.EOPNOTSUPP
    assert os.listxattr(served.directory / "f") == []
    session.forget(node)


def extension(type_: int, body: bytes, size: int | None = None) -> bytes:
    record = abi.FUSE_EXT_HEADER.pack(size=size if size is not None else 8 + len(body), type=type_) + body
    return record + bytes(-len(record) % 8)


GROUPS = abi.CONSTANTS["FUSE_EXT_GROUPS"]
BAD_EXTENSIONS = {
    "size beyond the end": extension(GROUPS, b"\1\0\0\0\0\0\0\0", 4096),
    "size of nothing": extension(GROUPS, b"\1\0\0\0\0\0\0\0", 0),
    "size not of eights": extension(GROUPS, b"\1\0\0\0\0\0\0\0", 12),
    "more groups than bytes": extension(GROUPS, (2).to_bytes(4, "little") + bytes(4)),
    "too many groups": extension(GROUPS, (33).to_bytes(4, "little") + bytes(4 * 33)),
    "groups twice": extension(GROUPS, b"\1\0\0\0\0\0\0\0") * 2,
    "unknown type": extension(77, bytes(8)),
    "context without its nul": extension(1, b"\4\0\0\0\0\0\0\0" + b"x" * 8),
    "context longer than the record": extension(1, b"\xff\0\0\0\0\0\0\0name\0" + bytes(3)),
}


@pytest.mark.parametrize("records", BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS.keys())
def test_a_malformed_extension_is_refused(served, session, records):
    body = abi.FUSE_MKDIR_IN.pack(mode=0o755) + b"extended\0"
    reply = session.device.request("mkdir", ROOT, body, 128, extensions=records)
    assert reply.error == -errno.EINVAL
    assert not (served.directory / "extended").exists()


operations = st.sampled_from(OPERATIONS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operation=st.one_of(operations.map(lambda operation: operation.opcode), st.integers(0, 70)),
    node=st.one_of(st.integers(0, 5), st.integers(0, (1 << 64) - 1)),
    body=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda head, name: head + name + b"\0", st.binary(max_size=100), st.binary(max_size=20)),
    ),
    room=st.integers(0, 5000),
    splits=st.lists(st.integers(1, 240), max_size=6),
    ids=st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)),
)
def test_any_bytes_get_a_lawful_reply_and_harm_nobody(
    served, session, operation, node, body, room, splits, ids
):
    """The oracle: one used element whose reply obeys Linux's checks, then an ordinary request still works."""
    secret = served.directory.parent / "secret"
    layout = Layout(sorted(set(splits)), sorted({split % 16 for split in splits}))
    pending = session.device.begin(operation, node, body, room, caller=Caller(*ids, 1), layout=layout)
    reply = session.device.finish(pending)
    if reply is not None and pending.used_length:
        assert -511 <= reply.error <= 0
        assert reply.used_length == (16 if reply.error else 16 + len(reply.payload))
    assert secret.read_text() == "secret"
    assert Session(session.device).getattr(ROOT).mode & 0o170000 == stat.S_IFDIR
