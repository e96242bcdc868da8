# SPDX-License-Identifier: Apache-2.0
"""What a guest knows, and how it tells by loads and compares that it still holds.

A device with versions shows in shared memory a word for each slot (metadata/region.py), and its replies say which
words they rest on.  An answer that is kept with those words holds as long as all of them are the same, and so is the
word for everything.  Nobody is asked.

The device may be hostile: it decides what is an answer, as it always does, but not what memory is read.  The file
that it gives must be one that can not shrink, and slots are checked when they are put down.
"""

import fcntl
import os

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.posix.mman import MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u64

from virtiofs.metadata import region

F_GET_SEALS, F_SEAL_SHRINK = 1034, 2
AT_EVERYTHING = cython.declare(uint32_t, region.AT_EVERYTHING)
WORDS_AT = cython.declare(uint32_t, region.HEADER_SIZE // 8)


@cython.cclass
class Versions:
    """The versions of a device: `size` bytes of the file `fd`, which stays the caller's.

    Raises `ValueError` for a file that is no such region or might shrink, `OSError` if it can not be mapped.
    """

    def __cinit__(self, fd: int, size: int):
        try:
            if not fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK:
                raise ValueError("the device's versions lie in a file that may shrink")
        except OSError:
            raise ValueError("the device's versions lie in a file that can not be sealed") from None
        slots: int = (size - region.HEADER_SIZE) // 8
        bits: int = slots.bit_length() - 1
        if (
            not region.FEWEST_BITS <= bits <= region.MOST_BITS
            or size != region.size_of(1 << bits)
            or os.fstat(fd).st_size < size
        ):
            raise ValueError(f"a region of {size} bytes holds no versions")
        where: cython.p_void = mmap(cython.NULL, size, PROT_READ, MAP_SHARED, fd, 0)
        if where == MAP_FAILED:
            raise OSError("cannot map the device's versions")
        self.words = cython.cast(cython.pointer(uint64_t), where)
        self.size = size
        self.slots = slots
        if self.words[region.AT_MAGIC] != region.MAGIC or self.words[region.AT_SLOTS] != self.slots:
            raise ValueError("the device's region of versions begins with something else")

    def __dealloc__(self):
        if self.words != cython.NULL:
            munmap(self.words, self.size)

    @property
    def everything(self) -> int:
        """The word for everything: what was asked for under another one does not hold."""
        return load_acquire_u64(self.words + AT_EVERYTHING)

    def word(self, slot: int) -> int:
        """The word of a slot.  Raises `IndexError`."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return load_acquire_u64(self.words + WORDS_AT + cython.cast(uint64_t, slot))


@cython.cclass
class Answer:
    """A value, and the words that it rests on."""

    def __dealloc__(self):
        free(self.proofs)


@cython.cclass
class Known:
    """At most `most` answers by key, each for as long as it holds.  Those that are in it longest go first."""

    def __cinit__(self, versions: Versions, most: int):
        self.versions = versions
        self.words = versions.words
        self.answers = {}
        self.most = most

    def __len__(self) -> int:
        return len(self.answers)

    def get(self, key: object) -> object:
        """The value that was put down for `key`, if it still holds, else None."""
        found: object = self.answers.get(key)
        if found is None:
            return None
        answer: Answer = cython.cast(Answer, found)
        i: uint32_t
        if load_acquire_u64(self.words + AT_EVERYTHING) == answer.everything:
            for i in range(answer.count):
                if load_acquire_u64(self.words + answer.proofs[i].at) != answer.proofs[i].word:
                    break
            else:
                return answer.value
        del self.answers[key]
        return None

    def put(self, key: object, value: object, everything: int, proofs: list[tuple[int, int]]) -> None:
        """Keep `value`, which was asked for under `everything` and rests on words of slots, given with them.

        One that rests on a word of 0, or on a slot that there is not, is not kept.  `value` may not be None.
        """
        i: uint32_t = 0
        size: cython.size_t = len(proofs) * cython.sizeof(Proof)
        answer: Answer = Answer.__new__(Answer)
        answer.value = value
        answer.everything = everything
        answer.proofs = cython.cast(cython.pointer(Proof), malloc(size + 1))
        if answer.proofs == cython.NULL:
            raise MemoryError
        for slot, word in proofs:
            if word == 0 or slot >= self.versions.slots:
                return
            answer.proofs[i].at = WORDS_AT + cython.cast(uint64_t, slot)
            answer.proofs[i].word = word
            i += 1
        answer.count = i
        if len(self.answers) >= self.most and key not in self.answers:
            del self.answers[next(iter(self.answers))]
        self.answers[key] = answer
