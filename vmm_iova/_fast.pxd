# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t


cdef extern from *:
    """
    typedef struct iova_tree iova_tree;
    typedef struct iova_entry iova_entry;
    """
    ctypedef struct iova_tree:
        pass
    ctypedef struct iova_entry:
        uint64_t start
        uint64_t len
        int fixed


cdef class Core:
    cdef iova_tree *tree
    cdef readonly object granule
    cdef readonly bint allow_zero
    cdef readonly object _usable
    cdef readonly object _ranges
    cdef int shift  # log2 of the granule
    cdef uint64_t mask  # granule - 1
    cdef uint64_t highest  # last unit of the 64-bit space
    cdef object window  # the AddrRange asked for last, and its units
    cdef uint64_t window_low
    cdef uint64_t window_high
    cdef uint64_t units  # allocated, in granules; 0 when `whole`
    cdef Py_ssize_t count  # allocations
    cdef bint whole  # one allocation of all 2^64 bytes, which no 64-bit size can say
    cdef dict tags
    cdef list journal  # what to undo, or None outside of transactions
    cdef Py_ssize_t depth

    cdef iova_tree *build(self, ranges) except NULL
    cdef object owned(self, uint64_t first, uint64_t length, tag)
    cdef int disowned(self, uint64_t first, uint64_t length) except -1
    cdef bint take_whole(self, low, high, tag) except -1
    cdef int give_whole(self) except -1
    cdef int set_whole(self, bint whole) except -1
    cdef object allocate_slow(self, size, align, policy, within, tag)
    cdef object allocate_at_slow(self, start, size, tag, align)
    cdef object release_slow(self, start, size)
    cdef tuple told(self, const iova_entry *entry)
    cdef bint zero_free(self) except -1
    cdef tuple facts(self, align, low, high)
