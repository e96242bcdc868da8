# SPDX-License-Identifier: Apache-2.0
"""File systems in Python on the command lines of `serve`, `mount` and `run`: "module:Class" in place of a directory."""

from __future__ import annotations

import argparse

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
        help="with module:Class, an argument of the class; may be repeated",
    )


def is_class(text: str | None) -> bool:
    """Whether what is to be shared is "module:Class" or "path/file.py:Class"; without importing what that takes."""
    module, colon, name = (text or "").rpartition(":")
    if not colon or not name.isidentifier():
        return False
    from virtiofs.fs.python.loading import names_class

    return names_class(text or "")


def check_options(options: argparse.Namespace) -> None:
    """End with a usage error where an option is about the other kind of share."""
    parser = options.parser
    if not is_class(options.directory):
        if options.option:
            parser.error("--option is for a class in Python, given as module:Class or file.py:Class")
        return
    for name, value in vars(options).items():
        if name not in MEANT and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is about directories; {options.directory} decides that itself")


def load(options: argparse.Namespace, log: Log) -> Servable:
    """The file system that is named in place of a directory.  Raises `ValueError` and `OSError`."""
    from virtiofs.fs.python import loading
    from virtiofs.fs.python.serving import Servable

    fds: list[int] = []
    with loading.opened(fds):
        filesystem = loading.load(options.directory, options.option)
    settings = {} if not options.rlimit_nofile else {"descriptors": options.rlimit_nofile}
    return Servable(
        filesystem,
        log.error,
        options.readonly,
        fds,
        mode=options.sandbox,
        filter=options.seccomp,
        changes=options.modcaps,
        warn=log.warning,
        **settings,
    )
