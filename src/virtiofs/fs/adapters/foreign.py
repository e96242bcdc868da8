# SPDX-License-Identifier: Apache-2.0
"""Tells whose a class or a URL is, and finds its adapter."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtiofs.fs.python.filesystem import Filesystem
    from virtiofs.fs.python.paths import PathFilesystem

# A protocol, "://" or "::" for one that is chained to the next, and the rest.
URL = re.compile(r"[a-z][a-z0-9+.-]*(://|::)")
# The package that a base class called Operations comes from, and who adapts it.  fusepy and refuse are what mfusepy
# goes back to, and are called in the same way.
ADAPTERS = {"pyfuse3": "pyfuse3", "mfusepy": "mfusepy", "fuse": "mfusepy", "fusepy": "mfusepy"}


def is_url(text: str) -> bool:
    """Whether `text` is an fsspec URL: "memory://", "zip://::file:///srv/a.zip"."""
    return URL.match(text) is not None


def adapter_of(cls: type) -> Callable[[Any], Filesystem | PathFilesystem] | None:
    """What makes a file system of ours from an object of `cls`, which is made next; None if it is none known here."""
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ == "Operations" and package in ADAPTERS:
            if ADAPTERS[package] == "pyfuse3":
                from virtiofs.fs.adapters.from_pyfuse3 import Pyfuse3Filesystem

                return Pyfuse3Filesystem
            from virtiofs.fs.adapters.from_mfusepy import MfusepyFilesystem, prepare

            prepare()
            return MfusepyFilesystem
    return None


def replace(package: Any, name: str, ours: object) -> None:
    """Put `ours` in place of a function of `package`, also where a module has it by name."""
    theirs = getattr(package, name, None)
    for module in list(sys.modules.values()):
        if theirs is not None and getattr(module, "__dict__", {}).get(name) is theirs:
            setattr(module, name, ours)
