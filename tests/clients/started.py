# SPDX-License-Identifier: Apache-2.0
"""What a launcher asked of our drop-in."""

from __future__ import annotations

from pathlib import Path


def arguments_of(program: Path) -> list[str]:
    """The command lines `program` was started with."""
    return Path(f"{program}.arguments").read_text().splitlines()
