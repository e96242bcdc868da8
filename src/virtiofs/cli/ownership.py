# SPDX-License-Identifier: Apache-2.0
"""The options of `virtiofs serve` about owners and extended attributes, and what they mean to a share."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, in groups of their own."""
    owners = parser.add_argument_group("owners (docs/ownership.md)")
    owners.add_argument(
        "--ownership",
        metavar="MODE",
        choices=["as-is", "mapped", "xattr"],
        default="as-is",
        help="whose files are: as-is: the host's ids; mapped: translated by --translate-uid and --translate-gid;"
        " xattr: kept in an attribute of each file, so that no privilege is needed (%(default)s)",
    )
    for kind, what in (("uid", "users"), ("gid", "groups")):
        owners.add_argument(
            f"--translate-{kind}",
            metavar="RULE",
            action="append",
            default=[],
            help=f"translate {what}: map:GUEST:HOST:COUNT, guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT,"
            " squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT or forbid-guest:GUEST:COUNT; repeatable",
        )
    for kind, what in (("uid", "users"), ("gid", "groups")):
        owners.add_argument(
            f"--{kind}-map",
            metavar=":INSIDE:OUTSIDE:COUNT:",
            action="append",
            default=[],
            help=f"have the worker in a user namespace whose {what} are these of the host; repeatable",
        )
    owners.add_argument(
        "--unmapped-ids",
        metavar="WHAT",
        choices=["refuse", "keep"],
        default="refuse",
        help="ids without a rule, in a direction that has rules: refuse the guest's and show the host's as 65534, or"
        " keep them as they are (%(default)s)",
    )
    owners.add_argument(
        "--killpriv-v2",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take set-user-id bits and capabilities away when a file is written, so that the guest need not ask for"
        " them before each write (on)",
    )
    attributes = parser.add_argument_group("extended attributes (docs/xattrs.md)")
    attributes.add_argument(
        "--xattr",
        action="store_true",
        help="all attributes as they are, as far as our privilege goes; they act on the host as well (default: user.*)",
    )
    attributes.add_argument(
        "--xattrmap",
        metavar="RULES",
        help="attributes under other names on the host, in virtiofsd's syntax, such as :map::user.virtiofs.:",
    )
    attributes.add_argument(
        "--posix-acl", action="store_true", help="access control lists; they are the host's as well"
    )
    attributes.add_argument(
        "--security-label",
        action="store_true",
        help="label new files as the guest's security module says; needs --xattr or --xattrmap",
    )


def id_maps(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Walls` for --uid-map and --gid-map.  Raises `ValueError` where they make no sense."""
    from virtiofs.sandbox.idmaps import parse_map

    return {
        "users": parse_map(options.uid_map, "--uid-map"),
        "groups": parse_map(options.gid_map, "--gid-map"),
    }


def share_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Passthrough` for these options.  Raises `ValueError` where they make no sense."""
    from virtiofs.fs.passthrough.idrules import Translation, parse_id_rules
    from virtiofs.fs.passthrough.xattrmap import NameMap
    from virtiofs.fs.passthrough.xattrrules import EVERYTHING, USER_ONLY, parse_xattr_rules

    mode = options.ownership
    translated = bool(options.translate_uid or options.translate_gid)
    if translated and mode != "mapped":
        raise ValueError(f"--translate-uid and --translate-gid need --ownership mapped, not {mode}")
    if mode == "mapped" and not translated:
        raise ValueError("--ownership mapped needs --translate-uid or --translate-gid to say what is mapped")
    if options.unmapped_ids != "refuse" and mode != "mapped":
        raise ValueError(f"--unmapped-ids needs --ownership mapped, not {mode}")
    if options.posix_acl and mode != "as-is":
        raise ValueError(
            f"--posix-acl needs --ownership as-is, not {mode}: access lists hold ids and modes of the host"
        )
    users, groups = Translation([], []), Translation([], [])
    if translated:
        users, groups = parse_id_rules(options.translate_uid), parse_id_rules(options.translate_gid)
    if options.xattrmap is not None:
        if options.xattr:
            raise ValueError("--xattr and --xattrmap exclude each other; the map says what passes")
        rules = parse_xattr_rules(options.xattrmap)
    else:
        rules = EVERYTHING if options.xattr else USER_ONLY
    if options.security_label:
        try:
            NameMap(rules).to_host(b"security.selinux")
        except OSError:
            raise ValueError(
                "--security-label needs security.* attributes: give --xattr, or an --xattrmap that keeps them, such as"
                " :map:security.:trusted.virtiofs.:"
            ) from None
    return {
        "xattr_rules": rules,
        "posix_acl": options.posix_acl,
        "kill_priv": options.killpriv_v2,
        "security_label": options.security_label,
        "ownership": mode,
        "users": users,
        "groups": groups,
        "keep_unmapped": options.unmapped_ids == "keep",
    }
