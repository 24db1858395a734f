# SPDX-License-Identifier: Apache-2.0
"""Map calls in C: one with its book-keeping, or many in one entry; and the book itself.

Numbers and records in, counts out: no project classes. All of it is in Python, too: in
`kernel.syscalls`, `kernel.batch`, `kernel.book`, and in the methods of the address spaces.
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.long cimport PyLong_CheckExact
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF

LAST = (1 << 64) - 1

# ABI: include/uapi/linux/vfio.h, vfio_iommu_type1_dma_map; linux/iommufd.h, iommu_ioas_map.
cdef struct Type1Map:
    unsigned int argsz
    unsigned int flags
    unsigned long long vaddr
    unsigned long long iova
    unsigned long long size

cdef struct IoasMap:
    unsigned int size
    unsigned int flags
    unsigned int ioas_id
    unsigned int reserved
    unsigned long long user_va
    unsigned long long length
    unsigned long long iova

cdef union Map:
    Type1Map type1
    IoasMap ioas

# The same for both but for `second`: flags, or the number of the IOAS.
cdef struct Unmap:
    unsigned int size
    unsigned int second
    unsigned long long iova
    unsigned long long length

cdef extern from "sys/ioctl.h" nogil:
    int c_ioctl "ioctl" (int fd, unsigned long request, void *argument)

ctypedef int (*Ioctl)(int, unsigned long, void *) noexcept nogil


cdef int linux(int fd, unsigned long request, void *argument) noexcept nogil:
    return c_ioctl(fd, request, argument)


cdef Ioctl ask = linux


def answer_with(unsigned long long address):
    """Let the C function at this address answer every ioctl of this module; 0: the kernel again.

    For tests: so the simulated kernel sees the very records that C makes.
    """
    global ask
    ask = <Ioctl> <size_t> address if address else linux


def ioctl_many(int fd, unsigned long request, records, Py_ssize_t stride):
    """Make one ioctl for each record of `stride` bytes, until one is refused.

    Returns how many were taken, and the errno of the one that was not, or 0.
    """
    cdef Py_buffer view  # a typed memoryview would be 25,000 lines of C for the same
    cdef Py_ssize_t count, index = 0
    cdef int number = 0
    PyObject_GetBuffer(records, &view, PyBUF_WRITABLE)
    try:
        if stride < 1 or view.len % stride:
            raise ValueError("records are not a whole number of strides")
        count = view.len // stride
        # SAFETY: the view holds the buffer for the whole call, and index * stride stays below its
        # length, because the length is count * stride.
        with nogil:
            while index < count:
                if ask(fd, request, <char *> view.buf + index * stride) < 0:
                    number = errno
                    break
                index += 1
    finally:
        PyBuffer_Release(&view)
    return index, number


cdef inline unsigned long long whole(value) except? 0:
    """Return a number that is one: Cython by itself would cut a float."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


cdef enum:
    ROOM = 64  # mappings of a block

cdef struct Mapped:
    uint64_t size
    uint64_t hva
    PyObject *place
    bint read
    bint write

cdef struct Block:
    Py_ssize_t count
    uint64_t at[ROOM]
    Mapped *what[ROOM]

cdef struct Place:
    Py_ssize_t block
    Py_ssize_t index


