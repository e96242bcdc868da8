# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md says what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_tool_writes():
    written = subprocess.run(
        [sys.executable, HERE / "tools/operations"], check=True, capture_output=True, text=True
    ).stdout
    assert (HERE / "docs/operations.md").read_text() == written, "run: make docs/operations.md"
