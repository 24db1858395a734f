# SPDX-License-Identifier: Apache-2.0
"""What lies above RAM or below 4 GiB: windows, BARs and rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.facts import Note
from vmm_iova.planning.bars import Packing, fit, rest_above, spread
from vmm_iova.planning.firmware_bars import bar_item, place_bars, unreached
from vmm_iova.planning.guest import bar_title
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import (
    AreaMisfit,
    BarMisfit,
    RamHidden,
    RoomMisfit,
    TopUnknown,
    WindowMisfit,
)
from vmm_iova.planning.ram import check_start
from vmm_iova.planning.site import HolePolicy, Placed
from vmm_iova.ranges import ADDRESS_LAST, GIB, AddrRange, RangeSet
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.ram import PlacedRam
    from vmm_iova.planning.site import Policy, Site

_SPLITTING = (HolePolicy.SPLIT, HolePolicy.AUTO)
PLUGGED = "memory plugged in later"
"""Name of the area for hotplugged memory."""

NO_TOP = "reaches up to the top of the guest's addresses, which nothing states (--phys-bits N)"


def place_windows(site: Site, ram: PlacedRam, policy: Policy) -> Placed:
    """Place everything above RAM, and BARs below 4 GiB.

    Args:
        site: what is wanted, and where it may go.
        ram: the RAM.
        policy: `split` lets the window go where peers reach its BARs.

    Raises:
        Misfit: a BAR, the window or a room has no place, or the VMM does not start.
    """
    check_start(site, ram.last)
    _check_hidden(site, ram)
    parts: list[Item | Note] = list(_hotplug_area(site, ram, policy))
    top = max([ram.last, *(part.place.last for part in parts if isinstance(part, Item))])
    parts += site.above(top)
    if _decides(site):
        parts += place_bars(site, ram.spans, top)
    else:
        low = [bar for bar in site.wanted.bars if bar.bits == 32]
        high = [bar for bar in site.wanted.bars if bar.bits == 64]
        if site.pci64 is None and not site.wanted.firmware:
            low, high = [*low, *high], []  # such a machine gives out all BARs below 4 GiB
        parts += _low_bars(site, low)
        parts += _high(site, top, high, policy)
    items = [part for part in parts if isinstance(part, Item)]
    last = max([ram.last, *(item.place.last for item in items)])
    return Placed(
        (*items, *_rooms(site, last)),
        tuple(part for part in parts if not isinstance(part, Item)),
    )


def _decides(site: Site) -> bool:
    """True if firmware decides where BARs go; it does not where there is none."""
    return any(firmware.kind != "none" for firmware in site.wanted.firmware)


def _check_hidden(site: Site, ram: PlacedRam) -> None:
    """Refuse RAM under a window that lies where it is."""
    window, stop = site.wanted.machine.pci64, site.wanted.address_last + 1
    if window is None or not window.hides_ram or window.share is None or site.pci64 is None:
        return
    start = stop - stop // window.share
    if site.wanted.limits and ram.last >= start:
        raise RamHidden("RAM", AddrRange(start, ram.last), fits=start)


def _hotplug_area(site: Site, ram: PlacedRam, policy: Policy) -> Iterator[Item | Note]:
    """Place memory that is plugged in later: where the machine has it."""
    area = site.hotplug_area(ram.last)
    if area is None:
        return
    free = site.usable.ranges.as_set()
    cause = None
    splits = "split" in site.wanted.machine.can and policy.on_hole in _SPLITTING
    if splits and not RangeSet([area]) <= free and site.wanted.machine.hotplug is not None:
        align = site.wanted.machine.hotplug.align
        # Its own range may begin below, with RAM.
        other = fit(rest_above(free, area.start), area.size, align, downward=False)
        if other is not None:
            cause, area = site.pushed(other.start, area.start), other
    if not RangeSet([area]) <= free:
        raise AreaMisfit(PLUGGED, area, site.usable.causes_of(area))
    yield Item(ItemKind.ROOM, PLUGGED, area, area, cause, required=True)
    if ram.done != "move":  # else `reasons` says it
        yield from _unmoved(site)


def _unmoved(site: Site) -> Iterator[Note]:
    """How much memory may be plugged in, for the VMM not to move RAM."""
    area, spare = site.wanted.machine.hotplug, site.spare()
    if area is not None and spare >= GIB:
        size = format_size(spare // GIB * GIB)
        yield Note(
            f"RAM stays where it is if the area for plugged memory (maxmem less RAM, and "
            f"{format_size(area.slot)} a slot) is {size} or less"
        )


def _low_bars(site: Site, bars: Sequence[WantedBar]) -> Iterator[Item | Note]:
    if not bars:
        return
    machine = site.wanted.machine
    windows = [item.range for item in machine.pci32]
    if not windows:
        gap = machine.gap32
        windows = list(RangeSet([gap] if gap else []) - RangeSet(f.range for f in machine.fixed))
    reach = [span for w in windows for span in site.usable.ranges & RangeSet([w])]
    windows = list(RangeSet(windows) - RangeSet(item.range for item in site.wanted.reserved))
    packing = Packing(bars, reach, windows, False)
    if packing.stuck is not None:
        raise BarMisfit(bars[packing.stuck], windows, 32)
    yield from _bar_items(site, bars, packing)


def _bar_items(site: Site, bars: Sequence[WantedBar], packing: Packing) -> Iterator[Item | Note]:
    for index, bar in enumerate(bars):
        for each, place in spread(bar, packing.places[index]):
            yield from bar_item(site, each, place)


# -- the 64-bit window -----------------------------------------------------------------------------


def _high(site: Site, top: int, bars: Sequence[WantedBar], policy: Policy) -> Iterator[Item | Note]:
    """Place the 64-bit window and its BARs: where peers reach them if the policy lets it."""
    window, limits = site.pci64, site.wanted.limits
    if window is None:
        return
    natural = site.window_place(top)
    if natural is None and window.size is None and not limits:
        if bars:
            raise TopUnknown(bar_title(bars[0].name), AddrRange(top, ADDRESS_LAST))
        yield Note(f"the 64-bit PCI window {NO_TOP}: left out")
        return
    place, packing = _best_place(site, natural, top, bars, policy)
    if packing.stuck is not None:
        raise BarMisfit(bars[packing.stuck], [place] if place else [], 64)
    if place is None and not limits:
        raise WindowMisfit(
            f"the 64-bit PCI window of {show_size(window.size or 0)}", AddrRange(top, ADDRESS_LAST)
        )
    if place is None:
        option = site.wanted.machine.option("pci64_none")
        how = f" ({option})" if option else ""
        yield Note(f"the 64-bit PCI window is left out: {limits[0].text}{how}")
        return
    yield from _window_notes(site, place)
    lowest = site.floor(top) if natural is None else natural.start
    cause = site.pushed(place.start, lowest)
    if place.start > lowest and site.wanted.machine.pci64_placed:
        option = site.wanted.machine.option("pci64_start", start=f"{place.start:#x}")
        yield Note(f"the 64-bit PCI window begins at {place.start:#x}: {option}")
    reached = place in site.usable.ranges
    if not reached and site.wanted.machine.identity and not bars and window.size is not None:
        yield from unreached(site, f"the 64-bit PCI window {place}", place)
    iova = place if site.wanted.machine.identity and reached else None
    yield Item(ItemKind.WINDOW, "64-bit PCI window", place, iova, cause)
    yield from _bar_items(site, bars, packing)


def _window_notes(site: Site, place: AddrRange) -> Iterator[Note]:
    """What to set, and to know, for a window of this place."""
    own, window = site.wanted.pci64, site.pci64
    assert window is not None
    if own is not None and own.size not in (None, place.size):
        size = format_size(place.size).replace(" ", "")
        option = site.wanted.machine.option(
            "pci64", size=size.removesuffix("iB"), mib=place.size >> 20
        )
        how = f": {option}" if option else ""
        yield Note(f"the 64-bit PCI window is {size} for the BARs{how}")
    if window.size is None:
        yield from _narrower(site, place)


def _narrower(site: Site, place: AddrRange) -> Iterator[Note]:
    """A window up to the top of the guest's addresses may end beyond what the IOMMU reaches."""
    hull = site.usable.ranges.hull
    if hull is None or place.last <= hull.last:
        return
    bits = (hull.last + 1).bit_length() - 1
    option = site.wanted.machine.option("phys_bits", bits=bits) or f"{bits} guest address bits"
    yield Note(
        f"the 64-bit PCI window {place} ends beyond {hull.last:#x}, the last that devices "
        f"reach, and left to itself the VMM gives out BARs there: {option} keeps them below"
    )


