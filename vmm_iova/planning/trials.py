# SPDX-License-Identifier: Apache-2.0
"""Trials: whether something else would work is known by planning it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm_iova.planning.misfit import Misfit
from vmm_iova.planning.request import AddressLimit
from vmm_iova.planning.site import HolePolicy, Policy, Site, site_of
from vmm_iova.ranges import GIB, HUGE_PAGES, MIB
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.layout import Layout
    from vmm_iova.planning.request import Wanted
    from vmm_iova.ranges import AddrRange

Attempt = Callable[[Site, Policy], "Layout"]
"""Every step of a plan, or a `Misfit`."""

_MOST_BITS = 52  # no x86 or arm64 CPU has more physical address bits


@record
class Trials:
    """Other attempts on the same host: what would work is known by doing it."""

    site: Site
    policy: Policy
    attempt: Attempt

    def works(self, wanted: Wanted, on_hole: HolePolicy | None = None) -> bool:
        """Tell whether something else can be planned; with the same policy if none is given."""
        return self.layout(wanted, on_hole) is not None

    def layout(self, wanted: Wanted, on_hole: HolePolicy | None = None) -> Layout | None:
        """Return the layout of something else; None where it has none."""
        try:
            policy = Policy(on_hole or self.policy.on_hole, own=True)
            return self.attempt(site_of(wanted, self.site.host, self.site), policy)
        except Misfit:
            return None

    def with_ram(self, ram: int) -> Wanted:
        """Return what is wanted with so much RAM, in one node."""
        wanted = self.site.wanted
        return replace(wanted, ram=ram, nodes=(replace(wanted.nodes[0], name=None, size=ram),))

    def with_bar(self, bar: WantedBar, instead: WantedBar) -> Wanted:
        """Return what is wanted with another BAR instead of this one, also behind a port."""
        wanted = self.site.wanted
        bars = tuple(
            instead
            if other == bar
            else replace(other, behind=tuple(instead if b == bar else b for b in other.behind))
            for other in wanted.bars
        )
        return replace(wanted, bars=bars)

    def ram_works(self, ram: int, on_hole: HolePolicy | None = None) -> bool:
        """Tell whether all can be planned with so much RAM."""
        granule, nodes = self.site.host.granule, self.site.wanted.nodes
        if not ram or ram % max([granule, *(node.page_size or granule for node in nodes)]):
            return False
        return self.works(self.with_ram(ram), on_hole)

    def most_ram(self, most: int | None = None) -> int:
        """Return the largest RAM of whole MiB that can be planned with all the rest; 0 for none.

        Args:
            most: bytes up to which it is looked for; default what is wanted.
        """
        most = (self.site.wanted.ram if most is None else most) // MIB * MIB
        if self.ram_works(most):
            return most
        works, fails = 0, most
        while fails - works > max(MIB, min(fails >> 8, GIB)):  # to a part in 256, or a GiB
            middle = (works + fails) // 2 // MIB * MIB
            if self.ram_works(middle):
                works = middle
            else:
                fails = middle
        below = works // GIB * GIB
        for whole in (below + GIB, below):  # GiB read better
            if whole < most and self.ram_works(whole):
                return whole
        return works

    def policies(self) -> dict[HolePolicy, list[AddrRange]]:
        """Return the other policies that work, each with where it puts RAM."""
        machine = self.site.wanted.machine
        if not machine.identity or self.policy.on_hole is HolePolicy.AUTO:
            return {}  # `auto` has tried them
        places = {}
        for on_hole in (HolePolicy.SPLIT, HolePolicy.MOVE):
            if on_hole is self.policy.on_hole or on_hole.value not in machine.can:
                continue
            layout = self.layout(self.site.wanted, on_hole)
            if layout is not None:
                places[on_hole] = [item.place for item in layout.ram]
        return places

    def smaller_align(self) -> int | None:
        """Return the largest smaller alignment with which all fits."""
        nodes, granule = self.site.wanted.nodes, self.site.host.granule
        least = max([granule, *(node.page_size or granule for node in nodes)])
        largest = max(node.align for node in nodes)
        for align in (*HUGE_PAGES, granule):
            if least <= align < largest and self.works(self.site.wanted.aligned(align)):
                return align
        return None

    def more_bits(self) -> int | None:
        """Return the fewest guest address bits, more than there are, with which all fits."""
        limit = self.site.wanted.limits[0]
        for bits in range(limit.bits + 1, _MOST_BITS + 1):
            if self.works(replace(self.site.wanted, limits=(AddressLimit(bits, ""),))):
                return bits
        return None
