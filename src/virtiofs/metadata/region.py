# SPDX-License-Identifier: Apache-2.0
"""The shared memory region that shows one guest the versions of what it asked for, byte by byte.

A page of header, then a word for each slot of the tree's table, which only the daemon writes.  All numbers are
little-endian.  docs/metadata-region.md is about how to use it.
"""

REGION = 1  # its id (virtio 1.3, section 2.10); 0 is the DAX window
MAGIC = 0x31736E6F69737276  # "vrsions1"
HEADER_SIZE = 4096
# Fields of the header, by index of 64-bit words.
AT_MAGIC, AT_SLOTS, AT_EVERYTHING = 0, 1, 8
# Of a word: the guest was told of this slot, so the word is kept up to date.
SHOWN = 1 << 63
FEWEST_BITS, MOST_BITS = 10, 26


def size_of(slots: int) -> int:
    """Bytes of the region."""
    return HEADER_SIZE + slots * 8
