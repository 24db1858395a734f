# SPDX-License-Identifier: Apache-2.0
"""Ranges for tracking written pages: the fewest that a device takes, and what a bitmap says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.kernel import uapi
from vmm_iova.ranges import AddrRange, Iova, RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable


def fewest_ranges(ranges: Iterable[AddrRange], at_most: int, granule: int) -> tuple[AddrRange, ...]:
    """Return at most so many ranges that cover all of `ranges` and as little else as can be.

    Devices that log their own writes take a limited number of ranges. Joining two across a gap
    tracks the gap as well; the smallest gaps are given up first, and of equal ones the lower.

    Args:
        ranges: what must be tracked, any order, may overlap.
        at_most: count, from 1.
        granule: bytes, a power of two; the result is in whole granules.

    Returns:
        The ranges, ascending; empty when `ranges` is.

    Raises:
        RequestError: `at_most` is below 1, or `granule` not a power of two.

    Complexity: O(n log n).
    Source: VFIO_DEVICE_FEATURE_DMA_LOGGING_START, include/uapi/linux/vfio.h (Linux 6.1).
    """
    if at_most < 1:
        raise RequestError(
            f"at_most {at_most} leaves no range to track with", field="at_most", value=at_most
        )
    merged = list(RangeSet(ranges).align_outward(granule))
    gaps = [
        (above.start - below.last, index)
        for index, (below, above) in enumerate(itertools.pairwise(merged), 1)
    ]
    # Keeping the largest n-1 gaps leaves the least in the ones given up.
    kept = sorted(index for _, index in sorted(gaps, key=lambda g: (-g[0], -g[1]))[: at_most - 1])
    edges = [0, *kept, len(merged)] if merged else []
    return tuple(
        AddrRange(merged[low].start, merged[high - 1].last)
        for low, high in itertools.pairwise(edges)
    )


def written_ranges(bitmap: bytes, iova: Iova, granule: int) -> RangeSet:
    """Return the addresses that a bitmap of written pages names.

    Args:
        bitmap: from `read_dirty`: one bit a granule, in the machine's 64-bit words.
        iova: what its first bit stands for.
        granule: bytes a bit.

    Complexity: O(pages / 8 + k) for k runs of written pages.
    """
    bits = bin(uapi.read_bits(bitmap))[:1:-1]
    runs = []
    at = bits.find("1")
    while at >= 0:
        stop = bits.find("0", at)
        stop = len(bits) if stop < 0 else stop
        runs.append(AddrRange.from_size(iova + at * granule, (stop - at) * granule))
        at = bits.find("1", stop)
    return RangeSet(runs)
