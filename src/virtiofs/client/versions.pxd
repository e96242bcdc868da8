# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t

cdef struct Proof:
    uint64_t at              # index of the word in the region
    uint64_t word

cdef class Versions:
    cdef uint64_t* words     # of the whole region, its header first
    cdef size_t size
    cdef readonly uint64_t slots

cdef class Answer:
    cdef object value
    cdef uint64_t everything
    cdef uint32_t count
    cdef Proof* proofs

cdef class Known:
    cdef readonly Versions versions
    cdef uint64_t* words
    cdef dict answers
    cdef Py_ssize_t most