cdef class Book:
    """Mappings by their start, in order, in blocks: a change moves one block and the list of them.

    What stands here is true between any two calls: no Python code runs inside of a change.
    `kernel.book` has the same in Python.
    """

    cdef readonly list unread
    cdef Block **block
    cdef uint64_t *first  # the first start of each block
    cdef Py_ssize_t blocks, room, total

    def __cinit__(self):
        self.unread = []

    def __dealloc__(self):
        self.emptied()
        free(self.first)

    def __len__(self):
        return self.total

    def put(self, uint64_t start, uint64_t size, uint64_t hva, bint read, bint write, place):
        """Note a mapping, in place of what began there."""
        self.remove(start)
        self.insert(start, size, hva, read, write, place)

    cpdef read(self):
        """Put all batches into the book."""
        for pieces, place in self.unread:
            for item in pieces:
                self.remove(item.iova)
                self.insert(item.iova, item.size, item.hva, item.read, item.write, place)
        self.unread.clear()

    def get(self, start):
        """Return size, host address, rights and place of what begins there, or None."""
        cdef Place found
        cdef Mapped *what
        if not isinstance(start, int) or not 0 <= start <= LAST:
            return None
        if not self.find(start, &found):
            return None
        what = self.mapped(found)
        return what.size, what.hva, <bint> what.read, <bint> what.write, <object> what.place

    def drop(self, uint64_t start):
        """Forget what begins there, if anything does."""
        self.remove(start)

    def below(self, x):
        """Return the highest start up to x, or -1."""
        cdef unsigned long long at
        cdef Place found
        if not fits(x, &at):
            if x < 0:
                return -1
            at = min(x, LAST)
        self.find(at, &found)
        return self.block[found.block].at[found.index] if found.index >= 0 else -1

    def span(self, uint64_t first, uint64_t last):
        """Return the starts from first to last."""
        cdef Place here
        cdef Block *block
        cdef list found = []
        if not self.find(first, &here):
            here.index += 1
        while here.block < self.blocks:
            block = self.block[here.block]
            while here.index < block.count:
                if block.at[here.index] > last:
                    return found
                found.append(block.at[here.index])
                here.index += 1
            here.block += 1
            here.index = 0
        return found

    def clear(self):
        """Forget everything; return how many bytes that was."""
        return self.emptied()

    cdef object emptied(self):
        cdef Py_ssize_t blocks = self.blocks, b, i
        cdef Block **block = self.block
        sizes = 0
        self.block = NULL
        self.blocks = self.room = self.total = 0
        for b in range(blocks):
            for i in range(block[b].count):
                sizes += block[b].what[i].size
                discard(block[b].what[i])
            free(block[b])
        free(block)
        return sizes

    cdef inline Mapped *mapped(self, Place place) noexcept:
        return self.block[place.block].what[place.index]

    cdef bint find(self, uint64_t x, Place *place) noexcept:
        """Whether a mapping begins at x; its place, or that of the last below, which may be -1."""
        cdef Block *block
        place.block = place.index = -1
        if not self.blocks:
            place.block = 0
            return False
        place.block = upto(self.first, self.blocks, x) - 1
        if place.block < 0:
            place.block = 0
        block = self.block[place.block]
        place.index = upto(block.at, block.count, x) - 1
        return place.index >= 0 and block.at[place.index] == x

    cdef bint stands(self, Place place, uint64_t x) noexcept:
        """Whether the mapping that begins at x still has this place."""
        if place.block >= self.blocks or place.index >= self.block[place.block].count:
            return False
        return self.block[place.block].at[place.index] == x

    cdef bint push(self, Py_ssize_t i) noexcept:
        """Put an empty block at place i; False: no memory."""
        cdef Py_ssize_t room = self.blocks * 2 + 8
        cdef Block **block
        cdef uint64_t *first
        cdef Block *new
        if self.blocks == self.room:
            block = <Block **> realloc(self.block, room * sizeof(Block *))
            if block == NULL:
                return False
            self.block = block
            first = <uint64_t *> realloc(self.first, room * sizeof(uint64_t))
            if first == NULL:
                return False
            self.first = first
            self.room = room
        new = <Block *> malloc(sizeof(Block))
        if new == NULL:
            return False
        new.count = 0
        memmove(self.block + i + 1, self.block + i, (self.blocks - i) * sizeof(Block *))
        memmove(self.first + i + 1, self.first + i, (self.blocks - i) * sizeof(uint64_t))
        self.block[i] = new
        self.blocks += 1
        return True

    cdef bint insert(
        self, uint64_t x, uint64_t size, uint64_t hva, bint read, bint write, place
    ) except -1:
        """Note a mapping, or do nothing and return False: something begins there."""
        cdef Place here
        cdef Block *block
        cdef Block *next
        cdef Mapped *what
        cdef Py_ssize_t i
        if self.find(x, &here):
            return False
        what = <Mapped *> malloc(sizeof(Mapped))
        if what == NULL:
            raise MemoryError
        if not self.blocks or self.block[here.block].count == ROOM:
            if not self.push(here.block + 1 if self.blocks else 0):
                free(what)
                raise MemoryError
        what.size = size
        what.hva = hva
        what.read = read
        what.write = write
        what.place = <PyObject *> place
        Py_INCREF(place)
        block = self.block[here.block]
        i = here.index + 1
        if block.count == ROOM:
            next = self.block[here.block + 1]
            # What comes in ascending order leaves full blocks behind.
            next.count = 1 if i == ROOM else ROOM // 2
            block.count -= next.count
            memcpy(next.at, block.at + block.count, next.count * sizeof(uint64_t))
            memcpy(next.what, block.what + block.count, next.count * sizeof(Mapped *))
            self.first[here.block + 1] = next.at[0]
            if i > block.count:
                i -= block.count
                here.block += 1
                block = next
        memmove(block.at + i + 1, block.at + i, (block.count - i) * sizeof(uint64_t))
        memmove(block.what + i + 1, block.what + i, (block.count - i) * sizeof(Mapped *))
        block.at[i] = x
        block.what[i] = what
        block.count += 1
        self.first[here.block] = block.at[0]
        self.total += 1
        return True

    cdef void remove(self, uint64_t x) noexcept:
        """Forget what begins at x, if anything does."""
        cdef Place found
        if self.find(x, &found):
            self.cut(found)

    cdef void cut(self, Place place) noexcept:
        """Forget the mapping at a place."""
        cdef Py_ssize_t b = place.block, i = place.index + 1
        cdef Block *block = self.block[b]
        cdef Mapped *what = block.what[i - 1]
        memmove(block.at + i - 1, block.at + i, (block.count - i) * sizeof(uint64_t))
        memmove(block.what + i - 1, block.what + i, (block.count - i) * sizeof(Mapped *))
        block.count -= 1
        self.total -= 1
        if block.count:
            self.first[b] = block.at[0]
        else:
            free(block)
            self.blocks -= 1
            memmove(self.block + b, self.block + b + 1, (self.blocks - b) * sizeof(Block *))
            memmove(self.first + b, self.first + b + 1, (self.blocks - b) * sizeof(uint64_t))
        discard(what)


