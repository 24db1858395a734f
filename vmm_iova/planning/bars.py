# SPDX-License-Identifier: Apache-2.0
"""Packing BARs: each at a multiple of its alignment, the largest first.

For sizes that are powers of two and aligned to themselves this finds a place whenever there is
one: any packing can be rearranged, by exchanging aligned blocks of one size, into the one made
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.bars import BarBits


@record
class WantedBar:
    """A BAR or a room in numbers, or the window of a root port with all BARs behind it."""

    name: str
    size: int
    align: int
    bits: BarBits
    required: bool
    emulated: bool = False
    behind: tuple[WantedBar, ...] = ()
    sizes: tuple[int, ...] | None = None
    sized_by: str = ""

    @property
    def each(self) -> tuple[WantedBar, ...]:
        """The BARs themselves: those behind the port, or this one."""
        return self.behind or (self,)

    @property
    def optional(self) -> WantedBar:
        """The same where no peer has to reach it."""
        return replace(self, required=False, behind=tuple(bar.optional for bar in self.behind))


def fit(spans: Sequence[AddrRange], size: int, align: int, downward: bool) -> AddrRange | None:
    """Return the lowest (or highest) aligned place inside one of the spans, or None."""
    for span in reversed(spans) if downward else spans:
        if downward:
            start = (span.last + 1 - size) // align * align
        else:
            start = -(-span.start // align) * align
        if start >= span.start and start + size - 1 <= span.last:
            return AddrRange.from_size(start, size)
    return None


def without(spans: Iterable[AddrRange], taken: AddrRange) -> list[AddrRange]:
    """Return the spans without what was taken; seams between spans stay."""
    return [part for span in spans for part in span.subtract(taken)]


def rest_above(spans: Iterable[AddrRange], last: int) -> list[AddrRange]:
    """Return what of the spans lies above `last`; seams between spans stay."""
    return [AddrRange(max(span.start, last + 1), span.last) for span in spans if span.last > last]


def spread(bar: WantedBar, place: AddrRange) -> Iterator[tuple[WantedBar, AddrRange]]:
    """Yield each BAR with its place: behind a port, the largest first from where its window is."""
    at = place.start
    for each in sorted(bar.each, key=lambda one: (-one.align, -one.size)):
        at = -(-at // each.align) * each.align
        yield each, AddrRange.from_size(at, each.size)
        at += each.size


class Packing:
    """Places for BARs: `usable` where peers reach them, `anywhere` where only the CPU does.

    Attributes:
        places: place of each BAR, by its index.
        stuck: index of the first BAR that has none.
        all_reached: True if all lie where peers reach them.
    """

    def __init__(
        self,
        bars: Sequence[WantedBar],
        usable: Sequence[AddrRange],
        anywhere: Sequence[AddrRange],
        downward: bool,
    ) -> None:
        self.downward = downward
        order = sorted(range(len(bars)), key=lambda i: (-bars[i].align, -bars[i].size, i))
        self.all_reached = self._pack(bars, order, usable, ())
        if not self.all_reached:
            # What must be reached comes first; the rest takes what is left.
            first = sorted(order, key=lambda index: not bars[index].required)
            self._pack(bars, first, usable, anywhere)

    def _pack(
        self,
        bars: Sequence[WantedBar],
        order: Sequence[int],
        usable: Sequence[AddrRange],
        anywhere: Sequence[AddrRange],
    ) -> bool:
        self.places: dict[int, AddrRange] = {}
        self.stuck: int | None = None
        free, rest = list(usable), list(anywhere)
        for index in order:
            bar = bars[index]
            place = fit(free, bar.size, bar.align, self.downward)
            if place is None and not bar.required:
                place = fit(rest, bar.size, bar.align, self.downward)
            if place is None:
                self.stuck = index
                return False
            self.places[index] = place
            free, rest = without(free, place), without(rest, place)
        return True


def room_for(bars: Sequence[WantedBar], align: int, start: int = 0) -> int:
    """Return the bytes that the BARs need together from `start`; 0 suits the largest."""
    if not bars:
        return 0
    packed = Packing(bars, [AddrRange(start, ADDRESS_LAST)], (), False)
    last = max((place.last for place in packed.places.values()), default=start)
    return -(-(last + 1 - start) // align) * align
