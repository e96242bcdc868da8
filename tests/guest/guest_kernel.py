# SPDX-License-Identifier: Apache-2.0
"""What the guest's kernel can do: tests of newer operations are skipped where the kernel never asks for them."""

from __future__ import annotations

import functools
import re

import pytest

from virtiofs.vm.errors import GuestError
from virtiofs.vm.kernel import find_kernel


@functools.cache
def version() -> tuple[int, int]:
    """Of the kernel that guests boot ($VIRTIOFS_KERNEL chooses it); (0, 0) if there is none."""
    try:
        found = re.match(r"(\d+)\.(\d+)", find_kernel().version)
    except GuestError:
        return 0, 0
    return (int(found[1]), int(found[2])) if found else (0, 0)


def needs(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Skip a test if the guest's kernel is older, as it knows no `what`."""
    return pytest.mark.skipif(
        version() < (major, minor), reason=f"the guest's kernel has no {what} (Linux {major}.{minor})"
    )
