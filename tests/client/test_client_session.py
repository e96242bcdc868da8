# SPDX-License-Identifier: Apache-2.0
"""The checks of replies, without a device."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs.client.device import Reply
from virtiofs.client.session import ReplyError, parse_directory, verify
from virtiofs.fuse.abi import BY_NAME, FUSE_DIRENT, FUSE_DIRENTPLUS, FUSE_ENTRY_OUT

LOOKUP, READ = BY_NAME["lookup"], BY_NAME["read"]


def reply(used=144, length=144, error=0, unique=7):
    return Reply(used, length, error, unique, b"\0" * max(used - 16, 0))


@pytest.mark.parametrize(
    ("answer", "operation", "room"),
    [
        (reply(), LOOKUP, 128),
        (reply(16, 16, -2), LOOKUP, 128),
        (reply(16, 16, -511), LOOKUP, 128),
        (reply(16, 16), READ, 4096),
        (reply(16 + 4096, 16 + 4096), READ, 4096),
        (reply(16 + 7, 16 + 7), READ, 4096),
    ],
)
def test_replies_that_linux_takes(answer, operation, room):
    verify(answer, 7, operation, room)


@pytest.mark.parametrize(
    ("answer", "operation", "room", "message"),
    [
        (reply(0, 144), LOOKUP, 128, "used ring 0"),
        (reply(15, 15), LOOKUP, 128, "15 bytes"),
        (reply(144, 143), LOOKUP, 128, "header says 143"),
        (reply(unique=8), LOOKUP, 128, "instead of 7"),
        (reply(16, 16, 2), LOOKUP, 128, "error 2"),
        (reply(16, 16, -512), LOOKUP, 128, "error -512"),
        (reply(144, 144, -2), LOOKUP, 128, "comes with 128 bytes"),
        (reply(143, 143), LOOKUP, 128, "127 bytes instead of 128"),
        (reply(16 + 4097, 16 + 4097), READ, 4096, "4097 bytes"),
    ],
)
def test_replies_that_linux_turns_into_eio(answer, operation, room, message):
    with pytest.raises(ReplyError, match=message):
        verify(answer, 7, operation, room)


entries = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=60).filter(lambda name: not set(name) & {0, ord("/")}),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 15),
        st.integers(0, 2**64 - 1),
    ),
    max_size=8,
)


@given(entries, st.booleans())
def test_directories_are_parsed_as_they_were_written(items, plus):
    data = b""
    for name, ino, cookie, kind, node in items:
        head = FUSE_DIRENT.pack(ino=ino, off=cookie, namelen=len(name), type=kind) + name
        record = (FUSE_ENTRY_OUT.pack(nodeid=node) if plus else b"") + head
        data += record.ljust((len(record) + 7) // 8 * 8, b"\0")
    parsed = parse_directory(data, plus)
    assert [(e.name, e.ino, e.cookie, e.type) for e in parsed] == [item[:4] for item in items]
    assert [e.entry.nodeid if e.entry else 0 for e in parsed] == [item[4] if plus else 0 for item in items]


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_directory_or_an_error(data, plus):
    """Oracle: it returns entries with names Linux would take, or raises ReplyError."""
    try:
        parsed = parse_directory(data, plus)
    except ReplyError:
        return
    assert all(e.name and b"/" not in e.name and b"\0" not in e.name for e in parsed)
    assert len(parsed) <= len(data) // FUSE_DIRENT.size


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0b", b"x" * 4096])
@pytest.mark.parametrize("layout", [FUSE_DIRENT, FUSE_DIRENTPLUS])
def test_names_linux_refuses_are_refused(name, layout):
    head = FUSE_DIRENT.pack(ino=1, off=1, namelen=len(name), type=8)
    data = bytes(layout.size - FUSE_DIRENT.size) + head + name + bytes(8)
    with pytest.raises(ReplyError):
        parse_directory(data, layout is FUSE_DIRENTPLUS)


def test_a_name_longer_than_the_reply_is_refused():
    data = struct.pack("<QQII", 1, 1, 50, 8) + b"short"
    with pytest.raises(ReplyError):
        parse_directory(data, plus=False)
