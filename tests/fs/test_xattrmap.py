# SPDX-License-Identifier: Apache-2.0
"""Extended attributes under other names: the rules, and what a guest sees through them."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharing import ROOT, failure, refusal, shared
from virtiofs.fs.passthrough.xattrmap import NameMap
from virtiofs.fs.passthrough.xattrrules import EVERYTHING, USER_ONLY, Rule, parse_xattr_rules

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="trusted.* and security.* attributes need root")

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
WORDS = st.sampled_from(["", "user.", "trusted.", "user.virtiofs.", "security.capability", "a", "aa"])
RULES = st.lists(
    st.builds(
        lambda kind, scope, key, prepend: f":{kind}:{scope}:{key}:{prepend}:",
        st.sampled_from(["prefix", "ok", "bad", "unsupported"]),
        st.sampled_from(["client", "server", "all"]),
        WORDS,
        WORDS,
    ),
    max_size=6,
).map(lambda rules: "".join(rules) + ":bad:all:::")


# --- the rules ---


def test_a_rule_may_use_any_separator_and_space_around_it():
    text = "\n /prefix/all/trusted./user.virtiofs./\n |bad|server||trusted.| :ok:all:::\n"
    assert parse_xattr_rules(text) == [
        Rule("prefix", 3, b"trusted.", b"user.virtiofs."),
        Rule("bad", 2, b"", b"trusted."),
        Rule("ok", 3),
    ]


def test_a_map_rule_stands_for_the_rules_virtiofsd_documents():
    assert parse_xattr_rules(":map::user.virtiofs.:") == parse_xattr_rules(
        ":prefix:all::user.virtiofs.::bad:all:::"
    )
    assert parse_xattr_rules("/map/trusted./user.virtiofs./") == parse_xattr_rules(
        "/prefix/all/trusted./user.virtiofs.//bad/server//trusted.//bad/client/user.virtiofs.///ok/all///"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "every name of the guest"),
        (":ok:client:::", "every name of the host"),
        (":ok:all:user.::", "every name of the guest"),
        (":nope:all:::", "type"),
        (":ok:some:::", "scope"),
        (":ok:all::", "missing"),
        ("ok:all:::", "missing"),
        (":map::p.::ok:all:::", "nothing may follow"),
        (":map:::", "needs a prefix"),
        (":map:k:" + "p" * 256 + ":", "255"),
        (":ok:all:::" * 1025, "too many"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_a_reason(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_xattr_rules(text)


@given(st.text(alphabet=":/ \nmapokbdlcientsrvfxuw.\0\udc80", max_size=60) | st.text(max_size=40))
def test_any_text_is_a_list_of_rules_or_a_value_error(text):
    try:
        rules = parse_xattr_rules(text)
    except ValueError:
        return
    assert any(rule.scope & 1 and not rule.key for rule in rules)
    assert any(rule.scope & 2 and not rule.prepend for rule in rules)


# --- the map ---


def to_host(rules, name):
    """A second reading of the rules, straight from their description."""
    for rule in rules:
        if rule.scope & 1 and name.startswith(rule.key):
            if rule.type in ("bad", "unsupported"):
                return errno.EPERM if rule.type == "bad" else errno.EOPNOTSUPP
            host = rule.prepend + name if rule.type == "prefix" else name
            return host if len(host) <= 255 else errno.ERANGE
    return errno.EOPNOTSUPP


@given(RULES, NAMES | st.tuples(WORDS, WORDS).map(lambda w: (w[0] + w[1] + "x").encode()))
def test_a_name_goes_where_the_first_rule_that_matches_says(text, name):
    rules = parse_xattr_rules(text)
    expected = to_host(rules, name)
    if isinstance(expected, int):
        with pytest.raises(OSError) as caught:
            NameMap(rules).to_host(name)
        assert caught.value.errno == expected
    else:
        assert NameMap(rules).to_host(name) == expected


@given(RULES, NAMES | st.tuples(WORDS, WORDS).map(lambda w: (w[0] + w[1] + "x").encode()))
def test_a_name_that_is_listed_never_leads_to_another_attribute(text, host):
    names = NameMap(parse_xattr_rules(text))
    guest = names.to_guest(host)
    if guest is not None:
        try:
            assert names.to_host(guest) == host
        except OSError:
            pass  # listed and refused: the rules say so


@given(NAMES)
def test_a_map_rule_loses_and_leaks_nothing(name):
    names = NameMap(parse_xattr_rules(":map::user.virtiofs.:"))
    if len(name) + len("user.virtiofs.") <= 255:
        assert names.to_host(name) == b"user.virtiofs." + name
        assert names.to_guest(names.to_host(name)) == name
    else:
        with pytest.raises(OSError) as caught:
            names.to_host(name)
        assert caught.value.errno == errno.ERANGE
    if not name.startswith(b"user.virtiofs."):
        assert names.to_guest(name) is None


def test_without_options_user_attributes_pass_and_others_do_not_exist():
    names = NameMap(USER_ONLY)
    assert names.to_host(b"user.x") == b"user.x"
    assert names.to_guest(b"user.x") == b"user.x"
    assert names.to_guest(b"security.selinux") is None
    with pytest.raises(OSError) as caught:
        names.to_host(b"security.capability")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert NameMap(EVERYTHING).to_guest(b"trusted.x") == b"trusted.x"


# --- a guest ---


def test_a_guest_sees_its_attributes_and_none_of_the_hosts():
    with shared("--xattrmap", ":map::user.guest.:") as place:
        (place.host / "f").touch()
        os.setxattr(place.host / "f", "user.secret", b"of the host")
        node = place.session.lookup(ROOT, "f").nodeid
        place.session.setxattr(node, "security.selinux", b"label")
        place.session.setxattr(node, "user.x", b"1")
        assert os.getxattr(place.host / "f", "user.guest.security.selinux") == b"label"
        assert sorted(place.session.listxattr(node)) == [b"security.selinux", b"user.x"]
        assert place.session.listxattr_size(node) == len("security.selinux\0user.x\0")
        assert place.session.getxattr(node, "security.selinux") == b"label"
        assert failure(place.session.getxattr, node, "user.secret") == errno.ENODATA
        place.session.removexattr(node, "security.selinux")
        assert sorted(os.listxattr(place.host / "f")) == ["user.guest.user.x", "user.secret"]


def test_a_name_that_is_too_long_under_its_prefix_is_out_of_range():
    with shared("--xattrmap", ":map::user.guest.:") as place:
        for name in ("user." + "x" * 250, "user." + "x" * 242):
            assert failure(place.session.setxattr, ROOT, name, b"1") == errno.ERANGE
            assert failure(place.session.getxattr, ROOT, name) == errno.ERANGE
        longest = "user." + "x" * 239
        place.session.setxattr(ROOT, longest, b"1")
        assert place.session.listxattr(ROOT) == [longest.encode()]


def test_a_name_that_is_forbidden_can_not_be_made_and_is_not_there():
    with shared(
        "--xattrmap", "/bad/all/user.no./user.no.//unsupported/all/user.not./user.not.//ok/all///"
    ) as place:
        os.setxattr(place.host, "user.no.x", b"1")
        os.setxattr(place.host, "user.not.x", b"1")
        session = place.session
        assert failure(session.setxattr, ROOT, "user.no.x", b"2") == errno.EPERM
        assert failure(session.removexattr, ROOT, "user.no.x") == errno.EPERM
        assert failure(session.getxattr, ROOT, "user.no.x") == errno.ENODATA
        assert failure(session.setxattr, ROOT, "user.not.x", b"2") == errno.EOPNOTSUPP
        assert failure(session.getxattr, ROOT, "user.not.x") == errno.EOPNOTSUPP
        assert session.listxattr(ROOT) == []


def test_a_value_of_more_than_64_kib_is_too_big():
    with shared("--xattr") as place:
        assert failure(place.session.setxattr, ROOT, "user.x", b"x" * 65537) == errno.E2BIG
        assert failure(place.session.getxattr, ROOT, "user.x") == errno.ENODATA


@needs_root
def test_raw_attributes_are_the_hosts_own():
    with shared("--xattr", "--modcaps=+sys_admin") as place:
        place.session.setxattr(ROOT, "trusted.x", b"1")
        assert os.getxattr(place.host, "trusted.x") == b"1"
        assert b"trusted.x" in place.session.listxattr(ROOT)
        assert failure(place.session.setxattr, ROOT, "system.posix_acl_access", b"x") == errno.EOPNOTSUPP


def test_options_that_exclude_each_other_are_refused_with_a_reason():
    assert "exclude each other" in refusal("--xattr", "--xattrmap", ":map::user.v.:")
    assert "attribute rule 1" in refusal("--xattrmap", ":nonsense:")
