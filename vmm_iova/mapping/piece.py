# SPDX-License-Identifier: Apache-2.0
"""One mapping that is to be: where, what memory, whose."""

from __future__ import annotations

from typing import Protocol

from vmm_iova.ranges import AddrRange, Hva, Iova
from vmm_iova.record import record


class Buffer(Protocol):
    """Anything with a buffer: bytes, bytearray, memoryview, mmap, ctypes, an array of NumPy."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Lend the memory (PEP 688); before Python 3.12 only C can, and does."""


@record
class Piece:
    """One mapping that is to be.

    Attributes:
        iova: first IOVA.
        size: bytes, from 1.
        hva: address of the memory in this process.
        tag: anything that names it in messages.
        read: the device may read.
        write: the device may write.
    """

    iova: Iova
    size: int
    hva: Hva
    tag: object = None
    read: bool = True
    write: bool = True

    @property
    def range(self) -> AddrRange:
        """Its IOVAs.

        Raises:
            RequestError: the size is below 1.
            RangeOverflowError: it reaches beyond 2^64-1.
        """
        return AddrRange.from_size(self.iova, self.size)

    def __str__(self) -> str:
        name = f"piece {self.tag}" if self.tag is not None else "a piece"
        return f"{name} ({self.size:#x} bytes at {self.iova:#x})"
