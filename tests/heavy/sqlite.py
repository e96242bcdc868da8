# SPDX-License-Identifier: Apache-2.0
"""SQLite with a writer that is killed again and again: no commit that was reported may be lost or be there in part.

A case is a journal mode.  Where there is a directory that two clients have, two writers share one database, which needs
locks that both obey.  WAL is left out of that: its index is memory that both would have to share.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from outcomes import FAILED, PASSED, Outcome, Work, scratch

JOURNALS = ("wal", "delete", "truncate", "persist")
KILLS = 12
ROWS = 5  # of one transaction
PATIENCE = 60.0  # seconds to wait for the other writer's lock
# The writer: argument 1 is the database, 2 the journal, 3 the writer's number, 4 the first transaction, 5 how long it
# leaves the database to others after each: SQLite asks for a lock again and again, and has no queue for it.
WRITER = f"""
import sqlite3, sys, time
path, journal, writer, number = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
database = sqlite3.connect(path, isolation_level=None, timeout={PATIENCE})
assert database.execute(f"PRAGMA journal_mode={{journal}}").fetchone()[0] == journal
database.execute("PRAGMA synchronous=FULL")
database.execute("PRAGMA cache_size=20")  # pages: so that transactions spill into the file before they are committed
while True:
    database.execute("BEGIN IMMEDIATE")
    for row in range({ROWS}):
        blob = bytes([number % 251]) * (number * 37 % 5000 + row)
        database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (writer, number, row, blob))
    database.execute("DELETE FROM rows WHERE writer = ? AND number < ?", (writer, number - 40))
    database.execute("COMMIT")
    print(number, flush=True)
    number += 1
    time.sleep(float(sys.argv[5]))
"""


def cases(work: Work) -> Iterator[Outcome]:
    clients = {journal: [work.directory] for journal in JOURNALS}
    if work.clients:
        clients |= {f"{journal}, two clients": list(work.clients) for journal in JOURNALS[1:]}
    for name in filter(work.wants, clients):
        yield _case(name, clients[name], work)


def _case(name: str, clients: list[Path], work: Work) -> Outcome:
    with scratch(clients[0], "sqlite") as place:
        places = [client / place.name / "database" for client in clients]
        try:
            trouble = _killed_again_and_again(places, name.partition(",")[0], KILLS * work.size)
        except sqlite3.Error as error:
            trouble = f"{type(error).__name__}: {error}"
    return Outcome("sqlite", name, FAILED if trouble else PASSED, trouble)


def _killed_again_and_again(places: list[Path], journal: str, kills: int) -> str:
    """Empty, or what is wrong."""
    database = sqlite3.connect(places[0], isolation_level=None)
    database.execute(
        "CREATE TABLE rows (writer INT, number INT, row INT, blob BLOB, UNIQUE (writer, number, row))"
    )
    database.close()
    reported = dict.fromkeys(range(len(places)), 0)
    choose = random.Random(journal)
    pause = "0.01" if len(places) > 1 else "0"
    for _ in range(kills):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, path, journal, str(number), str(reported[number] + 1), pause],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=path.parent,
            )
            for number, path in enumerate(places)
        ]
        for number, writer in enumerate(writers):
            assert writer.stdout is not None
            for _ in range(choose.randrange(5, 25)):
                reported[number] = int(writer.stdout.readline() or 0) or reported[number]
        for number, writer in enumerate(writers):  # in the middle of another transaction, likely
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None and writer.stderr is not None
            for line in writer.stdout:
                reported[number] = int(line) if line.endswith(b"\n") else reported[number]
            errors = writer.stderr.read()
            writer.wait()
            if writer.returncode != -signal.SIGKILL:
                return f"a writer ended: {errors.decode(errors='replace').strip()}"
        for path in places:
            trouble = _check(path, journal, reported)
            if trouble:
                return trouble
    return ""


def _check(path: Path, journal: str, reported: dict[int, int]) -> str:
    """Empty, or what is wrong; a commit may be there that its writer had no time to report."""
    os.stat(path)
    database = sqlite3.connect(path, timeout=PATIENCE)
    try:
        sound = [row[0] for row in database.execute("PRAGMA integrity_check")]
        if sound != ["ok"]:
            return f"integrity_check: {sound[:3]}"
        for writer in reported:
            found = {
                number: (count, shortest, longest)
                for number, count, shortest, longest in database.execute(
                    "SELECT number, count(*), min(length(blob) - row), max(length(blob) - row) FROM rows "
                    "WHERE writer = ? GROUP BY number",
                    (writer,),
                )
            }
            last = max(found, default=0)
            if not reported[writer] <= last <= reported[writer] + 1:
                return f"writer {writer} reported commit {reported[writer]}, the last there is {last}"
            expected = {
                number: (ROWS, number * 37 % 5000, number * 37 % 5000)
                for number in range(max(last - 40, 1), last + 1)
            }
            if found != expected:
                wrong = {
                    n: found.get(n) for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)
                }
                return f"transactions that are not whole: {wrong}"
            reported[writer] = last
    finally:
        database.close()
    return ""
