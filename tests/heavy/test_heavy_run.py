# SPDX-License-Identifier: Apache-2.0
"""The runner of the heavy suites: what it reports, and that its list of exceptions cannot grow old."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from outcomes import FAILED, PASSED, SKIPPED, Outcome

RUN = Path(__file__).with_name("run")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("heavy_run", str(RUN))
    specification = importlib.util.spec_from_loader("heavy_run", loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ended", "written", "sometimes", "status"),
    [
        (FAILED, None, False, "failed"),
        (PASSED, None, False, "passed"),
        (FAILED, FAILED, False, "expected"),
        (SKIPPED, SKIPPED, False, "expected"),
        (FAILED, SKIPPED, False, "failed"),
        (PASSED, FAILED, False, "surprising"),
        (PASSED, FAILED, True, "passed"),
    ],
)
def test_a_case_is_judged_by_what_is_written_of_it(
    runner: ModuleType, ended: str, written: str | None, sometimes: bool, status: str
) -> None:
    known = written and runner.Known("fio", "case", written, "fuse", "because", sometimes)
    assert runner._judge(Outcome("fio", "case", ended), known or None)[0] == status


def test_every_exception_has_a_reason_and_a_suite(runner: ModuleType) -> None:
    for known in runner.exceptions(on_fuse=True):
        assert known.suite in runner.SUITES
        assert known.ends in (FAILED, SKIPPED)
        assert known.where in ("fuse", "everywhere")
        assert len(known.reason) > 20


def test_a_run_reports_its_cases_as_json(tmp_path: Path) -> None:
    words = [
        sys.executable,
        RUN,
        tmp_path,
        "--suite",
        "sqlite",
        "--only",
        "wal",
        "--json",
        tmp_path / "report",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = json.loads((tmp_path / "report").read_text())
    assert (entry["suite"], entry["name"], entry["status"]) == ("sqlite", "wal", "passed")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, RUN, tmp_path / "missing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "missing is no directory that can be written to" in done.stderr
