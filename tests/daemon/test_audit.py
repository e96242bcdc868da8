# SPDX-License-Identifier: Apache-2.0
"""The audit: what the guest did is written down outside its reach, and no change of that goes unnoticed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devices
from sharing import ROOT, failure, refusal
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.daemon import chain
from virtiofs.daemon.audit import describe, operations


class Audited(NamedTuple):
    session: Session
    tree: Tree
    host: Path
    file: Path
    running: devices.RunningDevice


@contextlib.contextmanager
def audited(*options: str, policy: str = "") -> Iterator[Audited]:
    with tempfile.TemporaryDirectory(prefix="virtiofs-audit-") as place:
        host, file, rules = Path(place) / "share", Path(place) / "audit.jsonl", Path(place) / "policy.toml"
        host.mkdir()
        rules.write_text(policy)
        more = ["--policy", str(rules)] if policy else []
        starting = devices.start_ours(host, ["--audit", str(file), *more, *options])
        with starting as running, Device.connect(running.socket) as device:
            session = Session(device)
            yield Audited(session, Tree(session), host, file, running)


def records(file: Path) -> list[dict[str, Any]]:
    """What the guest did, verified."""
    with file.open("rb") as lines:
        return [record for record, _ in chain.read(lines)]


def finished(share: Audited) -> list[dict[str, Any]]:
    """All records, once the daemon has ended."""
    share.running.stop()
    return [record for record in records(share.file) if "note" not in record]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "virtiofs", "audit", *arguments], capture_output=True, text=True
    )


# --- what is recorded ---


def test_what_the_guest_does_is_recorded():
    with audited("--tag", "data") as share:
        share.session.caller = Caller(0, 0, 4321)
        tree = share.tree
        tree.mkdir("d")
        tree.write_file("d/f", b"12345")
        tree.rename("d/f", "d/g")
        tree.link("d/g", "h")
        tree.symlink("d/g", "s")
        tree.chmod("h", 0o600)
        tree.read_file("h")
        tree.unlink("h")
        assert failure(tree.rmdir, "d") == errno.ENOTEMPTY
        found = finished(share)
    said = [(r["operation"], r["path"], r.get("to"), r["result"]) for r in found]
    for expected in (
        ("mkdir", "d", None, "ok"),
        ("create", "d/f", None, "ok"),
        ("link", "d/g", "h", "ok"),
        ("symlink", "s", "d/g", "ok"),
        ("unlink", "h", None, "ok"),
        ("rmdir", "d", None, "ENOTEMPTY"),
    ):
        assert expected in said
    assert any(r[0] in ("rename", "rename2") and r[1:] == ("d/f", "d/g", "ok") for r in said)
    assert any(r[0] == "open" and r[1] in ("h", "d/g") for r in said)
    (write,) = [r for r in found if r["operation"] == "write"]
    assert write["bytes"] == 5 and write["path"] == "d/f" and write["share"] == "data"
    assert all(r["pid"] == 4321 and r["uid"] == 0 and r["time"].startswith("20") for r in found)
    assert "lookup" not in {r["operation"] for r in found}


def test_refusals_are_recorded_whoever_refuses():
    with audited("--audit-operations", "refusals", policy='hide = ["*.key"]\ndeny = ["no"]') as share:
        (share.host / "no").touch()
        assert failure(share.tree.read_file, "no") == errno.EACCES
        assert failure(share.tree.write_file, "x.key", b"") == errno.EACCES
        share.tree.write_file("y", b"")
        found = finished(share)
    assert {(r["operation"], r["path"], r["result"]) for r in found} == {
        ("open", "no", "EACCES"),
        ("create", "x.key", "EACCES"),
    }
    with audited("--readonly") as share:
        assert failure(share.tree.mkdir, "d") == errno.EROFS
        assert [(r["operation"], r["result"]) for r in finished(share)] == [("mkdir", "EROFS")]
        assert not (share.host / "d").exists()


def test_a_request_is_recorded_by_its_handle_and_not_by_the_node_it_names():
    with audited("--audit-operations", "write,setattr") as share:
        (share.host / "other").touch()
        other = share.session.lookup(ROOT, "other").nodeid
        _, opened = share.session.create(ROOT, "f")
        share.session.write(other, opened.fh, 0, b"x")
        (found,) = finished(share)
    assert found["path"] == "f"


def test_zero_message_opens_are_off_where_opens_are_recorded():
    with audited("--readonly", "--cache", "always") as share:
        assert not share.session.has("NO_OPEN_SUPPORT") and not share.session.has("NO_OPENDIR_SUPPORT")


def test_names_that_are_no_text_are_recorded():
    with audited() as share:
        share.session.mkdir(ROOT, b'\xff\n"x')
        (found,) = finished(share)
    assert os.fsencode(found["path"]) == b'\xff\n"x'


# --- the chain ---


def test_a_record_is_there_when_its_worker_was_killed_under_load():
    with audited() as share:
        done = 0

        def load() -> None:
            nonlocal done
            with contextlib.suppress(Exception):
                while True:
                    share.tree.mkdir(f"d{done}")
                    done += 1

        thread = threading.Thread(target=load)
        thread.start()
        assert devices.wait_until(lambda: done > 50, 30)
        worker = [pid for pid in descendants(share.running.process.pid) if threads_of(pid) > 1]
        os.kill(worker[-1], signal.SIGKILL)
        share.running.process.wait(20)
        thread.join(20)
        assert devices.wait_until(lambda: records(share.file)[-1].get("note") == "end", 20)
        made = {record["path"] for record in records(share.file) if record.get("operation") == "mkdir"}
        assert {f"d{number}" for number in range(done)} <= made


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in children for one in (int(child), *descendants(int(child)))]


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_a_daemon_that_is_started_again_goes_on_with_the_chain(tmp_path):
    (tmp_path / "share").mkdir()
    file = tmp_path / "audit"
    for number in range(3):
        starting = devices.start_ours(tmp_path / "share", ["--audit", str(file)])
        with starting as running, Device.connect(running.socket) as device:
            Tree(Session(device)).mkdir(f"d{number}")
    assert [r["path"] for r in records(file) if "note" not in r] == ["d0", "d1", "d2"]
    assert [r["n"] for r in records(file)] == list(range(1, len(records(file)) + 1))
    done = command("verify", str(file))
    assert done.returncode == 0 and "whole" in done.stdout
    assert "mkdir ok" in command("show", str(file)).stdout


def test_a_line_that_was_torn_by_a_crash_is_noted(tmp_path):
    path = tmp_path / "audit"
    log = chain.Log(str(path))
    log.add({"operation": "x"})
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n":3,"torn')
    assert "1 torn line" in command("verify", str(path)).stdout
    log = chain.Log(str(path))
    log.add({"operation": "y"})
    log.close()
    assert {"note": "torn", "bytes": 12}.items() <= records(path)[2].items()
    assert command("verify", str(path)).returncode == 0


def test_a_log_that_is_moved_away_is_continued_in_a_new_one(tmp_path):
    path, old = tmp_path / "audit", tmp_path / "audit.1"
    log = chain.Log(str(path))
    log.add({"operation": "x"})
    path.rename(old)
    log.follow()
    log.add({"operation": "y"})
    log.close()
    assert command("verify", str(old), str(path)).returncode == 0
    assert command("verify", str(path)).returncode == 0
    assert "does not continue" in command("verify", str(path), str(old)).stderr


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("chain") / "audit"
    log = chain.Log(str(path))
    for number in range(6):
        log.add({"operation": "mkdir", "path": f"d{number}"})
    log.close()
    return path.read_bytes().splitlines(keepends=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_no_change_of_a_record_goes_unnoticed(lines, data):
    """Whatever is done to the lines, but to cut off the end: the chain breaks."""
    changed = list(lines)
    index = data.draw(st.integers(0, len(lines) - 2))
    kind = data.draw(st.sampled_from(["remove", "swap", "byte", "repeat", "garbage"]))
    if kind == "remove":
        del changed[index]
    elif kind == "swap":
        changed[index], changed[index + 1] = changed[index + 1], changed[index]
    elif kind == "byte":
        at = data.draw(st.integers(0, len(lines[index]) - 1))
        byte = bytes([lines[index][at] ^ data.draw(st.integers(1, 255))])
        changed[index] = lines[index][:at] + byte + lines[index][at + 1 :]
    elif kind == "repeat":
        changed.insert(index, lines[index])
    else:
        changed.insert(index, b"garbage\n")
    with pytest.raises(chain.ChainError, match="line"):
        list(chain.read(b"".join(changed).splitlines(keepends=True)))


def test_an_end_that_is_cut_off_is_noticed_by_a_hash_that_was_noted(tmp_path, lines):
    path = tmp_path / "audit"
    path.write_bytes(b"".join(lines))
    noted = command("verify", str(path)).stdout.split()[-1]
    assert command("verify", "--has", noted, str(path)).returncode == 0
    path.write_bytes(b"".join(lines[:-2]))
    assert command("verify", str(path)).returncode == 0
    assert command("verify", "--has", noted, str(path)).returncode == 1


def test_a_broken_file_is_not_gone_on_with(tmp_path, lines):
    path = tmp_path / "audit"
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert "line 3" in refusal("--audit", str(path))
    assert command("verify", str(path)).returncode == 1


# --- what goes wrong ---


def test_a_guest_waits_for_a_writer_that_is_slow_and_nothing_is_lost():
    with audited() as share:
        writer = writer_of(share)
        os.kill(writer, signal.SIGSTOP)
        done = threading.Event()

        def load() -> None:
            with contextlib.suppress(Exception):
                for _ in range(3000):
                    share.session.access(ROOT, 0)
                    share.session.setattr(ROOT)
                done.set()

        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert not done.wait(1.0), "there is room for 3,000 records"
        finally:
            os.kill(writer, signal.SIGCONT)
        assert done.wait(60)
        thread.join()
        assert len([r for r in finished(share) if r["operation"] == "setattr"]) == 3000


def test_a_loss_is_noted_where_the_guest_does_not_wait():
    with audited("--audit-full", "note") as share:
        writer = writer_of(share)
        os.kill(writer, signal.SIGSTOP)
        try:
            for _ in range(3000):
                share.session.setattr(ROOT)
        finally:
            os.kill(writer, signal.SIGCONT)
        found = len(finished(share))
        lost = sum(r["count"] for r in records(share.file) if r.get("note") == "lost")
    assert lost > 0 and found + lost == 3000


def test_without_a_writer_what_is_to_be_recorded_is_refused():
    with audited() as share:
        share.tree.mkdir("before")
        os.kill(writer_of(share), signal.SIGKILL)
        assert devices.wait_until(lambda: failure(share.tree.mkdir, f"d{os.urandom(4).hex()}") == errno.EIO)
        count = len(os.listdir(share.host))
        assert failure(share.tree.mkdir, "after") == errno.EIO
        assert len(os.listdir(share.host)) == count
        assert share.tree.stat("before")
        assert devices.wait_until(
            lambda: any("nobody writes the audit" in line for line in share.running.log)
        )


def writer_of(share: Audited) -> int:
    """The process that has the file open."""
    for pid in descendants(share.running.process.pid):
        with contextlib.suppress(OSError):
            fds = os.listdir(f"/proc/{pid}/fd")
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") == str(share.file) for fd in fds):
                return pid
    raise AssertionError("nobody has it open")


def test_no_worker_can_touch_the_file():
    with audited() as share:
        for pid in descendants(share.running.process.pid):
            if pid != writer_of(share):
                fds = os.listdir(f"/proc/{pid}/fd")
                assert str(share.file) not in [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_worker_that_lies_gets_no_further_than_a_note(data):
    """Whatever it sends: a record that can be written, or a note."""
    assert json.dumps(describe(data, "tag"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--audit-operations", "everything"], "takes changes"),
        (["--dax-window", "2M"], "an audit or a DAX window"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, reason):
    assert reason in refusal("--audit", str(tmp_path / "a"), *options)


def test_the_audit_is_not_kept_where_the_guest_can_write(tmp_path):
    with (
        pytest.raises(RuntimeError, match="keep it outside"),
        devices.start_ours(tmp_path, ["--audit", str(tmp_path / "audit")]),
    ):
        pass


def test_groups_of_operations_hold_what_they_say():
    assert {"write", "mkdir", "setattr", "rename2", "ioctl"} <= operations("changes")
    assert operations("opens,read") == {"open", "opendir", "create", "tmpfile", "read"}
