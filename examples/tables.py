# SPDX-License-Identifier: Apache-2.0
"""The tables of an SQLite database as CSV files:  virtiofs mount examples/tables.py:Tables --option database=my.db /mnt

The directory of the database is what the class needs: SQLite looks for its journal there.  The connection is made by
`start`, in the process that serves, as one must not be taken along into another.
"""

import csv
import errno
import io
import os
import sqlite3
import stat
import threading
import time

from virtiofs import Attributes, PathFilesystem

SECONDS = 1.0  # for which a table is what it was


class Tables(PathFilesystem):
    def __init__(self, database: str):
        directory, self.name = os.path.split(os.path.abspath(database))
        self.needs = {directory}
        self.lock = threading.Lock()
        self.seen: dict[str, tuple[float, bytes]] = {}
        open(database, "rb").close()  # say so now if it can not be read

    def start(self, directory):
        path = os.path.join(directory, self.name)
        self.database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        self.database.execute("SELECT name FROM sqlite_master").fetchall()

    def tables(self) -> list[str]:
        with self.lock:
            rows = self.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return [name for (name,) in rows if "/" not in name]

    def text(self, path: str) -> bytes:
        """The CSV of a table, as it was in the last second."""
        name = path[1:].removesuffix(".csv")
        when, data = self.seen.get(name, (-SECONDS, b""))
        if time.monotonic() - when < SECONDS:
            return data
        if not path.endswith(".csv") or name not in self.tables():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        out = io.StringIO()
        with self.lock:
            quoted = name.replace('"', '""')
            rows = self.database.execute(f'SELECT * FROM "{quoted}"')
            csv.writer(out, lineterminator="\n").writerows(
                [[column[0] for column in rows.description], *rows]
            )
        self.seen[name] = (time.monotonic(), out.getvalue().encode())
        return self.seen[name][1]

    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o555, nlink=2)
        return Attributes(stat.S_IFREG | 0o444, len(self.text(path)), valid=0)

    def readdir(self, path, handle):
        return [f"{name}.csv" for name in self.tables()]

    def read(self, path, handle, offset, size):
        return self.text(path)[offset : offset + size]
