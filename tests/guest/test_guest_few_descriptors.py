# SPDX-License-Identifier: Apache-2.0
"""A daemon that keeps hardly any descriptors, and has no file handles: it comes back to files by their names."""

from __future__ import annotations

import os

import pytest
from shares import Place

import devices

pytestmark = pytest.mark.guest

DAEMON_OPTIONS = ("--max-open", "16", "--inode-file-handles", "never")

DIRECTORIES, FILES = 20, 20


@pytest.fixture
def many(place: Place) -> Place:
    """A place with `many/`, a tree of files: using them all puts every descriptor to another use."""
    for number in range(DIRECTORIES):
        (place.host / "many" / str(number)).mkdir(parents=True)
        for file in range(FILES):
            (place.host / "many" / str(number) / f"f{file}").write_text(f"{number}/{file}\n")
    return place


USE_ALL = "find {path}/many -type f -exec cat {{}} + | wc -l"


def test_more_files_are_known_than_descriptors_kept(many: Place) -> None:
    expected = sorted(f"{number}/{file}" for number in range(DIRECTORIES) for file in range(FILES))
    for _ in range(2):
        assert sorted(many.output("find many -type f -exec cat {} +").splitlines()) == expected
        assert len(os.listdir(f"/proc/{many.served.worker()}/fd")) < 60


def test_open_files_and_working_directories_outlast_their_descriptors(many: Place) -> None:
    script = f"""
        mkdir -p a/b/c && echo kept >a/b/c/file && cd a/b/c && exec 3<file 4>>log && echo one >&4
        {USE_ALL.format(path=many.path)} >/dev/null
        mv {many.path}/a {many.path}/moved && mv ../../b ../../b2
        {USE_ALL.format(path=many.path)} >/dev/null
        echo two >&4 && cat <&3 && cat file && echo new >made && cat made && rm file && cat log && ls
    """
    assert many.output(script) == "kept\nkept\nnew\none\ntwo\nlog\nmade"
    assert sorted(os.listdir(many.host / "moved" / "b2" / "c")) == ["log", "made"]


def test_files_replaced_under_their_names_are_never_mixed_up(many: Place) -> None:
    many.output(
        f"for i in $(seq 50); do echo $i >n$i; done; exec 3<n7; {USE_ALL.format(path='.')} >/dev/null; "
        "echo other >new && mv new n7 && [ $(cat <&3) = 7 ] && [ $(cat n7) = other ]"
    )
    # The host puts other files where the guest's are, and their descriptors have long gone.
    for number in range(1, 51):
        (many.host / f"h{number}").write_text(f"host {number}\n")
        (many.host / f"h{number}").rename(many.host / f"n{number}")
    expected = [f"host {number}" for number in range(1, 51)]
    assert devices.wait_until(
        lambda: many.output("for i in $(seq 50); do cat n$i; done").splitlines() == expected, 10
    )


def test_a_tree_is_copied_and_removed(many: Place) -> None:
    many.output("cp -a many copy && diff -r many copy && rm -rf many")
    assert os.listdir(many.host) == ["copy"]
    found = [path for path in (many.host / "copy").rglob("f*")]
    assert len(found) == DIRECTORIES * FILES
    assert all(path.read_text() == f"{path.parent.name}/{path.name[1:]}\n" for path in found)
