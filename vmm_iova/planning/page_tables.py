# SPDX-License-Identifier: Apache-2.0
"""What an IOMMU's page tables for a set of ranges cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.ranges import BASE_PAGE, HUGE_PAGES, RangeSet
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange

_TABLE = 4096  # a table of 512 entries of 8 bytes, on VT-d, AMD-Vi and SMMUv3 with 4 KiB pages
_LEVEL_BITS = 9
_ROOT_BITS = 48  # four levels, as kernels have them unless addresses need more
LEAVES = (*HUGE_PAGES, BASE_PAGE)
"""Bytes of the leaves that IOMMUs with 4 KiB pages can have, largest first."""

ALL_LEAVES = sum(LEAVES)
"""Bitmap of the leaf sizes that IOMMUs with 4 KiB pages can have."""


@record
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


def cost_of(spans: Sequence[AddrRange], usable: Usable) -> tuple[int, int, int]:
    """Pieces, page-table entries, table bytes: what one layout of RAM costs."""
    tables = page_tables(spans, usable.page_sizes or ALL_LEAVES)
    return len(spans), sum(count for _, count in tables.leaves), tables.table_bytes


def page_tables(
    spans: Sequence[AddrRange], page_sizes: int, backing: Sequence[int] | None = None
) -> PageTables:
    """Count leaves and tables of a 512-way tree over 4 KiB pages.

    Args:
        spans: IOVAs to map, whole 4 KiB pages.
        page_sizes: bitmap of page sizes in bytes; bits other than 4 KiB, 2 MiB and 1 GiB are
            ignored, 4 KiB is always taken.
        backing: bytes of the host pages behind each span, and so of its largest leaf; None where
            these are as large as can be.

    Complexity: O(spans).
    """
    rest = RangeSet(spans)
    width = max([_ROOT_BITS, *(item.last.bit_length() for item in rest)])
    leaves, tables = [], 0
    by_size: dict[int, RangeSet] = {}
    for size in LEAVES:
        if size == 1 << 12 or page_sizes & size:
            backed = rest
            if backing is not None:
                pairs = zip(spans, backing, strict=True)
                backed = rest & RangeSet(span for span, pages in pairs if pages >= size)
            mapped = backed.align_inward(size)
            by_size[size] = mapped
            rest = rest - mapped
            leaves.append((size, mapped.size // size))
    below = RangeSet()  # what is mapped by leaves of this level and the levels below it
    for shift in range(12, width, _LEVEL_BITS):
        # One table for each block of 512 entries of this level that holds anything.
        below = below | by_size.get(1 << shift, RangeSet())
        tables += sum(_blocks(below, shift + _LEVEL_BITS))
    return PageTables(page_sizes, tuple(leaves), tables * _TABLE)


def _blocks(covered: RangeSet, shift: int) -> Iterable[int]:
    """Count the blocks of 2^shift bytes that the set touches."""
    uncounted = 0
    for item in covered:
        first, last = item.start >> shift, item.last >> shift
        yield last + 1 - max(first, uncounted)
        uncounted = last + 1
