# SPDX-License-Identifier: Apache-2.0
"""What goes into a guest: the init script, its quoting, extra files; and the streams that come out."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs.vm import ramdisk
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.guest import Guest, _script
from virtiofs.vm.kernel import Kernel
from virtiofs.vm.qemu import Share
from virtiofs.vm.stream import Cut

SHELL = shutil.which("busybox") or shutil.which("dash")
needs_shell = pytest.mark.skipif(SHELL is None, reason="no busybox and no dash to run scripts with")
NASTY = 'it\'s "$HOME" `id` \\ * ; & \n end'


def shell(script: bytes, *words: str) -> bytes:
    assert SHELL is not None
    start = [SHELL, "sh"] if SHELL.endswith("busybox") else [SHELL]
    return subprocess.run([*start, *words], input=script, capture_output=True, check=True).stdout


@needs_shell
@pytest.mark.parametrize(("rootfs", "init"), [(False, ""), (True, ""), (True, f"/sbin/{NASTY}")])
def test_the_init_script_is_correct_shell_whatever_things_are_called(rootfs: bool, init: str) -> None:
    shares = [Share("tag", "/s", "/a"), Share("t'ag", "/s", f"/{NASTY}", True)]
    script = ramdisk.init_script(shares, rootfs, init)
    assert not re.search(rb"@[A-Z]+@", script)
    shell(script, "-n")


def test_shares_are_mounted_in_order_with_their_options() -> None:
    script = ramdisk.init_script([Share("one", "/s", "/a"), Share("two", "/s", "/b", True)]).decode()
    assert script.index("share one /a rw /a") < script.index("share two /b ro /b")
    script = ramdisk.init_script(
        [Share("root", "/s", "/", True), Share("two", "/s", "/b")], rootfs=True
    ).decode()
    assert script.index("share root /newroot ro") < script.index("share two /newroot/b rw /b")


@needs_shell
@given(st.lists(st.binary(max_size=40).map(lambda word: word.replace(b"\0", b"")), min_size=1, max_size=5))
def test_every_argument_vector_survives_the_shell(words: list[bytes]) -> None:
    printed = shell(_script([b"[%s]\n", *words], "printf -- "))
    assert printed == b"".join(b"[" + word + b"]\n" for word in words)


@pytest.mark.parametrize(
    ("command", "reason"), [([], "no command"), (["a\0b"], "NUL"), (["x" * 131072], "at most 131071 bytes")]
)
def test_a_command_that_cannot_be_passed_is_refused(command: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _script(command, "exec ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rootfs": True}, "needs a share"),
        ({"shares": [Share("t", "/s", "/a"), Share("t", "/s", "/b")]}, "same tag"),
        ({"shares": [Share("t" * 37, "/s", "/a")]}, "1 to 36 bytes"),
        ({"shares": [Share("t", "/s", "/")]}, "mount point"),
        ({"shares": [Share("t", "/s", "relative")]}, "mount point"),
        ({"shares": [Share("t", "/s", "/a")], "init": "/sbin/init"}, "an init is"),
        ({"shares": [Share("t", "/s", "/")], "rootfs": True, "init": "init"}, "an init is"),
        ({"accelerator": "hvf"}, "accelerator"),
        ({"cpus": 0}, "at least one CPU"),
        ({"memory": "1M"}, "at least 128M"),
    ],
)
def test_arguments_that_make_no_guest_are_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Guest(**arguments)


def static_busybox() -> Path:
    try:
        return ramdisk.find_busybox()
    except MissingPart as missing:
        pytest.skip(str(missing))


def test_extra_files_win_over_applets_and_keep_their_modes(tmp_path: Path) -> None:
    static_busybox()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "data").write_bytes(b"data")
    (tmp_path / "tree" / "link").symlink_to("data")
    extra = {
        "/bin/ls": b"#!/bin/sh\necho mine\n",
        "/srv": tmp_path / "tree",
        "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
    }
    image = ramdisk.build(Kernel(Path("/k"), "6", None), [], extra_files=extra)
    subprocess.run(
        ["busybox", "cpio", "-id", "bin/*", "srv/*", "etc/*"], input=image, cwd=tmp_path, check=True
    )
    assert (tmp_path / "bin" / "ls").read_bytes() == extra["/bin/ls"]
    assert (tmp_path / "bin" / "ls").stat().st_mode & 0o111
    assert (tmp_path / "bin" / "cat").readlink() == Path("/bin/busybox")
    assert (tmp_path / "srv" / "data").read_bytes() == b"data"
    assert (tmp_path / "srv" / "link").is_symlink()
    assert (tmp_path / "etc" / "passwd").read_bytes() == extra["etc/passwd"]


def test_a_busybox_that_is_missing_or_not_static_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "busybox"
    fake.write_bytes(b"\x7fELF" + bytes(600) + b"/lib64/ld-linux-x86-64.so.2\0")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPart, match=r"not linked statically: .*busybox-static"):
        ramdisk.find_busybox()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingPart, match="busybox-static"):
        ramdisk.find_busybox()


def test_only_what_stands_between_the_marks_is_output() -> None:
    cut = Cut(b"N")
    assert cut.feed(b"of an earlier run\0N<") == b""
    assert cut.feed(b"mine\0N") == b"mine"
    assert cut.feed(b"ot yet\0N>of a later one") == b"\0Not yet"
    assert cut.ended
    assert cut.feed(b"more") == b""


@given(st.binary(), st.binary(), st.binary(), st.lists(st.integers(0, 400), max_size=20))
def test_output_is_the_same_however_it_is_cut_into_pieces(
    before: bytes, output: bytes, after: bytes, cuts: list[int]
) -> None:
    nonce = b"0123456789abcdef"
    stream = before + b"\0" + nonce + b"<" + output + b"\0" + nonce + b">" + after
    places = sorted({0, len(stream), *(place for place in cuts if place < len(stream))})
    cut = Cut(nonce)
    found = b"".join(cut.feed(stream[a:b]) for a, b in itertools.pairwise(places))
    assert found == output
    assert cut.ended


@given(st.binary(max_size=30))
def test_output_is_held_back_only_while_it_may_be_a_mark(output: bytes) -> None:
    nonce = b"0123456789abcdef"
    cut = Cut(nonce)
    cut.feed(b"\0" + nonce + b"<")
    # The oracle: everything comes out at once, except an end that is the beginning of the end mark.
    mark = b"\0" + nonce + b">"
    kept = max((n for n in range(len(mark)) if output.endswith(mark[:n])), default=0)
    assert cut.feed(output) == output[: len(output) - kept]
