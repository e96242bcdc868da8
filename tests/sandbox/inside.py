# SPDX-License-Identifier: Apache-2.0
"""Behaviours seen from inside the walls: a forked child puts them up around itself, acts, and reports."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from virtiofs.sandbox.walls import Place, Walls


def child(act: Callable[[], Any]) -> tuple[Any, int]:
    """What `act` returned in a forked child, as JSON can carry it (None if it did not return), and how it ended."""
    mine, its = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(mine)
            os.write(its, json.dumps(act()).encode())
        except BaseException as error:
            os.write(its, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(its)
    with open(mine, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(said) if said else None, os.waitstatus_to_exitcode(status)


def walled(walls: Walls, act: Callable[[Place], Any]) -> tuple[Any, int]:
    """As `child`, inside walls."""
    mine, its = os.pipe()
    parent = os.pidfd_open(os.getpid())
    pid = os.fork()
    if not pid:
        try:
            os.close(mine)
            place = walls.enter(parent, its)
            walls.seal(place)
            os.write(its, json.dumps(act(place)).encode())
        except BaseException as error:
            os.write(its, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(its)
    os.close(parent)
    with open(mine, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(said) if said else None, os.waitstatus_to_exitcode(status)


def outcome(act: Callable[[], Any]) -> str:
    """ "done", or the name of the error that `act` raised."""
    try:
        act()
    except OSError as error:
        return type(error).__name__ if error.errno is None else os.strerror(error.errno)
    return "done"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
