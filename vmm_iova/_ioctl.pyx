# SPDX-License-Identifier: Apache-2.0
"""Many ioctls of one kind in one entry, without the interpreter's lock.

Records in, counts out: no project classes. `kernel.syscalls` has the same in Python.
"""

from libc.errno cimport errno

cdef extern from "sys/ioctl.h" nogil:
    int c_ioctl "ioctl" (int fd, unsigned long request, void *argument)


def ioctl_many(int fd, unsigned long request, unsigned char[::1] records, Py_ssize_t stride):
    """Make one ioctl for each record of `stride` bytes, until one is refused.

    Returns how many were taken, and the errno of the one that was not, or 0.
    """
    cdef Py_ssize_t count, index
    cdef int number = 0
    if stride < 1 or records.shape[0] % stride:
        raise ValueError("records are not a whole number of strides")
    count = records.shape[0] // stride
    index = 0
    # SAFETY: the memoryview holds the buffer for the whole call, and index * stride stays below
    # its length, because the length is count * stride.
    with nogil:
        while index < count:
            if c_ioctl(fd, request, &records[0] + index * stride) < 0:
                number = errno
                break
            index += 1
    return index, number
