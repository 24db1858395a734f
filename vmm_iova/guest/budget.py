# SPDX-License-Identifier: Apache-2.0
"""What a layout costs to map: map calls, locked memory, page-table memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.ranges import AddrRange, RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.guest.layout import Layout

DEFAULT_ENTRIES = 65535
"""Default of vfio_iommu_type1.dma_entry_limit (drivers/vfio/vfio_iommu_type1.c, Linux 5.1)."""

_TABLE = 4096  # a table of 512 entries of 8 bytes, on VT-d, AMD-Vi and SMMUv3 with 4 KiB pages
_LEVEL_BITS = 9
_ROOT_BITS = 48  # four levels, as kernels have them unless addresses need more
_LEAVES = (1 << 30, 1 << 21, 1 << 12)


@dataclass(frozen=True, slots=True)
class PageTables:
    """Page-table memory for one choice of page sizes.

    Attributes:
        page_sizes: bitmap that was allowed.
        leaves: entries by page size, largest first.
        table_bytes: memory of the tables.
    """

    page_sizes: int
    leaves: tuple[tuple[int, int], ...]
    table_bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What mapping a layout takes.

    Attributes:
        entries: map calls, one for each piece of RAM.
        entry_limit: `dma_entry_limit`; the kernel's default where the host does not state it.
        entry_limit_known: True if the host states it. iommufd has no such limit.
        locked_bytes: memory that is pinned, and counted against RLIMIT_MEMLOCK without
            CAP_IPC_LOCK, once for each container.
        memlock: the host's soft limit in bytes, -1 for unlimited, None when not known.
        best: tables with the largest pages that the host takes; 4 KiB, 2 MiB and 1 GiB where the
            host does not say. Needs host memory that is contiguous and congruent.
        worst: tables with 4 KiB pages alone.
        page_sizes_known: True if the host states its page sizes.
    """

    entries: int
    entry_limit: int
    entry_limit_known: bool
    locked_bytes: int
    memlock: int | None
    best: PageTables
    worst: PageTables
    page_sizes_known: bool


def budget(layout: Layout) -> Budget:
    """Count what mapping the RAM of a layout takes.

    Complexity: O(pieces).
    Synchronization: none required.
    """
    spans = [item.iova for item in layout.ram if item.iova is not None]
    usable = layout.usable
    limit = usable.limits.dma_entries
    return Budget(
        entries=len(spans),
        entry_limit=DEFAULT_ENTRIES if limit is None else limit,
        entry_limit_known=limit is not None,
        locked_bytes=sum(span.size for span in spans),
        memlock=usable.limits.memlock,
        best=page_tables(spans, usable.page_sizes or sum(_LEAVES)),
        worst=page_tables(spans, 1 << 12),
        page_sizes_known=usable.page_sizes is not None,
    )


def page_tables(spans: Iterable[AddrRange], page_sizes: int) -> PageTables:
    """Count leaves and tables of a 512-way tree over 4 KiB pages.

    Args:
        spans: IOVAs to map, whole 4 KiB pages.
        page_sizes: bitmap of page sizes in bytes; bits other than 4 KiB, 2 MiB and 1 GiB are
            ignored, 4 KiB is always taken.

    Complexity: O(spans).
    """
    rest = RangeSet(spans)
    width = max((item.last.bit_length() for item in rest), default=0)
    leaves, tables = [], 0
    by_size: dict[int, RangeSet] = {}
    for size in _LEAVES:
        if size == 1 << 12 or page_sizes & size:
            mapped = rest.align_inward(size)
            by_size[size] = mapped
            rest = rest - mapped
            leaves.append((size, mapped.size // size))
    below = RangeSet()  # what is mapped by leaves of this level and the levels below it
    for shift in range(12, max(width, _ROOT_BITS), _LEVEL_BITS):
        # One table for each block of 512 entries of this level that holds anything.
        below = below | by_size.get(1 << shift, RangeSet())
        tables += sum(_blocks(below, shift + _LEVEL_BITS))
    return PageTables(page_sizes, tuple(leaves), tables * _TABLE)


def _blocks(covered: RangeSet, shift: int) -> Iterable[int]:
    """Count the blocks of 2^shift bytes that the set touches."""
    seen = -1
    for item in covered:
        first, last = item.start >> shift, item.last >> shift
        yield last - max(first, seen + 1) + 1
        seen = last
