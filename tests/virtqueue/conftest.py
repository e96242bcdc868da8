# SPDX-License-Identifier: Apache-2.0
"""Descriptors for both ends of a ring."""

import os

import pytest


@pytest.fixture
def eventfds():
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield fds
    for fd in fds:
        os.close(fd)
