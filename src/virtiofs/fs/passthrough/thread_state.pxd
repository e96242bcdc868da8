# SPDX-License-Identifier: Apache-2.0
"""What `credentials` remembers of each thread.  A module that cimports this gets variables of its own, so none other does."""

cdef extern from *:
    """
    static __thread int fsetid_dropped;
    """
    int fsetid_dropped       # whether this thread is without CAP_FSETID
