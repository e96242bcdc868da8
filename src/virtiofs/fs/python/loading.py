# SPDX-License-Identifier: Apache-2.0
"""From "module:Class" on a command line to a file system.

The module is imported, and the class called, by the process that the user started, with all that it may: what both
open stays open in the process that serves, which can open nothing more of the host, nor import.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from virtiofs.fs.adapters import foreign
from virtiofs.fs.python.filesystem import Filesystem
from virtiofs.fs.python.paths import PathFilesystem

# Imported by the standard library when they are first needed, which may be behind the walls.
PRELOADED = (
    *("asyncio", "bisect", "calendar", "contextlib", "copy", "datetime", "decimal", "encodings.ascii"),
    *("encodings.cp437", "encodings.idna", "encodings.latin_1", "encodings.utf_8", "heapq", "inspect"),
    *("linecache", "locale", "random", "stat", "string", "struct", "tempfile", "textwrap", "threading"),
    *("tokenize", "traceback", "virtiofs.fs.python.awaiting", "virtiofs.fs.python.notifying"),
    *("warnings", "weakref"),
)
NETWORK, FILES = "network", "files"
WORDS = {
    "1": True,
    "yes": True,
    "true": True,
    "on": True,
    "0": False,
    "no": False,
    "false": False,
    "off": False,
}


def names_class(text: str) -> bool:
    """Whether `text` is "module:Class", "path/file.py:Class" or a URL, and not the path of a directory or a file."""
    if foreign.is_url(text):
        return not os.path.lexists(text)
    module, colon, name = text.rpartition(":")
    looks = module.endswith(".py") or all(part.isidentifier() for part in module.split("."))
    return bool(colon) and name.isidentifier() and looks and not os.path.lexists(text)


def load(text: str, options: Sequence[str] = ()) -> Filesystem | PathFilesystem:
    """The file system of "module:Class" or of an fsspec URL, made with `options`, "key=value" each.

    Raises `ValueError` saying what is wrong with it.
    """
    if foreign.is_url(text):
        return load_url(text, options)
    where, _, name = text.rpartition(":")
    module = import_file(where) if where.endswith(".py") else import_module(where)
    cls = getattr(module, name, None)
    ours = isinstance(cls, type) and issubclass(cls, (Filesystem, PathFilesystem))
    adapter = foreign.adapter_of(cls) if isinstance(cls, type) and not ours else None
    if not isinstance(cls, type) or not (ours or adapter):
        raise ValueError(
            f"{where} has no class {name} that is derived from virtiofs.Filesystem or virtiofs.PathFilesystem, nor from"
            " Operations of pyfuse3 or mfusepy"
        )
    made = make(cls, text, read_options(cls, options))
    return adapter(made) if adapter is not None else made


def make(cls: Callable[..., Any], text: str, arguments: dict[str, Any]) -> Any:
    """Call a constructor.  Raises `ValueError`."""
    try:
        return cls(**arguments)
    except Exception as error:
        raise ValueError(f"{text} can not be made: {type(error).__name__}: {error}") from error


def load_url(url: str, options: Sequence[str]) -> PathFilesystem:
    """The tree at an fsspec URL.  Raises `ValueError`."""
    try:
        from virtiofs.fs.adapters.from_fsspec import FsspecFilesystem
    except ImportError as error:
        raise ValueError(f"{url}: {error}; pip install virtiofs[fsspec]") from None
    arguments = {"url": url, **read_options(FsspecFilesystem, [f"url={url}", *options])}
    made: PathFilesystem = make(FsspecFilesystem, url, arguments)
    return made


def import_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # as `python -m` has it, and a command has not
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        advice = "" if os.path.sep in name else "; is it on the PYTHONPATH, or in this directory?"
        raise ValueError(f"cannot import {name}: {type(error).__name__}: {error}{advice}") from error


def import_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}")
    name = os.path.basename(path).removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # as for a script
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"cannot import {path}: {type(error).__name__}: {error}") from error
    return module


def read_options(cls: type, options: Sequence[str]) -> dict[str, Any]:
    """Arguments of the constructor, of the types it asks for: str, int, float or bool.  Raises `ValueError`."""
    parameters = inspect.signature(cls, eval_str=True).parameters
    known = [
        name for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    open_ended = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
    found: dict[str, Any] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option takes KEY=VALUE, not {text!r}")
        if key not in known and not open_ended:
            raise ValueError(f"{cls.__name__} has no option {key!r}; it has {', '.join(known) or 'none'}")
        wanted = parameters[key].annotation if key in known else str
        try:
            if wanted is bool:
                found[key] = WORDS[value.lower()]
            else:
                found[key] = wanted(value) if wanted in (int, float) else value
        except (ValueError, KeyError):
            raise ValueError(f"--option {key}= takes a {wanted.__name__}, not {value!r}") from None
    missing = [
        name for name in known if parameters[name].default is inspect.Parameter.empty and name not in found
    ]
    if missing:
        raise ValueError(f"{cls.__name__} needs {', '.join(f'--option {name}=...' for name in missing)}")
    return found


def preload() -> None:
    """Import what can not be imported behind the walls."""
    for name in PRELOADED:
        importlib.import_module(name)


@contextlib.contextmanager
def opened(fds: list[int]) -> Iterator[None]:
    """Add the descriptors that are opened meanwhile, and stay open, to `fds`."""
    before = open_descriptors()
    yield
    fds += open_descriptors() - before


def open_descriptors() -> set[int]:
    """The descriptors of this process, without the one that lists them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


def needs_of(filesystem: Filesystem | PathFilesystem, more: Sequence[str] = ()) -> tuple[str, bool, bool]:
    """Directory ("": none), network and files, as `needs` and `more` ask for them.  Raises `ValueError`."""
    needs = {filesystem.needs} if isinstance(filesystem.needs, str) else set(filesystem.needs)
    needs |= set(more)
    directories = sorted(needs - {NETWORK, FILES})
    if len(directories) > 1:
        raise ValueError(f"`needs` names more than one directory: {', '.join(directories)}")
    for directory in directories:
        if not os.path.isabs(directory):
            raise ValueError(
                f'`needs` names "network", "files" or the absolute path of a directory, not {directory!r}'
            )
        if not os.path.isdir(directory):
            raise ValueError(f"`needs` names {directory}, which is no directory")
    if directories and FILES in needs:
        raise ValueError(f"`needs` names {directories[0]} as the root, and all files; choose one of the two")
    return directories[0] if directories else "", NETWORK in needs, FILES in needs
