# SPDX-License-Identifier: Apache-2.0
"""Two CPUs and two request queues: much at once, and nothing gets mixed up.

A guest's kernel may use only the first of the queues (before Linux 6.11): what must be right is the same.
"""

from __future__ import annotations

import hashlib
import os
import threading

import probe as probes
import pytest
from shares import Place

pytestmark = pytest.mark.guest

DAEMON_OPTIONS = ("--queues", "2")
GUEST_OPTIONS = {"cpus": 2, "queues": 2}

WRITERS = 6
SIZE = 16 << 20


def test_the_guest_has_two_request_queues(place: Place) -> None:
    assert place.output("nproc; grep -o 'requests[.][0-9]' /proc/interrupts") == "2\nrequests.0\nrequests.1"


def test_parallel_writers_do_not_mix_up_their_files(place: Place, probe: os.PathLike[str]) -> None:
    place.output(
        f"for n in $(seq {WRITERS}); do /bin/probe fill out-$n {SIZE} $n >/dev/null || exit 1 & done; wait",
        120,
    )
    for number in range(1, WRITERS + 1):
        written = probes.host(probe, ("sum", str(place.host / f"out-{number}")))  # type: ignore[arg-type]
        reference = str(place.host / "reference")
        (_, expected) = probes.host(probe, ("fill", reference, SIZE, number), ("sum", reference))  # type: ignore[arg-type]
        assert written == [expected]


def test_parallel_readers_and_writers_of_different_block_sizes(place: Place) -> None:
    contents = os.urandom(3 << 20)
    (place.host / "in").write_bytes(contents)
    copy = "dd if=in of=out-$size bs=$size 2>/dev/null"
    script = f"for size in 512 3000 4k 64k 1M 3M; do {copy} & done; wait; md5sum out-*"
    lines = place.output(script, 120).splitlines()
    assert {line.split()[0] for line in lines} == {hashlib.md5(contents).hexdigest()}
    assert len(lines) == 6
    for path in place.host.glob("out-*"):
        assert path.read_bytes() == contents


def test_names_come_and_go_in_parallel_without_an_error(place: Place) -> None:
    script = """
        for n in 1 2 3 4; do
            (mkdir d$n && for i in $(seq 30); do
                echo $n-$i >d$n/a$i && mv d$n/a$i d$n/b$i && ln d$n/b$i all-$n-$i && ls d$n >/dev/null || exit 1
                [ "$(cat all-$n-$i)" = $n-$i ] || exit 1
            done; echo fine) &
        done
        wait
    """
    seen = threading.Event()
    host_errors: list[OSError] = []

    def look() -> None:
        """The host reads along; a name that has just gone is no error."""
        while not seen.is_set():
            for path in place.host.rglob("*"):
                try:
                    path.lstat()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    host_errors.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert place.output(script, 120).split() == ["fine"] * 4
    finally:
        seen.set()
        watcher.join()
    assert host_errors == []
    assert len(list(place.host.glob("all-*"))) == 120
    assert all(path.read_text() == f"{path.name[4:]}\n" for path in place.host.glob("all-*"))


def test_parallel_appends_lose_nothing(place: Place) -> None:
    script = "for n in 1 2 3 4; do (for i in $(seq 100); do echo line-$n-$i >>log; done) & done; wait"
    place.output(script)
    lines = (place.host / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"line-{n}-{i}" for n in range(1, 5) for i in range(1, 101))
