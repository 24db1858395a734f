# SPDX-License-Identifier: Apache-2.0
"""Memory for DMA: a buffer that knows its IOVA, and many small ones in one mapping."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

from vmm_iova.allocator import IovaAllocator
from vmm_iova.errors import ClosedError
from vmm_iova.kernel.book import caller
from vmm_iova.ranges import AddrRange, Iova, RangeSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.mapping.memory import GuestMemory


class DmaBuffer:
    """Mapped memory; leaving `with`, or `close`, unmaps it. From `DynamicMaps.allocate`.

    Attributes:
        iova: where the device sees it.
        size: bytes that were asked for; what is mapped is whole pages.
        page: bytes of the pages that back it: 2 MiB or 1 GiB only where there were free ones.

    Synchronization: external.
    """

    def __init__(
        self, unmap: Callable[[Iova], object], iova: Iova, size: int, memory: GuestMemory
    ) -> None:
        self._unmap = unmap
        self._memory = memory
        self._place = "{}:{}".format(*caller())
        self.iova = iova
        self.size = size
        self.page = memory.page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<DmaBuffer of {self.size:#x} bytes at {self.iova:#x}{state}>"

    def __len__(self) -> int:
        return self.size

    def __del__(self) -> None:
        if not getattr(self, "_memory", None) or self.closed:
            return
        warnings.warn(
            f"the buffer at {self.iova:#x} made at {self._place} was dropped without close()",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory.closed

    @property
    def view(self) -> memoryview:
        """Its bytes, writable; they outlive `close`, but the device sees them no more.

        Raises:
            ClosedError: it is closed.
        """
        return self._memory.view(0)[: self.size]

    @property
    def range(self) -> AddrRange:
        """The IOVAs of what was asked for."""
        return AddrRange.from_size(self.iova, self.size)

    def pool(self, granule: int = 64) -> DmaPool:
        """Give out parts of it, without a map call each.

        Args:
            granule: bytes, a power of two: what parts begin at and are made of.
        """
        return DmaPool(self, granule)

    def close(self) -> None:
        """Unmap it, and give address and memory back. Idempotent.

        Raises:
            DmaError: the kernel does not unmap it; it stays open.
        """
        if not self.closed:
            self._unmap(self.iova)
            self._memory.close()


class DmaPool:
    """Parts of one buffer; ten thousand of them are one map call.

    Args:
        buffer: of which; it must stay open.
        granule: bytes, a power of two.

    Synchronization: that of the allocator: each call is atomic.
    """

    def __init__(self, buffer: DmaBuffer, granule: int = 64) -> None:
        self._buffer = buffer
        self._free = IovaAllocator(RangeSet([buffer.range]), granule=granule)

    def __len__(self) -> int:
        return len(self._free)

    def __repr__(self) -> str:
        return f"<DmaPool of {len(self)} parts in {self._buffer!r}>"

    def allocate(self, size: int, align: int | None = None, tag: object = None) -> DmaPart:
        """Give out a part.

        Args:
            size: bytes, from 1; rounded up to the granule.
            align: of its IOVA, bytes; default the granule.
            tag: anything that names it in messages.

        Raises:
            NoSpaceError: there is no room.
            RequestError: not a size, or not an alignment.
            ClosedError: the buffer is closed.
        """
        if self._buffer.closed:
            raise ClosedError(f"{self._buffer!r} has no parts to give")
        granule = self._free.granule
        iova = self._free.allocate(-(-size // granule) * granule, align=align, tag=tag)
        return DmaPart(self, Iova(iova), size)

    def release(self, part: DmaPart) -> None:
        """Take a part back; `DmaPart.close` does it, too."""
        self._free.release(part.iova)

    def view_of(self, part: DmaPart) -> memoryview:
        """Return the bytes of a part."""
        start = part.iova - self._buffer.iova
        return self._buffer.view[start : start + part.size]


class DmaPart:
    """A part of a pool; leaving `with`, or `close`, gives it back.

    Attributes:
        iova: where the device sees it.
        size: bytes.
    """

    __slots__ = ("_open", "_pool", "iova", "size")

    def __init__(self, pool: DmaPool, iova: Iova, size: int) -> None:
        self._pool = pool
        self._open = True
        self.iova = iova
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DmaPart of {self.size:#x} bytes at {self.iova:#x}>"

    @property
    def view(self) -> memoryview:
        """Its bytes, writable.

        Raises:
            ClosedError: it was given back.
        """
        if not self._open:
            raise ClosedError(f"{self!r} was given back")
        return self._pool.view_of(self)

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._open:
            self._open = False
            self._pool.release(self)
