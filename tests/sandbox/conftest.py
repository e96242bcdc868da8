# SPDX-License-Identifier: Apache-2.0
"""What the tests of the walls share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory with a secret, and a share, `share`, beside it."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_text("content")
    return tmp_path
