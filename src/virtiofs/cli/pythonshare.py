# SPDX-License-Identifier: Apache-2.0
"""File systems in Python on the command lines of `serve`, `mount` and `run`: "module:Class", or an
fsspec URL, in place of a directory."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.log import Log
    from virtiofs.fs.python.filesystem import Filesystem
    from virtiofs.fs.python.paths import PathFilesystem
    from virtiofs.fs.python.reloading import Reloader
    from virtiofs.fs.python.serving import Servable

# Options that are not about a directory of the host.
MEANT = frozenset(
    (
        *(
            "command",
            "main",
            "parser",
            "directory",
            "option",
            "needs",
            "reload",
            "readonly",
            "socket",
            "fd",
            "socket_dir",
            "share",
        ),
        *(
            "control",
            "tag",
            "queues",
            "sandbox",
            "seccomp",
            "modcaps",
            "rlimit_nofile",
            "log_level",
            "ready_fd",
        ),
        *("mountpoint", "most_queues", "allow_other", "background", "threads"),
    )
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option about the class."""
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="with module:Class or a URL, an argument of the class or the source; may be repeated.  With --share,"
        " one of that tag's: TAG.KEY=VALUE",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="load the class again whenever a file of its own has changed, for whoever writes one"
        " (docs/writing-a-file-system.md)",
    )
    parser.add_argument(
        "--needs",
        metavar="WHAT",
        action="append",
        default=[],
        help="what the walls leave open for a class that does not say so itself: network, files (of the host, to read),"
        " or the path of one directory; may be repeated",
    )


def is_class(text: str | None) -> bool:
    """Whether what is to be shared is a class or a URL, and no path; without importing what that takes."""
    module, colon, name = (text or "").rpartition(":")
    if not colon or not (name.isidentifier() or "::" in (text or "") or "://" in (text or "")):
        return False
    from virtiofs.fs.python.loading import names_class

    return names_class(text or "")


def check_options(options: argparse.Namespace) -> None:
    """End with a usage error where an option is about the other kind of share."""
    parser = options.parser
    if not is_class(options.directory):
        for name in ("option", "needs", "reload"):
            if getattr(options, name):
                parser.error(f"--{name} is for a class in Python, given as module:Class or file.py:Class")
        return
    refuse_options(options, options.directory)


def refuse_options(options: argparse.Namespace, what: str) -> None:
    """End with a usage error where an option is about directories."""
    parser = options.parser
    for name, value in vars(options).items():
        if name not in MEANT and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is about directories; {what} decides that itself")


def load(
    options: argparse.Namespace,
    log: Log,
    what: str,
    words: Sequence[str],
    read_only: bool = False,
    reloader: Reloader | None = None,
    epoch: int = 0,
) -> Servable:
    """The file system `what`, made with "key=value" `words`.  `reloader`: what makes it.

    `epoch`: see `Servable`.  Raises `ValueError` and `OSError`.
    """
    from virtiofs.fs.python import loading

    if reloader is not None:
        return walled(options, log, *reloader.load(), read_only, epoch)
    fds: list[int] = []
    with loading.opened(fds):
        filesystem = loading.load(what, words)
    return walled(options, log, filesystem, fds, read_only, epoch)


def walled(
    options: argparse.Namespace,
    log: Log,
    filesystem: Filesystem | PathFilesystem,
    fds: list[int],
    read_only: bool,
    epoch: int = 0,
) -> Servable:
    """A file system behind the walls that the options ask for.  Raises `ValueError` and `OSError`."""
    from virtiofs.fs.python import loading
    from virtiofs.fs.python.serving import Servable

    needs = [
        name if name in (loading.NETWORK, loading.FILES) else os.path.abspath(name) for name in options.needs
    ]
    settings = {} if not options.rlimit_nofile else {"descriptors": options.rlimit_nofile}
    return Servable(
        filesystem,
        log.error,
        read_only or options.readonly,
        fds,
        needs,
        epoch,
        mode=options.sandbox,
        filter=options.seccomp,
        changes=options.modcaps,
        warn=log.warning,
        **settings,
    )


class Again:
    """Makes the next file system when the last one's files have changed; for whoever serves it.

    `first` is the one to begin with.  Each is told which it is (see `Servable`).
    """

    def __init__(
        self,
        options: argparse.Namespace,
        log: Log,
        what: str,
        words: Sequence[str],
        read_only: bool = False,
    ):
        from virtiofs.fs.python.reloading import Reloader

        self._options, self._log = options, log
        self._reloader = Reloader(what, words, log.error)
        self._read_only = read_only
        self._epoch = 1
        self.first = load(options, log, what, words, read_only, self._reloader, self._epoch)

    def __call__(self) -> Servable | None:
        found = self._reloader.again()
        if found is None:
            return None
        epoch = self._epoch + 1
        try:
            servable = walled(self._options, self._log, *found, self._read_only, epoch)
        except (ValueError, OSError) as error:
            self._log.error(f"what is served goes on as it was: {error}")
            return None
        self._epoch = epoch
        return servable
