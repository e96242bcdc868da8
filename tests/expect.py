# SPDX-License-Identifier: Apache-2.0
"""How a behaviour says what a call must fail with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def failure(function: Callable[..., object], *arguments: Any, **keywords: Any) -> int:
    """The errno a call fails with; a call that succeeds fails the test."""
    with pytest.raises(OSError) as caught:
        function(*arguments, **keywords)
    return caught.value.errno or 0


def outcome(function: Callable[..., object], *arguments: Any, **keywords: Any) -> int:
    """The errno a call fails with, 0 if it succeeds."""
    try:
        function(*arguments, **keywords)
    except OSError as error:
        return error.errno or 0
    return 0
