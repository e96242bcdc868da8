# SPDX-License-Identifier: Apache-2.0
"""One output stream of one run, cut out of the endless bytes of a port by its start and end marks."""

from __future__ import annotations

__all__ = ["Cut"]


class Cut:
    """Bytes in, the run's own bytes out; what stands before the start mark or after the end mark is dropped.

    The marks are "\\0NONCE<" and "\\0NONCE>" with a `nonce` nobody can guess, so a run may write any bytes.
    """

    def __init__(self, nonce: bytes) -> None:
        self._marks = [b"\0" + nonce + b"<", b"\0" + nonce + b">"]
        self._held = b""

    @property
    def ended(self) -> bool:
        return not self._marks

    def feed(self, data: bytes) -> bytes:
        """The bytes of the run that are certain after `data`; the start of a possible mark is held back."""
        output = b""
        self._held += data
        while self._marks:
            mark = self._marks[0]
            before, found, after = self._held.partition(mark)
            if not found:
                keep = _possible_start(self._held, mark)
                before, after = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if len(self._marks) == 1:
                output += before
            self._held = after
            if not found:
                return output
            self._marks.pop(0)
        self._held = b""
        return output


def _possible_start(data: bytes, mark: bytes) -> int:
    """The length of the longest end of `data` that is a beginning of `mark`."""
    at = data.find(mark[:1], max(0, len(data) - len(mark) + 1))
    while at >= 0:
        if mark.startswith(data[at:]):
            return len(data) - at
        at = data.find(mark[:1], at + 1)
    return 0