cdef inline Py_ssize_t upto(const uint64_t *at, Py_ssize_t count, uint64_t x) noexcept:
    """How many of some ascending numbers, at least one, are at most x."""
    cdef const uint64_t *low = at
    cdef Py_ssize_t half, i, found
    # PERF: no branch, which would be mispredicted every other time; and the last few are compared
    # all at once, as each halving waits for the one before.
    while count > 8:
        half = count >> 1
        low += half & -<Py_ssize_t> (low[half - 1] <= x)
        count -= half
    found = low - at
    for i in range(count):
        found += low[i] <= x
    return found


cdef void discard(Mapped *what) noexcept:
    place = <object> what.place
    free(what)
    Py_DECREF(place)


cdef class Direct:
    """The map and unmap calls that the kernel grants, from the arguments to the book, in C.

    All else is left to `_plain_map` and `_plain_unmap`: a closed file, what is no number, a mapping
    that begins where one does. What the kernel refuses, `_map_refused` and `_unmap_refused` word.
    CPython looks for signals at none of these lines, so
    kernel and book change together.

    The interpreter's lock is given away for every call, however small: docs/design.md says why.
    """

    cdef public unsigned int _ioas_id  # 0: a container, or an IOAS that is closed
    cdef Book book
    cdef list files
    cdef unsigned long map_request, unmap_request
    cdef bint ioas
    cdef tuple last  # code and place in it of the last call
    cdef int last_at

    def _ask_directly(
        self, Book book not None, list files not None, unsigned long map_request,
        unsigned long unmap_request, bint ioas,
    ):
        """Make the calls from now on; `files` has the descriptor as long as it is open."""
        self.book = book
        self.files = files
        self.map_request = map_request
        self.unmap_request = unmap_request
        self.ioas = ioas

    cdef inline bint ready(self) except -1:
        """Whether C may call, and the file is open; the book is read then."""
        if self.book is None:
            return False
        if self.book.unread:
            self.book.read()
        return bool(self.files) and not (self.ioas and not self._ioas_id)

    cdef inline tuple spot(self, PyFrameObject *frame):
        """Who calls; one that calls again, as in a loop, is known."""
        cdef PyCodeObject *code = PyFrame_GetCode(frame)
        cdef int at = PyFrame_GetLasti(frame)
        Py_DECREF(<object> code)  # the frame has it
        if self.last is None or self.last[0] is not <object> code or self.last_at != at:
            self.last = outside(frame)
            self.last_at = self.last[1]
        return self.last

    def map(self, iova, hva, size, *, read=True, write=True):
        """Map memory of this process: all, or nothing."""
        cdef Book book = self.book
        cdef Map record
        cdef unsigned long long where, address, length
        cdef bint reads = read, writes = write
        cdef int number, fd
        cdef PyFrameObject *frame = PyEval_GetFrame()
        # First, as a tuple is made there: a collection may run finalizers, which may close the file.
        cdef tuple spot = None if frame == NULL else self.spot(frame)
        if (
            spot is None or not self.ready()
            or not (fits(iova, &where) and fits(hva, &address) and fits(size, &length))
        ):
            return self._plain_map(iova, hva, size, read=read, write=write)
        if self.ioas:
            record.ioas.size = sizeof(IoasMap)
            record.ioas.flags = 1 | (4 if reads else 0) | (2 if writes else 0)
            record.ioas.ioas_id = self._ioas_id
            record.ioas.reserved = 0
            record.ioas.user_va = address
            record.ioas.length = length
            record.ioas.iova = where
        else:
            record.type1.argsz = sizeof(Type1Map)
            record.type1.flags = (1 if reads else 0) | (2 if writes else 0)
            record.type1.vaddr = address
            record.type1.iova = where
            record.type1.size = length
        # Noted first, and taken back if it is refused: after the call nothing may fail any more.
        if not book.insert(where, length, address, reads, writes, spot):
            return self._plain_map(iova, hva, size, read=read, write=write)
        fd = self.files[0]
        number = made(fd, self.map_request, &record)
        if number:
            book.remove(where)
            raise self._map_refused(iova, hva, size, number)

    def unmap(self, iova, size):
        """Unmap exactly one mapping and verify what the kernel removed; return its bytes."""
        cdef Book book = self.book
        cdef Unmap record
        cdef Place place
        cdef unsigned long long where, length
        cdef int number, fd
        if not self.ready() or not (fits(iova, &where) and fits(size, &length)):
            return self._plain_unmap(iova, size)
        if not book.find(where, &place) or book.mapped(place).size != length:
            return self._plain_unmap(iova, size)
        record.size = sizeof(Unmap)
        record.second = self._ioas_id
        record.iova = where
        record.length = length
        fd = self.files[0]
        number = made(fd, self.unmap_request, &record)
        if number:
            raise self._unmap_refused(iova, size, number)
        # Without the lock another thread may have changed the book.
        if book.stands(place, where) or book.find(where, &place):
            book.cut(place)
        if record.length != length:
            return self._whole(iova, size, record.length)
        return size


