# SPDX-License-Identifier: Apache-2.0
"""`virtiofs check`: our daemon keeps every sentence, and one that breaks some is told apart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import devices
from virtiofs.cli.main import main
from virtiofs.client import peers
from virtiofs.client.check import report, run
from virtiofs.client.check.case import (
    FAILED,
    MUST,
    OMITTED,
    PASSED,
    SAFE,
    SHOULD,
    Check,
    Failed,
    NotApplicable,
)
from virtiofs.client.check.subject import Subject

MANY_QUEUES = "offers more than one request queue"
WITH_TABLE = "VIRTIO_FS_F_NOTIFICATION is not offered"  # a daemon with a metadata table has it


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> run.Report:
    """What the checks say of our daemon."""
    with Subject("ours", peer=peers.ours()) as subject:
        return run.run(subject)


def test_our_daemon_keeps_every_sentence(ours: run.Report):
    assert [
        (outcome.check.sentence, outcome.detail)
        for outcome in ours.outcomes
        if outcome.result != PASSED
        and outcome.detail != WITH_TABLE
        and (outcome.check.sentence != MANY_QUEUES or os.cpu_count() != 1)
    ] == []
    assert ours.count(PASSED) > 110
    assert ours.unserved == ["bmap", "poll", "setupmapping", "removemapping"]
    assert "MAX_PAGES" in ours.init_flags
    assert "PROTOCOL_F_REPLY_ACK" in ours.protocol_features


def test_every_check_says_what_where_and_how_grave_once():
    sentences = [(check.group, check.sentence) for check in run.CHECKS]
    assert len(sentences) == len(set(sentences))
    assert all(check.source and check.level in (MUST, SAFE, SHOULD) for check in run.CHECKS)
    assert set(run.GROUPS) == {"operations", "errors", "requests", "handshake", "rings"}


def test_a_socket_is_checked_without_a_view_of_the_host_and_nothing_is_left_behind(tmp_path: Path):
    with devices.start_ours(tmp_path) as running, Subject("socket", socket=running.socket) as subject:
        checks = [check for check in run.CHECKS if check.group in ("operations", "requests")]
        found = run.run(subject, checks=checks)
        assert found.count(FAILED) == 0
        subject.close()
        assert os.listdir(tmp_path) == []


def breaks(subject: Subject) -> None:
    raise Failed("it did something else")


def lacks(subject: Subject) -> None:
    raise NotApplicable("it is not offered")


def errs(subject: Subject) -> None:
    subject.session.lookup(1, "nothing-of-this-name")


def kills(subject: Subject) -> None:
    subject.session.getattr(1)
    first = subject.processes()[0]
    os.kill(first, signal.SIGSEGV)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    subject.must_live()


def serves(subject: Subject) -> None:
    subject.session.getattr(1)


def made_up(*acts: Callable[[Subject], None]) -> list[Check]:
    return [Check("made up", MUST, act.__name__, "nowhere", act) for act in acts]


def test_each_way_to_fail_is_told_and_the_next_check_gets_a_new_connection():
    with Subject("ours", peer=peers.ours()) as subject:
        found = run.run(subject, checks=made_up(breaks, serves, lacks, errs, kills, serves))
    assert [outcome.result for outcome in found.outcomes] == [FAILED, PASSED, OMITTED, FAILED, FAILED, PASSED]
    details = [outcome.detail for outcome in found.outcomes]
    assert details[0] == "it did something else"
    assert details[2] == "it is not offered"
    assert details[3].startswith("ENOENT")
    assert "SIGSEGV" in details[4]


def test_reports_name_what_failed_and_why():
    with Subject("ours", peer=peers.ours()) as subject:
        found = run.run(subject, "version 1", made_up(breaks, serves, lacks))
    assert report.line(found.outcomes[0]).startswith("FAILED")
    assert "1 passed, 1 failed (must), 1 not applicable" in report.summary(found)
    page = report.markdown([found, found])
    assert "| breaks | must | FAILED | FAILED |" in page
    assert "it did something else" in page
    assert json.loads(json.dumps(found.data()))["outcomes"][1] == {
        "group": "made up",
        "level": "must",
        "check": "serves",
        "source": "nowhere",
        "result": "passed",
        "detail": "",
    }


def test_the_command_checks_a_directory_and_leaves_it_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    share = tmp_path / "share"
    share.mkdir()
    arguments = ["check", str(share), "--group", "errors", "--json", str(tmp_path / "json")]
    assert main([*arguments, "--markdown", str(tmp_path / "page.md")]) == 0
    assert "a name that is not there is ENOENT" in capsys.readouterr().out
    assert json.loads((tmp_path / "json").read_text())[0]["name"] == "virtiofs"
    assert (tmp_path / "page.md").read_text().startswith("# ")
    assert os.listdir(share) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to check"),
        (["--group", "nonsense", "/"], "no group nonsense"),
        (["/nonexistent"], "No such file"),
        (["/dev/null"], "neither a socket nor a directory"),
        (["--peer", "mine"], "NAME=COMMAND"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_explained(arguments, said, capsys):
    assert main(["check", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_daemon_that_does_not_start_is_a_failure(capsys):
    assert main(["check", "--peer", "none=/nonexistent/daemon {socket} {dir}"]) == 1
    assert "cannot run /nonexistent/daemon" in capsys.readouterr().err


def test_the_list_of_checks_needs_no_device(capsys):
    assert main(["check", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(run.CHECKS)


@pytest.mark.skipif(bool(devices.available("c")), reason=devices.available("c"))
def test_a_daemon_that_ends_with_its_connection_is_started_again_for_each_check():
    daemon = next(peer for peer in peers.find()[0] if peer.name == "virtiofsd-c")
    checks = made_up(serves)
    checks += [check for check in run.CHECKS if check.sentence.startswith("accepts a new front end")]
    checks += made_up(serves)
    with Subject("c", peer=daemon) as subject:
        found = run.run(subject, checks=checks)
    assert [outcome.result for outcome in found.outcomes] == [PASSED, FAILED, PASSED]
    assert "ended with its first connection" in found.outcomes[1].detail
