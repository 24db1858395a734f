# SPDX-License-Identifier: Apache-2.0
"""To cimport: the allocator without the GIL.

`place`, `place_at`, `give` and `find` return 0 when all is well; 1 when nothing fits or nothing is
there; 2 when the place is taken; 3 when an argument makes no sense, a size differs, or there is a
transaction, a tag or a size cache to look after, which needs Python; 4 when memory ran out. Sizes
and alignments are bytes, addresses closed: [low, last]. Policies: 0 first, 1 last, 2 best.

Synchronization: external. Whoever calls them sees to it that nothing else touches the allocator:
by holding the GIL, or by a lock of their own.
"""

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


cdef struct iova_parked  # released ranges of one size


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
    cdef uint64_t units  # allocated, in granules
    cdef Py_ssize_t count  # allocations
    cdef list pairs  # the usable ranges as (start, last)
    cdef dict tags
    cdef bint tagged  # there are tags
    cdef iova_parked *parked  # the size cache, by size; NULL when it was not asked for
    cdef uint64_t parked_count
    cdef list journal  # what to undo, or None outside of transactions
    cdef Py_ssize_t depth

    cdef iova_tree *build(self, list pairs) except NULL
    cdef list swap(self, usable, ranges, list pairs)
    cdef tuple fill(
        self, const uint64_t *size, uint64_t *start, Py_ssize_t count, int shift, int number,
        uint64_t low, uint64_t high, bint plain, align, window_low, window_high,
    )
    cdef tuple empty(self, const uint64_t *start, const uint64_t *size, Py_ssize_t count)
    cdef object owned(self, uint64_t first, uint64_t length, tag)
    cdef int disowned(self, uint64_t first, uint64_t length) except -1
    cdef object allocate_slow(self, size, align, policy, within, tag)
    cdef object allocate_at_slow(self, start, size, tag, align)
    cdef object release_slow(self, start, size)
    cdef tuple held(self, const iova_entry *entry)
    cdef bint zero_free(self) except -1
    cdef bint zero_waits(self) except -1
    cdef tuple facts(self, align, low, high)

    cdef int place(
        self, uint64_t size, uint64_t align, int policy, uint64_t low, uint64_t last,
        uint64_t *start,
    ) noexcept nogil
    cdef int place_at(self, uint64_t start, uint64_t size) noexcept nogil
    cdef int give(self, uint64_t start, uint64_t size) noexcept nogil
    cdef int find(self, uint64_t address, uint64_t *start, uint64_t *last) noexcept nogil
    cdef bint closed(self) noexcept nogil
    cdef bint park(self, uint64_t first, uint64_t *length) noexcept
    cdef bint unpark(self, uint64_t length, uint64_t *first) noexcept
    cdef void flush(self) noexcept
