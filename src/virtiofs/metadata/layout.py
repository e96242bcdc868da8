# SPDX-License-Identifier: Apache-2.0
"""The metadata table byte by byte, as data: the one place for it.

The build writes `layout.pxd` from this file, which gives the compiled modules the same structures and constants.
All numbers are little-endian.  docs/metadata-table.md explains the fields and shows the same layout.
"""

from typing import NamedTuple

MAGIC = 0x656C626174736676  # "vfstable"
VERSION = 1

PAGE = 4096
MEMBERS = 256  # processes that have the table mapped, at most
PENDING = 255  # changes that a member may have begun and not ended
SLOTS = 1 << 20  # the usual number of slots; any power of two in the range below
FEWEST_SLOTS, MOST_SLOTS = 1 << 10, 1 << 26
RECORDS = 1 << 13  # of the journal
NAME = 255  # bytes of a name, at most

# A slot's word, and `everything`: how many changes are in progress, and above that the version.  MEMBERS * PENDING
# changes at once still fit.
VERSION_SHIFT = 16
IN_PROGRESS = (1 << VERSION_SHIFT) - 1

# What a member has begun: slot << PHASE_SHIFT | phase.
PHASE_SHIFT = 2
PHASE_MASK = 3
BEGINNING, BEGUN, ENDING = 1, 2, 3

# A journal record's sequence: ticket + 1 above, and below 0 (published) or 1 + the member that is writing it.
TICKET_SHIFT = 16
WRITER_MASK = (1 << TICKET_SHIFT) - 1

NOBODY = 0xFFFF  # the origin of a change that is not one member's

# What changed.
ATTRIBUTES = 1  # of the inode; also its extended attributes
DATA = 2  # of the inode, and with it size and times
ENTRY = 3  # a name in the directory `ino` was made or leads elsewhere, or nowhere, now
GONE = 4  # a name in the directory `ino` was removed, and `child` with it if that was its last
EVERYTHING = 5  # nothing that was known before holds
KINDS = {"attributes": ATTRIBUTES, "data": DATA, "entry": ENTRY, "gone": GONE, "everything": EVERYTHING}

# Open file description locks on the file, by byte: they end with the process that has the table mapped.
LOCK_DOOR = 0  # who attaches, detaches or tidies up
LOCK_WATCHER = 1  # who enters the host's changes
LOCK_MEMBERS = 1024  # and on: one byte for each member


class Field(NamedTuple):
    """One field of a structure: `times` numbers of `size` bytes."""

    name: str
    size: int
    times: int
    what: str


class Structure(NamedTuple):
    """A structure of the file; the fields follow one another without gaps."""

    name: str
    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        return sum(field.size * field.times for field in self.fields)

    def offset(self, name: str) -> int:
        """Where field `name` begins.  Raises `KeyError`."""
        offset = 0
        for field in self.fields:
            if field.name == name:
                return offset
            offset += field.size * field.times
        raise KeyError(name)