def _best_place(
    site: Site,
    natural: AddrRange | None,
    top: int,
    bars: Sequence[WantedBar],
    policy: Policy,
) -> tuple[AddrRange | None, Packing]:
    """The first place of the window in which peers reach all BARs; else those they must."""
    window, machine = site.pci64, site.wanted.machine
    assert window is not None
    floating = window.size is not None and window.start is None
    places = [] if natural is None else [natural]
    splits = floating and policy.on_hole in _SPLITTING and machine.identity
    grows = bool(bars) and splits and site.grows and not window.self_aligned
    if splits and machine.pci64_placed and natural is not None:
        places += _places_beyond(site, natural, window.align)
    packed = [(place, _packed(site, bars, place)) for place in places]
    for place, packing in packed:
        if packing.all_reached and (bars or not floating or place in site.usable.ranges):
            return place, packing
    good = next((pair for pair in packed if pair[1].stuck is None), None)
    if good is not None and not grows:
        return good
    scattered = _scattered(site, top, bars) if grows else None
    reached = scattered is not None and scattered[1].stuck is None
    if scattered is not None and reached and (good is None or scattered[1].all_reached):
        return scattered  # wider than it would be, but more is reached
    if good is not None:
        return good
    return packed[0] if packed else (None, Packing(bars, (), (), False))


