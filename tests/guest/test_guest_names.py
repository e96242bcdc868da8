# SPDX-License-Identifier: Apache-2.0
"""Names: renaming, links, names of every kind, and how soon each side sees what the other did."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from shares import Place

pytestmark = pytest.mark.guest


def test_renaming_over_an_existing_file_replaces_it(place: Place) -> None:
    (place.host / "old").write_text("new contents")
    (place.host / "there").write_text("lost")
    assert place.do(("rename", "old", "there")) is None
    assert os.listdir(place.host) == ["there"]
    assert (place.host / "there").read_text() == "new contents"
    assert place.output("cat there; ls") == "new contentsthere"


def test_renaming_over_an_open_file_keeps_the_old_contents_readable(place: Place) -> None:
    (place.host / "new").write_text("new")
    (place.host / "there").write_text("old")
    read = place.steps(
        ("open", "old", "there", "r"),
        ("rename", "new", "there"),
        ("open", "new", "there", "r"),
        ("pread", "old", 0, 10),
        ("pread", "new", 0, 10),
    )
    assert read[3:] == [b"old", b"new"]


def test_renaming_across_directories_moves_trees(place: Place) -> None:
    (place.host / "a" / "sub").mkdir(parents=True)
    (place.host / "b").mkdir()
    (place.host / "a" / "sub" / "file").write_text("moved")
    place.do(("rename", "a/sub", "b/sub2"), ("rename", "b/sub2/file", "a/file"))
    assert place.output("find . | sort") == "\n".join([".", "./a", "./a/file", "./b", "./b/sub2"])
    assert (place.host / "a" / "file").read_text() == "moved"
    assert os.listdir(place.host / "b" / "sub2") == []


def test_what_cannot_be_renamed_is_refused_as_on_any_file_system(place: Place) -> None:
    (place.host / "dir" / "sub").mkdir(parents=True)
    (place.host / "full" / "x").mkdir(parents=True)
    (place.host / "file").write_text("")
    assert place.steps(
        ("rename", "dir", "full"),
        ("rename", "dir", "dir/sub/below"),
        ("rename", "file", "dir"),
        ("rename", "dir", "file"),
        ("rename", "missing", "x"),
    ) == ["ENOTEMPTY", "EINVAL", "EISDIR", "ENOTDIR", "ENOENT"]


def test_two_names_are_exchanged(place: Place) -> None:
    (place.host / "dir").mkdir()
    (place.host / "dir" / "inside").write_text("1")
    (place.host / "file").write_text("2")
    assert place.do(("rename", "dir", "file", "exchange")) is None
    assert (place.host / "file" / "inside").read_text() == "1"
    assert (place.host / "dir").read_text() == "2"
    assert place.output("cat dir file/inside") == "21"


def test_renaming_without_replacing_fails_where_something_is(place: Place) -> None:
    (place.host / "a").write_text("a")
    (place.host / "b").write_text("b")
    assert place.steps(("rename", "a", "b", "noreplace"), ("rename", "a", "c", "noreplace")) == [
        "EEXIST",
        None,
    ]
    assert (place.host / "b").read_text() == "b"
    assert (place.host / "c").read_text() == "a"


def test_hard_links_are_one_file_with_two_names(place: Place) -> None:
    (place.host / "one").write_text("contents")
    (place.host / "dir").mkdir()
    assert place.do(("link", "one", "dir/two")) is None
    assert (place.host / "one").samefile(place.host / "dir" / "two")
    assert place.output("stat -c '%h %i' one dir/two | sort -u | wc -l; echo more >>dir/two; cat one") == (
        "1\ncontentsmore"
    )
    assert place.do(("unlink", "one"), ("open", "f", "dir/two", "r"), ("links", "f")) == 1
    assert place.steps(("link", "dir", "dir2"), ("link", "missing", "x")) == ["EPERM", "ENOENT"]


@pytest.mark.parametrize("target", ["file", "missing", "/absolute/path", "../..", "x" * 4000])
def test_symbolic_links_keep_their_target_as_it_is(place: Place, target: str) -> None:
    place.do(("symlink", target, "made-by-guest"))
    assert os.readlink(place.host / "made-by-guest") == target
    os.symlink(target, place.host / "made-by-host")
    assert place.do(("readlink", "made-by-host")) == target.encode()


def test_symbolic_links_are_followed_in_the_guest_and_lead_to_its_own_files(place: Place) -> None:
    (place.host / "dir").mkdir()
    (place.host / "dir" / "file").write_text("followed")
    os.symlink("dir", place.host / "link")
    os.symlink("/proc/sys/kernel/random/boot_id", place.host / "out")
    assert place.output("cat link/file") == "followed"
    assert place.output("cat out") == place.output("cat /proc/sys/kernel/random/boot_id")
    assert place.do(("open", "f", "link", "r,nofollow")) == "ELOOP"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"\xff\xfe not UTF-8 \x80", id="not-utf8"),
        pytest.param(b"new\nline", id="newline"),
        pytest.param(b" spaces  and\ttab ", id="spaces"),
        pytest.param(b"-rf *?'\"\\$(x)`", id="shell"),
        pytest.param(bytes(range(1, 32)) + b"\x7f", id="control"),
        pytest.param("ü€\N{GRINNING FACE}".encode(), id="utf8"),
        pytest.param(b"...", id="dots"),
        pytest.param(b"n" * 255, id="255"),
        pytest.param(b"\xe2\x82\xac" * 85, id="255-utf8"),
    ],
)
def test_names_of_any_bytes_pass_both_ways(place: Place, name: bytes) -> None:
    host = os.fsencode(place.host)
    place.do(("open", "f", name, "w,creat,excl"), ("write", "f", "guest"))
    assert os.listdir(host) == [name]
    os.rename(host + b"/" + name, host + b"/" + name[::-1] + b"~"[: 255 - len(name)])
    (other,) = os.listdir(host)
    assert set(place.do(("walk", ".", 4096)) or ()) == {b".", b"..", other}  # type: ignore[arg-type]
    assert place.do(("open", "f", other, "r"), ("pread", "f", 0, 9)) == b"guest"
    assert place.do(("mkdir", other + b"dir" if len(other) < 250 else b"dir", "755")) is None
    assert place.do(("unlink", other)) is None


def test_a_name_that_is_too_long_is_refused(place: Place) -> None:
    assert place.steps(("mkdir", "n" * 256, "755"), ("open", "f", "n" * 256, "r")) == ["ENAMETOOLONG"] * 2


def test_directories_deeper_than_any_path_are_made_and_read(place: Place) -> None:
    depth, name = 50, "d" * 150
    place.output(
        f"i=0; while [ $i -lt {depth} ]; do mkdir {name} && cd -P {name} || exit 1; i=$((i + 1)); done; echo deep >f"
    )
    here = os.open(place.host, os.O_PATH)
    for _ in range(depth):
        here, before = os.open(name, os.O_PATH, dir_fd=here), here
        os.close(before)
    file = os.open("f", os.O_RDWR, dir_fd=here)
    os.close(here)
    assert os.read(file, 100) == b"deep\n"
    os.write(file, b"deeper\n")
    os.close(file)
    place.output("echo 3 >/proc/sys/vm/drop_caches")
    assert (
        place.output(f"for i in $(seq {depth}); do cd -P {name} || exit 1; done; cat f; rm f")
        == "deep\ndeeper"
    )


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        pytest.param(lambda host: (host / "new").write_text("x"), "[ -e new ]", id="created"),
        pytest.param(lambda host: (host / "there").unlink(), "[ ! -e there ]", id="unlinked"),
        pytest.param(
            lambda host: (host / "there").write_text("longer now"), "grep -q longer there", id="written"
        ),
        pytest.param(lambda host: (host / "there").write_text("OLD"), "grep -q OLD there", id="same-size"),
        pytest.param(lambda host: (host / "there").chmod(0o751), "[ -x there ]", id="mode"),
        pytest.param(
            lambda host: (host / "there").rename(host / "moved"),
            "[ -e moved ] && [ ! -e there ]",
            id="renamed",
        ),
        pytest.param(lambda host: (host / "dir" / "in").rmdir(), '[ -z "$(ls dir)" ]', id="listed"),
    ],
)
def test_what_the_host_changes_the_guest_sees_within_seconds(
    place: Place, change: Callable[[os.PathLike[str]], object], seen: str
) -> None:
    (place.host / "there").write_text("old")
    (place.host / "there").chmod(0o644)
    (place.host / "dir" / "in").mkdir(parents=True)
    place.output("cat there; ls -l dir; ! [ -e new ] && ! [ -e moved ]")  # what the guest knows from now on
    change(place.host)
    place.wait(seen)


def test_a_directory_the_host_replaced_is_the_new_one_within_seconds(place: Place) -> None:
    (place.host / "dir").mkdir()
    (place.host / "dir" / "old").write_text("")
    place.output("ls dir; [ -e dir/old ]")
    (place.host / "dir").rename(place.host / "gone")
    (place.host / "dir").mkdir()
    (place.host / "dir" / "new").write_text("new")
    place.wait("[ -e dir/new ]")
    assert place.output("cat dir/new; ls dir gone") == "newdir:\nnew\n\ngone:\nold"


def test_a_working_directory_the_host_moved_still_works(place: Place) -> None:
    (place.host / "dir" / "sub").mkdir(parents=True)
    values = place.steps(
        ("open", "d", "dir/sub", "r,directory"),
        ("wait", "move"),
        ("open", "f", "dir/sub/file", "w,creat"),
        ("open", "f", "elsewhere/sub/file", "w,creat"),
        answers={"move": lambda: (place.host / "dir").rename(place.host / "elsewhere")},
    )
    # The old path may still be trusted for a moment: the file is then in the moved directory all the same.
    assert values[2] in (None, "ENOENT")
    assert values[3] is None
    assert (place.host / "elsewhere" / "sub" / "file").exists()
    assert not (place.host / "dir").exists()