HEADER = Structure(
    "Header",
    (
        Field("magic", 8, 1, 'the bytes "vfstable"; written last'),
        Field("version", 4, 1, f"of this layout: {VERSION}"),
        Field("header_size", 4, 1, f"{PAGE}"),
        Field("size", 8, 1, "of the whole file"),
        Field("dev", 8, 1, "st_dev of the tree's root"),
        Field("ino", 8, 1, "st_ino of the tree's root"),
        Field("key", 8, 2, "secret of the hash that finds slots"),
        Field("created", 8, 1, "when: ns of CLOCK_BOOTTIME"),
        Field("members", 4, 1, f"number of member records: {MEMBERS}"),
        Field("member_size", 4, 1, "bytes of each"),
        Field("members_at", 8, 1, "where they begin in the file"),
        Field("slots", 8, 1, "number of slots: a power of two"),
        Field("slots_at", 8, 1, "where they begin"),
        Field("records", 4, 1, f"number of journal records: {RECORDS}"),
        Field("record_size", 4, 1, "bytes of each"),
        Field("records_at", 8, 1, "where they begin"),
        Field("reserved", 8, 18, "zero"),
        # Each of these is written by many; a cache line each.
        Field("everything", 8, 1, "word of the whole tree"),
        Field("everything_at", 8, 1, "when it changed: ns of CLOCK_BOOTTIME; 0: never"),
        Field("watcher", 4, 1, "1 + the member that enters the host's changes; 0: nobody does"),
        Field("reserved_1", 4, 11, "zero"),
        Field("head", 8, 1, "tickets of the journal given out so far"),
        Field("reserved_2", 8, 7, "zero"),
        Field("followers", 8, MEMBERS // 64, "bit m: member m follows the journal"),
        Field("sleepers", 8, MEMBERS // 64, "bit m: a follower of member m sleeps, or is about to"),
        Field("wake", 4, 1, "futex: raised for those who sleep"),
        Field("reserved_3", 4, 15, "zero"),
    ),
)
MEMBER = Structure(
    "Member",
    (
        Field("state", 4, 1, "0: free; 1: taken. Alive if somebody holds its lock"),
        Field("pid", 4, 1, "of the process that attached"),
        Field("worker", 4, 1, "process id of a worker whose changes enter by themselves, or 0"),
        Field("namespace", 4, 1, "of process ids that the two are from: st_ino of /proc/self/ns/pid"),
        Field("attached", 8, 1, "when: ns of CLOCK_BOOTTIME"),
        Field("pending", 8, PENDING, "changes that were begun and not ended: slot << 2 | phase; 0: unused"),
        Field("reserved_1", 8, 254, "zero"),
    ),
)
SLOT = Structure(
    "Slot",
    (
        Field("word", 8, 1, "changes in progress, and version"),
        Field("changed_at", 8, 1, "end of the last change, ns of CLOCK_BOOTTIME; 0: none known"),
    ),
)
RECORD = Structure(
    "Record",
    (
        Field("sequence", 8, 1, "ticket + 1, and who is writing it"),
        Field("dev", 8, 1, "st_dev of the inode; of the directory for names"),
        Field("ino", 8, 1, "st_ino of the same"),
        Field("child_dev", 8, 1, "what the name leads to, or what went with it; 0: unknown, or nothing"),
        Field("child_ino", 8, 1, ""),
        Field("time", 8, 1, "ns of CLOCK_BOOTTIME"),
        Field("word", 8, 1, "of the slot, after the change"),
        Field("kind", 2, 1, "1 attributes, 2 data, 3 entry, 4 gone; 0: void"),
        Field("origin", 2, 1, "number of the member that changed it"),
        Field("name_size", 2, 1, "bytes of the name; 0 for attributes and data"),
        Field("name", 1, NAME, ""),
        Field("reserved", 1, 3, "zero"),
    ),
)
STRUCTURES = (HEADER, MEMBER, SLOT, RECORD)

MEMBERS_AT = PAGE
RECORDS_AT = MEMBERS_AT + MEMBERS * MEMBER.size
SLOTS_AT = RECORDS_AT + RECORDS * RECORD.size

_CONSTANTS = """
VERSION PAGE MEMBERS PENDING FEWEST_SLOTS MOST_SLOTS RECORDS NAME VERSION_SHIFT IN_PROGRESS
PHASE_SHIFT PHASE_MASK BEGINNING BEGUN ENDING TICKET_SHIFT WRITER_MASK
NOBODY ATTRIBUTES DATA ENTRY GONE EVERYTHING MEMBERS_AT RECORDS_AT SLOTS_AT
"""


def file_size(slots: int) -> int:
    """Bytes of a table with so many slots."""
    return SLOTS_AT + slots * SLOT.size


def declarations() -> str:
    """The text of `layout.pxd`."""
    types = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
    lines = ["# Written by setup.py from layout.py; do not edit.", "from libc.stdint cimport *", ""]
    for structure in STRUCTURES:
        lines.append(f"cdef struct {structure.name}:")
        for field in structure.fields:
            array = f"[{field.times}]" if field.times > 1 else ""
            lines.append(f"    {types[field.size]} {field.name}{array}")
        lines.append("")
    lines.append("cdef enum:")
    lines += [f"    {name} = {globals()[name]}" for name in _CONSTANTS.split()]
    lines += ["", "cdef extern from *:", '    """', f"    #define TABLE_MAGIC {MAGIC}ULL", '    """']
    lines += ["    const uint64_t TABLE_MAGIC"]
    return "\n".join(lines) + "\n"
