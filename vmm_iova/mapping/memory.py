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
import weakref
from typing import TYPE_CHECKING, Literal, Self

from vmm_iova.errors import ClosedError, DmaError, RequestError
from vmm_iova.kernel.book import caller
from vmm_iova.kernel.syscalls import PAGE_SIZE, hold
from vmm_iova.mapping.piece import Piece
from vmm_iova.ranges import GIB, MIB, Hva, Iova, check_granule
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.mapping.piece import Buffer
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
_MOST = 1 << 62  # bytes; ctypes would let a size_t wrap without a word
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_HUGE_SHIFT = 26
_NOWHERE = Hva(0)
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


class _Region:
    """Memory of this process that is unmapped when nothing refers to it any more.

    Views refer to it, so that one that outlives `close` still has its memory.

    Args:
        size: bytes.
        modulus: bytes, a power of two from the page on.
        shift: the region begins here, modulo `modulus`.
    """

    hva = _NOWHERE
    _answers: Sequence[int] = ()

    def __init__(self, size: int, modulus: int, shift: int) -> None:
        # Where it is: stored by C, so that no interrupt comes between. The rest of the state is
        # changed before each call that changes the memory, without a look for signals between.
        self._answers = answers = list[int]()
        self._views: list[weakref.ref[ctypes.Array[ctypes.c_char]]] = []
        self.hva, self.size = _NOWHERE, size + modulus
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        hold(answers, _libc.mmap, 0, self.size, _PROT_NONE, flags, -1, 0)
        base = self.hva = Hva(_checked(self._answers, size))
        first = base + (shift - base) % modulus
        if first > base:
            self.hva, self.size = Hva(first), base + self.size - first
            _libc.munmap(base, first - base)
        if self.size > size:
            over, self.size = self.size - size, size
            _libc.munmap(self.hva + size, over)

    def fill(self, flags: int, fd: int, offset: int) -> None:
        """Put memory there: of a file, or anonymous."""
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        answer = _libc.mmap(self.hva, self.size, protection, flags | _MAP_FIXED, fd, offset)
        if answer == _FAILED:
            # The kernel has unmapped what was there before it refused (mm/mmap.c, mmap_region), and
            # Python's own memory may lie there by now: it is not ours to unmap any more.
            self.hva, self._answers = _NOWHERE, ()
        _checked([answer], self.size)

    def view(self) -> memoryview:
        """Return it as bytes; the memory stays while the view does."""
        whole = (ctypes.c_char * self.size).from_address(self.hva)
        whole.region = self  # type: ignore[attr-defined]
        self._views.append(weakref.ref(whole))
        return memoryview(whole).cast("B")

    def release(self) -> None:
        """Unmap it now, or with the last view of it."""
        if not any(view() is not None for view in self._views):
            self.__del__()

    def __del__(self) -> None:
        # Between the call and its note, the only one that knows where the memory is, is the list.
        where = self.hva or (self._answers[0] if self._answers else _FAILED)
        self.hva, self._answers = _NOWHERE, ()
        if where and where != _FAILED:
            _libc.munmap(where, self.size)


def _checked(answers: list[int], size: int) -> int:
    """Return where mmap has put the memory, or raise."""
    if answers[0] == _FAILED:
        number = ctypes.get_errno()
        raise DmaError(
            f"mmap of {format_size(size)} failed: {os.strerror(number)}",
            errno=number,
            ioctl="mmap",
            length=size,
            hint="for hugetlb, HugePages_Free in /proc/meminfo must cover it",
        )
    return answers[0]


