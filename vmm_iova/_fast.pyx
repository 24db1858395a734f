# SPDX-License-Identifier: Apache-2.0
# cython: binding=False
"""The compiled engine: the same answers as `allocator.pure`. Ints in, ints out."""

from array import array

from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t
from cpython.buffer cimport (
    PyBUF_CONTIG,
    PyBUF_CONTIG_RO,
    PyBUF_FORMAT,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from vmm_iova.errors import InvariantError, RequestError

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

    /* The words of a method stand in the table that it was made from, and may be replaced there:
     * that is how NumPy describes its methods (numpy/_core/src/multiarray/compiled_base.c).
     */
    static int iova_describe(PyObject *method, const char *words)
    {
        if (!PyObject_TypeCheck(method, &PyMethodDescr_Type)) {
            PyErr_SetString(PyExc_TypeError, "only a method of the engine can be described");
            return -1;
        }
        ((PyMethodDescrObject *)method)->d_method->ml_doc = words;
        return 0;
    }
    """
    bint iova_read_int(PyObject *, uint64_t *) nogil
    int iova_describe(object, const char *) except -1
    int iova_log2 "__builtin_ctzll"(unsigned long long) nogil

cdef extern from "allocator/tree/tree.h":
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
    int iova_find_many(
        const iova_tree *, const uint64_t *, size_t, int, uint64_t *, uint64_t *
    ) nogil
    void iova_call(const iova_tree *, const uint64_t *, size_t, size_t, int) nogil
    bint iova_far(const iova_tree *) nogil
    enum:
        IOVA_ABREAST
    int iova_mark(iova_tree *, uint64_t, uint64_t *, int) nogil
    ctypedef struct iova_facts:
        uint64_t low_first
        uint64_t low_last
        uint64_t high_first
        uint64_t high_last
        uint64_t max
        uint64_t max_start
        uint64_t max_aligned
        uint64_t sum
    int iova_tell(iova_tree *, int, uint64_t, uint64_t, iova_facts *) nogil
    const char *iova_check(const iova_tree *) nogil
    uint64_t iova_bytes(const iova_tree *) nogil
    void iova_limit(iova_tree *, uint64_t) nogil
    int iova_next(const iova_tree *, iova_cursor *, iova_entry *, uint64_t *, uint64_t *) nogil

cdef uint64_t LAST = 0xFFFFFFFFFFFFFFFF
cdef object WHOLE = 1 << 64

cdef enum:
    PARKED_SIZES = 64  # sizes, in granules, that the size cache keeps
    PARKED_DEEP = 126  # released blocks of one size that it keeps

cdef struct iova_parked:
    uint64_t count
    uint64_t start[PARKED_DEEP]

cdef object POLICY_FIRST = "first"
cdef object POLICY_LAST = "last"
cdef object POLICY_BEST = "best"


cdef list WORDS = []  # what the tables of the methods point to


cdef str signature_of(method):
    """Return the parameters of a Python method, in the form that `inspect` reads from C methods."""
    code = method.__code__
    names = code.co_varnames[1 : code.co_argcount]
    defaults = method.__defaults__ or ()
    plain = len(names) - len(defaults)
    parts = ["$self", *names[:plain]]
    parts += [f"{name}={value!r}" for name, value in zip(names[plain:], defaults)]
    extra = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    parts += ["*"] if extra else []
    parts += [f"{name}={method.__kwdefaults__[name]!r}" for name in extra]
    return f"({', '.join(parts)})"


cdef int numbers(object buffer, Py_buffer *view, bint writable, str field) except -1:
    """Open a contiguous buffer of 64-bit integers."""
    try:
        PyObject_GetBuffer(
            buffer, view, (PyBUF_CONTIG if writable else PyBUF_CONTIG_RO) | PyBUF_FORMAT
        )
    except (TypeError, ValueError, BufferError) as exc:
        raise RequestError(
            f"{field} must be a buffer of 64-bit integers: {exc}", field=field, value=buffer
        ) from None
    if view.itemsize != 8 or view.format == NULL or view.format[0] not in b"QqLlNn=<@":
        PyBuffer_Release(view)
        raise RequestError(
            f"{field} must be a buffer of 64-bit integers", field=field, value=buffer
        )
    return 0


cdef int same_length(Py_buffer *view, Py_buffer *other, object buffer, str field) except -1:
    if view.len != other.len:
        raise RequestError(
            f"{field} must have {other.len // 8} items, not {view.len // 8}",
            field=field,
            value=buffer,
        )
    return 0


cdef list pairs_of(ranges):
    """Return the ranges as pairs of ints: looking at these runs no Python code."""
    return [(item.start, item.last) for item in ranges]


cdef class Core:
    """Free spans and allocations, and the steps on them that must be atomic."""

    def __dealloc__(self):
        iova_tree_free(self.tree)
        free(self.parked)

    @classmethod
    def _describe(cls, method):
        """Give a method its words: they stand once, in `vmm_iova.allocator`."""
        if method.__doc__ is None:
            return
        text = f"{method.__name__}{signature_of(method)}\n--\n\n{method.__doc__}".encode()
        WORDS.append(text)
        iova_describe(cls.__dict__[method.__name__], text)

    def _setup(self, usable, ranges, granule, allow_zero, size_cache):
        cdef iova_tree *tree
        self.granule = granule
        self.shift = granule.bit_length() - 1
        self.mask = granule - 1
        self.highest = LAST >> self.shift
        self.allow_zero = allow_zero
        self._usable = usable
        self._ranges = ranges
        self.tags = {}
        self.pairs = pairs_of(ranges)
        tree = self.build(self.pairs)
        iova_tree_free(self.tree)
        self.tree = tree
        self.units = self.count = self.depth = 0
        self.journal = None
        self.window = None
        free(self.parked)
        self.parked = NULL
        self.parked_count = 0
        if size_cache:
            self.parked = <iova_parked *>calloc(PARKED_SIZES, sizeof(iova_parked))
            if self.parked == NULL:
                raise MemoryError

    cdef iova_tree *build(self, list pairs) except NULL:
        """Make a tree of the allocations and of what the usable ranges leave out."""
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
        for start, last in pairs:
            start = start >> self.shift
            if start > position or position:
                fixed.append((position, start - position))
            elif start == 0:
                # A free unit at 0 that must not be chosen looks taken.
                keep_zero = not self.allow_zero
                fixed.append((0, 1 if keep_zero else 0))
            position = (last >> self.shift) + 1
        if position < WHOLE >> self.shift or not fixed:
            fixed.append((position, (WHOLE >> self.shift) - position))
        if fixed[0] == (0, WHOLE):
            fixed = [(0, 1 << 63), (1 << 63, 1 << 63)]  # nothing usable, one byte the granule
        count = len(fixed)
        entries = <iova_entry *>malloc((count + self.count + 1) * sizeof(iova_entry))
        if entries == NULL:
            raise MemoryError
        try:
            if self.tree != NULL:
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
            tree = iova_tree_new(entries, n, top, keep_zero)
            if tree == NULL:
                raise MemoryError
            return tree
        finally:
            free(entries)

    def __len__(self):
        return self.count

    def allocate(self, size, align=None, policy="first", within=None, tag=None):
        """Choose a free range, own it, and return its first address."""
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
            if (
                self.parked_count
                and align is None
                and within is None
                and number == IOVA_FIRST
                and self.unpark(length >> self.shift, &place)
            ):
                return self.owned(place, length >> self.shift, tag)
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
        cdef bint plain = align is None and within is None
        size, align, number, window_low, window_high = self._request(size, align, policy, within)
        if window_low > window_high:
            result = IOVA_NONE
        else:
            low, high = window_low >> self.shift, window_high >> self.shift
            if within is not None:
                # An AddrRange never changes: the same object is the same window.
                self.window, self.window_low, self.window_high = within, low, high
            length = size >> self.shift
            if plain and number == IOVA_FIRST and self.unpark(length, &place):
                return self.owned(place, length, tag)
            shift = align.bit_length() - 1 - self.shift
            result = iova_allocate(self.tree, length, shift, number, low, high, &place)
            if result == IOVA_NONE and self.parked_count:
                self.flush()
                result = iova_allocate(self.tree, length, shift, number, low, high, &place)
        if result == IOVA_OK:
            return self.owned(place, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        return self._no_space(size, align, within, *self.facts(align, window_low, window_high))

    def allocate_at(self, start, size, tag=None, *, align=None):
        """Own the range at a place that the caller chose."""
        cdef uint64_t first, length
        if self.parked_count:
            self.flush()
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
        first = <uint64_t>start >> self.shift
        length = (<uint64_t>last - <uint64_t>start >> self.shift) + 1
        result = iova_insert(self.tree, first, length)
        if result == IOVA_OK:
            return self.owned(first, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        return self._refuse_at(start, last, self._overlap(start, last))

    def release(self, start, size=None):
        """Give an allocation back."""
        cdef uint64_t first, length = 0
        if (
            iova_read_int(<PyObject *>start, &first)
            and not first & self.mask
            and (size is None or (iova_read_int(<PyObject *>size, &length) and length))
            and not length & self.mask
        ):
            length >>= self.shift
            if self.parked != NULL and self.journal is None:
                if self.park(first >> self.shift, &length):
                    self.disowned(first >> self.shift, length)
                    return
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
        if not <uint64_t>start & self.mask:
            first = <uint64_t>start >> self.shift
            if size is not None:
                if size <= 0 or size & self.mask or size >> self.shift > LAST:
                    self._refuse_release(start, size, self._at(start))
                length = size >> self.shift
            result = iova_release(self.tree, first, &length)
            if result == IOVA_OK:
                self.disowned(first, length)
                return
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
                self.tagged = True
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
            self.tagged = len(self.tags) != 0
            if self.journal is not None:
                self.journal.append((start, ((first + (length - 1)) << self.shift) | self.mask, tag))
        return 0

    # The size cache: released ranges that wait for a request of their size. In the tree they look
    # unusable; everything but a plain request puts them back first.

    cdef bint park(self, uint64_t first, uint64_t *length) noexcept:
        """Keep an allocation that is being released, if it is one of the sizes that are kept."""
        cdef iova_parked *kept
        cdef uint64_t wanted = length[0]
        if iova_mark(self.tree, first, length, 1) != IOVA_OK:
            return False
        if length[0] <= PARKED_SIZES and self.parked[length[0] - 1].count < PARKED_DEEP:
            kept = self.parked + (length[0] - 1)
            kept.start[kept.count] = first
            kept.count += 1
            self.parked_count += 1
            return True
        iova_mark(self.tree, first, length, 0)
        length[0] = wanted
        return False

    cdef bint unpark(self, uint64_t length, uint64_t *first) noexcept:
        """Take the range of that size that was released last."""
        cdef iova_parked *kept
        if not self.parked_count or length > PARKED_SIZES:
            return False
        kept = self.parked + (length - 1)
        if not kept.count:
            return False
        kept.count -= 1
        self.parked_count -= 1
        first[0] = kept.start[kept.count]
        iova_mark(self.tree, first[0], &length, 0)
        return True

    cdef void flush(self) noexcept:
        """Make all that is parked free."""
        cdef uint64_t first = 0, length, size
        for size in range(1, <uint64_t>PARKED_SIZES + 1):
            length = size
            while self.parked_count and self.unpark(size, &first):
                iova_release(self.tree, first, &length)

    # Batches. What is wrong is gathered before the work is undone, and said after.

    def allocate_many(self, sizes, out=None, *, align=None, policy="first", within=None):
        """Allocate a range for each size: all or nothing."""
        cdef Py_buffer wanted, places
        cdef uint64_t low = 0, high = 0
        cdef bint plain = align is None and within is None and policy == "first"
        cdef int number, shift
        if plain:
            align, number, shift = self.granule, IOVA_FIRST, 0
            window_low, window_high, high = 0, LAST, self.highest
        else:
            _, align, number, window_low, window_high = self._request(
                self.granule, align, policy, within
            )
            shift = align.bit_length() - 1 - self.shift
            if window_low <= window_high:
                low, high = window_low >> self.shift, window_high >> self.shift
            else:
                low, high = 1, 0
        numbers(sizes, &wanted, False, "sizes")
        try:
            if out is None:
                out = array("Q", bytes(wanted.len))
            numbers(out, &places, True, "out")
            try:
                same_length(&places, &wanted, out, "out")
                done, facts = self.fill(
                    <const uint64_t *>wanted.buf, <uint64_t *>places.buf, wanted.len // 8,
                    shift, number, low, high, plain, align, window_low, window_high,
                )
                if done < 0:
                    return out
                size = (<const uint64_t *>wanted.buf)[<Py_ssize_t>done]
            finally:
                PyBuffer_Release(&places)
        finally:
            PyBuffer_Release(&wanted)
        with self._naming_item(done):
            self._request(size, align, policy, within)
            if facts is None:
                raise MemoryError
            self._no_space(size, align, within, *facts)

    cdef tuple fill(
        self, const uint64_t *size, uint64_t *start, Py_ssize_t count, int shift, int number,
        uint64_t low, uint64_t high, bint plain, align, window_low, window_high,
    ):
        """Allocate all; return -1, or the item that failed and the facts of that moment."""
        cdef Py_ssize_t done = 0, mark
        cdef uint64_t length, place = 0, units = 0
        cdef uint64_t *wanted
        cdef int result = IOVA_OK
        # `out` may be the buffer of the sizes: the sizes are needed after a failure too.
        wanted = <uint64_t *>malloc(8 * <size_t>count + 8)
        if wanted == NULL:
            raise MemoryError
        memcpy(wanted, size, 8 * <size_t>count)
        facts = None
        while done < count:
            length = wanted[done]
            if not length or length & self.mask:
                result = IOVA_OTHER
                break
            length >>= self.shift
            if plain and self.parked_count and self.unpark(length, &place):
                result = IOVA_OK
            elif low > high:
                result = IOVA_NONE
            else:
                result = iova_allocate(self.tree, length, shift, number, low, high, &place)
                if result == IOVA_NONE and self.parked_count:
                    self.flush()
                    result = iova_allocate(self.tree, length, shift, number, low, high, &place)
            if result != IOVA_OK:
                break
            units += length
            start[done] = place << self.shift
            done += 1
        try:
            if result == IOVA_OK and self.journal is not None:
                mark = len(self.journal)
                try:
                    for i in range(count):
                        self.journal.append((start[i],))
                except BaseException:
                    del self.journal[mark:]
                    result = IOVA_NOMEM
                    raise
            if result == IOVA_NONE:
                facts = self.facts(align, window_low, window_high)
            if result == IOVA_OK:
                self.units += units
                self.count += count
                return -1, None
            if result == IOVA_OTHER:
                facts = ()
            return done, facts
        finally:
            if result != IOVA_OK:
                for i in range(done):
                    length = 0
                    iova_release(self.tree, start[i] >> self.shift, &length)
                memcpy(start, wanted, 8 * <size_t>count)
            free(wanted)

    def release_many(self, starts, sizes=None):
        """Release the allocation that begins at each address: all or nothing."""
        cdef Py_buffer places, lengths
        numbers(starts, &places, False, "starts")
        try:
            if sizes is None:
                done = self.empty(<const uint64_t *>places.buf, NULL, places.len // 8)
            else:
                numbers(sizes, &lengths, False, "sizes")
                try:
                    same_length(&lengths, &places, sizes, "sizes")
                    done = self.empty(
                        <const uint64_t *>places.buf, <const uint64_t *>lengths.buf, places.len // 8
                    )
                finally:
                    PyBuffer_Release(&lengths)
        finally:
            PyBuffer_Release(&places)
        if done is not None:
            with self._naming_item(done[0]):
                self._refuse_release(done[1], done[2], done[3])

    cdef tuple empty(self, const uint64_t *start, const uint64_t *size, Py_ssize_t count):
        """Release all; return None, or the item that failed and what a refusal tells of it."""
        cdef Py_ssize_t done = 0, i
        cdef uint64_t units = 0, length, last
        cdef uint64_t *lengths = <uint64_t *>malloc(8 * <size_t>count + 8)
        cdef int result = IOVA_OK
        cdef list journal = []
        cdef list released = []
        if lengths == NULL:
            raise MemoryError
        try:
            while done < count:
                if done % IOVA_ABREAST == 0 and iova_far(self.tree):
                    iova_call(self.tree, start, count, done, self.shift)
                length = 0
                result = IOVA_NONE
                if not start[done] & self.mask and (size == NULL or not size[done] & self.mask):
                    length = 0 if size == NULL else size[done] >> self.shift
                    if size == NULL or length:
                        result = iova_release(self.tree, start[done] >> self.shift, &length)
                if result != IOVA_OK:
                    break
                lengths[done] = length
                units += length
                done += 1
            if result == IOVA_OK and (self.journal is not None or self.tags):
                for i in range(count):
                    address = start[i]
                    tag = self.tags.get(address)
                    last = start[i] + ((lengths[i] << self.shift) - 1)
                    if self.journal is not None:
                        journal.append((address, last, tag))
                    if tag is not None:
                        released.append(address)
                if self.journal is not None:
                    self.journal += journal
            if result == IOVA_OK:
                self.units -= units
                self.count -= count
                done = 0
            else:
                address = start[done]
                return done, address, None if size == NULL else <object>size[done], self._at(address)
        except BaseException:
            if result == IOVA_OK:
                done = count
            raise
        finally:
            for i in range(done):
                if iova_insert(self.tree, start[i] >> self.shift, lengths[i]) != IOVA_OK:
                    raise InvariantError("a batch of releases could not be undone: out of memory")
            free(lengths)
        for address in released:
            self.tags.pop(address, None)
        self.tagged = len(self.tags) != 0
        return None

    def lookup_many(self, addresses, starts=None, lasts=None):
        """Find the allocation that holds each address."""
        cdef Py_buffer wanted, first, last
        if self.parked_count:
            self.flush()
        numbers(addresses, &wanted, False, "addresses")
        try:
            starts = array("Q", bytes(wanted.len)) if starts is None else starts
            lasts = array("Q", bytes(wanted.len)) if lasts is None else lasts
            numbers(starts, &first, True, "starts")
            try:
                numbers(lasts, &last, True, "lasts")
                try:
                    same_length(&first, &wanted, starts, "starts")
                    same_length(&last, &wanted, lasts, "lasts")
                    iova_find_many(
                        self.tree,
                        <const uint64_t *>wanted.buf,
                        wanted.len // 8,
                        self.shift,
                        <uint64_t *>first.buf,
                        <uint64_t *>last.buf,
                    )
                finally:
                    PyBuffer_Release(&last)
            finally:
                PyBuffer_Release(&first)
        finally:
            PyBuffer_Release(&wanted)
        return starts, lasts

    # For other extensions: no GIL, no tags, no errors but a number. The caller sees to it that
    # nothing else touches the allocator meanwhile.

    cdef int place(
        self, uint64_t size, uint64_t align, int policy, uint64_t low, uint64_t last,
        uint64_t *start,
    ) noexcept nogil:
        cdef uint64_t unit = 0
        cdef int result, shift = 0
        low = (low >> self.shift) + ((low & self.mask) != 0)
        last = (last >> self.shift) - ((last & self.mask) != self.mask)
        if (
            not size
            or size & self.mask
            or align & (align - 1)
            or policy < IOVA_FIRST
            or policy > IOVA_BEST
            or self.closed()
        ):
            return IOVA_OTHER
        if low > last or last > self.highest:
            return IOVA_NONE
        if align:
            shift = max(iova_log2(align) - self.shift, 0)
        result = iova_allocate(self.tree, size >> self.shift, shift, policy, low, last, &unit)
        if result == IOVA_OK:
            start[0] = unit << self.shift
            self.units += size >> self.shift
            self.count += 1
        return result

    cdef int place_at(self, uint64_t start, uint64_t size) noexcept nogil:
        cdef int result
        if not size or (start | size) & self.mask or size - 1 > LAST - start or self.closed():
            return IOVA_OTHER
        result = iova_insert(self.tree, start >> self.shift, size >> self.shift)
        if result == IOVA_OK:
            self.units += size >> self.shift
            self.count += 1
        return result

    cdef int give(self, uint64_t start, uint64_t size) noexcept nogil:
        cdef uint64_t length = size >> self.shift
        cdef int result
        if (start | size) & self.mask or self.closed():
            return IOVA_OTHER
        result = iova_release(self.tree, start >> self.shift, &length)
        if result == IOVA_OK:
            self.units -= length
            self.count -= 1
        return result

    cdef int find(self, uint64_t address, uint64_t *start, uint64_t *last) noexcept nogil:
        cdef iova_entry entry
        cdef uint64_t unit = address >> self.shift
        iova_find(self.tree, unit, &entry)
        if entry.fixed or unit - entry.start >= entry.len:
            return IOVA_NONE
        start[0] = entry.start << self.shift
        last[0] = ((entry.start + (entry.len - 1)) << self.shift) | self.mask
        return IOVA_OK

    cdef bint closed(self) noexcept nogil:
        """Tell whether there is something to note that needs Python: a transaction, tags, a cache."""
        return self.depth != 0 or self.tagged or self.parked != NULL

    # Steps that the public class calls.

    def _at(self, address):
        cdef iova_entry entry
        cdef uint64_t unit
        if self.parked_count:
            self.flush()
        unit = <uint64_t>address >> self.shift
        iova_find(self.tree, unit, &entry)
        if entry.fixed or unit - entry.start >= entry.len:
            return None
        return self.held(&entry)

    cdef tuple held(self, const iova_entry *entry):
        start = entry.start << self.shift
        last = ((entry.start + (entry.len - 1)) << self.shift) | self.mask
        return start, last, self.tags.get(start)

    def _overlap(self, start, last):
        """Return the lowest allocation that shares an address with the range."""
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last, low, high
        if self.parked_count:
            self.flush()
        low, high = <uint64_t>start >> self.shift, <uint64_t>last >> self.shift
        iova_walk(self.tree, low, &cursor)
        while iova_next(self.tree, &cursor, &entry, &gap_first, &gap_last):
            if entry.start > high:
                break
            if not entry.fixed and entry.start + (entry.len - 1) >= low:
                return self.held(&entry)
        return None

    def _allocated(self):
        cdef object units = self.units
        # 2^64 units of one byte wrap to 0: then several allocations together have everything.
        return WHOLE if self.units == 0 and self.count else units << self.shift

    def _snapshot(self):
        cdef iova_cursor cursor
        cdef iova_entry entry
        cdef uint64_t gap_first, gap_last
        starts, lasts = array("Q"), array("Q")
        if self.parked_count:
            self.flush()
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
        if self.parked_count:
            self.flush()
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
        return not self.allow_zero and len(self.pairs) > 0 and self.pairs[0][0] == 0

    cdef tuple facts(self, align, low, high):
        """Return the largest free span, the largest size that fits at `align`, and all that is free.

        Of a window of whole granules.
        """
        cdef iova_facts seen
        cdef object aligned, total, largest = None
        cdef int step = align.bit_length() - 1 - self.shift
        if low > high:
            return None, 0, 0
        if iova_tell(self.tree, step, low >> self.shift, high >> self.shift, &seen) != IOVA_OK:
            raise MemoryError
        aligned, total = seen.max_aligned << self.shift, (<object>seen.sum) << self.shift
        spans = []
        zero = low == 0 and self.zero_waits()
        if zero:
            # The granule at 0 is free although it is not chosen.
            total += self.granule
            largest = 0, self.granule - 1
        if seen.low_first <= seen.low_last:
            spans.append((seen.low_first, seen.low_last))
        if seen.max:
            spans.append((seen.max_start, seen.max_start + (seen.max - 1)))
        if seen.high_first <= seen.high_last:
            spans.append((seen.high_first, seen.high_last))
        for first, last in spans:
            start = max(<object>first << self.shift, low)
            stop = min((<object>last + 1 << self.shift) - 1, high)
            if start > stop:
                continue
            if not seen.max or first != seen.max_start:
                aligned = max(aligned, stop - ((start + align - 1) & -align) + 1)
                total += stop - start + 1
            if zero and first == 1:
                start = 0
            if largest is None or stop - start > largest[1] - largest[0]:
                largest = start, stop
        return largest, aligned, total

    cdef bint zero_waits(self) except -1:
        """Tell whether the granule at 0 is free but must not be chosen."""
        cdef iova_entry entry
        if not self.zero_free():
            return False
        iova_find(self.tree, 0, &entry)
        return entry.fixed

    def _swap(self, usable, ranges):
        """Take new usable ranges, or return the allocations that they do not cover."""
        return self.swap(usable, ranges, pairs_of(ranges))

    cdef list swap(self, usable, ranges, list pairs):
        # From here on no Python code runs, so no other thread comes between.
        cdef iova_tree *tree
        cdef Py_ssize_t home = 0
        cdef list conflicts = []
        starts, lasts, tags = self._snapshot()
        for start, last in zip(starts, lasts):
            while home < len(pairs) and pairs[home][1] < start:
                home += 1
            if home == len(pairs) or start < pairs[home][0] or last > pairs[home][1]:
                conflicts.append((start, last, tags.get(start)))
        if conflicts:
            return conflicts
        tree = self.build(pairs)
        if self.journal is not None:
            try:
                self.journal.append((self._usable, self._ranges, self.pairs, None))
            except BaseException:
                iova_tree_free(tree)
                raise
        iova_tree_free(self.tree)
        self.tree = tree
        self._usable, self._ranges, self.pairs = usable, ranges, pairs
        return conflicts

    # Transactions: (start,) undoes an allocation, (start, last, tag) a release, four
    # things a change of what is usable.

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
                    self.swap(step[0], step[1], step[2])
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

    def _floor(self, uint64_t first, uint64_t second):
        """Do nothing with two ints and return one: the unit of the benchmarks."""
        return first + second

    def _fail_after(self, uint64_t chunks):
        """Let the tree have only so many more pieces of memory: for tests."""
        iova_limit(self.tree, chunks)

    def _bytes(self):
        """Return the bytes of memory that the tree holds."""
        return iova_bytes(self.tree)
