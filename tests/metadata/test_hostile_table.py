# SPDX-License-Identifier: Apache-2.0
"""A table's file with any bytes in it is refused or works; in no case does a process crash over it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import MetadataError

SLOTS = 1 << 10
WORD = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 70000), st.just(2**64 - 1))
# Where: in the header, in any member's record, in the journal, in the slots.
PLACE = st.one_of(
    st.integers(0, layout.HEADER.size // 8),
    st.integers(layout.MEMBERS_AT // 8, layout.MEMBERS_AT // 8 + 2 * layout.MEMBER.size // 8),
    st.integers(layout.RECORDS_AT // 8, layout.RECORDS_AT // 8 + 200),
    st.integers(layout.SLOTS_AT // 8, layout.file_size(SLOTS) // 8 - 1),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(PLACE, WORD), max_size=30), st.one_of(st.none(), st.integers(0, 1 << 20)))
def test_any_bytes_are_refused_or_work(writes: list[tuple[int, int]], length: int | None) -> None:
    place = tempfile.mkdtemp(prefix="virtiofs-table-")
    tree = Path(place) / "tree"
    tree.mkdir()
    try:
        first = registry.attach(str(tree), SLOTS, place)
        first.keep_from_children()
        path = first.path
        for at, word in writes:
            os.pwrite(first.fd, word.to_bytes(8, "little"), 8 * at)
        if length is not None:  # nobody may touch a page that is gone: `first` does not, from here on
            os.truncate(path, length)
        try:
            table = registry.attach(str(tree), SLOTS, place)
        except MetadataError as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert path in said
            return
        follower = table.follow()
        for number in range(20):
            slot = table.slot(1, number)
            table.word(slot), table.changed_at(slot)
            table.bump(1, number, layout.ENTRY, b"name", (1, 2))
        for _ in range(30):
            if follower.next(0) is None:
                break
        follower.close()
        table.everything, table.changes, table.taken(), table.followers(), table.worker_pids(), table.watched
        registry.tidy(table)
        table.close()
    finally:
        os.close(first.fd)  # with its lock; what it has mapped is not touched again
        shutil.rmtree(place)
