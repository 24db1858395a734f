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
    typedef struct iova_span iova_span;
    typedef struct iova_facts iova_facts;
    """
    ctypedef struct iova_tree:
        pass
    ctypedef struct iova_entry:
        uint64_t start
        uint64_t len
        int fixed
    ctypedef struct iova_facts:
        bint any
        uint64_t first
        uint64_t last
        uint64_t aligned
        uint64_t total
    ctypedef struct iova_span:
        uint64_t first
        uint64_t last


cdef struct iova_parked  # released ranges of one size
cdef struct iova_step  # what a transaction may have to undo

cdef class Spans:  # usable ranges in units, or any spans
    cdef iova_span *at
    cdef size_t count


cdef class Entries:  # allocations of one moment
    cdef iova_entry *at
    cdef size_t count
    cdef list tags


cdef class Transaction:
    cdef Core core
    cdef Py_ssize_t mark  # how many steps there were when it began; -1 when it is not open


cdef class Core:
    cdef iova_tree *tree
    cdef readonly object granule
    cdef readonly bint allow_zero
    cdef readonly object _usable  # None until it is set up
    cdef readonly object _ranges
    cdef Spans spans  # the usable ranges in units
    cdef int shift  # log2 of the granule
    cdef uint64_t mask  # granule - 1
    cdef uint64_t highest  # last unit of the 64-bit space
    cdef object window  # the AddrRange asked for last, and its units
    cdef uint64_t window_low
    cdef uint64_t window_high
    cdef uint64_t units  # allocated, in granules
    cdef Py_ssize_t count  # allocations
    cdef dict tags
    cdef bint tagged  # there are tags
    cdef iova_parked *parked  # the size cache, by size; NULL when it was not asked for
    cdef uint64_t parked_count
    cdef Py_ssize_t depth  # open transactions
    cdef list opened
    cdef iova_step *steps
    cdef Py_ssize_t step_count
    cdef Py_ssize_t step_room
    cdef list before

    cdef Py_ssize_t fill(
        self, const uint64_t *size, uint64_t *out, Py_ssize_t count, int shift, int number,
        uint64_t low, uint64_t high, bint plain, iova_facts *facts,
    ) except -1
    cdef tuple empty(self, const uint64_t *start, const uint64_t *size, Py_ssize_t count)
    cdef object owned(self, uint64_t first, uint64_t length, tag)
    cdef int disowned(self, uint64_t first, uint64_t length, address) except -1
    cdef int let_go(self, uint64_t first, uint64_t *length) noexcept
    cdef object allocate_slow(self, size, align, policy, within, tag)
    cdef object allocate_at_slow(self, start, size, tag, align)
    cdef object release_slow(self, start, size)
    cdef tuple held(self, const iova_entry *entry)
    cdef tuple held_if(self, const iova_entry *entry, uint64_t unit)
    cdef Entries outside(self, Spans spans)
    cdef tuple facts_of(self, const iova_facts *facts)
    cdef int make_step_room(self, Py_ssize_t count) except -1
    cdef void step(
        self, int kind, uint64_t first, uint64_t length, iova_tree *tree, before
    ) noexcept
    cdef void forget_steps(self, Py_ssize_t mark) noexcept
    cdef int begin(self, Transaction transaction) except -1
    cdef int finish(self, Transaction transaction, bint failed) except -1
    cdef int undo(self, Transaction transaction) except -1

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
