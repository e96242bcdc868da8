# SPDX-License-Identifier: Apache-2.0
# Static probes (USDT): a nop each, which a tracer of this host's kernel replaces while it looks (docs/observing.md).
# Only where the header of systemtap-sdt-dev was there when this was built.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if defined(__has_include) && __has_include(<sys/sdt.h>)
    #include <sys/sdt.h>
    #define PROBE_REQUEST(opcode, unique, nodeid, size) DTRACE_PROBE4(virtiofs, request, opcode, unique, nodeid, size)
    #define PROBE_REPLY(opcode, unique, error, size) DTRACE_PROBE4(virtiofs, reply, opcode, unique, error, size)
    #else
    #define PROBE_REQUEST(opcode, unique, nodeid, size) ((void)0)
    #define PROBE_REPLY(opcode, unique, error, size) ((void)0)
    #endif
    """
    void PROBE_REQUEST(uint32_t opcode, uint64_t unique, uint64_t nodeid, uint32_t size) noexcept nogil
    void PROBE_REPLY(uint32_t opcode, uint64_t unique, int32_t error, uint32_t size) noexcept nogil
