# SPDX-License-Identifier: Apache-2.0
"""Where MSI doorbells go when the VMM chooses: in a gap that nothing else has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.planning.bars import fit, without
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import DoorbellMisfit
from vmm_iova.ranges import BASE_PAGE, AddrRange, RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.machines.parts import OpenDoorbell
    from vmm_iova.planning.site import Site


def place_doorbells(site: Site, taken: Sequence[Item]) -> Iterator[Item]:
    """Yield each doorbell at the lowest free place: no hole of the host, nothing of the guest.

    Address 0 is not chosen by itself.

    Args:
        site: what is wanted, and where it may go.
        taken: everything that has its place already.

    Raises:
        DoorbellMisfit: one has no place.

    Complexity: O(doorbells x (holes + items)).
    """
    if not site.wanted.doorbells:
        return
    reserved = (item.range for item in site.wanted.machine.ram_reserved)
    used = RangeSet([AddrRange(0, BASE_PAGE - 1), *reserved, *(i.gpa for i in taken if i.gpa)])
    free = list(site.usable.ranges.as_set() - used)
    for bell in site.wanted.doorbells:
        inside = [part for span in free if (part := span.intersect(bell.range)) is not None]
        place = fit(inside, bell.size, bell.align, downward=False)
        if place is None:
            raise _no_place(site, bell, taken, inside)
        free = without(free, place)
        below = site.pushed(place.start, max(bell.range.start, BASE_PAGE))
        yield Item(ItemKind.DOORBELL, bell.name, place, None, below)


def _no_place(
    site: Site, bell: OpenDoorbell, taken: Sequence[Item], inside: Sequence[AddrRange]
) -> DoorbellMisfit:
    largest = max((span.size for span in inside), default=0)
    causes = site.usable.causes_of(bell.range)
    names = [item.name for item in taken if item.gpa and item.gpa.overlaps(bell.range)]
    what = f"doorbell {bell.name}" + (f" beside {', '.join(names[:3])}" if names else "")
    return DoorbellMisfit(what, bell.range, causes, largest)