cdef inline bint fits(value, unsigned long long *field):
    """Whether a value is a plain int from 0 to 2^63-1; then it is in the field.

    The rest goes the long way, also what a field of 64 bits would take.
    """
    cdef int beyond
    cdef long long number
    if not PyLong_CheckExact(value):
        return False
    number = PyLong_AsLongLongAndOverflow(value, &beyond)  # -1 when it is beyond
    field[0] = <unsigned long long> number
    return number >= 0


cdef inline int made(int fd, unsigned long request, void *record):
    """Make an ioctl; return its errno, or 0."""
    cdef int number = 0
    with nogil:
        if ask(fd, request, record) < 0:
            number = errno
    return number


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *)
    ctypedef struct PyCodeObject  # its own type: GCC 14 takes no pointer for another
    ctypedef struct PyFrameObject
    PyFrameObject *PyEval_GetFrame()
    PyFrameObject *PyFrame_GetBack(PyFrameObject *)
    PyObject *PyFrame_GetGlobals(PyFrameObject *)
    PyCodeObject *PyFrame_GetCode(PyFrameObject *)
    int PyFrame_GetLasti(PyFrameObject *)


def spot(int depth=2):
    """Return code and place in it of the nearest caller outside of this package."""
    cdef PyFrameObject *frame = PyEval_GetFrame()
    cdef PyFrameObject *back
    Py_INCREF(<object> frame)
    while depth > 1:
        back = PyFrame_GetBack(frame)
        if back == NULL:
            break
        Py_DECREF(<object> frame)
        frame = back
        depth -= 1
    try:
        return outside(frame)
    finally:
        Py_DECREF(<object> frame)


