# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    NAME_ROOM = 256          # a name of 255 bytes and its NUL

cdef enum RuleType:
    RULE_PREFIX
    RULE_OK
    RULE_BAD
    RULE_UNSUPPORTED

cdef enum RuleScope:
    SCOPE_CLIENT = 1
    SCOPE_SERVER = 2

cdef struct XattrRule:
    uint8_t type
    uint8_t scope
    uint8_t key_size
    uint8_t prepend_size
    char key[NAME_ROOM]
    char prepend[NAME_ROOM]

cdef struct XattrMap:
    XattrRule* rules
    uint32_t count

cdef int xattr_map_init(XattrMap* map, object rules) except? -1
cdef void xattr_map_free(XattrMap* map) noexcept nogil
cdef int to_host_name(const XattrMap* map, const char* name, uint32_t size, char* host) noexcept nogil
cdef int to_guest_name(const XattrMap* map, const char* host, uint32_t size) noexcept nogil
