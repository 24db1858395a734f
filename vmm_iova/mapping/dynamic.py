# SPDX-License-Identifier: Apache-2.0
"""Maps made on the way, for drivers and vIOMMUs: an allocator and an address space joined."""

from __future__ import annotations

import contextlib
import ctypes
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self, TypedDict, get_args

from vmm_iova.errors import DmaError, MisalignedError, NotAllocatedError, RequestError, UndoError
from vmm_iova.kernel.syscalls import PAGE_SIZE, hold
from vmm_iova.mapping.buffer import DmaBuffer
from vmm_iova.mapping.dlpack import Tensor, memory_of
from vmm_iova.mapping.memory import BACKINGS, GuestMemory
from vmm_iova.mapping.populate import populate
from vmm_iova.ranges import AddrRange, Hva, Iova

if TYPE_CHECKING:
    from vmm_iova.kernel.space import AddressSpace
    from vmm_iova.mapping.memory import Backing
    from vmm_iova.mapping.piece import Buffer


Policy = Literal["first", "last", "best"]
"""Which of the free ranges that would do is taken: the lowest, the highest, the tightest."""


Page = Literal["4KiB", "2MiB", "1GiB"]
"""Pages that back memory for DMA; the first stands for those of the process, whatever they are."""

_BACKINGS: dict[Page, Backing] = {
    "4KiB": "anonymous",
    "2MiB": "hugetlb-2m",
    "1GiB": "hugetlb-1g",
}


class _Own(NamedTuple):
    """Memory that `allocate` has made, and that goes with its mapping."""

    memory: GuestMemory


class _Options(TypedDict):
    read: bool
    write: bool
    policy: Policy
    tag: object


