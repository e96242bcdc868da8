# SPDX-License-Identifier: Apache-2.0
"""`virtiofs workspace`: what a guest changed of a directory, kept apart: look at it, keep it, or throw it away.

    virtiofs run --rootfs /srv/debian --workspace /srv/try -- sh -c 'apt-get install -y make'
    virtiofs workspace diff /srv/try
    virtiofs workspace commit /srv/try        # /srv/debian becomes what the guest saw
    virtiofs workspace discard /srv/try

The directory itself is not changed before `commit`.  `diff` writes a line for each change: A added, M changed,
D removed.  Exit status: 0; of `diff` 1 if there are changes, with --exit-code; 2 for a workspace that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys

from virtiofs.fs.workspace import ADDED, CHANGED, REMOVED, Change, Workspace, WorkspaceError

__all__ = ["add_arguments", "main", "mount"]

UNUSABLE = 2
LETTERS = {ADDED: "A", CHANGED: "M", REMOVED: "D"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs workspace`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("diff", "list what was changed"),
        ("commit", "make the directory what the guest saw, and the workspace empty"),
        ("discard", "throw away what was changed"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("workspace", metavar="WORKSPACE", help="the directory given with --workspace")
        if name == "diff":
            action.add_argument("--json", action="store_true", help="one JSON object a line")
            action.add_argument("--exit-code", action="store_true", help="exit status 1 if there are changes")
        else:
            action.add_argument("-v", "--verbose", action="store_true", help="name each change")


def main(args: argparse.Namespace) -> int:
    """Do what `virtiofs workspace` was told to.  Returns its exit status."""
    try:
        with Workspace(args.workspace) as workspace:
            if args.action == "diff":
                return _diff(workspace, args)
            show = _show if args.verbose else lambda change: None
            if args.action == "commit":
                count = workspace.commit(show)
                print(f"{count} changes taken into {workspace.directory}", file=sys.stderr)
            else:
                for change in workspace.changes() if args.verbose else ():
                    show(change)
                workspace.discard()
            return 0
    except WorkspaceError as error:
        print(f"virtiofs workspace: {error}", file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"virtiofs workspace: {error}", file=sys.stderr)
        return 1


def mount(path: str, directory: str) -> Workspace:
    """Put a workspace over `directory`, in a mount namespace of this process alone; what to serve is its `merged`.

    The workspace stays locked until this process ends.  Raises `WorkspaceError`, `OSError`.
    """
    from virtiofs.sandbox import namespaces

    if os.geteuid() != 0:
        raise WorkspaceError(
            "a workspace is mounted by root only (overlayfs); run as root, or leave --workspace out"
        )
    workspace = Workspace(path, directory, create=True)
    namespaces.new_mounts()
    namespaces.mount_overlay(workspace.directory, workspace.upper, workspace.work, workspace.merged)
    return workspace


def _diff(workspace: Workspace, args: argparse.Namespace) -> int:
    count = 0
    for change in workspace.changes():
        count += 1
        if args.json:
            document = {"change": change.kind, "path": os.fsdecode(change.path)}
            if change.mode:
                document["mode"] = f"{change.mode:06o}"
            print(json.dumps(document))
        else:
            _show(change)
    return 1 if count and args.exit_code else 0


def _show(change: Change) -> None:
    slash = b"/" if stat.S_ISDIR(change.mode) else b""
    sys.stdout.buffer.write(LETTERS[change.kind].encode() + b" " + change.path + slash + b"\n")
    sys.stdout.buffer.flush()
