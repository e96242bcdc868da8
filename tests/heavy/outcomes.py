# SPDX-License-Identifier: Apache-2.0
"""What a suite is given and what it tells: `cases` of its module yields the outcome of one case after the other."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
HANG_SECONDS = 600  # nothing takes a tenth of this


class Outcome(NamedTuple):
    """How a case ended; `detail` says why it failed or was skipped.  A case is known by `suite` and `name`."""

    suite: str
    name: str
    status: str
    detail: str = ""


class Work(NamedTuple):
    """What to work on: a directory of the share, how much to do (1 is what CI does), and perhaps two more, which are
    one directory as two clients have it."""

    directory: Path
    size: int = 1
    clients: tuple[Path, ...] = ()
    only: tuple[str, ...] = ("*",)  # patterns of the cases that are wanted; of cpython: of the modules

    def wants(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)


@contextlib.contextmanager
def scratch(directory: Path, name: str) -> Iterator[Path]:
    """A directory of its own for a case, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, onerror=_force)


def _force(function: object, path: str, _: object) -> None:
    """A test may leave directories that even root cannot empty before their modes are put right."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        function(path)  # type: ignore[operator]


class Done(NamedTuple):
    """How a program ended, and all it said.  A program that was killed because it hung has the status -9."""

    status: int
    text: str

    def last_lines(self, count: int = 5) -> str:
        return "\n".join(self.text.strip().splitlines()[-count:])


def run(
    command: Sequence[str | os.PathLike[str]],
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    seconds: float = HANG_SECONDS,
) -> Done:
    """Run a program to its end, its children with it."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"} | (environment or {})
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            process_group=0,
        )
        try:
            process.wait(seconds)
            late = ""
        except subprocess.TimeoutExpired:
            late = f"\nit did not end within {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return Done(process.returncode, said.read().decode(errors="replace") + late)
