# SPDX-License-Identifier: Apache-2.0
"""The ABI tables against the header of the kernel that is installed here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from virtiofs.fuse import abi

HEADER = Path("/usr/include/linux/fuse.h")
# Grown or added after the kernel whose header Debian 12 installs (7.37).
NEWER = {"fuse_statx", "fuse_statx_in", "fuse_statx_out", "fuse_sx_time", "fuse_copy_file_range_out"}
# Names of ours for what the header leaves without one.
OURS = {"fuse_create_out"}

pytestmark = pytest.mark.skipif(
    not HEADER.exists() or shutil.which("gcc") is None, reason="needs gcc and <linux/fuse.h> (linux-libc-dev)"
)


def compiled(tmp_path: Path, body: str) -> list[str]:
    """Lines printed by a C program that includes <linux/fuse.h>."""
    source = tmp_path / "probe.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\nint main(void) {{\n{body}\n}}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "probe", source], check=True)
    return subprocess.run(
        [tmp_path / "probe"], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def offsets(layout: abi.Struct) -> dict[str, int]:
    """The offset of each field, as our format string lays it out."""
    import struct

    position, found = 0, {}
    for type_, label, count in layout.fields:
        found[label] = position
        nested = abi.Struct.all.get(type_)
        size = nested.size if nested else struct.calcsize("=" + abi._FORMATS[type_])
        position += size * count
    return found


def test_every_structure_has_the_size_and_the_offsets_of_the_kernel_header(tmp_path):
    text = HEADER.read_text()
    known = [
        s for s in abi.Struct.all.values() if s.name not in NEWER | OURS and f"struct {s.name} {{" in text
    ]
    assert len(known) >= 45
    lines = []
    for layout in known:
        definition = re.search(rf"struct {layout.name} \{{(.*?)\n\}};", text, re.DOTALL)
        assert definition is not None
        fields = [
            label
            for label in offsets(layout)
            # Room that later kernels have put fields into.
            if label != "unused" and re.search(rf"\b{label}\b[\[\];]", definition.group(1))
        ]
        assert len(fields) >= len(layout.fields) // 2
        lines.append(f'printf("{layout.name} %zu", sizeof(struct {layout.name}));')
        lines += [f'printf(" {field} %zu", offsetof(struct {layout.name}, {field}));' for field in fields]
        lines.append('puts("");')
    for line in compiled(tmp_path, "\n".join(lines)):
        name, size, *pairs = line.split()
        layout = abi.Struct.all[name]
        assert int(size) == layout.size, name
        expected = offsets(layout)
        for field, offset in zip(pairs[::2], pairs[1::2], strict=True):
            assert expected[field] == int(offset), f"{name}.{field}"


def test_opcodes_and_constants_are_those_of_the_kernel_header(tmp_path):
    text = HEADER.read_text()
    names = {f"FUSE_{operation.name.upper()}": operation.opcode for operation in abi.OPERATIONS}
    names |= abi.CONSTANTS
    names = {name: value for name, value in names.items() if re.search(rf"\b{name}\b", text)}
    assert len(names) >= 100
    printed = compiled(
        tmp_path, "\n".join(f'printf("{name} %llu\\n", (unsigned long long){name});' for name in names)
    )
    assert dict(line.split() for line in printed) == {name: str(value) for name, value in names.items()}


def test_structures_pack_and_unpack():
    packed = abi.FUSE_LK_IN.pack(fh=1, owner=2, lk={"start": 3, "end": 4, "type": 5, "pid": 6}, lk_flags=7)
    assert len(packed) == 48
    record = abi.FUSE_LK_IN.unpack(packed)
    assert (record.fh, record.lk.end, record.lk.pid, record.lk_flags) == (1, 4, 6, 7)
    with pytest.raises(TypeError, match="has no field other"):
        abi.FUSE_LK_IN.pack(other=1)


def test_the_compiled_modules_use_the_same_sizes(tmp_path):
    """The declarations that the build writes, compiled: no compiler adds padding to any of them."""
    text = abi.declarations()
    structures = re.findall(r"cdef struct (\w+):\n((?:    .*\n)+)", text)
    assert len(structures) == len(abi.Struct.all)
    code = ["#include <stdint.h>", "#include <stdio.h>"]
    for name, body in structures:
        fields = "".join(
            f"    {'struct ' + words[0] if words[0].startswith('fuse_') else words[0]} {words[1]};\n"
            for words in (line.split() for line in body.splitlines())
        )
        code.append(f"struct {name} {{\n{fields}}};")
    code.append("int main(void) {")
    code += [f'printf("{name} %zu\\n", sizeof(struct {name}));' for name, _ in structures]
    code.append("}")
    (tmp_path / "sizes.c").write_text("\n".join(code))
    subprocess.run(["gcc", "-o", tmp_path / "sizes", tmp_path / "sizes.c"], check=True)
    printed = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert dict(line.split() for line in printed.splitlines()) == {
        name: str(layout.size) for name, layout in abi.Struct.all.items()
    }
