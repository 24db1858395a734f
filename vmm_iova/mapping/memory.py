# SPDX-License-Identifier: Apache-2.0
"""Guest memory, placed so that the IOMMU can use its large pages.

An IOMMU maps 2 MiB or 1 GiB at once only where IOVA and memory have the same offset within such a
page. mmap does not know of that, so a larger part of the address space is reserved first, and the
memory is put at the congruent place inside.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
from typing import TYPE_CHECKING, Literal, Self

from vmm_iova.errors import ClosedError, DmaError, RequestError
from vmm_iova.kernel.space import caller
from vmm_iova.kernel.syscalls import PAGE_SIZE
from vmm_iova.mapping.piece import Piece
from vmm_iova.ranges import GIB, MIB, Hva, Iova, check_granule
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.planning.layout import Layout
    from vmm_iova.ranges import AddrRange

Backing = Literal["anonymous", "memfd", "hugetlb-2m", "hugetlb-1g"]
"""Kind of memory."""

BACKINGS: dict[Backing, int] = {
    "anonymous": 0,
    "memfd": 0,
    "hugetlb-2m": 2 * MIB,
    "hugetlb-1g": GIB,
}
"""Kinds of memory, each with its huge page in bytes, or 0."""

# ABI: include/uapi/asm-generic/mman-common.h and linux/memfd.h; the same on all architectures
# that Python runs on with VFIO.
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_HUGE_SHIFT = 26
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _mmap(where: int, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    got: int | None = _libc.mmap(where, size, protection, flags, fd, offset)
    if got is None or got == _FAILED:
        number = ctypes.get_errno()
        raise DmaError(
            f"mmap of {format_size(size)} failed: {os.strerror(number)}",
            errno=number,
            ioctl="mmap",
            length=size,
            hint="for hugetlb, HugePages_Free in /proc/meminfo must cover it",
        )
    return got


class GuestMemory:
    """Memory for spans of IOVA, one region each, in one file or anonymous.

    Args:
        spans: `(range, tag)` of each region, such as the pieces of RAM of a layout.
        backing: `memfd`, `hugetlb-2m`, `hugetlb-1g` or `anonymous`.
        largest_page: bytes; regions are congruent to their IOVA modulo this, or modulo the largest
            power of two that their size allows. From `space.facts().largest_page`.

    Attributes:
        fd: the file, or -1 for anonymous memory; other processes can map it.
        pieces: one for each span, ready for `map_pieces`.

    Raises:
        RequestError: an unknown backing; spans that are not whole (huge) pages.
        DmaError: mmap or memfd_create failed; nothing is left.

    Synchronization: external.
    """

    def __init__(
        self,
        spans: Iterable[tuple[AddrRange, object]],
        *,
        backing: Backing = "memfd",
        largest_page: int = GIB,
    ) -> None:
        self.fd = -1
        self.pieces: tuple[Piece, ...] = ()
        self.offsets: tuple[int, ...] = ()
        """Where each region begins in the file, bytes."""
        self._place = "{}:{}".format(*caller())
        if backing not in BACKINGS:
            raise RequestError(
                f"there is no backing {backing!r}; there are {', '.join(BACKINGS)}",
                field="backing",
                value=backing,
            )
        check_granule(largest_page, "largest_page")
        self.page = BACKINGS[backing] or PAGE_SIZE
        wanted = list(spans)
        for where, tag in wanted:
            if where.size % self.page or where.start % PAGE_SIZE:
                raise RequestError(
                    f"{tag or 'a span'}, {where}, is not made of whole pages of "
                    f"{format_size(self.page)}",
                    field="spans",
                    value=where,
                )
        try:
            self._fill(wanted, backing, largest_page)
        except BaseException:
            self.close()
            raise

    @classmethod
    def for_layout(
        cls, layout: Layout, *, backing: Backing = "memfd", largest_page: int = GIB
    ) -> GuestMemory:
        """Make the RAM of a layout; see the class for arguments and errors."""
        spans = [(item.iova, item.name) for item in layout.ram if item.iova is not None]
        return cls(spans, backing=backing, largest_page=largest_page)

    def _fill(
        self, wanted: list[tuple[AddrRange, object]], backing: Backing, largest_page: int
    ) -> None:
        offset, offsets = 0, []
        for where, _ in wanted:
            # The offset in the file is congruent too, so that shared memory can have huge pages.
            modulus = self._modulus(where, largest_page)
            offset += (where.start - offset) % modulus
            offsets.append(offset)
            offset += where.size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if backing != "anonymous":
            flags = mmap.MAP_SHARED
            self.fd = self._file(offset)
        for (where, tag), at in zip(wanted, offsets, strict=True):
            hva = self._region(where, self._modulus(where, largest_page), flags, at)
            self.pieces += (Piece(Iova(where.start), where.size, hva, tag),)
            self.offsets += (at,)

    def _modulus(self, where: AddrRange, largest_page: int) -> int:
        modulus = min(largest_page, 1 << where.size.bit_length() - 1)
        if self.page > PAGE_SIZE and where.start % self.page:
            return self.page  # a huge page begins at its own multiple, wherever the IOVA does
        return max(modulus, self.page)

    def _file(self, size: int) -> int:
        flags = os.MFD_CLOEXEC
        if self.page > PAGE_SIZE:
            flags |= os.MFD_HUGETLB | self.page.bit_length() - 1 << _HUGE_SHIFT
        try:
            fd = os.memfd_create("guest-ram", flags)
        except OSError as exc:
            raise DmaError(
                f"memfd_create failed: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="memfd_create",
                hint=f"does this kernel have huge pages of {format_size(self.page)}?",
            ) from exc
        # A hole at the end must be whole huge pages as well.
        os.ftruncate(fd, -(-size // self.page) * self.page)
        return fd

    def _region(self, where: AddrRange, modulus: int, flags: int, offset: int) -> Hva:
        size = where.size
        reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        base = _mmap(0, size + modulus, _PROT_NONE, reserve, -1, 0)
        shift = where.start if self.page == PAGE_SIZE or not where.start % self.page else 0
        hva = base + (shift - base) % modulus
        try:
            _mmap(
                hva,
                size,
                mmap.PROT_READ | mmap.PROT_WRITE,
                flags | _MAP_FIXED,
                self.fd,
                0 if self.fd < 0 else offset,
            )
        except DmaError:
            _libc.munmap(base, size + modulus)
            raise
        if hva > base:
            _libc.munmap(base, hva - base)
        if base + modulus > hva:
            _libc.munmap(hva + size, base + modulus - hva)
        return Hva(hva)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "pieces", ()):
            warnings.warn(
                f"guest memory made at {self._place} was dropped without close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self.close()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(piece.size for piece in self.pieces)

    def _at(self, iova: Iova, size: int) -> Hva:
        if not self.pieces:
            raise ClosedError(f"the guest memory made at {self._place} is closed")
        for piece in self.pieces:
            if piece.iova <= iova and iova + size <= piece.iova + piece.size:
                return Hva(piece.hva + (iova - piece.iova))
        raise RequestError(
            f"{size:#x} bytes at {iova:#x} are not inside one region", field="iova", value=iova
        )

    def read(self, iova: Iova, size: int) -> bytes:
        """Return a copy of what is there.

        Raises:
            RequestError: not inside one region.
            ClosedError: the memory is closed.
        """
        return ctypes.string_at(self._at(iova, size), size)

    def write(self, iova: Iova, data: bytes) -> None:
        """Put bytes there; raises as `read`."""
        ctypes.memmove(self._at(iova, len(data)), data, len(data))

    def view(self, index: int) -> memoryview:
        """Return a region as bytes, without a copy; it must not be used after `close`.

        Args:
            index: of the span.
        """
        piece = self.pieces[index]
        return memoryview((ctypes.c_char * piece.size).from_address(piece.hva)).cast("B")

    def close(self) -> None:
        """Unmap the regions from this process and close the file. Idempotent.

        Unmap them from devices first: the kernel keeps the pages for them until then.
        """
        pieces, self.pieces = self.pieces, ()
        for piece in pieces:
            _libc.munmap(piece.hva, piece.size)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
