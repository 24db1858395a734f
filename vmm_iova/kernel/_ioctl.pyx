# SPDX-License-Identifier: Apache-2.0
"""Many ioctls of one kind in one entry, without the interpreter's lock.

Records in, counts out: no project classes. `kernel.syscalls` has the same in Python.
"""

from libc.errno cimport errno

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING

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