cdef tuple outside(PyFrameObject *frame):
    """Code and place in it of the first frame from this one on that is not of this package."""
    cdef PyFrameObject *back
    Py_INCREF(<object> frame)
    while ours(frame):
        back = PyFrame_GetBack(frame)
        if back == NULL:
            break
        Py_DECREF(<object> frame)
        frame = back
    code = <object> PyFrame_GetCode(frame)
    Py_DECREF(code)
    # PERF: which line that is can be worked out when somebody asks.
    place = (code, PyFrame_GetLasti(frame))
    Py_DECREF(<object> frame)
    return place


cdef inline bint ours(PyFrameObject *frame):
    scope = <object> PyFrame_GetGlobals(frame)
    Py_DECREF(scope)
    name = (<dict> scope).get("__name__")
    return isinstance(name, str) and (<str> name).startswith("vmm_iova.")


def pack_type1(pieces):
    """Return the records of VFIO_IOMMU_MAP_DMA for these pieces."""
    cdef Py_ssize_t index, count = len(pieces)
    out = bytearray(count * sizeof(Type1Map))
    # SAFETY: `out` has `count` records, is not resized here, and malloc aligns it; a sequence that
    # shrinks meanwhile is an IndexError, and what one grows by is not read.
    cdef Type1Map *record = <Type1Map *> PyByteArray_AS_STRING(out)
    for index in range(count):
        piece = pieces[index]
        record[index].argsz = sizeof(Type1Map)
        record[index].flags = (1 if piece.read else 0) | (2 if piece.write else 0)
        record[index].vaddr = whole(piece.hva)
        record[index].iova = whole(piece.iova)
        record[index].size = whole(piece.size)
    return out


def pack_ioas(pieces, unsigned int ioas_id):
    """Return the records of IOMMU_IOAS_MAP, at fixed places, for these pieces."""
    cdef Py_ssize_t index, count = len(pieces)
    out = bytearray(count * sizeof(IoasMap))
    # SAFETY: as above.
    cdef IoasMap *record = <IoasMap *> PyByteArray_AS_STRING(out)
    for index in range(count):
        piece = pieces[index]
        record[index].size = sizeof(IoasMap)
        record[index].flags = 1 | (4 if piece.read else 0) | (2 if piece.write else 0)
        record[index].ioas_id = ioas_id
        record[index].user_va = whole(piece.hva)
        record[index].length = whole(piece.size)
        record[index].iova = whole(piece.iova)
    return out
