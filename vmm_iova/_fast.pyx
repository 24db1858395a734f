# SPDX-License-Identifier: Apache-2.0
"""The compiled engine: the same answers as `_pure`. Ints in, ints out."""

from array import array

from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from vmm_iova.errors import InvariantError

cdef extern from *:
    """
    /* Read an int without raising: 0 when it is no int, is negative or does not fit.
     * PERF: half of a call is reading and making ints (bench: the floor of a call).
     */
    static CYTHON_INLINE int iova_read_int(PyObject *o, uint64_t *value)
    {
    #if CYTHON_COMPILING_IN_CPYTHON && PYLONG_BITS_IN_DIGIT == 30
        const digit *d;
        Py_ssize_t n;

        if (!PyLong_CheckExact(o))
            return 0;
    #if PY_VERSION_HEX >= 0x030C0000
        if ((((PyLongObject *)o)->long_value.lv_tag & 3) == 2)
            return 0;
        n = (Py_ssize_t)(((PyLongObject *)o)->long_value.lv_tag >> 3);
        d = ((PyLongObject *)o)->long_value.ob_digit;
    #else
        n = Py_SIZE(o);
        d = ((PyLongObject *)o)->ob_digit;
    #endif
        if (n == 2)
            *value = d[0] | (uint64_t)d[1] << 30;
        else if (n == 1)
            *value = d[0];
        else if (n == 0)
            *value = 0;
        else if (n == 3 && d[2] < 16)
            *value = d[0] | (uint64_t)d[1] << 30 | (uint64_t)d[2] << 60;
        else
            return 0;
        return 1;
    #else
        if (!PyLong_CheckExact(o))
            return 0;
        *value = PyLong_AsUnsignedLongLong(o);
        if (*value == (uint64_t)-1 && PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
        return 1;
    #endif
    }
    """
    bint iova_read_int(PyObject *, uint64_t *) nogil
    int iova_log2 "__builtin_ctzll"(unsigned long long) nogil

cdef extern from "_tree.h":
    enum:
        IOVA_OK
        IOVA_NONE
        IOVA_TAKEN
        IOVA_OTHER
        IOVA_NOMEM
        IOVA_FIRST
        IOVA_LAST
        IOVA_BEST
    ctypedef struct iova_cursor:
        pass
    iova_tree *iova_tree_new(const iova_entry *, size_t, uint64_t, int) nogil
    void iova_tree_free(iova_tree *) nogil
    int iova_insert(iova_tree *, uint64_t, uint64_t) nogil
    int iova_allocate(iova_tree *, uint64_t, int, int, uint64_t, uint64_t, uint64_t *) nogil
    int iova_release(iova_tree *, uint64_t, uint64_t *) nogil
    void iova_find(const iova_tree *, uint64_t, iova_entry *) nogil
    void iova_walk(const iova_tree *, uint64_t, iova_cursor *) nogil
    const char *iova_check(const iova_tree *) nogil
    uint64_t iova_bytes(const iova_tree *) nogil
    int iova_next(const iova_tree *, iova_cursor *, iova_entry *, uint64_t *, uint64_t *) nogil

cdef uint64_t LAST = 0xFFFFFFFFFFFFFFFF
cdef object WHOLE = 1 << 64
cdef object POLICY_FIRST = "first"
cdef object POLICY_LAST = "last"
cdef object POLICY_BEST = "best"


