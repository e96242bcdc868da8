# SPDX-License-Identifier: Apache-2.0
cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_PDEATHSIG
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
