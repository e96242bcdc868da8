# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a guest.  Every message is one sentence for the person at the keyboard."""

from __future__ import annotations

__all__ = ["GuestError", "GuestTimeout", "MissingPart", "PoweredOff"]


class GuestError(Exception):
    """The guest cannot be started, or is gone.  `details` is what its console or QEMU said last, or ""."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class GuestTimeout(GuestError):
    """The guest did not boot, or the command did not end, in the time it was given."""


class PoweredOff(GuestError):
    """The guest powered itself off, as one does that was told to inside."""


class MissingPart(GuestError):
    """QEMU, a kernel or busybox is not there.  The message names the Debian package that has it."""
