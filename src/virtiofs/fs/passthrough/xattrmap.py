# SPDX-License-Identifier: Apache-2.0
"""The map between the guest's names of extended attributes and the host's, as a flat table.

`xattrrules.py` says what a rule is.  The first rule that matches decides.  The table is made once and only
read afterwards.
"""

import cython
from cython.cimports.libc.errno import EPERM, ERANGE
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcmp, memcpy
from cython.cimports.virtiofs.fs.passthrough.host import EOPNOTSUPP

from virtiofs.fs.passthrough.xattrrules import TYPES


@cython.cfunc
@cython.exceptval(-1)
def xattr_map_init(map: cython.pointer(XattrMap), rules: object) -> cython.int:
    """Make the table of `rules` (`xattrrules.Rule`).  Raises `MemoryError`."""
    rule: cython.pointer(XattrRule)
    key: bytes
    prepend: bytes
    map.count = len(rules)
    map.rules = cython.cast(cython.pointer(XattrRule), calloc(map.count, cython.sizeof(XattrRule)))
    if map.rules == cython.NULL:
        raise MemoryError
    for i, (type, scope, key, prepend) in enumerate(rules):
        rule = cython.address(map.rules[cython.cast(cython.int, i)])
        rule.type = TYPES.index(type)
        rule.scope = scope
        rule.key_size = len(key)
        rule.prepend_size = len(prepend)
        memcpy(rule.key, cython.cast(cython.p_char, key), rule.key_size)
        memcpy(rule.prepend, cython.cast(cython.p_char, prepend), rule.prepend_size)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def xattr_map_free(map: cython.pointer(XattrMap)) -> cython.void:
    free(map.rules)
    map.rules = cython.NULL
    map.count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begins(
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    beginning: cython.pointer(cython.const[cython.char]),
    length: uint32_t,
) -> cython.bint:
    return size >= length and memcmp(name, beginning, length) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def to_host_name(
    map: cython.pointer(cython.const[XattrMap]),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    host: cython.p_char,
) -> cython.int:
    """Write the host's name for the guest's `name` of `size` bytes, with its NUL, to `host` (NAME_ROOM bytes).

    Returns its length; -EPERM for a name the guest may not use, -EOPNOTSUPP for one that is said not to
    exist here, -ERANGE for one that is too long for the host.
    """
    rule: cython.pointer(cython.const[XattrRule])
    i: uint32_t
    length: uint32_t = 0
    for i in range(map.count):
        rule = cython.address(map.rules[i])
        if not rule.scope & SCOPE_CLIENT or not begins(name, size, rule.key, rule.key_size):
            continue
        if rule.type == RULE_BAD:
            return -EPERM
        if rule.type == RULE_UNSUPPORTED:
            return -EOPNOTSUPP
        if rule.type == RULE_PREFIX:
            length = rule.prepend_size
        if length + size >= NAME_ROOM:
            return -ERANGE
        memcpy(host, rule.prepend, length)
        memcpy(host + length, name, size)
        host[length + size] = 0
        return length + size
    return -EOPNOTSUPP


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def to_guest_name(
    map: cython.pointer(cython.const[XattrMap]),
    host: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.int:
    """Where the guest's name for the host's attribute begins in `host`; -1 if the guest must not see it.

    Hidden is also what the guest's name would not lead back to: it names another attribute then.
    """
    rule: cython.pointer(cython.const[XattrRule])
    back: cython.char[NAME_ROOM]
    i: uint32_t
    start: uint32_t = 0
    length: cython.int
    for i in range(map.count):
        rule = cython.address(map.rules[i])
        if not rule.scope & SCOPE_SERVER or not begins(host, size, rule.prepend, rule.prepend_size):
            continue
        if rule.type == RULE_BAD or rule.type == RULE_UNSUPPORTED:
            return -1
        if rule.type == RULE_PREFIX:
            start = rule.prepend_size
            if rule.scope & SCOPE_CLIENT and not begins(host + start, size - start, rule.key, rule.key_size):
                return -1
        if start == size:
            return -1
        length = to_host_name(map, host + start, size - start, back)
        if length >= 0 and (cython.cast(uint32_t, length) != size or memcmp(back, host, size) != 0):
            return -1
        return start
    return -1


class NameMap:
    """The map for plain Python: what tests and `virtiofs serve` ask it."""

    def __init__(self, rules: list):
        self.rules = rules

    def to_host(self, name: bytes) -> bytes:
        """The host's name for a guest's name.  Raises `OSError` as the guest would meet it."""
        map: XattrMap
        host: cython.char[NAME_ROOM]
        xattr_map_init(cython.address(map), self.rules)
        length: cython.int = to_host_name(cython.address(map), name, len(name), host)
        xattr_map_free(cython.address(map))
        if length < 0:
            raise OSError(-length, "this name is not for the guest")
        return host[:length]

    def to_guest(self, host: bytes) -> bytes | None:
        """The guest's name for a host's name; None if it is hidden."""
        map: XattrMap
        xattr_map_init(cython.address(map), self.rules)
        start: cython.int = to_guest_name(cython.address(map), host, len(host))
        xattr_map_free(cython.address(map))
        return None if start < 0 else host[start:]
