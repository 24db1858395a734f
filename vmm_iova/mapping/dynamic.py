# SPDX-License-Identifier: Apache-2.0
"""Maps made on the way, for drivers and vIOMMUs: an allocator and an address space joined."""

from __future__ import annotations

import contextlib
import ctypes
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from vmm_iova.errors import DmaError, MisalignedError, NotAllocatedError, RequestError, UndoError
from vmm_iova.kernel.syscalls import hold
from vmm_iova.ranges import Hva, Iova

if TYPE_CHECKING:
    from vmm_iova.kernel.space import AddressSpace
    from vmm_iova.mapping.piece import Buffer
    from vmm_iova.ranges import AddrRange


Policy = Literal["first", "last", "best"]
"""Which of the free ranges that would do is taken: the lowest, the highest, the tightest."""


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

    def map(
        self, buffer: Buffer, *, read: bool = True, write: bool = True, tag: object = None
    ) -> Iova:
        """Map a buffer of this process at a free place.

        The buffer is kept alive, and cannot be resized, until `unmap`. It must begin and end on a
        granule: a device would see the neighbours otherwise.

        Args:
            buffer: writable contiguous memory, such as an `mmap.mmap`.
            read: the device may read.
            write: the device may write.
            tag: for the allocator.

        Returns:
            Its IOVA.

        Raises:
            MisalignedError: the buffer is not made of whole granules.
            NoSpaceError: no free range.
            DmaError: the kernel refused; the address went back to the allocator.
        """
        view = memoryview(buffer)
        if view.readonly or not view.contiguous:
            raise RequestError(
                "a buffer for DMA must be writable and contiguous", field="buffer", value=view
            )
        if not view.nbytes:
            raise RequestError("the buffer is empty", field="buffer", value=view)
        pinned = (ctypes.c_char * view.nbytes).from_buffer(view)
        hva = Hva(ctypes.addressof(pinned))
        return self.map_address(
            hva, view.nbytes, read=read, write=write, tag=tag, keep=(view, pinned)
        )

    def map_address(
        self,
        hva: Hva,
        size: int,
        *,
        read: bool = True,
        write: bool = True,
        tag: object = None,
        keep: object = None,
    ) -> Iova:
        """Map memory by its address; as `map`, but the caller keeps the memory alive.

        Args:
            hva: address, a multiple of the granule.
            size: bytes, likewise.
            read: the device may read.
            write: the device may write.
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
                    hint="mmap gives whole pages",
                )
        allocate = partial(self._allocator.allocate, size, align=self._align(hva, size), tag=tag)
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
            del self._keep[iova]
            self._allocator.release(iova)
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