class GuestMemory:
    """Memory for spans of IOVA, one region each, in one file or anonymous.

    Args:
        spans: `(range, tag)` of each region, such as the pieces of RAM of a layout.
        backing: `memfd`, `hugetlb-2m`, `hugetlb-1g` or `anonymous`.
        largest_page: bytes; regions are congruent to their IOVA modulo this, or modulo the largest
            power of two that their size allows. From `space.facts().largest_page`.

    Attributes:
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
        self._closed = False
        self._fds: list[int] = []
        self._regions: tuple[_Region, ...] = ()
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
        if offset > _MOST:
            raise RequestError(
                f"{format_size(offset)} are more than any process can have",
                field="spans",
                value=offset,
            )
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if backing != "anonymous":
            flags = mmap.MAP_SHARED
            self._make_file(offset)
        for (where, tag), at in zip(wanted, offsets, strict=True):
            # A huge page begins at its own multiple, wherever the IOVA does.
            aligned = self.page == PAGE_SIZE or not where.start % self.page
            shift = where.start if aligned else 0
            region = _Region(where.size, self._modulus(where, largest_page), shift)
            region.fill(flags, self.fd, 0 if self.fd < 0 else at)
            piece = Piece(Iova(where.start), where.size, region.hva, tag)
            self._regions = (*self._regions, region)
            self.pieces = (*self.pieces, piece)
            self.offsets = (*self.offsets, at)

    def _modulus(self, where: AddrRange, largest_page: int) -> int:
        modulus = min(largest_page, 1 << where.size.bit_length() - 1)
        if self.page > PAGE_SIZE and where.start % self.page:
            return self.page  # a huge page begins at its own multiple, wherever the IOVA does
        return max(modulus, self.page)

    def _make_file(self, size: int) -> None:
        flags = os.MFD_CLOEXEC
        if self.page > PAGE_SIZE:
            flags |= os.MFD_HUGETLB | self.page.bit_length() - 1 << _HUGE_SHIFT
        step = "memfd_create"
        try:
            hold(self._fds, os.memfd_create, "guest-ram", flags)
            step = "ftruncate"
            # A hole at the end must be whole huge pages as well.
            os.ftruncate(self.fd, -(-size // self.page) * self.page)
        except OSError as exc:
            raise DmaError(
                f"{step} failed: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl=step,
                length=size,
                hint=f"does this kernel have huge pages of {format_size(self.page)}?",
            ) from exc

    @property
    def fd(self) -> int:
        """The file, or -1: anonymous memory, or closed. Other processes can map it."""
        return self._fds[0] if self._fds else -1

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.size:#x} bytes in {len(self.pieces)} pieces"
        return f"<GuestMemory, {state}, pages of {self.page:#x}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_regions", ()) or getattr(self, "_fds", ()):
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
        self._check_open()
        for field, value in (("iova", iova), ("size", size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RequestError(
                    f"{field} {value!r} is not a number from 0 up", field=field, value=value
                )
        for piece in self.pieces:
            if piece.iova <= iova and iova + size <= piece.iova + piece.size:
                return Hva(piece.hva + (iova - piece.iova))
        raise RequestError(
            f"{size:#x} bytes at {iova:#x} are not inside one region", field="iova", value=iova
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the guest memory made at {self._place} is closed")

    def read(self, iova: Iova, size: int) -> bytes:
        """Return a copy of what is there.

        Raises:
            RequestError: not inside one region, or not a number from 0 up.
            ClosedError: the memory is closed.
        """
        return ctypes.string_at(self._at(iova, size), size)

    def write(self, iova: Iova, data: Buffer) -> None:
        """Put bytes there.

        Args:
            iova: where the first goes.
            data: anything with a buffer, such as bytes or an array; its bytes as they lie there.

        Raises:
            RequestError: not inside one region; `data` has no buffer, as text has none.
            ClosedError: the memory is closed.
        """
        try:
            view = memoryview(data)
        except TypeError as exc:
            raise RequestError(
                f"data must have a buffer, and {type(data).__name__} has none",
                field="data",
                value=data,
                hint="text is encoded first: text.encode()",
            ) from exc
        plain = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        target = (ctypes.c_char * plain.nbytes).from_address(self._at(iova, plain.nbytes))
        memoryview(target).cast("B")[:] = plain

    def view(self, index: int) -> memoryview:
        """Return a region as bytes, without a copy.

        The memory of a region stays until `close`, and as long as a view of it is there.

        Args:
            index: of the span.

        Raises:
            RequestError: there is no such span.
            ClosedError: the memory is closed.
        """
        self._check_open()
        if not -len(self._regions) <= index < len(self._regions):
            raise RequestError(
                f"there is no span {index}, there are {len(self._regions)}",
                field="index",
                value=index,
            )
        return self._regions[index].view()

    def close(self) -> None:
        """Unmap the regions from this process and close the file. Idempotent.

        Unmap them from devices first: the kernel keeps the pages for them until then.
        """
        self._closed = True
        self.pieces = ()
        for region in self._regions:
            region.release()
        self._regions = ()
        if self._fds:
            fd = self._fds[0]
            del self._fds[0]
            os.close(fd)
