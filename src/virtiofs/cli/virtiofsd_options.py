# SPDX-License-Identifier: Apache-2.0
"""The options of the daemons called `virtiofsd`, in Rust (1.14) and in C (QEMU 7.2), and what becomes of each here.

`OPTIONS` is the one place that says so; docs/drop-in.md is written from it (tools/drop-in-table).  An option is
honoured, or changes nothing here because it asks for what happens anyway, or is refused.  `virtiofsd.py` reads
command lines by it into `Settings`, and `dropin.py` does what those say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

MIN_DESCRIPTORS = 1400
MAX_POOL_THREADS = 64
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
RUST, C, BOTH, OURS = "Rust", "C", "both", "this one"


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
            "uid_map": [],
            "gid_map": [],
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
        ("--locked",),
        (),
        "FILE",
        OURS,
        HONOURED,
        "What this command line may not change is in FILE, as in /etc/virtiofs/locked.toml, which is always read.",
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
    Option(
        ("--uid-map",),
        (),
        ":INSIDE:OUTSIDE:COUNT:",
        RUST,
        HONOURED,
        "The serving process is in a user namespace with these users (docs/ownership.md); any character may stand for"
        " the colons.",
        one_more("uid_map"),
    ),
    Option(
        ("--gid-map",),
        (),
        ":INSIDE:OUTSIDE:COUNT:",
        RUST,
        HONOURED,
        "The same for groups.",
        one_more("gid_map"),
    ),
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
