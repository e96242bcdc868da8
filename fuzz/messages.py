# SPDX-License-Identifier: Apache-2.0
"""FUSE messages that are nearly right, made of choices."""

from __future__ import annotations

import os
import struct

from fuzz.choices import Choices
from fuzz.replies import Found
from fuzz.shares import NAMES, ROOT
from virtiofs.fuse import abi
from virtiofs.fuse.abi import FUSE_IN_HEADER, OPERATIONS, Operation, Struct

FLAGS = [
    *(os.O_RDWR, os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_EXCL, 3),
    *(
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_DIRECTORY,
        os.O_PATH,
        os.O_RDWR | os.O_TMPFILE,
        0xFFFFFFFF,
        1,
    ),
]
SIZES = [
    4096,
    1,
    0,
    16,
    100,
    280,
    8192,
    65536,
    65537,
    1 << 20,
    (1 << 20) + 1,
    0x7FFFFFFF,
    0xFFFFFFFF,
    400,
    5,
    8,
]
OFFSETS = [0, 1, 5, 4096, 9999, 10000, 1 << 20, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
IDS = [0, 1000, 1001, 65534, 0xFFFFFFFF]
# What a field may sensibly hold, by its name; the first is what makes a request likely to succeed.
FIELDS: dict[str, list[int]] = {
    "flags": FLAGS,
    "size": SIZES,
    "in_size": [28, 4, 0, 8, 4096, 0xFFFFFFFF],
    "out_size": [28, 4, 0, 8, 4096, 0xFFFFFFFF],
    "mode": [
        0o644,
        0o100644,
        0o10644,
        0o140644,
        0o20000,
        0o60644,
        0o40755,
        0o7777,
        0o120777,
        0o1000000,
        1,
        2,
        3,
    ],
    "cmd": [0x80086601, 0x40086602, 0x801C581F, 0x401C5820, 0x5401],
    "whence": [3, 4, 0, 1, 2],
    "type": [1, 0, 2, 3],
    "lk_flags": [0, 1, 2],
    "getattr_flags": [0, 1],
    "count": [2, 0, 1, 0xFFFFFFFF],
    "nlookup": [1, 2, (1 << 64) - 1],
    "sx_mask": [0xFFF, 0, 0xFFFFFFFF],
    "owner": [1, 2, 3],
    "lock_owner": [1, 2, 3],
    "rdev": [0, 0x103],
    "uid": IDS,
    "gid": IDS,
    "len": [4096, 0, 1, 20000, 1 << 31, 1 << 63, (1 << 64) - 1],
    "end": [(1 << 63) - 1, 0, 9, (1 << 64) - 1],
    **dict.fromkeys(("offset", "start", "length", "off_in", "off_out", "foffset", "moffset"), OFFSETS),
}
ANY = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
NODE_FIELDS = ("newdir", "oldnodeid", "nodeid_out", "nodeid")
HANDLE_FIELDS = ("fh", "fh_in", "fh_out")
OPENING = ("open", "create", "tmpfile", "read", "write")  # whose flags are those of open(2)
OF_DIRECTORIES = ("readdir", "readdirplus", "releasedir", "fsyncdir")


def _flatten(layout: Struct) -> list[tuple[str, str]]:
    """(label, code) of each number in a structure."""
    numbers: list[tuple[str, str]] = []
    for type_, label, count in layout.fields:
        for _ in range(count):
            if type_ in Struct.all:
                numbers += _flatten(Struct.all[type_])
            else:
                numbers.append((label, {"8": "B", "16": "H", "32": "I", "64": "Q"}[type_[1:]]))
    return numbers


NUMBERS = {operation.opcode: _flatten(operation.args) if operation.args else [] for operation in OPERATIONS}


class Known(Found):
    """What the driver has learnt so far, newest last."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes.append(ROOT)

    def learn(self, found: Found) -> None:
        self.nodes = (self.nodes + found.nodes)[-48:]
        self.files = (self.files + found.files)[-16:]
        self.directories = (self.directories + found.directories)[-16:]

    def node(self, choices: Choices) -> int:
        pick = choices.number(1)
        if pick < 0xF0:
            return ROOT if pick == 0 else self.nodes[-1 - (pick - 1) % len(self.nodes)]
        return ANY[pick & 7] if pick < 0xFC else choices.number(8)

    def handle(self, choices: Choices, directory: bool) -> int:
        pick = choices.number(1)
        handles = self.directories if directory != (pick == 0xEF) else self.files
        if pick < 0xF0 and handles:
            return handles[-1 - pick % len(handles)]
        return ANY[pick & 7] if pick < 0xFC else choices.number(8)


INDEX = {operation.name: i for i, operation in enumerate(OPERATIONS)}


def step(name: str, node: int = 0, names: tuple[int, ...] = (), **picks: int) -> bytes:
    """The choices that make an orderly message: a node (0 the root, 1 the newest, 2 the one before), names by their
    position in `NAMES`, and what is picked for the fields of its structure.
    """
    data = bytes([INDEX[name], node, 0])
    operation = abi.BY_NAME[name]
    for label, _ in NUMBERS[operation.opcode]:
        data += picks.get(label, 0).to_bytes(2 if label == "valid" else 1, "little")
    if name == "init":
        data += bytes(4)
    data += bytes(names or range(len(operation.names)))
    if name in ("write", "setxattr", "ioctl", "batch_forget"):
        data += b"\0"
    return data + b"\0"  # layout: one piece each way


class Message:
    """One request: its operation (None: an unknown opcode), the values of its structure, its bytes, and the room that
    its reply wants."""

    def __init__(self, choices: Choices, known: Known, unique: int):
        pick = choices.number(1)
        self.operation: Operation | None = OPERATIONS[pick % len(OPERATIONS)] if pick < 250 else None
        opcode = self.operation.opcode if self.operation else choices.number(4) | 0x40
        self.unique = unique
        self.values: dict[str, int] = {}
        node = known.node(choices)
        twist = choices.number(1)  # how far this is from right
        structure = self._structure(choices, known)
        names = b""
        for _ in self.operation.names if self.operation else ():
            pick = choices.number(1)
            names += (NAMES[pick] if pick < len(NAMES) else choices.take(pick % 24)) + b"\0"
        tail = self._tail(choices, known)
        extensions = self._extensions(choices) if twist & 1 else b""
        body = structure + names + tail + extensions
        if twist & 2:
            body = body[: choices.number(2) % (len(body) + 1)]
        if twist & 4:
            body += choices.take(choices.number(1))
        extlen = len(extensions) // 8 if not twist & 8 else choices.number(2)
        length = FUSE_IN_HEADER.size + len(body)
        claimed = length if not twist & 16 else (length + choices.number(4) - 16) & 0xFFFFFFFF
        ids = (choices.choice(IDS), choices.choice(IDS)) if twist & 32 else (0, 0)
        self.data = (
            FUSE_IN_HEADER.pack(
                len=claimed,
                opcode=opcode,
                unique=unique,
                nodeid=node,
                uid=ids[0],
                gid=ids[1],
                pid=1,
                total_extlen=extlen,
            )
            + body
        )
        if twist & 64:
            self.data = self.data[: choices.number(1)]
        self.room = self._room(choices if twist & 128 else Choices(b""))

    def _structure(self, choices: Choices, known: Known) -> bytes:
        """The fixed part, number by number."""
        operation = self.operation
        if operation is None or operation.args is None:
            return b""
        code = "="
        flat = []
        for label, letter in NUMBERS[operation.opcode]:
            code += letter
            if label in HANDLE_FIELDS:
                directory = operation.name in OF_DIRECTORIES
                number = known.handle(choices, directory)
            elif label in NODE_FIELDS:
                number = known.node(choices)
            elif label == "valid":
                number = choices.number(2)
            else:
                pick = choices.number(1)
                plain = FIELDS.get(label, [0])
                if label == "flags" and operation.name not in OPENING:
                    plain = [0, 1, 2, 4, 7, 8, 16]
                if pick < 0xE0:
                    number = plain[pick % len(plain)]
                else:
                    number = ANY[pick & 7] if pick < 0xFC else choices.number(8)
            number &= (1 << 8 * struct.calcsize(letter)) - 1
            flat.append(number)
            self.values.setdefault(label, number)
        if operation.name == "init":
            flat[0], flat[1] = (7, 46) if flat[0] != 1 else flat[:2]
            flat[3] = flat[4] = 0xFFFFFFFF ^ choices.number(4)
        data = struct.pack(code, *flat)
        return data[:8] if operation.name == "setxattr" else data

    def _tail(self, choices: Choices, known: Known) -> bytes:
        name = self.operation.name if self.operation else ""
        if name in ("write", "setxattr"):
            pattern = choices.take(choices.number(1) & 15) or b"x"
            size = min(self.values["size"], 9000)
            return (pattern * size)[:size]
        if name == "ioctl":
            return choices.take(choices.number(1) & 31).ljust(28, b"\0")
        if name == "batch_forget":
            pairs = [(known.node(choices), choices.number(1)) for _ in range(choices.number(1) & 7)]
            return b"".join(abi.FUSE_FORGET_ONE.pack(nodeid=node, nlookup=count) for node, count in pairs)
        return b""

    def _extensions(self, choices: Choices) -> bytes:
        data = b""
        for _ in range(choices.number(1) % 3):
            kind = choices.number(1)
            if kind & 1:
                groups = [choices.choice(IDS) for _ in range(choices.number(1) % 40)]
                body = struct.pack(f"=I{len(groups)}I", len(groups) + (kind >> 7), *groups)
                record = 32
            else:
                record = choices.number(1) % 34
                body = b""
                for _ in range(record % 4):
                    context = choices.take(choices.number(1) % 20)
                    one = struct.pack("=II", len(context), 0) + b"security.x\0" + context
                    body += one + bytes(-len(one) % 8)
            body += bytes(-len(body) % 8)
            size = 8 + len(body) if kind & 2 == 0 else choices.number(4)
            data += struct.pack("=II", size & 0xFFFFFFFF, record) + body
        return data

    def _room(self, choices: Choices) -> int:
        """Bytes for the reply: as Linux would give, or not."""
        operation = self.operation
        if operation is not None and operation.flags & abi.NO_REPLY:
            right = 0
        else:
            right = 16 + (operation.reply.size if operation and operation.reply else 0)
            if operation is not None and operation.flags & abi.REPLY_DATA:
                right += min(self.values.get("out_size", self.values.get("size", 4096)), 8000)
        pick = choices.number(1)
        return [right, 0, 15, 16, max(right - 1, 0), 24, 8000, choices.number(2) if pick == 7 else 0][
            pick & 7
        ]