def _packed(site: Site, bars: Sequence[WantedBar], place: AddrRange) -> Packing:
    assert site.pci64 is not None
    reach = list(site.usable.ranges & RangeSet([place]))
    free = list(RangeSet([place]) - RangeSet(item.range for item in site.wanted.reserved))
    return Packing(bars, reach, free, site.pci64.downward)


def _places_beyond(site: Site, natural: AddrRange, align: int) -> Iterator[AddrRange]:
    for home in site.usable.ranges:
        start = -(-max(home.start, natural.start) // align) * align
        if start + natural.size - 1 <= home.last:
            yield AddrRange.from_size(start, natural.size)


def _scattered(site: Site, top: int, bars: Sequence[WantedBar]) -> tuple[AddrRange, Packing] | None:
    """A window as wide as it takes to have every BAR that must be reached in a usable range."""
    window, placed = site.wanted.pci64, site.wanted.machine.pci64_placed
    assert window is not None
    start, limit = site.floor(top), site.wanted.address_last
    if not placed:
        start = -(-start // window.align) * window.align
    if start > limit:
        return None
    above = AddrRange(start, limit)
    packing = _packed(site, bars, above)
    if packing.stuck is not None:
        return above, packing
    last = max(place.last for place in packing.places.values())
    if not placed:
        return AddrRange(start, last), packing
    first = min(place.start for place in packing.places.values()) // window.align * window.align
    return AddrRange(max(first, start), last), packing


# -- rooms -----------------------------------------------------------------------------------------


def _rooms(site: Site, last: int) -> Iterator[Item]:
    """Keep room above everything, which ends at `last`, upward in the order given."""
    free = rest_above(site.usable.ranges, last)
    for room in site.wanted.rooms:
        place = fit(free, room.size, room.align, False)
        if place is None:
            raise _no_room(site, room, last + 1, free)
        free = rest_above(free, place.last)
        below = site.pushed(place.start, last + 1)
        yield Item(ItemKind.ROOM, room.name, place, place, below, required=True)


def _no_room(site: Site, room: WantedBar, cursor: int, free: Sequence[AddrRange]) -> RoomMisfit:
    last = site.wanted.address_last
    span = AddrRange(min(cursor, last), last)
    causes = site.usable.causes_of(span)
    cause = causes[0] if causes else site.usable.edge_above(last)
    starts = ((-(-part.start // room.align) * room.align, part) for part in free)
    most = max((part.last - start + 1 for start, part in starts if start in part), default=0)
    return RoomMisfit(room, cursor, span, cause, most)
