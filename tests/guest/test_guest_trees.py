# SPDX-License-Identifier: Apache-2.0
"""What people do with a share: unpack an archive of a few thousand files, clone a repository, work in it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shares import Place, Served, directory_for_a_share, serve

from virtiofs.vm.ramdisk import find_busybox

pytestmark = pytest.mark.guest

FILES = 2000


def program_with_libraries(program: str) -> dict[str, Path]:
    """A program of the host and the libraries it needs, by their paths."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    paths = [word for line in listed.stdout.splitlines() for word in line.split() if word.startswith("/")]
    return {path: Path(path).resolve() for path in [program, *paths]}


@pytest.fixture(scope="module")
def served(probe: Path) -> Iterator[Served]:
    """A guest that has the host's git in its RAM disk."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git for the guest: install the Debian package git")
    files: dict[str, Path | bytes] = {**program_with_libraries(os.path.realpath(git))}
    files["/etc/gitconfig"] = b"[user]\nname = Guest\nemail = guest@example.org\n[safe]\ndirectory = *\n"
    with directory_for_a_share() as directory, serve(directory, probe, extra_files=files) as served:
        where = os.path.realpath(git)
        served.guest.run(
            f"mkdir -p /usr/libexec /usr/lib/git-core; "
            f"for name in git git-upload-pack git-receive-pack; do ln -sf {where} /usr/lib/git-core/$name; "
            f"[ -e /usr/bin/$name ] || ln -s {where} /usr/bin/$name; done; dmesg -c >/dev/null"
        )
        yield served


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a directory: mode, owner, links, contents or target, and the time of change of files."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        entry: list[object] = [status.st_mode, status.st_uid, status.st_gid]
        if stat.S_ISREG(status.st_mode):
            entry += [status.st_nlink, status.st_mtime_ns, path.read_bytes()]
        elif stat.S_ISLNK(status.st_mode):
            entry += [os.readlink(path)]
        found[str(path.relative_to(root))] = tuple(entry)
    return found


def make_archive(path: Path, files: int) -> None:
    """A tar file of so many files in a tree, with modes and owners of all kinds."""
    modes = (0o644, 0o755, 0o600, 0o444, 0o4755, 0o2711)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(
            name: str, kind: bytes, mode: int, number: int, contents: bytes = b"", target: str = ""
        ) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime = kind, mode, 1_000_000_000 + number
            member.uid, member.gid, member.linkname = number % 3 * 1000, number % 2 * 100, target
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))

        for number in range(0, files, 100):
            add(f"d{number:04}", tarfile.DIRTYPE, 0o755 if number % 200 else 0o700, number)
            add(f"d{number:04}/deeper", tarfile.DIRTYPE, 0o1777, number)
            for file in range(number, number + 100):
                # Sizes around the page, mostly small: as source trees have them.
                size = 100_000 if file % 50 == 0 else (file * 37) % 5000
                name = f"d{number:04}/{'deeper/' if file % 2 else ''}file-{file}"
                add(name, tarfile.REGTYPE, modes[file % len(modes)], file, str(file).encode() * (size // 4))
                if file % 20 == 0:
                    add(f"d{number:04}/link-{file}", tarfile.SYMTYPE, 0o777, file, target=f"../{name}")
                elif file % 20 == 10:
                    add(f"d{number:04}/hard-{file}", tarfile.LNKTYPE, 0o644, file, target=name)


def differences(
    found: dict[str, tuple[object, ...]], expected: dict[str, tuple[object, ...]]
) -> dict[str, object]:
    names = sorted(found.keys() | expected.keys())
    return {
        name: (found.get(name), expected.get(name)) for name in names if found.get(name) != expected.get(name)
    }


def test_an_unpacked_archive_is_the_tree_it_is_on_the_host(place: Place) -> None:
    make_archive(place.host / "archive.tar", FILES)
    (place.host / "out").mkdir()
    (place.host / "reference").mkdir()
    place.output("tar -xf archive.tar -C out", timeout=120)
    command = [find_busybox(), "tar", "-xf", place.host / "archive.tar", "-C", place.host / "reference"]
    subprocess.run(command, check=True)
    expected = tree(place.host / "reference")
    assert len(expected) == FILES + FILES // 100 * 2 + FILES // 20 * 2
    assert differences(tree(place.host / "out"), expected) == {}


def test_an_archive_that_the_guest_packs_holds_the_hosts_tree(place: Place) -> None:
    make_archive(place.host / "archive.tar", 1000)
    (place.host / "in").mkdir()
    (place.host / "out").mkdir()
    for archive, directory in (("archive.tar", "in"), ("packed.tar", "out")):
        if archive == "packed.tar":
            place.output("tar -cf packed.tar -C in .", timeout=120)
        command = ["tar", "--numeric-owner", "-xpf", place.host / archive, "-C", place.host / directory]
        subprocess.run(command, check=True)
    assert differences(tree(place.host / "out"), tree(place.host / "in")) == {}


@pytest.fixture
def repository(place: Place) -> Path:
    """A repository in the place, made by the host: several commits, a branch, a tag."""
    path = place.host / "origin"
    path.mkdir()

    def git(*words: str) -> None:
        identity = [
            "-c",
            "user.name=Host",
            "-c",
            "user.email=host@example.org",
            "-c",
            "init.defaultBranch=main",
        ]
        subprocess.run(["git", *identity, *words], cwd=path, check=True, capture_output=True)

    git("init")
    for number in range(150):
        file = path / f"dir{number % 12}" / f"file{number}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"line {number}\n" * (number % 50 + 1))
    (path / "script").write_text("#!/bin/sh\n")
    (path / "script").chmod(0o755)
    (path / "link").symlink_to("script")
    git("add", ".")
    git("commit", "-m", "first")
    git("branch", "side")
    for number in range(5):
        (path / "dir0" / "file0.txt").write_text(f"version {number}\n")
        git("commit", "-am", f"version {number}")
    git("tag", "v1")
    return path


def checked_out(root: Path) -> dict[str, tuple[object, ...]]:
    """The mode, and the contents or target, of all files of a working tree."""
    return {name: (entry[0], entry[-1]) for name, entry in tree(root).items() if not name.startswith(".git")}


@pytest.mark.parametrize("source", ["origin", "file://$PWD/origin"])
def test_a_cloned_repository_is_whole_and_clean(place: Place, repository: Path, source: str) -> None:
    place.output(f'git clone -q "{source}" clone', timeout=120)
    assert place.output("cd clone && git status --porcelain && git log --oneline | wc -l") == "6"
    assert place.output("cd clone && git fsck --full 2>&1", timeout=120) == ""
    assert differences(checked_out(place.host / "clone"), checked_out(repository)) == {}
    # The host agrees with the guest about the index: no file looks changed to either.
    status = ["git", "-c", "safe.directory=*", "-C", str(place.host / "clone"), "status", "--porcelain"]
    assert subprocess.run(status, capture_output=True, check=True).stdout == b""


def test_working_in_a_repository(place: Place, repository: Path) -> None:
    place.output(
        """
        cd origin
        echo changed >>dir1/file1.txt && rm dir2/file2.txt && git mv dir3/file3.txt moved && echo new >untracked
        """
    )
    assert place.output("cd origin && git status --porcelain").split("\n") == [
        " M dir1/file1.txt",
        " D dir2/file2.txt",
        "R  dir3/file3.txt -> moved",
        "?? untracked",
    ]
    place.output(
        "cd origin && git add -A && git commit -qm guest && git checkout -q side && git merge -q main"
    )
    place.output("cd origin && git gc -q && git fsck --full 2>&1", timeout=120)
    log = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(repository), "log", "--format=%an %s", "-1", "side"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout == "Guest guest\n"
    assert (repository / "moved").read_text().startswith("line 3\n")
