# SPDX-License-Identifier: Apache-2.0
"""Descriptors are counted by these tests."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_garbage_of_other_tests() -> None:
    """What earlier modules left to the collector must not vanish, and close descriptors, while we count."""
    gc.collect()