cdef class Core:
    """Free spans and allocations, and the steps on them that must be atomic."""

    def __dealloc__(self):
        iova_tree_free(self.tree)

    def _setup(self, usable, ranges, granule, options):
        cdef iova_tree *tree
        self.granule = granule
        self.shift = granule.bit_length() - 1
        self.mask = granule - 1
        self.highest = LAST >> self.shift
        self.allow_zero = options["allow_zero"]
        self._usable = usable
        self._ranges = ranges
        self.tags = {}
        tree = self.build(ranges)
        iova_tree_free(self.tree)
        self.tree = tree
        self.units = self.count = self.whole = self.depth = 0
        self.journal = None

    cdef iova_tree *build(self, ranges) except NULL:
        """Make a tree of the allocations and of what `ranges` leave out."""
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last
        cdef list fixed = []
        cdef Py_ssize_t i = 0, n = 0, count
        cdef iova_entry *entries
        cdef iova_tree *tree
        cdef bint keep_zero = False
        cdef uint64_t top = <uint64_t>(WHOLE >> self.shift & LAST)
        position = 0
        for item in ranges:
            start = item.start >> self.shift
            if start > position or position:
                fixed.append((position, start - position))
            elif start == 0:
                # A free unit at 0 that must not be chosen looks taken.
                keep_zero = not self.allow_zero
                fixed.append((0, 1 if keep_zero else 0))
            position = (item.last >> self.shift) + 1
        if position < WHOLE >> self.shift or not fixed:
            fixed.append((position, (WHOLE >> self.shift) - position))
        if self.whole:
            fixed = [(0, 1 << 63), (1 << 63, 1 << 63)]
        elif fixed[0] == (0, WHOLE):
            fixed = [(0, 1 << 63), (1 << 63, 1 << 63)]  # nothing usable, one byte the granule
        count = len(fixed)
        entries = <iova_entry *>malloc((count + self.count + 1) * sizeof(iova_entry))
        if entries == NULL:
            raise MemoryError
        try:
            if self.tree != NULL and not self.whole:
                iova_walk(self.tree, 0, &cursor)
                while iova_next(self.tree, &cursor, &entry, &gap_first, &gap_last):
                    if entry.fixed:
                        continue
                    while i < count and <uint64_t>fixed[i][0] <= entry.start:
                        entries[n].start, entries[n].len = fixed[i]
                        entries[n].fixed = 1
                        i += 1
                        n += 1
                    if keep_zero and entry.start == 0:
                        n -= 1
                    entries[n] = entry
                    n += 1
            while i < count:
                entries[n].start, entries[n].len = fixed[i]
                entries[n].fixed = 1
                i += 1
                n += 1
            tree = iova_tree_new(entries, n, top, keep_zero and not self.whole)
            if tree == NULL:
                raise MemoryError
            return tree
        finally:
            free(entries)

    def __len__(self):
        return self.count

    def allocate(self, size, align=None, policy="first", within=None, tag=None):
        """Choose a free range, own it, and return its first address.

        Address 0 is not chosen unless the allocator was made with `allow_zero`. The size is not
        rounded. The range lies inside one usable range and inside the window.

        Args:
            size: bytes, 1 to 2^64, a multiple of the granule.
            align: bytes, a power of two; default and minimum is the granule.
            policy: "first" is the lowest place, "last" the highest, "best" the lowest place in
                the smallest free span that can hold it (the lowest span among equals, each span
                cut to the window).
            within: the range must lie inside this window, which is cut inward to whole granules;
                default is everything.
            tag: any object, kept with the allocation and named where it is in the way.

        Returns:
            IOVA, a multiple of the alignment.

        Raises:
            NoSpaceError: nothing fits; carries the largest free span and the largest size that
                would fit at that alignment.
            MisalignedError: the size is not a multiple of the granule.
            RequestError: an argument makes no sense.

        Complexity: O(log n) in the fast engine. In the pure one "first" and "last" may look at
            every span that is at least as large as the request and below the next power of two,
            and "best" at every large enough span that the alignment or the window rejects.
        Synchronization: internally locked; one call is atomic.
        Source: never choosing 0 follows iommufd, drivers/iommu/iommufd/io_pagetable.c,
            iopt_alloc_iova(), Linux 6.2.
        """
        cdef uint64_t length, place = 0, low = 0, high = self.highest, boundary
        cdef int result, shift = 0, number
        # What a plain request looks like; everything else goes the long way round.
        if iova_read_int(<PyObject *>size, &length) and length and not length & self.mask:
            if policy is POLICY_FIRST:
                number = IOVA_FIRST
            elif policy is POLICY_BEST:
                number = IOVA_BEST
            elif policy is POLICY_LAST:
                number = IOVA_LAST
            else:
                return self.allocate_slow(size, align, policy, within, tag)
            if align is not None:
                if (
                    not iova_read_int(<PyObject *>align, &boundary)
                    or not boundary
                    or boundary & (boundary - 1)
                ):
                    return self.allocate_slow(size, align, policy, within, tag)
                shift = max(iova_log2(boundary) - self.shift, 0)
            if within is not None:
                if within is not self.window:
                    return self.allocate_slow(size, align, policy, within, tag)
                low, high = self.window_low, self.window_high
            result = iova_allocate(
                self.tree, length >> self.shift, shift, number, low, high, &place
            )
            if result == IOVA_OK:
                if tag is None and self.journal is None:
                    self.units += length >> self.shift
                    self.count += 1
                    return place << self.shift
                return self.owned(place, length >> self.shift, tag)
        return self.allocate_slow(size, align, policy, within, tag)

    cdef object allocate_slow(self, size, align, policy, within, tag):
        """Do what `allocate` does for any request, and refuse with the facts."""
        cdef uint64_t length = 0, place = 0, low = 0, high = 0
        cdef int result, shift, number
        size, align, number, window_low, window_high = self._request(size, align, policy, within)
        if size == WHOLE and not self.mask:
            if self.allow_zero and self.take_whole(window_low, window_high, tag):
                return 0
            result = IOVA_NONE
        elif window_low > window_high:
            result = IOVA_NONE
        else:
            low, high = window_low >> self.shift, window_high >> self.shift
            if within is not None:
                # An AddrRange never changes: the same object is the same window.
                self.window, self.window_low, self.window_high = within, low, high
            length = size >> self.shift
            shift = align.bit_length() - 1 - self.shift
            result = iova_allocate(self.tree, length, shift, number, low, high, &place)
        if result == IOVA_OK:
            return self.owned(place, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        return self._no_space(size, align, within, *self.facts(align, window_low, window_high))

    def allocate_at(self, start, size, tag=None, *, align=None):
        """Own the range at a place that the caller chose, address 0 included.

        Args:
            start: IOVA, a multiple of the granule.
            size: bytes, 1 to 2^64, a multiple of the granule.
            tag: any object, kept with the allocation and named where it is in the way.
            align: bytes, a power of two that `start` must be a multiple of, for callers that
                have such a demand; default is the granule.

        Returns:
            `start`.

        Raises:
            OccupiedError: an allocation is in the way; carries its tag and range.
            ApertureError, ReservedError, StraddleError: the place is not usable; says why.
            MisalignedError: start or size is not a multiple of the granule or alignment.
            RequestError: an argument makes no sense, or the range reaches beyond 2^64-1.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        cdef uint64_t first, length
        if (
            align is None
            and iova_read_int(<PyObject *>start, &first)
            and iova_read_int(<PyObject *>size, &length)
            and length
            and not (first | length) & self.mask
            and length - 1 <= LAST - first
            and iova_insert(self.tree, first >> self.shift, length >> self.shift) == IOVA_OK
        ):
            self.owned(first >> self.shift, length >> self.shift, tag)
            return start
        return self.allocate_at_slow(start, size, tag, align)

    cdef object allocate_at_slow(self, start, size, tag, align):
        """Do what `allocate_at` does for any request, and refuse with the facts."""
        cdef uint64_t first = 0, length = 0
        cdef int result
        start, last = self._request_at(start, size, align)
        if start == 0 and last == LAST and not self.mask:
            if self.take_whole(start, last, tag):
                return 0
            result = IOVA_TAKEN
        else:
            first = <uint64_t>start >> self.shift
            length = (<uint64_t>last - <uint64_t>start >> self.shift) + 1
            result = iova_insert(self.tree, first, length)
        if result == IOVA_OK:
            return self.owned(first, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        return self._refuse_at(start, last, self._overlap(start, last))

    def release(self, start, size=None):
        """Give an allocation back, the whole of it.

        Args:
            start: its first address.
            size: bytes; if given it must be the size of the allocation.

        Raises:
            NotAllocatedError: no allocation begins there; names the one that holds the address.
            SizeMismatchError: it has another size; nothing was released.
            RequestError: an argument makes no sense.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        cdef uint64_t first, length = 0
        if (
            iova_read_int(<PyObject *>start, &first)
            and not first & self.mask
            and (size is None or (iova_read_int(<PyObject *>size, &length) and length))
            and not length & self.mask
        ):
            length >>= self.shift
            if iova_release(self.tree, first >> self.shift, &length) == IOVA_OK:
                if self.journal is None and not self.tags:
                    self.units -= length
                    self.count -= 1
                else:
                    self.disowned(first >> self.shift, length)
                return
        self.release_slow(start, size)

    cdef object release_slow(self, start, size):
        """Do what `release` does for any request, and refuse with the facts."""
        cdef uint64_t first, length = 0
        cdef int result = IOVA_NONE
        start, size = self._request_release(start, size)
        if self.whole:
            if start == 0 and (size is None or size == WHOLE):
                self.give_whole()
                return
        elif not <uint64_t>start & self.mask:
            first = <uint64_t>start >> self.shift
            if size is not None:
                if size <= 0 or size & self.mask or size >> self.shift > LAST:
                    self._refuse_release(start, size, self._at(start))
                length = size >> self.shift
            result = iova_release(self.tree, first, &length)
            if result == IOVA_OK:
                self.disowned(first, length)
                return
            if result == IOVA_NOMEM:
                raise MemoryError
        self._refuse_release(start, size, self._at(start))

    cdef object owned(self, uint64_t first, uint64_t length, tag):
        """Note an allocation that the tree has just taken in, and return its address."""
        cdef uint64_t start = first << self.shift
        self.units += length
        self.count += 1
        try:
            address = start
            if tag is not None:
                self.tags[address] = tag
            if self.journal is not None:
                self.journal.append((address,))
        except BaseException:
            self.tags.pop(start, None)
            iova_release(self.tree, first, &length)
            self.units -= length
            self.count -= 1
            raise
        return address

    cdef int disowned(self, uint64_t first, uint64_t length) except -1:
        """Note that the tree has just let go of an allocation."""
        cdef uint64_t start = first << self.shift
        self.units -= length
        self.count -= 1
        if self.tags or self.journal is not None:
            tag = self.tags.pop(start, None)
            if self.journal is not None:
                self.journal.append((start, ((first + (length - 1)) << self.shift) | self.mask, tag))
        return 0

    # One allocation of all 2^64 bytes: possible only with a granule of one byte. While it lives,
    # the tree says that everything is unusable.

    cdef bint take_whole(self, low, high, tag) except -1:
        if self.mask or self.count or low != 0 or high != LAST or len(self._ranges) != 1:
            return False
        if self._ranges[0].start != 0 or self._ranges[0].last != LAST:
            return False
        self.set_whole(True)
        self.count = 1
        if tag is not None:
            self.tags[0] = tag
        if self.journal is not None:
            self.journal.append((0,))
        return True

    cdef int give_whole(self) except -1:
        self.set_whole(False)
        self.count = 0
        tag = self.tags.pop(0, None)
        if self.journal is not None:
            self.journal.append((0, LAST, tag))
        return 0

    cdef int set_whole(self, bint whole) except -1:
        cdef iova_tree *tree
        cdef Py_ssize_t count = self.count
        cdef bint before = self.whole
        self.whole = True  # build() leaves the allocations out
        try:
            self.whole = whole
            self.count = 0
            iova_tree_free(self.tree)
            self.tree = NULL
            tree = self.build(self._ranges)
        except BaseException:
            self.whole = before
            self.count = count
            raise
        self.tree = tree
        return 0

    # Steps that the shared contract calls.

    def _at(self, address):
        cdef iova_entry entry
        cdef uint64_t unit
        if self.whole:
            return 0, LAST, self.tags.get(0)
        unit = <uint64_t>address >> self.shift
        iova_find(self.tree, unit, &entry)
        if entry.fixed or unit - entry.start >= entry.len:
            return None
        return self.told(&entry)

    cdef tuple told(self, const iova_entry *entry):
        start = entry.start << self.shift
        last = ((entry.start + (entry.len - 1)) << self.shift) | self.mask
        return start, last, self.tags.get(start)

    def _overlap(self, start, last):
        """Return the lowest allocation that shares an address with the range."""
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last, low, high
        if self.whole:
            return self._at(0)
        low, high = <uint64_t>start >> self.shift, <uint64_t>last >> self.shift
        iova_walk(self.tree, low, &cursor)
        while iova_next(self.tree, &cursor, &entry, &gap_first, &gap_last):
            if entry.start > high:
                break
            if not entry.fixed and entry.start + (entry.len - 1) >= low:
                return self.told(&entry)
        return None

    def _allocated(self):
        cdef object units = self.units
        return WHOLE if self.whole else units << self.shift

    def _snapshot(self):
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last
        starts, lasts = array("Q"), array("Q")
        if self.whole:
            starts.append(0)
            lasts.append(LAST)
            return starts, lasts, dict(self.tags)
        iova_walk(self.tree, 0, &cursor)
        while iova_next(self.tree, &cursor, &entry, &gap_first, &gap_last):
            if not entry.fixed:
                starts.append(entry.start << self.shift)
                lasts.append(((entry.start + (entry.len - 1)) << self.shift) | self.mask)
        return starts, lasts, dict(self.tags)

    def _gaps(self, start, last):
        """Return the free spans of a window, cut to it, as two arrays."""
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last
        cdef bint zero
        starts, lasts = array("Q"), array("Q")
        if self.whole:
            return starts, lasts
        iova_walk(self.tree, <uint64_t>start >> self.shift, &cursor)
        while iova_next(self.tree, &cursor, &entry, &gap_first, &gap_last):
            # The unit at 0 that must not be chosen is free all the same.
            zero = entry.fixed and entry.start == 0 and entry.len == 1 and self.zero_free()
            if zero:
                gap_first = 0
            if gap_first > gap_last:
                continue
            low = max(gap_first << self.shift, <uint64_t>start)
            high = min((gap_last << self.shift) | self.mask, <uint64_t>last)
            if gap_first << self.shift > <uint64_t>last:
                break
            if low <= high:
                starts.append(low)
                lasts.append(high)
        return starts, lasts

    cdef bint zero_free(self) except -1:
        """Tell whether unit 0 is usable, so that a fixed entry there only keeps it from choice."""
        return not self.allow_zero and len(self._ranges) > 0 and self._ranges[0].start == 0

    cdef tuple facts(self, align, low, high):
        largest = None
        cdef object aligned = 0, total = 0
        if low > high:
            return None, 0, 0
        bottom = low if self.allow_zero else max(low, self.granule)
        for start, last in zip(*self._gaps(low, high)):
            if largest is None or last - start > largest[1] - largest[0]:
                largest = (start, last)
            place = (max(start, bottom) + align - 1) & -align
            aligned = max(aligned, last - place + 1)
            total += last - start + 1
        return largest, aligned, total

    def _swap(self, usable, ranges):
        """Take new usable ranges, or return the allocations that they do not cover."""
        cdef iova_tree *tree
        homes = iter(ranges)
        home = next(homes, None)
        conflicts = []
        starts, lasts, tags = self._snapshot()
        for start, last in zip(starts, lasts):
            while home is not None and home.last < start:
                home = next(homes, None)
            if home is None or start < home.start or last > home.last:
                conflicts.append((start, last, tags.get(start)))
        if conflicts:
            return conflicts
        tree = self.build(ranges)
        if self.journal is not None:
            try:
                self.journal.append((self._usable, self._ranges))
            except BaseException:
                iova_tree_free(tree)
                raise
        iova_tree_free(self.tree)
        self.tree = tree
        self._usable, self._ranges = usable, ranges
        return conflicts

    # Transactions: (start,) undoes an allocation, (start, last, tag) a release, (usable, ranges)
    # a change of what is usable.

    def _begin(self):
        if self.journal is None:
            self.journal = []
        self.depth += 1
        return len(self.journal)

    def _undo(self, Py_ssize_t mark):
        cdef list journal = self.journal
        self.journal = None
        try:
            while len(journal) > mark:
                step = journal.pop()
                if len(step) == 1:
                    self.release(step[0])
                elif len(step) == 3:
                    self.allocate_at(step[0], step[1] - step[0] + 1, step[2])
                else:
                    self._swap(step[0], step[1])
        finally:
            self.journal = journal

    def _finish(self, Py_ssize_t mark, bint failed):
        try:
            if failed:
                self._undo(mark)
        finally:
            self.depth -= 1
            if not self.depth:
                self.journal = None

    def _check_core(self):
        cdef const char *wrong = iova_check(self.tree)
        if wrong != NULL:
            raise InvariantError(f"it does not hold that {wrong.decode()}")

    def _bytes(self):
        """Return the bytes of memory that the tree holds."""
        return iova_bytes(self.tree)
