# SPDX-License-Identifier: Apache-2.0
"""Many ioctls of one kind in one entry, without the interpreter's lock; and an order of addresses.

Records in, counts out: no project classes. `kernel.syscalls` and `kernel.book` have the same in Python.
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF

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

# The same for both but for `second`: flags, or the number of the IOAS.
cdef struct Unmap:
    unsigned int size
    unsigned int second
    unsigned long long iova
    unsigned long long length

cdef extern from "sys/ioctl.h" nogil:
    int c_ioctl "ioctl" (int fd, unsigned long request, void *argument)


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
                if c_ioctl(fd, request, <char *> view.buf + index * stride) < 0:
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


def map_type1(
    int fd, unsigned long request, book, unsigned int flags, iova, hva, size, entry
):
    """Make one VFIO_IOMMU_MAP_DMA and note it, with no Python code between; return an errno or 0.

    `book` is a dict, the entry goes in at `iova`.
    """
    cdef Type1Map record
    record.argsz = sizeof(Type1Map)
    record.flags = flags
    record.vaddr = whole(hva)
    record.iova = whole(iova)
    record.size = whole(size)
    return noted(fd, request, &record, <dict?> book, iova, entry)


def map_ioas(
    int fd, unsigned long request, book, unsigned int ioas_id, unsigned int flags, iova, hva, size,
    entry,
):
    """Make one IOMMU_IOAS_MAP at a fixed place and note it; as `map_type1`."""
    cdef IoasMap record
    record.size = sizeof(IoasMap)
    record.flags = flags
    record.ioas_id = ioas_id
    record.reserved = 0
    record.user_va = whole(hva)
    record.length = whole(size)
    record.iova = whole(iova)
    return noted(fd, request, &record, <dict?> book, iova, entry)


cdef object noted(int fd, unsigned long request, void *record, dict book, iova, entry):
    cdef int result, number = 0
    with nogil:
        result = c_ioctl(fd, request, record)
        if result < 0:
            number = errno
    if number == 0:
        book[iova] = entry
    return number


def unmap_one(int fd, unsigned long request, dict book, unsigned int second, iova, size):
    """Make one unmap of either kind and strike it out, with no Python code between.

    The record is the same for both kinds but for its second field. Returns errno or 0, and the
    bytes; errno -1 when the book has no such mapping, and then no call was made.
    """
    cdef Unmap record
    entry = book.get(iova)
    if entry is None or (<tuple?> entry)[0] != size:
        return -1, 0
    cdef int result, number = 0
    record.size = sizeof(Unmap)
    record.second = second
    record.iova = whole(iova)
    record.length = whole(size)
    with nogil:
        result = c_ioctl(fd, request, &record)
        if result < 0:
            number = errno
    if number == 0:
        book.pop(iova, None)
    return number, record.length


cdef extern from "Python.h":
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
    depth -= 1
    while True:
        back = PyFrame_GetBack(frame)
        if back == NULL:
            break
        if depth <= 0:
            scope = <object> PyFrame_GetGlobals(frame)
            Py_DECREF(scope)
            name = (<dict> scope).get("__name__")
            if not isinstance(name, str) or not (<str> name).startswith("vmm_iova."):
                Py_DECREF(<object> back)
                break
        depth -= 1
        Py_DECREF(<object> frame)
        frame = back
    code = <object> PyFrame_GetCode(frame)
    Py_DECREF(code)
    # PERF: which line that is can be worked out when somebody asks.
    place = (code, PyFrame_GetLasti(frame))
    Py_DECREF(<object> frame)
    return place


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


cdef enum:
    ROOM = 256  # addresses of a block

cdef struct Block:
    Py_ssize_t count
    uint64_t at[ROOM]


cdef class Order:
    """Addresses in ascending order, in blocks: a change moves at most one block and the list of them.

    What the blocks hold is true between any two calls: no Python code runs inside of a change.
    """

    cdef Block **block
    cdef uint64_t *first  # the first address of each block
    cdef Py_ssize_t count, room

    def __cinit__(self, starts):
        cdef Py_ssize_t i, half = ROOM // 2
        self.reserve(len(starts) // half + 1)
        for i, start in enumerate(starts):
            if i % half == 0:
                self.push(self.count)
            self.block[self.count - 1].at[i % half] = start
            self.block[self.count - 1].count = i % half + 1
            if i % half == 0:
                self.first[self.count - 1] = start

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            free(self.block[i])
        free(self.block)
        free(self.first)

    cdef int reserve(self, Py_ssize_t blocks) except -1:
        cdef Block **block
        cdef uint64_t *first
        if blocks > self.room:
            blocks = blocks * 2 + 8
            block = <Block **> realloc(self.block, blocks * sizeof(Block *))
            if block == NULL:
                raise MemoryError
            self.block = block
            first = <uint64_t *> realloc(self.first, blocks * sizeof(uint64_t))
            if first == NULL:
                raise MemoryError
            self.first = first
            self.room = blocks
        return 0

    cdef int push(self, Py_ssize_t i) except -1:
        """Put an empty block at place i."""
        cdef Block *new
        self.reserve(self.count + 1)
        new = <Block *> malloc(sizeof(Block))
        if new == NULL:
            raise MemoryError
        new.count = 0
        memmove(self.block + i + 1, self.block + i, (self.count - i) * sizeof(Block *))
        memmove(self.first + i + 1, self.first + i, (self.count - i) * sizeof(uint64_t))
        self.block[i] = new
        self.count += 1
        return 0

    cdef Py_ssize_t seek(self, uint64_t x) noexcept:
        """The last block that begins at x or below; 0 when none does."""
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.first[middle] <= x:
                low = middle + 1
            else:
                high = middle
        return low - 1 if low else 0

    cdef int add(self, uint64_t x) except -1:
        cdef Py_ssize_t b, i
        cdef Block *block
        if not self.count:
            self.push(0)
        b = self.seek(x)
        if self.block[b].count == ROOM:
            self.push(b + 1)
            block = self.block[b]
            block.count = self.block[b + 1].count = ROOM // 2
            memcpy(self.block[b + 1].at, block.at + ROOM // 2, ROOM // 2 * sizeof(uint64_t))
            self.first[b + 1] = self.block[b + 1].at[0]
            b = self.seek(x)
        block = self.block[b]
        i = after(block, x)
        if i and block.at[i - 1] == x:
            return 0
        memmove(block.at + i + 1, block.at + i, (block.count - i) * sizeof(uint64_t))
        block.at[i] = x
        block.count += 1
        self.first[b] = block.at[0]
        return 0

    cdef void drop(self, uint64_t x) noexcept:
        cdef Py_ssize_t b, i
        cdef Block *block
        if not self.count:
            return
        b = self.seek(x)
        block = self.block[b]
        i = after(block, x)
        if not i or block.at[i - 1] != x:
            return
        memmove(block.at + i - 1, block.at + i, (block.count - i) * sizeof(uint64_t))
        block.count -= 1
        if block.count:
            self.first[b] = block.at[0]
            return
        free(block)
        self.count -= 1
        memmove(self.block + b, self.block + b + 1, (self.count - b) * sizeof(Block *))
        memmove(self.first + b, self.first + b + 1, (self.count - b) * sizeof(uint64_t))

    def update(self, list late, dict book):
        """Bring these addresses up to date, and empty the list of them.

        Those that are in the book are in the order then, and no others.
        """
        for start in late:
            if start in book:
                self.add(start)
            else:
                self.drop(start)
        late.clear()

    def below(self, uint64_t x):
        """Return the highest address up to x, or -1."""
        cdef Py_ssize_t b, i
        if not self.count:
            return -1
        b = self.seek(x)
        i = after(self.block[b], x)
        return self.block[b].at[i - 1] if i else -1

    def span(self, uint64_t first, uint64_t last):
        """Return the addresses from first to last."""
        cdef Py_ssize_t b, i
        cdef list found = []
        if not self.count or first > last:
            return found
        b = self.seek(first)
        i = after(self.block[b], first)
        if i and self.block[b].at[i - 1] == first:
            i -= 1
        while b < self.count:
            while i < self.block[b].count:
                if self.block[b].at[i] > last:
                    return found
                found.append(self.block[b].at[i])
                i += 1
            i = 0
            b += 1
        return found


cdef Py_ssize_t after(const Block *block, uint64_t x) noexcept:
    """How many addresses of a block are at most x."""
    cdef Py_ssize_t low = 0, high = block.count, middle
    while low < high:
        middle = (low + high) // 2
        if block.at[middle] <= x:
            low = middle + 1
        else:
            high = middle
    return low
