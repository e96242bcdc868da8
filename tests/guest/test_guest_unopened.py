# SPDX-License-Identifier: Apache-2.0
"""A read-only share that is cached always: the guest reads it without opening a file or a directory."""

from __future__ import annotations

import errno
import os

import pytest
from shares import Place

pytestmark = pytest.mark.guest

DAEMON_OPTIONS = ("--readonly", "--cache", "always", "--max-open", "16")
# Once: what the guest found in the place before, it knows for a day.
FILES = 300


@pytest.fixture
def filled(place: Place) -> Place:
    for number in range(FILES):
        (place.host / f"d{number % 20}").mkdir(exist_ok=True)
        (place.host / f"d{number % 20}" / f"f{number}").write_text(f"{number}\n" * 2000)
    return place


def test_a_tree_is_read_by_few_descriptors_and_nothing_is_kept_open(filled: Place) -> None:
    expected = sorted(f"{number}" for number in range(FILES))
    script = "find . -type f -exec cat {} + | sort -u"
    for _ in range(2):
        assert sorted(filled.output(script).splitlines()) == expected
        filled.output("echo 3 >/proc/sys/vm/drop_caches")
    assert filled.output("ls | wc -l") == "20"
    assert len(os.listdir(f"/proc/{filled.served.worker()}/fd")) < 60


def test_who_opens_to_write_is_refused_when_it_writes_and_locks_stay_in_the_guest(place: Place) -> None:
    (place.host / "file").write_text("contents")
    assert place.do(("open", "f", "file", "rw"), ("flock", "f", "exclusive,nonblock")) is None
    # The lock went with its file.
    assert place.do(("open", "f", "file", "r"), ("flock", "f", "exclusive,nonblock")) is None
    assert place.do(("open", "f", "file", "rw"), ("write", "f", "x")) == errno.errorcode[errno.EROFS]
    assert place.do(("open", "f", "file", "w,trunc")) == errno.errorcode[errno.EROFS]
    assert place.output("cat file") == (place.host / "file").read_text() == "contents"
