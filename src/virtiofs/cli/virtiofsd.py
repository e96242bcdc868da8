# SPDX-License-Identifier: Apache-2.0
"""The command `virtiofsd`: takes the command lines of the daemons of that name, in Rust (1.14) and in C (QEMU 7.2).

`OPTIONS` is the one place that says what becomes of each of their options; docs/drop-in.md is written from it
(tools/drop-in-table).  An option is honoured, or changes nothing here because it asks for what happens
anyway, or is refused: then the program ends with a line that names it.  None is taken silently.  What a command
line asks for are `Settings`, and `dropin.py` does it.

As those daemons, and other than `virtiofs serve`, it serves one connection and ends with it, with status 0.
Exit status: 1 for what is refused or cannot be set up, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import virtiofs

MIN_DESCRIPTORS = 1400
MAX_POOL_THREADS = 64
CAPABILITIES = ("separate-options",)
LOG_LEVELS = {
    "off": "off",
    "error": "error",
    "err": "error",
    "warn": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "debug",
}
HONOURED = "honoured"
SAME = "changes nothing"
REFUSED = "refused"
RUST, C, BOTH = "Rust", "C", "both"


class UsageError(Exception):
    """A command line that makes no sense."""


class Refused(Exception):
    """An option that is not honoured, or a value of it."""


class Settings:
    """What a command line asks for."""

    def __init__(self) -> None:
        self.shared_dir: str | None = None
        self.socket_path: str | None = None
        self.fd: int | None = None
        self.socket_group: str | None = None
        self.tag = "virtiofs"
        self.readonly = False
        self.rlimit_nofile: int | None = 0  # 0: as high as is allowed; None: as it is
        self.log_level = "info"
        self.syslog = False
        self.daemonize = False
        self.sandbox = "namespace"
        self.seccomp = "kill"
        self.modcaps = ""
        self.passthrough: dict[str, Any] = {
            "cache": "auto",
            "file_handles": "prefer",
            "shared_locks": False,
            "pool_threads": 4,
        }
        # Options of `virtiofs serve` about owners and attributes (cli/ownership.py).
        self.owners: dict[str, Any] = {
            "xattr": False,
            "xattrmap": None,
            "posix_acl": False,
            "security_label": False,
            "killpriv_v2": True,
            "translate_uid": [],
            "translate_gid": [],
        }

    def share(self, path: str) -> None:
        """Nobody who may only append arguments is to choose what is shared."""
        if self.shared_dir not in (None, path):
            raise UsageError(f"two directories to share: {self.shared_dir} and {path}; name one")
        self.shared_dir = path

    def limit_descriptors(self, text: str) -> None:
        number = integer("--rlimit-nofile", text)
        if 0 < number < MIN_DESCRIPTORS:
            raise Refused(f"--rlimit-nofile takes 0, or {MIN_DESCRIPTORS} and more, not {number}")
        self.rlimit_nofile = number or None

    def size_pool(self, text: str) -> None:
        self.passthrough["pool_threads"] = min(integer("--thread-pool-size", text), MAX_POOL_THREADS)


Action = Callable[[Settings, str], None]


class Option(NamedTuple):
    """One option of the older daemons.  `names`: its separate forms; `words`: its forms in a `-o` list.

    `value`: what it takes, "" for nothing, in brackets if it may be left out and else comes after "=".
    `values`: where only certain values are known, why each is refused ("": it is not).  `text`: what it does
    here, or why it is refused and what to do.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    value: str
    daemons: str
    state: str
    text: str
    act: Action | None = None
    values: dict[str, str] | None = None


def put(name: str, value: Any = None) -> Action:
    """Set a field of the settings to `value`, or to what the option takes."""

    def act(settings: Settings, text: str) -> None:
        setattr(settings, name, text if value is None else value)

    return act


def put_number(name: str, option: str) -> Action:
    def act(settings: Settings, text: str) -> None:
        setattr(settings, name, integer(option, text))

    return act


def files(name: str, value: Any = None) -> Action:
    """Set an argument of the file system to `value`, or to what the option takes."""

    def act(settings: Settings, text: str) -> None:
        settings.passthrough[name] = text if value is None else value

    return act