def _memory(size: int, page: Page, granule: int, largest: int, tag: object) -> GuestMemory:
    """Have memory of whole pages, small ones where there are no huge ones free."""
    if page not in _BACKINGS:
        raise RequestError(
            f"there is no page {page!r}; there are {', '.join(get_args(Page))}",
            field="page",
            value=page,
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise RequestError(
            f"size {size!r} is not a positive number of bytes", field="size", value=size
        )
    backing = _BACKINGS[page]
    for choice in dict.fromkeys((backing, _BACKINGS["4KiB"])):
        whole = max(BACKINGS[choice], PAGE_SIZE, granule)
        span = AddrRange.from_size(0, -(-size // whole) * whole)
        try:
            memory = GuestMemory([(span, tag)], backing=choice, largest_page=largest)
        except DmaError:
            if choice == "anonymous":
                raise
            continue
        if choice != "anonymous" and not _backed(memory):
            memory.close()
            continue
        return memory
    raise AssertionError("anonymous memory is had, or refused above")


def _backed(memory: GuestMemory) -> bool:
    """Whether the huge pages are there: mmap may promise what a fault then does not keep."""
    try:
        populate(memory.pieces[0].hva, memory.pieces[0].size)
    except DmaError:
        return False
    return True


class Allocator(Protocol):
    """What gives addresses out, such as `vmm_iova.IovaAllocator`."""

    def allocate(
        self,
        size: int,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
        tag: object = None,
    ) -> int:
        """Choose a free range and own it."""

    def release(self, start: int, size: int | None = None) -> None:
        """Give it back."""


def _lent(buffer: Buffer | Tensor) -> tuple[int, int, object]:
    """Return address and bytes of a buffer, and what keeps it as it is while it is held."""
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        if not isinstance(buffer, Tensor):
            raise RequestError(
                f"{type(buffer).__name__} lends no memory: it has neither a buffer nor __dlpack__",
                field="buffer",
                value=buffer,
            ) from None
        return memory_of(buffer)
    if view.readonly or not view.c_contiguous:
        raise RequestError(
            "a buffer for DMA must be writable and contiguous (in C's order of its items)",
            field="buffer",
            value=view,
        )
    if not view.nbytes:
        return 0, 0, view
    pinned = (ctypes.c_char * view.nbytes).from_buffer(view)
    return ctypes.addressof(pinned), view.nbytes, (view, pinned)


class DynamicMaps:
    """`map(buffer)` gives an IOVA, `unmap` takes it back; both or neither of the two books change.

    Args:
        allocator: which addresses are free; made from the ranges of the same space.
        space: where they are mapped.

    Synchronization: external.
    """

    def __init__(self, allocator: Allocator, space: AddressSpace) -> None:
        self._allocator = allocator
        self._space = space
        self._granule = space.facts().granule
        self._largest = space.facts().largest_page
        self._keep: dict[Iova, object] = {}

    def __len__(self) -> int:
        return len(self._keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.unmap_all()

    def __repr__(self) -> str:
        total = sum(item.range.size for item in self._space.live if item.range.start in self._keep)
        return f"<DynamicMaps by {self._space.kind}, {len(self)} maps of {total:#x} bytes>"

    def map(
        self,
        buffer: Buffer | Tensor,
        *,
        read: bool = True,
        write: bool = True,
        within: AddrRange | None = None,
        align: int | None = None,
        policy: Policy = "first",
        tag: object = None,
    ) -> Iova:
        """Map a buffer of this process at a free place.

        The buffer is kept alive, and cannot be resized, until `unmap`. It must begin and end on a
        granule: a device would see the neighbours otherwise. Arrays seldom do; those over memory
        of `allocate` do: `numpy.frombuffer(maps.allocate(size).view, dtype)`.

        Args:
            buffer: writable contiguous memory: an `mmap.mmap`, an array of ctypes or NumPy, a
                tensor on the CPU (DLPack, which does not say whether it may be written to).
            read: the device may read.
            write: the device may write.
            within: where the IOVA is to lie, such as below 4 GiB for a device of 32 bits.
            align: bytes, a power of two; what large pages need of it comes by itself.
            policy: which of the free ranges that would do.
            tag: for the allocator.

        Returns:
            Its IOVA.

        Raises:
            MisalignedError: the buffer is not made of whole granules.
            RequestError: it is read-only, empty, not contiguous, or not in the CPU's memory.
            NoSpaceError: no free range.
            DmaError: the kernel refused; the address went back to the allocator.
        """
        address, size, keep = _lent(buffer)
        if not size:
            raise RequestError("the buffer is empty", field="buffer", value=buffer)
        return self.map_address(
            Hva(address),
            size,
            read=read,
            write=write,
            within=within,
            align=align,
            policy=policy,
            tag=tag,
            keep=keep,
        )

    def map_address(
        self,
        hva: Hva,
        size: int,
        *,
        read: bool = True,
        write: bool = True,
        within: AddrRange | None = None,
        align: int | None = None,
        policy: Policy = "first",
        tag: object = None,
        keep: object = None,
    ) -> Iova:
        """Map memory by its address; as `map`, but the caller keeps the memory alive.

        Args:
            hva: address, a multiple of the granule.
            size: bytes, likewise.
            read: the device may read.
            write: the device may write.
            within: as in `map`.
            align: as in `map`.
            policy: as in `map`.
            tag: for the allocator.
            keep: any object to hold until `unmap`.
        """
        for field, value in (("hva", hva), ("size", size)):
            if value % self._granule:
                raise MisalignedError(
                    f"{field} {value:#x} of the buffer is not a multiple of the granule "
                    f"{self._granule:#x}",
                    field=field,
                    value=value,
                    align=self._granule,
                    hint="mmap gives whole pages, and so does DynamicMaps.allocate: "
                    "numpy.frombuffer(maps.allocate(size).view, dtype) is an array in them",
                )
        allocate = partial(
            self._allocator.allocate,
            size,
            align=max(self._align(hva, size), 1 if align is None else align),
            policy=policy,
            within=within,
            tag=tag,
        )
        given: list[int] = []
        try:
            hold(given, allocate)
            iova = Iova(given[0])
            self._space.map(iova, hva, size, read=read, write=write)
            self._keep[iova] = keep
        except BaseException as exc:
            try:
                self._end(given, exc, size, hva)
            except BaseException:
                self._end(given, exc, size, hva)  # Ctrl-C meanwhile: nothing is done twice
                raise
            raise
        return iova

    def allocate(
        self,
        size: int,
        *,
        page: Page = "4KiB",
        read: bool = True,
        write: bool = True,
        within: AddrRange | None = None,
        align: int | None = None,
        policy: Policy = "first",
        tag: object = None,
    ) -> DmaBuffer:
        """Make memory for DMA and map it: whole pages of it, whatever size was asked for.

        Args:
            size: bytes, from 1.
            page: what backs it. Where there are no free huge pages, small ones do, and
                `DmaBuffer.page` says so.
            read: the device may read.
            write: the device may write.
            within: as in `map`.
            align: as in `map`.
            policy: as in `map`.
            tag: for the allocator.

        Returns:
            The buffer; use it in `with`, or close it.

        Raises:
            RequestError: a size below 1, or no such page.
            NoSpaceError: no free range.
            DmaError: no memory, or the kernel refused; nothing is left.
        """
        memory = _memory(size, page, self._granule, self._largest, tag)
        try:
            piece = memory.pieces[0]
            options: _Options = {"read": read, "write": write, "policy": policy, "tag": tag}
            iova = self.map_address(
                piece.hva, piece.size, within=within, align=align, keep=_Own(memory), **options
            )
            return DmaBuffer(self.unmap, iova, size, memory)
        except BaseException:
            memory.close()
            raise

    def _end(self, given: list[int], why: BaseException, size: int, hva: Hva) -> None:
        """Bring a call to the end where nothing is mapped or owned; it can be done twice."""
        live = self._space.live
        for start in given:
            iova = Iova(start)
            # Of a call that was refused the address alone is ours; of one that was interrupted,
            # what the space has of it in its book, too.
            if not isinstance(why, OSError) and iova in live:
                item = live.at(iova)
                if (item.range.size, item.hva) == (size, hva):
                    self._space.unmap(iova, size)
            self._keep.pop(iova, None)
            with contextlib.suppress(NotAllocatedError):
                self._allocator.release(iova)

    def _align(self, hva: Hva, size: int) -> int:
        """Align so that memory and IOVA are congruent for the largest page that could be used."""
        align = self._largest
        while align > self._granule and (size < align or hva % align):
            align >>= 1
        return max(align, self._granule)

    def unmap(self, iova: Iova) -> int:
        """Unmap what `map` gave, and give the address back; return the bytes.

        Raises:
            NotAllocatedError: no such map.
            DmaError: the kernel refused; the address stays owned, because it is still mapped.
        """
        if iova not in self._keep:
            raise NotAllocatedError(f"no dynamic map begins at {iova:#x}", address=iova)
        # What the whole space has unmapped meanwhile (`unmap_all`) is only given back.
        live = self._space.live
        try:
            size = self._space.unmap(iova, live.at(iova).range.size) if iova in live else 0
            kept = self._keep[iova]
            del self._keep[iova]
            self._allocator.release(iova)
            if isinstance(kept, _Own):
                kept.memory.close()
        except BaseException as exc:
            # An interrupt: as soon as it is not mapped any more, the rest follows.
            if iova not in live and not isinstance(exc, DmaError):
                self._end([iova], exc, 0, Hva(0))
            raise
        return size

    def unmap_all(self) -> int:
        """Unmap every dynamic map; return the bytes.

        Raises:
            UndoError: some could not be unmapped; names them, and the others are.
        """
        total, left = 0, []
        for iova in sorted(self._keep, reverse=True):
            try:
                total += self.unmap(iova)
            except DmaError as exc:
                left.append((self._space.live.at(iova).range, None, exc))
        if left:
            raise UndoError(f"{len(left)} dynamic maps could not be unmapped", left=left)
        return total
