# SPDX-License-Identifier: Apache-2.0
"""The command `virtiofs`: finds the sub-command and imports only that one.

Exit status: 0 success, 1 failure, 2 a command line that makes no sense; `run` passes its command's on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Container

import virtiofs

COMMANDS = {
    "serve": "share directories with VMs over vhost-user",
    "mount": "mount a directory on this host as a guest would, without a VM",
    "ctl": "ask a running daemon, or change what it shares",
    "events": "tell what changes in a share, as it happens",
    "top": "watch what guests do with shares: rates, times, errors",
    "trace": "see requests as they pass",
    "run": "run a command in a throw-away guest that has directories shared",
    "workspace": "look at what a guest changed of a directory, keep it, or throw it away",
    "kata-sim": "start a guest the way Kata does, with containers on the share",
    "policy": "try the rules of a policy",
    "audit": "verify or show what --audit wrote",
    "check": "check that a virtio-fs device is right and robust",
    "bench-guest": "compare what a guest can have its files by: virtio-fs, 9p, NFS, a disk image",
    "bench": "measure virtio-fs daemons side by side",
}


def make_parser(wanted: Container[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The command line, with the options of `wanted` commands only: each costs imports."""
    parser = argparse.ArgumentParser(
        prog="virtiofs",
        description="Share host directories with virtual machines (virtio-fs).",
        epilog="`virtiofs COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"virtiofs {virtiofs.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name in wanted:
            module = importlib.import_module(f"virtiofs.cli.{name.replace('-', '_')}")
            command = commands.add_parser(name, help=summary, description=module.__doc__)
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(command)
            command.set_defaults(main=module.main)
        else:
            commands.add_parser(name, help=summary, add_help=False)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((word for word in arguments if not word.startswith("-")), None)
    options = make_parser([] if named is None else [named]).parse_args(arguments)
    try:
        return int(options.main(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        sys.stdout = None
        return 141


if __name__ == "__main__":
    sys.exit(main())