def owners(name: str, value: Any = None) -> Action:
    """Set an option about owners and attributes to `value`, or to what the option takes."""

    def act(settings: Settings, text: str) -> None:
        settings.owners[name] = text if value is None else value

    return act


def unless_never(name: str) -> Action:
    """Switch an option about attributes on, or off with "never"."""

    def act(settings: Settings, text: str) -> None:
        settings.owners[name] = text != "never"

    return act


def one_more(name: str) -> Action:
    """Add what the option takes to a list of rules."""

    def act(settings: Settings, text: str) -> None:
        settings.owners[name].append(text)

    return act


def set_cache(settings: Settings, text: str) -> None:
    settings.passthrough["cache"] = "never" if text == "none" else text


def set_timeout(settings: Settings, text: str) -> None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise UsageError(f"-o timeout= takes seconds, not {text!r}")
    settings.passthrough["valid"] = seconds


def set_log_level(settings: Settings, text: str) -> None:
    settings.log_level = LOG_LEVELS[text]


def integer(option: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise UsageError(f"{option} takes a number, not {text!r}")
    return int(text)


NO_IDS = "the user namespace holds this user only; use --translate-uid and --translate-gid, or leave it out"
NO_MIGRATION = "a share cannot be migrated live; leave it out"
LOCAL_LOCKS = "Locks of both kinds, flock and fcntl, stay inside each guest: the default."
SHARED_LOCKS = "Locks of both kinds, flock and fcntl, are taken on the host."

# In the order of docs/drop-in.md.
OPTIONS = (
    Option(
        ("--shared-dir",),
        ("source=",),
        "DIR",
        BOTH,
        HONOURED,
        "The directory to share. Two different ones are refused: the last does not win.",
        Settings.share,
    ),
    Option(
        ("--socket-path", "--socket"),
        (),
        "PATH",
        BOTH,
        HONOURED,
        "Makes a socket here, and PATH.pid beside it, locked while the daemon lives.",
        put("socket_path"),
    ),
    Option(
        ("--fd",),
        (),
        "N",
        BOTH,
        HONOURED,
        "A socket that is passed: listening, or connected already.",
        put_number("fd", "--fd"),
    ),
    Option(
        ("--socket-group",),
        (),
        "GROUP",
        BOTH,
        HONOURED,
        "Members of the group may connect; otherwise only this user.",
        put("socket_group"),
    ),
    Option(
        ("--tag",),
        (),
        "TAG",
        RUST,
        HONOURED,
        "The tag, for front ends that ask the device for it.",
        put("tag"),
    ),
    Option(
        ("--readonly",), (), "", RUST, HONOURED, "Every change is refused on the host.", put("readonly", True)
    ),
    Option(
        ("--cache",),
        ("cache=",),
        "MODE",
        BOTH,
        HONOURED,
        "What the guest may keep: nothing (never, none), metadata for a day (metadata), everything for a second (auto,"
        " the default) or for a day (always).",
        set_cache,
        dict.fromkeys(("auto", "always", "never", "none", "metadata"), ""),
    ),
    Option(
        (),
        ("timeout=",),
        "SECONDS",
        C,
        HONOURED,
        "How long names and attributes are trusted, whatever the mode says.",
        set_timeout,
    ),
    Option(
        ("--writeback",),
        ("writeback",),
        "",
        BOTH,
        HONOURED,
        "The guest keeps what it writes for a while. Nobody else may change the files.",
        files("writeback", True),
    ),
    Option((), ("no_writeback",), "", BOTH, HONOURED, "The default.", files("writeback", False)),
    Option(
        ("--allow-direct-io",),
        ("allow_direct_io",),
        "",
        BOTH,
        HONOURED,
        "O_DIRECT in the guest is O_DIRECT on the host.",
        files("direct_io", True),
    ),
    Option((), ("no_allow_direct_io",), "", BOTH, HONOURED, "The default.", files("direct_io", False)),
    Option(
        ("--allow-mmap",),
        (),
        "",
        RUST,
        HONOURED,
        "Shared mappings where the guest keeps no data (never, metadata); needs Linux 6.6 in the guest.",
        files("mmap", True),
    ),
    Option(
        ("--no-readdirplus",),
        ("no_readdirplus",),
        "",
        BOTH,
        HONOURED,
        "Directories are read without attributes.",
        files("readdirplus", False),
    ),
    Option(
        (),
        ("readdirplus",),
        "",
        BOTH,
        HONOURED,
        "Directories are read with attributes where the guest wants them; the default except with never.",
        files("readdirplus", True),
    ),
    Option(
        ("--preserve-noatime",),
        (),
        "",
        RUST,
        HONOURED,
        "O_NOATIME in the guest is passed on.",
        files("noatime", True),
    ),
    Option(
        ("--inode-file-handles",),
        (),
        "MODE",
        RUST,
        HONOURED,
        "Whether to come back to files by file handle; prefer (the default) and fallback: where privilege and the file"
        " system allow it.",
        lambda settings, text: settings.passthrough.update(
            file_handles="prefer" if text == "fallback" else text
        ),
        dict.fromkeys(("never", "prefer", "fallback", "mandatory"), ""),
    ),
    Option(
        ("--rlimit-nofile",),
        (),
        "N",
        BOTH,
        HONOURED,
        f"The limit of open descriptors, {MIN_DESCRIPTORS} or more; 0 leaves it as it is; by default as high as is"
        " allowed, at most a million.",
        Settings.limit_descriptors,
    ),
    Option(
        ("--thread-pool-size",),
        (),
        "N",
        BOTH,
        HONOURED,
        "Threads for requests that wait for a disk or a server; the queue's own thread serves the others."
        f" 4 by default, {MAX_POOL_THREADS} at most: more are taken as so many; with 0 the queue waits itself.",
        Settings.size_pool,
    ),
    Option(
        (),
        ("max_idle_threads=",),
        "N",
        C,
        SAME,
        "All threads of the pool stay, idle or not.",
    ),
    Option((), ("allow_root",), "", C, SAME, "Every user of the guest may use the share, root as well."),
    Option(
        ("--announce-submounts",),
        ("announce_submounts",),
        "",
        BOTH,
        HONOURED,
        "Mounts below the directory are mounts in the guest: the default.",
        files("announce_submounts", True),
    ),
    Option(
        ("--no-announce-submounts",),
        (),
        "",
        RUST,
        HONOURED,
        "They are not.",
        files("announce_submounts", False),
    ),
    Option(
        ("--xattr",),
        ("xattr",),
        "",
        BOTH,
        HONOURED,
        "All extended attributes, as far as privilege goes; without it user.* only.",
        owners("xattr", True),
    ),
    Option(
        (),
        ("no_xattr",),
        "",
        BOTH,
        REFUSED,
        "attributes of the user. namespace are served, whatever is asked; leave it out",
    ),
    Option(
        ("--xattrmap",),
        ("xattrmap=",),
        "RULES",
        BOTH,
        HONOURED,
        "Extended attributes under other names on the host (docs/xattrs.md).",
        owners("xattrmap"),
    ),
    Option(
        ("--posix-acl",),
        ("posix_acl",),
        "[MODE]",
        BOTH,
        HONOURED,
        "Access control lists, which are the host's.",
        unless_never("posix_acl"),
        {"never": "", "always": ""},
    ),
    Option(
        (),
        ("no_posix_acl",),
        "",
        BOTH,
        HONOURED,
        "The default.",
        owners("posix_acl", False),
    ),
    Option(
        ("--security-label",),
        ("security_label",),
        "[MODE]",
        BOTH,
        HONOURED,
        "New files get the label that the guest sends.",
        unless_never("security_label"),
        {"never": "", "always": ""},
    ),
    Option(
        (),
        ("no_security_label",),
        "",
        BOTH,
        HONOURED,
        "The default.",
        owners("security_label", False),
    ),
    Option(
        ("--killpriv-v2",),
        ("killpriv_v2",),
        "",
        BOTH,
        HONOURED,
        "The guest leaves it to us to take set-id bits away when a file is written: the default.",
        owners("killpriv_v2", True),
    ),
    Option(
        ("--no-killpriv-v2",),
        ("no_killpriv_v2",),
        "",
        BOTH,
        HONOURED,
        "The guest itself takes them away.",
        owners("killpriv_v2", False),
    ),
    Option((), ("flock",), "", C, HONOURED, SHARED_LOCKS, files("shared_locks", True)),
    Option((), ("posix_lock",), "", C, HONOURED, SHARED_LOCKS, files("shared_locks", True)),
    Option((), ("no_flock",), "", BOTH, HONOURED, LOCAL_LOCKS, files("shared_locks", False)),
    Option((), ("no_posix_lock",), "", BOTH, HONOURED, LOCAL_LOCKS, files("shared_locks", False)),
    Option(
        ("--sandbox",),
        ("sandbox=",),
        "MODE",
        BOTH,
        HONOURED,
        "What keeps the serving process in the directory besides its own rules; namespace by default, and with none the"
        " log warns.",
        put("sandbox"),
        dict.fromkeys(("namespace", "chroot", "none"), ""),
    ),
    Option(
        ("--seccomp",),
        (),
        "ACTION",
        RUST,
        HONOURED,
        "What happens to a system call that serving has no need of; kill by default, and with none the log warns.",
        put("seccomp"),
        dict.fromkeys(("none", "kill", "log", "trap"), ""),
    ),
    Option(
        ("--modcaps",),
        ("modcaps=",),
        "LIST",
        BOTH,
        HONOURED,
        "Changes the capabilities that the serving process keeps.",
        put("modcaps"),
    ),
    Option(("--uid-map",), (), ":INSIDE:OUTSIDE:COUNT:", RUST, REFUSED, NO_IDS),
    Option(("--gid-map",), (), ":INSIDE:OUTSIDE:COUNT:", RUST, REFUSED, NO_IDS),
    Option(
        ("--translate-uid",),
        (),
        "TYPE:A:B:COUNT",
        RUST,
        HONOURED,
        "Translates users (docs/ownership.md); ids without a rule stay.",
        one_more("translate_uid"),
    ),
    Option(
        ("--translate-gid",),
        (),
        "TYPE:A:B:COUNT",
        RUST,
        HONOURED,
        "Translates groups.",
        one_more("translate_gid"),
    ),
    Option(("--migration-mode",), (), "MODE", RUST, REFUSED, NO_MIGRATION),
    Option(("--migration-on-error",), (), "MODE", RUST, REFUSED, NO_MIGRATION),
    Option(("--migration-verify-handles",), (), "", RUST, REFUSED, NO_MIGRATION),
    Option(("--migration-confirm-paths",), (), "", RUST, REFUSED, NO_MIGRATION),
    Option(
        ("--log-level",),
        ("loglevel=", "log_level="),
        "LEVEL",
        BOTH,
        HONOURED,
        "off, error (err), warn, info (the default), debug or trace, which is debug here; RUST_LOG, if it is one"
        " of these words, goes first.",
        set_log_level,
        dict.fromkeys(LOG_LEVELS, ""),
    ),
    Option(("-d",), ("debug",), "", BOTH, HONOURED, "As --log-level debug.", put("log_level", "debug")),
    Option(
        ("--syslog",),
        (),
        "",
        BOTH,
        HONOURED,
        "Logs to /dev/log; to standard error, with a warning, where nobody listens there.",
        put("syslog", True),
    ),
    Option(("-f",), (), "", BOTH, HONOURED, "Stays in the foreground: the default.", put("daemonize", False)),
    Option(
        ("--daemonize",),
        (),
        "",
        C,
        HONOURED,
        "Goes to the background once a front end may connect.",
        put("daemonize", True),
    ),
    Option(("--print-capabilities",), (), "", BOTH, HONOURED, "Prints what libvirt asks for, and ends."),
    Option(("-V", "--version"), (), "", BOTH, HONOURED, "Prints the version, and ends."),
    Option(("-h", "--help"), (), "", BOTH, HONOURED, "Prints the options, and ends."),
)

BY_NAME = {name: option for option in OPTIONS for name in option.names}
BY_WORD = {word: option for option in OPTIONS for word in option.words}


def spellings(arguments: list[str]) -> Iterator[tuple[str, Option, str | None]]:
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


def words(text: str) -> Iterator[tuple[str, Option, str | None]]:
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


def parse(arguments: list[str]) -> Settings:
    """What a command line asks for.  Raises `Refused` and `UsageError`."""
    settings = Settings()
    for spelling, option, value in spellings(arguments):
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
