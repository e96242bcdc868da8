# SPDX-License-Identifier: Apache-2.0
"""C11 atomics on memory that another processor, or a guest, writes at the same time."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__x86_64__) || defined(__i386__)
    #define vfs_pause() __builtin_ia32_pause()
    #else
    #define vfs_pause() __asm__ __volatile__("" ::: "memory")
    #endif
    static inline uint8_t vfs_load_acquire_u8(const void *p) { return __atomic_load_n((const uint8_t *)p, __ATOMIC_ACQUIRE); }
    static inline void vfs_store_release_u8(void *p, uint8_t v) { __atomic_store_n((uint8_t *)p, v, __ATOMIC_RELEASE); }
    static inline uint16_t vfs_load_acquire_u16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
    static inline uint16_t vfs_load_u16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED); }
    static inline uint32_t vfs_load_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED); }
    static inline uint64_t vfs_load_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
    static inline uint32_t vfs_load_acquire_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline uint64_t vfs_load_acquire_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline void vfs_store_u16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELAXED); }
    static inline void vfs_store_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED); }
    static inline void vfs_store_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELAXED); }
    static inline void vfs_store_release_u16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }
    static inline void vfs_store_release_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline void vfs_store_release_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    static inline int vfs_cas_u64(void *p, uint64_t old, uint64_t v) { return __atomic_compare_exchange_n((uint64_t *)p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }
    static inline int vfs_cas_u32(void *p, uint32_t old, uint32_t v) { return __atomic_compare_exchange_n((uint32_t *)p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }
    static inline uint64_t vfs_fetch_add_u64(void *p, uint64_t v) { return __atomic_fetch_add((uint64_t *)p, v, __ATOMIC_ACQ_REL); }
    static inline uint64_t vfs_fetch_sub_u64(void *p, uint64_t v) { return __atomic_fetch_sub((uint64_t *)p, v, __ATOMIC_ACQ_REL); }
    static inline uint32_t vfs_fetch_add_u32(void *p, uint32_t v) { return __atomic_fetch_add((uint32_t *)p, v, __ATOMIC_ACQ_REL); }
    static inline uint64_t vfs_fetch_or_u64(void *p, uint64_t v) { return __atomic_fetch_or((uint64_t *)p, v, __ATOMIC_ACQ_REL); }
    static inline uint64_t vfs_fetch_and_u64(void *p, uint64_t v) { return __atomic_fetch_and((uint64_t *)p, v, __ATOMIC_ACQ_REL); }
    static inline void vfs_relax(void) { vfs_pause(); }
    static inline void vfs_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    /* After a read-modify-write, which on x86 is a full fence itself. */
    #if defined(__x86_64__) || defined(__i386__)
    static inline void vfs_fence_after_change(void) { __asm__ __volatile__("" ::: "memory"); }
    #else
    static inline void vfs_fence_after_change(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    #endif
    """
    uint8_t load_acquire_u8 "vfs_load_acquire_u8"(const void *p) noexcept nogil
    void store_release_u8 "vfs_store_release_u8"(void *p, uint8_t v) noexcept nogil
    uint16_t load_acquire_u16 "vfs_load_acquire_u16"(const void *p) noexcept nogil
    uint16_t load_u16 "vfs_load_u16"(const void *p) noexcept nogil
    uint32_t load_u32 "vfs_load_u32"(const void *p) noexcept nogil
    uint64_t load_u64 "vfs_load_u64"(const void *p) noexcept nogil
    uint32_t load_acquire_u32 "vfs_load_acquire_u32"(const void *p) noexcept nogil
    uint64_t load_acquire_u64 "vfs_load_acquire_u64"(const void *p) noexcept nogil
    void store_u16 "vfs_store_u16"(void *p, uint16_t v) noexcept nogil
    void store_u32 "vfs_store_u32"(void *p, uint32_t v) noexcept nogil
    void store_u64 "vfs_store_u64"(void *p, uint64_t v) noexcept nogil
    void store_release_u16 "vfs_store_release_u16"(void *p, uint16_t v) noexcept nogil
    void store_release_u32 "vfs_store_release_u32"(void *p, uint32_t v) noexcept nogil
    void store_release_u64 "vfs_store_release_u64"(void *p, uint64_t v) noexcept nogil
    bint cas_u64 "vfs_cas_u64"(void *p, uint64_t old, uint64_t v) noexcept nogil
    bint cas_u32 "vfs_cas_u32"(void *p, uint32_t old, uint32_t v) noexcept nogil
    uint64_t fetch_add_u64 "vfs_fetch_add_u64"(void *p, uint64_t v) noexcept nogil
    uint64_t fetch_sub_u64 "vfs_fetch_sub_u64"(void *p, uint64_t v) noexcept nogil
    uint32_t fetch_add_u32 "vfs_fetch_add_u32"(void *p, uint32_t v) noexcept nogil
    uint64_t fetch_or_u64 "vfs_fetch_or_u64"(void *p, uint64_t v) noexcept nogil
    uint64_t fetch_and_u64 "vfs_fetch_and_u64"(void *p, uint64_t v) noexcept nogil
    void relax "vfs_relax"() noexcept nogil
    void fence "vfs_fence"() noexcept nogil
    void fence_after_change "vfs_fence_after_change"() noexcept nogil
