# SPDX-License-Identifier: Apache-2.0
"""The layout of the file is the one that is documented."""

from __future__ import annotations

from pathlib import Path

from virtiofs.metadata import layout

DOCUMENT = Path(__file__).parents[2] / "docs/metadata-table.md"


def test_the_document_shows_every_field_where_it_is() -> None:
    lines = DOCUMENT.read_text().splitlines()
    at = lines.index("## Byte by byte")
    for structure in layout.STRUCTURES:
        at = lines.index(f"**{structure.name}**, {structure.size} bytes", at)
        for field in structure.fields:
            size = f"{field.size}" if field.times == 1 else f"{field.times} x {field.size}"
            row = f"| {structure.offset(field.name)} | {size} | {field.name} | {field.what} |"
            assert field.name.startswith("reserved") or row in lines[at:], f"write: {row}"
    for start in (layout.MEMBERS_AT, layout.RECORDS_AT, layout.SLOTS_AT):
        assert f"from {start}" in DOCUMENT.read_text()
        assert start % layout.PAGE == 0


def test_what_many_write_has_cache_lines_of_its_own() -> None:
    hot = ("everything", "head", "followers", "wake")
    lines = {layout.HEADER.offset(name) // 64 for name in hot}
    assert len(lines) == len(hot) and all(layout.HEADER.offset(name) % 64 == 0 for name in hot)
    assert layout.HEADER.size <= layout.PAGE == layout.MEMBER.size and layout.RECORD.size % 64 == 0
