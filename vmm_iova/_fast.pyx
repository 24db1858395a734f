# SPDX-License-Identifier: Apache-2.0
# cython: binding=False
"""The compiled engine: the same answers as `allocator.pure`. Ints in, ints out.

Between the first and the last change of a call no Python code runs, the garbage collector's
included: what makes a container, reads an argument or drops a reference comes before or after.
Making an int and changing a dict of ints run none.
"""

from array import array

from libc.stdint cimport uint64_t
from cpython.buffer cimport (
    PyBUF_CONTIG,
    PyBUF_CONTIG_RO,
    PyBUF_FORMAT,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.ref cimport PyObject, Py_DECREF
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from vmm_iova.errors import InvariantError, RequestError
from vmm_iova.ranges import AddrRange, MappableRanges

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

    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define IOVA_ORDER '<'
    #else
    #define IOVA_ORDER '>'
    #endif

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
    char IOVA_ORDER
    int iova_log2 "__builtin_ctzll"(unsigned long long) nogil

cdef extern from "Python.h":
    PyObject *PyLong_FromUnsignedLongLong(unsigned long long)

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
        IOVA_ABREAST
    iova_tree *iova_tree_over(
        const iova_span *, size_t, uint64_t, bint, const iova_tree *, size_t
    ) nogil
    void iova_tree_free(iova_tree *) nogil
    int iova_insert "iova_now->insert"(iova_tree *, uint64_t, uint64_t) nogil
    int iova_allocate "iova_now->allocate"(
        iova_tree *, uint64_t, int, int, uint64_t, uint64_t, uint64_t *
    ) nogil
    int iova_release "iova_now->release"(iova_tree *, uint64_t, uint64_t *) nogil
    void iova_find "iova_now->find"(const iova_tree *, uint64_t, iova_entry *) nogil
    void iova_find_many "iova_now->find_many"(
        const iova_tree *, const uint64_t *, size_t, int, uint64_t *, uint64_t *
    ) nogil
    void iova_call "iova_now->call"(const iova_tree *, const uint64_t *, size_t, size_t, int) nogil
    bint iova_far(const iova_tree *) nogil
    int iova_mark "iova_now->mark"(iova_tree *, uint64_t, uint64_t *, int) nogil
    size_t iova_outside(const iova_tree *, const iova_span *, size_t, iova_entry *, size_t) nogil
    size_t iova_free_spans(
        const iova_tree *, const iova_span *, size_t, uint64_t, uint64_t, iova_span *, size_t
    ) nogil
    int iova_tell(iova_tree *, int, uint64_t, uint64_t, iova_facts *) nogil
    bint iova_overlap(const iova_tree *, uint64_t, uint64_t, iova_entry *) nogil
    const char *iova_check(const iova_tree *) nogil
    uint64_t iova_bytes(const iova_tree *) nogil
    void iova_limit(iova_tree *, uint64_t) nogil

cdef uint64_t LAST = 0xFFFFFFFFFFFFFFFF
cdef object WHOLE = 1 << 64
cdef object NOWHERE = MappableRanges()


cdef uint64_t top_of(int shift) noexcept:
    """Return how many units there are; 0 for 2^64."""
    return <uint64_t>1 << (64 - shift) if shift else 0


cdef enum:
    PARKED_SIZES = 64  # sizes, in granules, that the size cache keeps
    PARKED_DEEP = 126  # released ranges of one size that it keeps

cdef struct iova_parked:
    uint64_t count
    uint64_t start[PARKED_DEEP]

cdef enum:
    STEP_OWNED
    STEP_RELEASED
    STEP_RANGES

# What a step of a transaction did; its tag, or the ranges before, stand in `Core.before`.
cdef struct iova_step:
    int kind
    uint64_t first
    uint64_t length
    iova_tree *tree  # of STEP_RANGES: as it was before

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


def describe(method, words):
    """Give a method of this module the docstring and the signature of a Python method."""
    if words.__doc__ is None:
        return
    text = f"{words.__name__}{signature_of(words)}\n--\n\n{words.__doc__}".encode()
    WORDS.append(text)
    iova_describe(method, text)


cdef bint is_native(const char *format) noexcept:
    """Tell whether a buffer's format is one integer of this machine's byte order."""
    if format == NULL:
        return False
    if format[0] == c"@" or format[0] == c"=" or format[0] == IOVA_ORDER:
        format += 1
    return format[0] != 0 and format[1] == 0 and format[0] in b"QqLlNn"


cdef int numbers(object buffer, Py_buffer *view, bint writable, str field) except -1:
    """Open a contiguous buffer of 64-bit integers."""
    try:
        PyObject_GetBuffer(
            buffer, view, (PyBUF_CONTIG if writable else PyBUF_CONTIG_RO) | PyBUF_FORMAT
        )
    except (TypeError, ValueError, BufferError) as exc:
        if writable:
            try:
                PyObject_GetBuffer(buffer, view, PyBUF_CONTIG_RO | PyBUF_FORMAT)
                fits = view.itemsize == 8 and is_native(view.format)
                PyBuffer_Release(view)
            except (TypeError, ValueError, BufferError):
                fits = False
            if fits:
                raise RequestError(
                    f"{field} must be writable", field=field, value=buffer
                ) from None
        raise RequestError(
            f"{field} must be a contiguous buffer of native 64-bit integers",
            field=field,
            value=buffer,
        ) from None
    if view.itemsize != 8 or not is_native(view.format):
        PyBuffer_Release(view)
        raise RequestError(
            f"{field} must be a contiguous buffer of native 64-bit integers",
            field=field,
            value=buffer,
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


cdef class Spans:
    """Usable ranges in units, or any spans."""

    def __cinit__(self, size_t count):
        self.at = <iova_span *>malloc((count + 1) * sizeof(iova_span))
        self.count = count
        if self.at == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.at)


cdef Spans spans_of(ranges, int shift):
    """Return the ranges in units: to look at them there runs no Python code."""
    cdef list items = [(item.start, item.last) for item in ranges]
    cdef Spans spans = Spans(len(items))
    cdef size_t i = 0
    for start, last in items:
        spans.at[i].first = <uint64_t>start >> shift
        spans.at[i].last = <uint64_t>last >> shift
        i += 1
    return spans


cdef class Entries:
    """Allocations of one moment, with their tags, or None where there were no tags."""

    def __cinit__(self, size_t count, bint tagged):
        self.at = <iova_entry *>malloc((count + 1) * sizeof(iova_entry))
        self.count = count
        if self.at == NULL:
            raise MemoryError
        self.tags = [None] * count if tagged else None

    def __dealloc__(self):
        free(self.at)


cdef class Transaction:
    """A stretch of changes that stays whole, or is undone whole."""

    def __cinit__(self, Core allocator not None):
        self.core = allocator
        self.mark = -1

    def __enter__(self):
        self.core.begin(self)
        return self

    def __exit__(self, kind, error, trace):
        self.core.finish(self, kind is not None)

    def rollback(self):
        """Undo now everything since the transaction was entered."""
        self.core.undo(self)


cdef class Core:
    """Free spans and allocations, and the steps on them that must be atomic."""

    def __cinit__(self, *_args, **_options):
        # Until it is set up, an allocator of nothing: whatever is asked of it is refused.
        self.granule = 1
        self.highest = LAST
        self._ranges = NOWHERE
        self.spans = Spans(0)
        self.tags = {}
        self.opened = []
        self.before = []
        self.tree = iova_tree_over(NULL, 0, 0, False, NULL, 0)
        if self.tree == NULL:
            raise MemoryError

    def __dealloc__(self):
        self.forget_steps(0)
        iova_tree_free(self.tree)
        free(self.steps)
        free(self.parked)

    def _setup(self, usable, ranges, granule, bint allow_zero, bint size_cache):
        cdef int shift = granule.bit_length() - 1
        cdef uint64_t unit = granule
        cdef Spans spans = spans_of(ranges, shift)
        cdef iova_parked *parked = NULL
        cdef iova_tree *tree
        if self._usable is not None:
            raise self._set_up_twice()
        if size_cache:
            parked = <iova_parked *>calloc(PARKED_SIZES, sizeof(iova_parked))
        tree = iova_tree_over(spans.at, spans.count, top_of(shift), not allow_zero, NULL, 0)
        if tree == NULL or (size_cache and parked == NULL):
            iova_tree_free(tree)
            free(parked)
            raise MemoryError
        iova_tree_free(self.tree)
        self.tree, self.parked = tree, parked
        self.granule, self.shift, self.mask, self.highest = granule, shift, unit - 1, LAST >> shift
        self.allow_zero = allow_zero
        self.spans, self._ranges, self._usable = spans, ranges, usable

    def __len__(self):
        return self.count

    # Single requests.

    def allocate(self, size, align=None, policy="first", within=None, tag=None):
        """Choose a free range, own it, and return its first address."""
        cdef uint64_t length, place = 0, low = 0, high = self.highest, boundary
        cdef int result, shift = 0, number
        # What a plain request looks like; everything else goes the long way round.
        if (
            tag is None
            and not self.depth
            and iova_read_int(<PyObject *>size, &length)
            and length
            and not length & self.mask
        ):
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
            length >>= self.shift
            if (
                self.parked_count
                and align is None
                and within is None
                and number == IOVA_FIRST
                and self.unpark(length, &place)
            ):
                return self.owned(place, length, None)
            result = iova_allocate(self.tree, length, shift, number, low, high, &place)
            if result == IOVA_OK:
                return self.owned(place, length, None)
        return self.allocate_slow(size, align, policy, within, tag)

    cdef object allocate_slow(self, size, align, policy, within, tag):
        """Do what `allocate` does for any request, and refuse with the facts."""
        cdef uint64_t length, place = 0, low = 0, high = 0
        cdef int result = IOVA_NONE, shift, number
        cdef iova_facts facts
        cdef bint plain = align is None and within is None
        size, align, number, window_low, window_high = self._request(size, align, policy, within)
        length = size >> self.shift
        shift = align.bit_length() - 1 - self.shift
        memset(&facts, 0, sizeof(facts))
        self.make_step_room(1)
        if window_low <= window_high:
            low, high = window_low >> self.shift, window_high >> self.shift
            if type(within) is AddrRange:
                # An AddrRange never changes: the same object is the same window.
                self.window, self.window_low, self.window_high = within, low, high
            if plain and number == IOVA_FIRST and self.unpark(length, &place):
                return self.owned(place, length, tag)
            result = iova_allocate(self.tree, length, shift, number, low, high, &place)
            if result == IOVA_NONE and self.parked_count:
                self.flush()
                result = iova_allocate(self.tree, length, shift, number, low, high, &place)
            if result == IOVA_NONE:
                result = iova_tell(self.tree, shift, low, high, &facts)
                if result == IOVA_OK:
                    result = IOVA_NONE
        if result == IOVA_OK:
            return self.owned(place, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        return self._no_space(size, align, within, self.facts_of(&facts))

    def allocate_at(self, start, size, tag=None, *, align=None):
        """Own the range at a place that the caller chose."""
        cdef uint64_t first, length
        if (
            tag is None
            and align is None
            and not self.depth
            and iova_read_int(<PyObject *>start, &first)
            and iova_read_int(<PyObject *>size, &length)
            and length
            and not (first | length) & self.mask
            and length - 1 <= LAST - first
            and iova_insert(self.tree, first >> self.shift, length >> self.shift) == IOVA_OK
        ):
            self.units += length >> self.shift
            self.count += 1
            return start
        return self.allocate_at_slow(start, size, tag, align)

    cdef object allocate_at_slow(self, start, size, tag, align):
        """Do what `allocate_at` does for any request, and refuse with the facts."""
        cdef uint64_t first, length
        cdef iova_entry entry
        cdef int result
        start, last = self._request_at(start, size, align)
        first = <uint64_t>start >> self.shift
        length = (<uint64_t>last - <uint64_t>start >> self.shift) + 1
        self.make_step_room(1)
        result = iova_insert(self.tree, first, length)
        if result == IOVA_TAKEN and self.parked_count:
            self.flush()
            result = iova_insert(self.tree, first, length)
        if result == IOVA_OK:
            return self.owned(first, length, tag)
        if result == IOVA_NOMEM:
            raise MemoryError
        usable, ranges, owner = self._usable, self._ranges, None
        if iova_overlap(self.tree, first, first + (length - 1), &entry):
            owner = self.held(&entry)
        return self._refuse_at(start, last, owner, usable, ranges)

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
            self.make_step_room(1)
            if self.let_go(first >> self.shift, &length) == IOVA_OK:
                self.disowned(first >> self.shift, length, start)
                return
        self.release_slow(start, size)

    cdef object release_slow(self, start, size):
        """Do what `release` does for any request, and refuse with the facts."""
        cdef uint64_t length = 0
        start, size = self._request_release(start, size)
        self.make_step_room(1)
        if not <uint64_t>start & self.mask and (
            size is None or (size > 0 and not size & self.mask and size >> self.shift <= LAST)
        ):
            length = 0 if size is None else size >> self.shift
            if self.let_go(<uint64_t>start >> self.shift, &length) == IOVA_OK:
                self.disowned(<uint64_t>start >> self.shift, length, start)
                return
        self._refuse_release(start, size, self._at(start))

    cdef int let_go(self, uint64_t first, uint64_t *length) noexcept:
        """Make an allocation free in the tree, or keep it in the size cache."""
        if self.parked != NULL and not self.depth and self.park(first, length):
            return IOVA_OK
        return iova_release(self.tree, first, length)

    cdef object owned(self, uint64_t first, uint64_t length, tag):
        """Note an allocation that the tree has just taken in, and return its address."""
        cdef PyObject *number = PyLong_FromUnsignedLongLong(first << self.shift)
        if number == NULL:
            iova_release(self.tree, first, &length)
            raise MemoryError
        address = <object>number
        Py_DECREF(address)
        if tag is not None:
            try:
                self.tags[address] = tag
            except BaseException:
                iova_release(self.tree, first, &length)
                raise
            self.tagged = True
        if self.depth:
            self.step(STEP_OWNED, first, length, NULL, None)
        self.units += length
        self.count += 1
        return address

    cdef int disowned(self, uint64_t first, uint64_t length, address) except -1:
        """Note that the tree has just let go of an allocation."""
        tag = None
        self.units -= length
        self.count -= 1
        if self.tagged:
            tag = self.tags.pop(address, None)
            self.tagged = len(self.tags) != 0
        if self.depth:
            self.step(STEP_RELEASED, first, length, NULL, tag)
        return 0

    # The size cache: released ranges that wait for a request of their size. In the tree they look
    # unusable. They go back where nothing else fits, when a transaction begins, and when the ranges
    # change; to look at the allocator leaves them.

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

    # Batches. What is wrong is gathered before the work is undone, and raised after.

    def allocate_many(self, sizes, out=None, *, align=None, policy="first", within=None):
        """Allocate a range for each size: all or nothing."""
        cdef Py_buffer wanted, places
        cdef uint64_t low = 1, high = 0, unit
        cdef bint plain = align is None and within is None and policy == "first"
        cdef int number, shift
        cdef Py_ssize_t done
        cdef iova_facts facts
        memset(&facts, 0, sizeof(facts))
        unit, boundary, number, window_low, window_high = self._request(
            self.granule, align, policy, within
        )
        shift = boundary.bit_length() - 1 - self.shift
        if window_low <= window_high:
            low, high = window_low >> self.shift, window_high >> self.shift
        numbers(sizes, &wanted, False, "sizes")
        try:
            if out is None:
                out = array("Q", bytes(wanted.len))
            numbers(out, &places, True, "out")
            try:
                same_length(&places, &wanted, out, "out")
                done = self.fill(
                    <const uint64_t *>wanted.buf, <uint64_t *>places.buf, wanted.len // 8,
                    shift, number, low, high, plain, &facts,
                )
                if done == wanted.len // 8:
                    return out
                unit = (<const uint64_t *>wanted.buf)[done]
            finally:
                PyBuffer_Release(&places)
        finally:
            PyBuffer_Release(&wanted)
        with self._naming_item(done):
            self._size(unit)
            self._no_space(unit, boundary, within, self.facts_of(&facts))

    cdef Py_ssize_t fill(
        self, const uint64_t *size, uint64_t *out, Py_ssize_t count, int shift, int number,
        uint64_t low, uint64_t high, bint plain, iova_facts *facts,
    ) except -1:
        """Allocate all, and return `count`; or nothing, and return the item that failed."""
        cdef Py_ssize_t done = 0, i
        cdef uint64_t length = 0, units = 0
        cdef uint64_t *place
        cdef char *kept  # it came from the size cache
        cdef bint flushed = False
        cdef int result = IOVA_OK
        self.make_step_room(count)
        place = <uint64_t *>malloc(9 * <size_t>count + 8)
        if place == NULL:
            raise MemoryError
        kept = <char *>(place + count)
        while done < count:
            length = size[done]
            if not length or length & self.mask:
                result = IOVA_OTHER
                break
            length >>= self.shift
            kept[done] = plain and self.parked_count and self.unpark(length, place + done)
            if not kept[done]:
                result = IOVA_NONE
                if low <= high:
                    result = iova_allocate(
                        self.tree, length, shift, number, low, high, place + done
                    )
                    if result == IOVA_NONE and self.parked_count:
                        self.flush()
                        flushed = True
                        result = iova_allocate(
                            self.tree, length, shift, number, low, high, place + done
                        )
                if result != IOVA_OK:
                    break
            units += length
            done += 1
        if result == IOVA_OK:
            self.units += units
            self.count += count
            for i in range(count if self.depth else 0):
                self.step(STEP_OWNED, place[i], size[i] >> self.shift, NULL, None)
            for i in range(count):
                out[i] = place[i] << self.shift
        else:
            if result == IOVA_NONE and low <= high:
                if iova_tell(self.tree, shift, low, high, facts) != IOVA_OK:
                    result = IOVA_NOMEM
            for i in range(done - 1, -1, -1):
                length = 0
                if not kept[i] or flushed or not self.park(place[i], &length):
                    iova_release(self.tree, place[i], &length)
        free(place)
        if result == IOVA_NOMEM:
            raise MemoryError
        return done

    def release_many(self, starts, sizes=None):
        """Release the allocation that begins at each address: all or nothing."""
        cdef Py_buffer places, lengths
        self._must_be_set_up()
        numbers(starts, &places, False, "starts")
        try:
            if sizes is None:
                refused = self.empty(<const uint64_t *>places.buf, NULL, places.len // 8)
            else:
                numbers(sizes, &lengths, False, "sizes")
                try:
                    same_length(&lengths, &places, sizes, "sizes")
                    refused = self.empty(
                        <const uint64_t *>places.buf,
                        <const uint64_t *>lengths.buf,
                        places.len // 8,
                    )
                finally:
                    PyBuffer_Release(&lengths)
        finally:
            PyBuffer_Release(&places)
        if refused is not None:
            with self._naming_item(refused[0]):
                self._refuse_release(*refused[1:])

    cdef tuple empty(self, const uint64_t *start, const uint64_t *size, Py_ssize_t count):
        """Release all; return None, or the item that failed and what a refusal tells of it."""
        cdef Py_ssize_t done = 0, i
        cdef uint64_t units = 0, length, first
        cdef uint64_t *lengths
        cdef char *kept  # it went into the size cache
        cdef int result = IOVA_OK
        cdef iova_entry entry
        cdef list addresses = None, tags = None
        while self.tagged and addresses is None:  # to make lists may run Python code
            tags = [None] * count
            addresses = [start[i] for i in range(count)]
        self.make_step_room(count)
        lengths = <uint64_t *>malloc(9 * <size_t>count + 8)
        if lengths == NULL:
            raise MemoryError
        kept = <char *>(lengths + count)
        while done < count:
            if done % IOVA_ABREAST == 0 and iova_far(self.tree):
                iova_call(self.tree, start, count, done, self.shift)
            first = start[done] >> self.shift
            length = 0 if size == NULL else size[done] >> self.shift
            result = IOVA_NONE
            if not start[done] & self.mask and (
                size == NULL or (length and not size[done] & self.mask)
            ):
                kept[done] = (
                    self.parked != NULL and not self.depth and self.park(first, &length)
                )
                result = IOVA_OK
                if not kept[done]:
                    result = iova_release(self.tree, first, &length)
            if result != IOVA_OK:
                break
            lengths[done] = length
            units += length
            done += 1
        if result == IOVA_OK:
            self.units -= units
            self.count -= count
            for i in range(count):
                tag = None
                if addresses is not None:
                    tag = self.tags.pop(addresses[i], None)
                    tags[i] = tag  # dropped with the list, when all is done
                if self.depth:
                    self.step(STEP_RELEASED, start[i] >> self.shift, lengths[i], NULL, tag)
            self.tagged = len(self.tags) != 0
            free(lengths)
            return None
        iova_find(self.tree, start[done] >> self.shift, &entry)
        for i in range(done - 1, -1, -1):
            length = lengths[i]
            if kept[i]:
                self.unpark(length, &first)
            elif iova_insert(self.tree, start[i] >> self.shift, length) != IOVA_OK:
                result = IOVA_NOMEM  # then these are released, and the rest is not
                self.units -= length
                self.count -= 1
                if addresses is not None:
                    tags[i] = self.tags.pop(addresses[i], None)
                if self.depth:
                    self.step(
                        STEP_RELEASED,
                        start[i] >> self.shift,
                        length,
                        NULL,
                        None if tags is None else tags[i],
                    )
        free(lengths)
        if result == IOVA_NOMEM:
            raise MemoryError("a batch of releases was refused, and could not be undone whole")
        return (
            done,
            start[done],
            None if size == NULL else size[done],
            self.held_if(&entry, start[done] >> self.shift),
        )

    def lookup_many(self, addresses, starts=None, lasts=None):
        """Find the allocation that holds each address."""
        cdef Py_buffer wanted, first, last
        numbers(addresses, &wanted, False, "addresses")
        try:
            starts = array("Q", bytes(wanted.len)) if starts is None else starts
            numbers(starts, &first, True, "starts")
            try:
                same_length(&first, &wanted, starts, "starts")
                lasts = array("Q", bytes(wanted.len)) if lasts is None else lasts
                numbers(lasts, &last, True, "lasts")
                try:
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

    def _counts(self):
        """Return the usable ranges, the bytes allocated and the number of allocations."""
        ranges, units, count = self._ranges, self.units, self.count
        # 2^64 units of one byte wrap to 0: then several allocations together have everything.
        return ranges, WHOLE if units == 0 and count else units << self.shift, count

    def _at(self, address):
        cdef iova_entry entry
        cdef uint64_t unit = <uint64_t>address >> self.shift
        iova_find(self.tree, unit, &entry)
        return self.held_if(&entry, unit)

    cdef tuple held_if(self, const iova_entry *entry, uint64_t unit):
        """Return the allocation of an entry, if it is one and holds a unit."""
        if entry.fixed or unit - entry.start >= entry.len:
            return None
        return self.held(entry)

    cdef tuple held(self, const iova_entry *entry):
        start = entry.start << self.shift
        last = ((entry.start + (entry.len - 1)) << self.shift) | self.mask
        tag = self.tags.get(start)
        return start, last, tag

    cdef Entries outside(self, Spans spans):
        """Return the allocations that do not lie inside of the spans, with their tags."""
        cdef Entries entries
        cdef size_t count, i
        cdef bint tagged
        while True:
            tagged = self.tagged
            count = iova_outside(self.tree, spans.at, spans.count, NULL, 0)
            entries = Entries(count, tagged)
            # That may have run Python code; from here on none does.
            if (
                tagged == self.tagged
                and iova_outside(self.tree, spans.at, spans.count, entries.at, count) == count
            ):
                break
        if tagged:
            for i in range(count):
                entries.tags[i] = self.tags.get(entries.at[i].start << self.shift)
        return entries

    def _snapshot(self):
        cdef Entries entries = self.outside(Spans(0))
        cdef Spans first = Spans(entries.count // 2 + 1), last = Spans(entries.count // 2 + 1)
        cdef uint64_t *starts = <uint64_t *>first.at
        cdef uint64_t *lasts = <uint64_t *>last.at
        cdef size_t i
        tags = {}
        for i in range(entries.count):
            starts[i] = entries.at[i].start << self.shift
            lasts[i] = (
                (entries.at[i].start + (entries.at[i].len - 1)) << self.shift
            ) | self.mask
            if entries.tags is not None and entries.tags[i] is not None:
                tags[starts[i]] = entries.tags[i]
        return (
            array("Q", (<char *>starts)[: 8 * entries.count]),
            array("Q", (<char *>lasts)[: 8 * entries.count]),
            tags,
        )

    def _gaps(self, start, last):
        """Return what is free in a window, cut to it, as two arrays."""
        cdef uint64_t low = start, high = last
        cdef Spans spans
        cdef size_t count, i
        while True:
            count = iova_free_spans(
                self.tree, self.spans.at, self.spans.count, low >> self.shift, high >> self.shift,
                NULL, 0,
            )
            spans = Spans(count)
            if iova_free_spans(
                self.tree, self.spans.at, self.spans.count, low >> self.shift, high >> self.shift,
                spans.at, count,
            ) == count:
                break
        starts, lasts = array("Q", bytes(8 * count)), array("Q", bytes(8 * count))
        for i in range(count):
            starts[i] = max(spans.at[i].first << self.shift, low)
            lasts[i] = min((spans.at[i].last << self.shift) | self.mask, high)
        return starts, lasts

    cdef tuple facts_of(self, const iova_facts *facts):
        """Return the largest free span, the largest size that fits, and all that is free."""
        cdef object total = facts.total, aligned = facts.aligned
        if not facts.any:
            return None, 0, 0
        total = total << self.shift if total else WHOLE
        last = (facts.last << self.shift) | self.mask
        return (facts.first << self.shift, last), aligned << self.shift, total

    def _swap(self, before, usable, ranges):
        """Take new usable ranges, or return the allocations that they do not cover.

        None, and nothing is done, where the present ranges are not `before`.
        """
        cdef Spans spans = spans_of(ranges, self.shift)
        cdef Entries entries
        cdef iova_tree *tree
        cdef size_t i
        if self._ranges is not before:
            return None
        entries = self.outside(spans)
        if entries.count:
            return [
                (
                    entries.at[i].start << self.shift,
                    ((entries.at[i].start + (entries.at[i].len - 1)) << self.shift) | self.mask,
                    None if entries.tags is None else entries.tags[i],
                )
                for i in range(entries.count)
            ]
        present = self._usable, self._ranges, self.spans
        self.make_step_room(1)
        # From here on no Python code runs: what was found above must still hold.
        if self._ranges is not before:
            return None
        if iova_outside(self.tree, spans.at, spans.count, NULL, 0):
            return None
        tree = iova_tree_over(
            spans.at, spans.count, top_of(self.shift), not self.allow_zero, self.tree, self.count
        )
        if tree == NULL:
            raise MemoryError
        if self.depth:
            self.step(STEP_RANGES, 0, 0, self.tree, present)
        else:
            iova_tree_free(self.tree)
        self.tree = tree
        if self.parked != NULL:
            memset(self.parked, 0, PARKED_SIZES * sizeof(iova_parked))
            self.parked_count = 0
        self.spans, self._ranges, self._usable = spans, ranges, usable
        return []

    # Transactions. `steps` tells what was done since the outermost began; the Python objects that
    # undo it stand in `before`, in the same places.

    cdef int make_step_room(self, Py_ssize_t count) except -1:
        """Make sure that so many steps can be noted."""
        cdef Py_ssize_t room
        cdef iova_step *steps
        if not self.depth:
            return 0
        if self.step_count + count > self.step_room:
            room = self.step_count + count + self.step_room // 2 + 16
            steps = <iova_step *>realloc(self.steps, room * sizeof(iova_step))
            if steps == NULL:
                raise MemoryError
            self.steps, self.step_room = steps, room
        while len(self.before) < self.step_count + count:
            self.before.append(None)
        return 0

    cdef void step(
        self, int kind, uint64_t first, uint64_t length, iova_tree *tree, before
    ) noexcept:
        cdef iova_step *step = self.steps + self.step_count
        step.kind, step.first, step.length, step.tree = kind, first, length, tree
        self.before[self.step_count] = before
        self.step_count += 1

    cdef void forget_steps(self, Py_ssize_t mark) noexcept:
        """Free what the steps from `mark` on keep."""
        cdef Py_ssize_t i
        for i in range(mark, self.step_count):
            if self.steps[i].kind == STEP_RANGES:
                iova_tree_free(self.steps[i].tree)
        self.step_count = mark

    cdef int begin(self, Transaction transaction) except -1:
        self._must_be_set_up()
        if transaction.mark >= 0:
            raise self._open_already(transaction)
        self.opened.append(transaction)
        self.flush()
        transaction.mark = self.step_count
        self.depth += 1
        return 0

    cdef int finish(self, Transaction transaction, bint failed) except -1:
        cdef Py_ssize_t i
        cdef list before = []
        if failed:
            self.undo(transaction)
        if transaction.mark < 0:
            raise self._not_open(transaction)
        transaction.mark = -1
        self.depth -= 1
        for i in range(len(self.opened)):
            if self.opened[i] is transaction:
                del self.opened[i]
                break
        if not self.depth:
            self.forget_steps(0)
            before, self.before = self.before, before  # dropped when all is done
        return 0

    cdef int undo(self, Transaction transaction) except -1:
        cdef Py_ssize_t mark = transaction.mark, i, ranges = self.step_count, end
        cdef Transaction other
        cdef iova_step *step
        cdef uint64_t length
        cdef list dropped = [], addresses = None
        cdef bint tagged = self.tagged, lost = False
        if mark < 0:
            raise self._not_open(transaction)
        end = self.step_count
        for i in range(mark, end):
            tagged = tagged or (
                self.steps[i].kind == STEP_RELEASED and self.before[i] is not None
            )
        if tagged:
            addresses = [self.steps[i].first << self.shift for i in range(mark, end)]
        dropped = [None] * (end - mark + 3)
        # From here on no Python code runs; but what is above may have, and have changed things.
        if self.step_count != end or transaction.mark != mark or (self.tagged and not tagged):
            return self.undo(transaction)
        for i in range(mark, end):
            if self.steps[i].kind == STEP_RANGES:
                ranges = i
                break
        if ranges < end:
            # The tree from before the ranges changed is the tree to go on with.
            iova_tree_free(self.tree)
            self.tree = self.steps[ranges].tree
            self.steps[ranges].kind = STEP_OWNED
            dropped[end - mark], dropped[end - mark + 1] = self._usable, self._ranges
            dropped[end - mark + 2] = self.spans
            self._usable, self._ranges, self.spans = self.before[ranges]
        for i in range(end - 1, mark - 1, -1):
            step = self.steps + i
            before = self.before[i]
            if i == ranges:
                dropped[i - mark] = before
            elif step.kind == STEP_RANGES:
                iova_tree_free(step.tree)
                dropped[i - mark] = before
            elif step.kind == STEP_OWNED:
                length = step.length
                if i < ranges:
                    iova_release(self.tree, step.first, &length)
                self.units -= length
                self.count -= 1
                if tagged:
                    dropped[i - mark] = self.tags.pop(addresses[i - mark], None)
            else:
                if i < ranges and iova_insert(self.tree, step.first, step.length) != IOVA_OK:
                    break  # no memory: what is left can be undone when there is some
                self.units += step.length
                self.count += 1
                if before is not None:
                    try:
                        self.tags[addresses[i - mark]] = before
                    except MemoryError:
                        lost = True
            self.before[i] = None
            self.step_count = i
        self.tagged = len(self.tags) != 0
        for i in range(len(self.opened)):
            other = self.opened[i]
            if other.mark > self.step_count:
                other.mark = self.step_count
        if lost or self.step_count != mark:
            raise MemoryError("not everything could be undone")
        return 0

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
