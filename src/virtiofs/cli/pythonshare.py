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
        for name in ("option", "needs"):
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
    options: argparse.Namespace, log: Log, what: str, words: Sequence[str], read_only: bool = False
) -> Servable:
    """The file system `what`, made with "key=value" `words`.  Raises `ValueError` and `OSError`."""
    from virtiofs.fs.python import loading
    from virtiofs.fs.python.serving import Servable

    fds: list[int] = []
    with loading.opened(fds):
        filesystem = loading.load(what, words)
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
        mode=options.sandbox,
        filter=options.seccomp,
        changes=options.modcaps,
        warn=log.warning,
        **settings,
    )
