# SPDX-License-Identifier: Apache-2.0
"""git: many at once commit, push, fetch and clean up in one tree; then `git fsck --full` must find nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from outcomes import FAILED, PASSED, SKIPPED, Outcome, Work, run, scratch

WORKERS, COMMITS = 4, 5
CONFIGURATION = {
    "user.name": "Heavy",
    "user.email": "heavy@example.org",
    "init.defaultBranch": "main",
    "safe.directory": "*",
    "gc.auto": "0",
    "core.fsync": "all",
    "pull.rebase": "true",
}
ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_COUNT": str(len(CONFIGURATION)),
    **{f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(CONFIGURATION)},
    **{f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(CONFIGURATION.values())},
}


class GitError(Exception):
    """A command of git failed, or found something."""


def git(place: Path, *words: str) -> str:
    done = run(["git", *words], cwd=place, environment=ENVIRONMENT)
    if done.status:
        raise GitError(f"git {' '.join(words)}: status {done.status}: {done.last_lines()}")
    return done.text


def cases(work: Work) -> Iterator[Outcome]:
    if shutil.which("git") is None:
        yield Outcome("git", "all", SKIPPED, "no git: install the Debian package")
        return
    clients = {name: [work.directory] for name in CASES}
    if work.clients:
        clients["pushes, two clients"] = list(work.clients)
    for name in filter(work.wants, clients):
        yield _case(name, CASES[name.partition(",")[0]], work, clients[name])


def _case(name: str, case: Callable[[list[Path], int], None], work: Work, clients: list[Path]) -> Outcome:
    with scratch(clients[0], "git") as place:
        try:
            case([client / place.name for client in clients], work.size)
        except GitError as error:
            return Outcome("git", name, FAILED, str(error))
    return Outcome("git", name, PASSED)


def _sound(repository: Path, commits: int) -> None:
    said = [
        line for line in git(repository, "fsck", "--full", "--strict").splitlines() if "dangling" not in line
    ]
    if said:
        raise GitError(f"fsck: {said[:5]}")
    found = int(git(repository, "rev-list", "--all", "--count"))
    if found != commits:
        raise GitError(f"{commits} commits were made, {found} are there")


def _change(tree: Path, worker: int, number: int) -> None:
    for file in range(5):
        path = tree / f"dir{worker}" / f"file{file}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"worker {worker} commit {number}\n" * (100 * file + number + 1))
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", f"worker {worker} commit {number}")


def _origin(place: Path) -> Path:
    origin = place / "origin.git"
    git(place, "init", "-q", "--bare", str(origin))
    git(place, "clone", "-q", str(origin), "first")
    _change(place / "first", 99, 0)
    git(place / "first", "push", "-q", "origin", "HEAD:main")
    return origin


def pushes(places: list[Path], size: int) -> None:
    """Each worker has a clone, by one client or the other, and all push to branches of one repository."""
    _origin(places[0])

    def work(worker: int) -> None:
        place = places[worker % len(places)]
        git(place, "clone", "-q", "origin.git", f"clone{worker}")
        tree = place / f"clone{worker}"
        for number in range(COMMITS * size):
            _change(tree, worker, number)
            git(tree, "push", "-q", "origin", f"HEAD:refs/heads/worker{worker}")
            git(tree, "fetch", "-q", "origin")

    _parallel(work)
    for place in places:
        _sound(place / "origin.git", 1 + WORKERS * COMMITS * size)
    for worker in range(WORKERS):
        tree = places[worker % len(places)] / f"clone{worker}"
        _sound(tree, int(git(tree, "rev-list", "--all", "--count")))
        if said := git(tree, "status", "--porcelain"):
            raise GitError(f"clone{worker} is not clean: {said}")


def worktrees(places: list[Path], size: int) -> None:
    """All commit in working trees of one repository, while another packs it again and again."""
    place = places[0]
    _origin(place)
    git(place, "clone", "-q", "origin.git", "shared")
    shared = place / "shared"
    for worker in range(WORKERS):
        git(shared, "worktree", "add", "-q", "-b", f"worker{worker}", f"../tree{worker}")

    def work(worker: int) -> None:
        if worker == WORKERS:
            for _ in range(2 * size):
                git(shared, "gc", "-q", "--prune=1.hour.ago")
        else:
            for number in range(COMMITS * size):
                _change(place / f"tree{worker}", worker, number)

    _parallel(work, WORKERS + 1)
    git(shared, "gc", "-q", "--prune=1.hour.ago")
    _sound(shared, 1 + WORKERS * COMMITS * size)
    for worker in range(WORKERS):
        if said := git(place / f"tree{worker}", "status", "--porcelain"):
            raise GitError(f"tree{worker} is not clean: {said}")


def _parallel(work: Callable[[int], None], workers: int = WORKERS) -> None:
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, worker) for worker in range(workers)]:
            done.result()


CASES = {"pushes": pushes, "working trees and gc": worktrees}
