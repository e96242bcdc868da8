# SPDX-License-Identifier: Apache-2.0
"""The command `virtiofs`: finds the sub-command and imports only that one.

Exit status: 0 success, 1 failure, 2 a command line that makes no sense; `run` passes its command's on.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import virtiofs

COMMANDS = {
    "serve": "share directories with VMs over vhost-user",
    "mount": "mount a directory on this host as a guest would, without a VM",
    "ctl": "ask a running daemon, or change what it shares",
    "events": "tell what changes in a share, as it happens",
    "run": "run a command in a throw-away guest that has directories shared",
    "check": "check that a virtio-fs device is right and robust",
    "bench": "measure virtio-fs daemons side by side",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="virtiofs",
        description="Share host directories with virtual machines (virtio-fs).",
        epilog="`virtiofs COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"virtiofs {virtiofs.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == named:
            module = importlib.import_module(f"virtiofs.cli.{name}")
            command = commands.add_parser(name, help=summary, description=module.__doc__)
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(command)
            command.set_defaults(main=module.main)
        else:
            commands.add_parser(name, help=summary, add_help=False)
    options = parser.parse_args(arguments)
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
