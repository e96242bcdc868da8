# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of what touches files, with their temporary files on the share.

They come with the interpreter, or with the Debian package libpython3.11-testsuite (which lacks those of sqlite3).
A case is one test method.
"""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Iterator

from outcomes import FAILED, PASSED, SKIPPED, Outcome, Work, run, scratch

MODULES = (
    *(
        "test_os",
        "test_posix",
        "test_shutil",
        "test_pathlib",
        "test_tempfile",
        "test_glob",
        "test_io",
        "test_mmap",
    ),
    *(
        "test_fcntl",
        "test_zipfile",
        "test_tarfile",
        "test_sqlite3",
        "test_posixpath",
        "test_genericpath",
        "test_stat",
    ),
    *("test_fileio", "test_file", "test_dbm_dumb", "test_mailbox", "test_filecmp", "test_fileinput"),
)
# Of no use here and slow: they work on pipes and in memory.
LEFT_OUT_WHEN_SMALL = ("*.*SignalsTest.*", "*NewlineDecoder*", "*TestPath.*", "*Lzma*", "*Bzip2*")
INTERPRETERS = (sys.executable, "/usr/bin/python3.11")


def cases(work: Work) -> Iterator[Outcome]:
    python = next((path for path in INTERPRETERS if _has(path, "test_os")), None)
    if python is None:
        advice = "no interpreter with its tests: install libpython3.11-testsuite"
        yield Outcome("cpython", "all", SKIPPED, advice)
        return
    for module in filter(work.wants, MODULES):
        if not _has(python, module):
            yield Outcome("cpython", module, SKIPPED, f"{python} comes without it")
            continue
        yield from _module(work, python, module)


def _has(python: str, module: str) -> bool:
    find = f"import importlib.util as u, sys; sys.exit(not (u.find_spec('test') and u.find_spec('test.{module}')))"
    try:
        return run([python, "-c", find]).status == 0
    except OSError:
        return False


def _module(work: Work, python: str, module: str) -> Iterator[Outcome]:
    with scratch(work.directory, "t") as place, tempfile.NamedTemporaryFile(suffix=".xml") as report:
        words = [python, "-m", "test", "--tempdir", str(place), "--junit-xml", report.name]
        for pattern in LEFT_OUT_WHEN_SMALL if work.size == 1 else ():
            words += ["-i", pattern]
        done = run(
            [*words, module], cwd=place, environment={"TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
        )
        try:
            root = xml.parse(report.name).getroot()
        except xml.ParseError:
            yield Outcome("cpython", module, FAILED, done.last_lines(20))
            return
        failed = False
        for case in root.iter("testcase"):
            name = case.get("name", "").removeprefix("test.")
            kinds = {child.tag: (child.text or child.get("message") or "").strip() for child in case}
            trouble = kinds.get("error") or kinds.get("failure")
            if trouble is not None:
                failed = True
                yield Outcome("cpython", name, FAILED, "\n".join(trouble.splitlines()[-6:]))
            elif "skipped" in kinds:
                yield Outcome("cpython", name, SKIPPED, kinds["skipped"])
            else:
                yield Outcome("cpython", name, PASSED)
        if done.status != 0 and not failed:
            yield Outcome("cpython", module, FAILED, done.last_lines(20))
