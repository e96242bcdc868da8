# SPDX-License-Identifier: Apache-2.0
"""The command `virtiofsd`: takes the command lines of the daemons of that name, in Rust (1.14) and in C (QEMU 7.2).

What becomes of each option is said by its row in `virtiofsd_options.py`; for one that is refused the program ends
with a line that names it, and none is taken silently.  What a command line asks for are `Settings`, and `dropin.py`
does it.

As those daemons, and other than `virtiofs serve`, it serves one connection and ends with it, with status 0.
Exit status: 1 for what is refused or cannot be set up, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import virtiofs
from virtiofs.cli.virtiofsd_options import (
    LOG_LEVELS,
    OPTIONS,
    REFUSED,
    Option,
    Refused,
    Settings,
    UsageError,
)

SYSTEM_LOCK = "/etc/virtiofs/locked.toml"
CAPABILITIES = ("separate-options",)
Spelled = tuple[str, Option, str | None]  # as it was written, its row, its value
BY_NAME = {name: option for option in OPTIONS for name in option.names}
BY_WORD = {word: option for option in OPTIONS for word in option.words}


def spellings(arguments: list[str]) -> Iterator[Spelled]:
    """Each option of a command line as it was spelled, its row, and its value (None: none was given).

    Raises `UsageError` for what no daemon knows.
    """
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            option = BY_NAME.get(name)
            if option is None:
                raise UsageError(f"there is no option {name}; --help lists them")
            if equals:
                yield name, option, value
            elif option.value and not option.value.startswith("["):
                yield name, option, following(name, rest)
            else:
                yield name, option, None
        elif argument.startswith("-o"):
            yield from words(argument[2:] or following("-o", rest))
        elif argument.startswith("-") and len(argument) > 1:
            for letter in argument[1:]:
                option = BY_NAME.get(f"-{letter}")
                if option is None:
                    raise UsageError(f"there is no option -{letter}; --help lists them")
                yield f"-{letter}", option, None
        else:
            raise UsageError(f"{argument!r} is no option; the directory is given with --shared-dir")


def following(name: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise UsageError(f"{name} needs a value")
    return value


def words(text: str) -> Iterator[Spelled]:
    """The options of a `-o` list.  A comma in a value is doubled, as libvirt does."""
    for item in text.replace(",,", "\0").split(","):
        word, equals, value = item.replace("\0", ",").partition("=")
        option = BY_WORD.get(word + equals)
        if option is None:
            raise UsageError(f"there is no option -o {word}{equals}; --help lists them")
        yield f"-o {word}{equals}", option, value if equals else None


def apply(settings: Settings, spelling: str, option: Option, value: str | None) -> None:
    """Do what one option says.  Raises `Refused` and `UsageError`."""
    if value is not None and not option.value:
        raise UsageError(f"{spelling} takes no value")
    known = option.values
    if known is not None and value is not None:
        if value not in known:
            takes = " or ".join(name for name, reason in known.items() if not reason)
            raise Refused(f"{spelling.rstrip('=')} takes {takes} here, not {value!r}")
        if known[value]:
            raise Refused(f"{spelling.rstrip('=')} {value} is not honoured: {known[value]}")
    elif option.state == REFUSED:
        raise Refused(f"{spelling.rstrip('=')} is not honoured: {option.text}")
    if option.act is not None:
        option.act(settings, value or "")


def permitted(given: list[Spelled]) -> list[Spelled]:
    """What the locks put first, and what was given, all of which they allow.  Raises `Refused` and `UsageError`."""
    named = [value for name, _, value in given if name == "--locked" and value is not None]
    if not named and not os.path.lexists(SYSTEM_LOCK):
        return given
    from virtiofs.cli import locked

    locks = [
        locked.read_lock(path) for path in ([SYSTEM_LOCK] if os.path.lexists(SYSTEM_LOCK) else []) + named
    ]
    for lock in locks:
        for spelling, option, value in given:
            if spelling != "--locked":
                lock.check(spelling, option, value)
    return [word for lock in locks for word in spellings([*lock.arguments])] + given


def parse(arguments: list[str]) -> Settings:
    """What a command line asks for.  Raises `Refused` and `UsageError`."""
    settings = Settings()
    for spelling, option, value in permitted(list(spellings(arguments))):
        apply(settings, spelling, option, value)
    level = os.environ.get("RUST_LOG", "").lower()
    settings.log_level = LOG_LEVELS.get(level, settings.log_level)
    if settings.shared_dir is None:
        raise UsageError("nothing to share: give --shared-dir DIR")
    if (settings.socket_path is None) == (settings.fd is None):
        raise UsageError("give one of --socket-path PATH and --fd N")
    if settings.socket_group is not None and settings.fd is not None:
        raise UsageError("--socket-group is for --socket-path; whoever passes --fd chooses who may connect")
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Serve one connection and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--print-capabilities" in arguments:
        features = ", ".join(f'"{feature}"' for feature in CAPABILITIES)
        print(f'{{"type": "fs", "features": [{features}]}}')
        return 0
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(usage())
        return 0
    if not {"-V", "--version"}.isdisjoint(arguments):
        print(f"virtiofsd of virtiofs {virtiofs.__version__}")
        return 0
    try:
        settings = parse(arguments)
    except Refused as error:
        print(f"virtiofsd: {error}", file=sys.stderr)
        return 1
    except UsageError as error:
        print(f"virtiofsd: {error}", file=sys.stderr)
        return 2
    from virtiofs.cli.dropin import serve

    return serve(settings)


def forms(option: Option) -> list[str]:
    """How an option can be spelled."""
    value = option.value
    suffix = f"[={value[1:-1]}]" if value.startswith("[") else f" {value}" if value else ""
    separate = [name + (suffix if name.startswith("--") else "") for name in option.names]
    return separate + [f"-o {word}{value if word.endswith('=') else ''}" for word in option.words]


def usage() -> str:
    """The text of --help."""
    lines = [
        "Usage: virtiofsd --shared-dir DIR (--socket-path PATH | --fd N) [OPTION ...]",
        "Serves a directory to one VM over vhost-user, with the options of the daemons in Rust and in C.",
        "(`virtiofs serve` has more: several shares, several VMs one after the other, a control socket.)",
        "",
    ]
    for option in OPTIONS:
        lines.append("  " + ", ".join(forms(option)))
        known = option.values or {}
        refused = [name for name, reason in known.items() if reason]
        if option.state == REFUSED:
            lines.append(f"        refused: {option.text}")
        else:
            lines.append(f"        {option.text}")
        if refused:
            lines.append(f"        refused: {', '.join(refused)}: {known[refused[0]]}")
    return "\n".join(lines)


def run() -> int:
    """The console script.  Launchers look for the process by its name, which a script's interpreter may hide."""
    try:
        with open("/proc/self/comm", "w") as name:
            name.write("virtiofsd")
    except OSError:
        pass
    try:
        return main()
    except BrokenPipeError:
        sys.stdout = None  # else Python complains once more when it flushes at exit
        return 141


if __name__ == "__main__":
    sys.exit(run())
