# SPDX-License-Identifier: Apache-2.0
"""What lies above RAM or below 4 GiB: windows, BARs and rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.evidence import HYPERTRANSPORT
from vmm_iova.host.facts import Note
from vmm_iova.planning.bars import Packing, fit, without
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.ram import Ram
from vmm_iova.planning.refuse import NO_TOP
from vmm_iova.ranges import AddrRange, RangeSet
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.request import WantedBar


class Above(Ram):
    """The step that places windows, BARs and rooms."""

    def _others(self, pieces: Sequence[Item]) -> list[Item]:
        """Everything above RAM, and BARs below 4 GiB."""
        top = max(item.gpa.last for item in pieces if item.gpa is not None)
        low = [bar for bar in self.wanted.bars if bar.bits == 32]
        high = [bar for bar in self.wanted.bars if bar.bits == 64]
        if self.pci64 is None:
            low, high = [*low, *high], []  # such a machine gives out all BARs below 4 GiB
        items = [*self._above(top), *self._low_bars(low), *self._high(top, high)]
        above = [top, *(item.place.last for item in items if item.place.last > top)]
        return [*items, *self._rooms(max(above) + 1)]

    def _low_bars(self, bars: Sequence[WantedBar]) -> Iterator[Item]:
        if not bars:
            return
        windows = [item.range for item in self.machine.pci32]
        if not windows:
            gap = self.machine.gap32
            low = RangeSet([gap] if gap else []) - RangeSet(f.range for f in self.machine.fixed)
            windows = list(low)
        reach = [span for w in windows for span in self.usable.ranges & RangeSet([w])]
        windows = list(RangeSet(windows) - RangeSet(item.range for item in self.wanted.reserved))
        packing = Packing(bars, reach, windows, False)
        if packing.stuck is not None:
            raise self._no_bar(bars[packing.stuck], windows, "32-bit")
        yield from self._bar_items(bars, packing)

    def _bar_items(self, bars: Sequence[WantedBar], packing: Packing) -> Iterator[Item]:
        for index, bar in enumerate(bars):
            place = packing.places[index]
            reached = place in self.usable.ranges
            if not reached:
                self._say_unreached(f"BAR {bar.name} {place}", place)
            iova = place if reached else None
            yield Item(ItemKind.BAR, bar.name, place, iova, required=bar.required)

    def _say_unreached(self, what: str, place: AddrRange) -> None:
        blocked = self.usable.causes_of(place)
        if blocked:
            self.notes.append(
                Note(
                    f"{what} meets {blocked[0].range} ({blocked[0].text}): RAM is not affected, "
                    "but devices cannot reach BARs there (peer-to-peer)"
                )
            )

    def _high(self, top: int, bars: Sequence[WantedBar]) -> Iterator[Item]:
        """Place the 64-bit window and its BARs: where peers reach them if the policy lets it."""
        window = self.pci64
        if window is None:
            return
        natural = self._window_place(top)
        if natural is None and window.size is None and not self.wanted.limits:
            if bars:
                raise self._no_top(bars[0])
            self.notes.append(Note(f"the 64-bit PCI window {NO_TOP}: left out"))
            return
        place, packing = self._best_place(natural, top, bars)
        if packing.stuck is not None:
            raise self._no_bar(bars[packing.stuck], [place] if place else [], "64-bit")
        if place is None and not self.wanted.limits:
            raise self._no_window(window.size or 0, top)
        if place is None:
            limit = self.wanted.limits[0].text
            option = self.machine.option("pci64_none")
            how = f" ({option})" if option else ""
            self.notes.append(Note(f"the 64-bit PCI window is left out: {limit}{how}"))
            return
        own = self.wanted.pci64
        if own is not None and own.size not in (None, place.size):
            self._say_size(place)
        if window.size is None:
            self._say_narrower(place)
        elif window.start is None:
            self._say_firmware()
        lowest = self._floor(top) if natural is None else natural.start
        cause = self._pushed(place.start, lowest) if place.start > lowest else None
        if place.start > lowest and self.machine.pci64_placed:
            self._say_placed(place)
        reached = place in self.usable.ranges
        if not reached and self.machine.identity and not bars and window.size is not None:
            self._say_unreached(f"the 64-bit PCI window {place}", place)
        if not reached and place.overlaps(HYPERTRANSPORT):
            self._say_moved(top)
        iova = place if self.machine.identity and reached else None
        yield Item(ItemKind.WINDOW, "64-bit PCI window", place, iova, cause)
        yield from self._bar_items(bars, packing)

    def _say_moved(self, top: int) -> None:
        """QEMU moves RAM when its window meets AMD's hole, whatever was planned."""
        highest = self.machine.ram[-1]
        if highest.move_to is not None and highest.range.start <= top < highest.move_to:
            self.notes.append(
                Note(
                    f"{self.machine.title} moves RAM above 4 GiB to {highest.move_to:#x} in this "
                    "case if the CPU model is AMD's: --on-hole move plans that"
                )
            )

    def _say_narrower(self, place: AddrRange) -> None:
        """A window up to the top of the guest's addresses may end beyond what the IOMMU reaches."""
        hull = self.usable.ranges.hull
        if hull is None or place.last <= hull.last:
            return
        bits = (hull.last + 1).bit_length() - 1
        option = self.machine.option("phys_bits", bits=bits) or f"{bits} guest address bits"
        self.notes.append(
            Note(
                f"the 64-bit PCI window {place} ends beyond {hull.last:#x}, the last that devices "
                f"reach, and left to itself the VMM gives out BARs there: {option} keeps them below"
            )
        )

    def _say_firmware(self) -> None:
        """OVMF puts 64-bit BARs near the top of the guest's addresses, wherever the window is.

        Source: edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c, PlatformDynamicMmioWindow().
        """
        reach, limits = self.host.ranges.hull, self.wanted.limits
        if reach is None or not limits or (1 << limits[0].bits) <= reach.last + 1:
            return
        bits = (reach.last + 1).bit_length() - 1
        option = self.machine.option("phys_bits", bits=bits)
        if option is not None:
            self.notes.append(
                Note(
                    f"the guest may have {limits[0].bits} address bits, devices reach {bits}: "
                    f"firmware that puts 64-bit BARs near the top (OVMF) puts them out of their "
                    f"reach, and QEMU prints EINVAL; to keep them below: {option}"
                )
            )

    def _say_placed(self, place: AddrRange) -> None:
        option = self.machine.option("pci64_start", start=f"{place.start:#x}")
        self.notes.append(Note(f"the 64-bit PCI window begins at {place.start:#x}: {option}"))

    def _say_size(self, place: AddrRange) -> None:
        size = format_size(place.size).replace(" ", "")
        option = self.machine.option("pci64", size=size.removesuffix("iB"), mib=place.size >> 20)
        how = f": {option}" if option else ""
        self.notes.append(Note(f"the 64-bit PCI window is {size} for the BARs{how}"))

    def _best_place(
        self, natural: AddrRange | None, top: int, bars: Sequence[WantedBar]
    ) -> tuple[AddrRange | None, Packing]:
        """The first place of the window in which peers reach all BARs; else those they must."""
        assert self.pci64 is not None
        floating = self.pci64.size is not None and self.pci64.start is None
        places = [] if natural is None else [natural]
        splits = floating and self.on_hole == "split" and self.machine.identity
        roaming = splits and self.machine.pci64_placed
        grows = bool(bars) and splits and self._grows and not self.pci64.self_aligned
        if roaming and natural is not None:
            places += self._places_beyond(natural)
        packed = [(place, self._packed(bars, place)) for place in places]
        for place, packing in packed:
            if packing.all_reached and (bars or not floating or place in self.usable.ranges):
                return place, packing
        good = next((pair for pair in packed if pair[1].stuck is None), None)
        if good is not None and not grows:
            return good
        scattered = self._scattered(top, bars) if grows else None
        reached = scattered is not None and scattered[1].stuck is None
        if scattered is not None and reached and (good is None or scattered[1].all_reached):
            return scattered  # wider than it would be, but more is reached
        if good is not None:
            return good
        return packed[0] if packed else (None, Packing(bars, (), (), False))

    def _packed(self, bars: Sequence[WantedBar], place: AddrRange) -> Packing:
        assert self.pci64 is not None
        reach = list(self.usable.ranges & RangeSet([place]))
        free = list(RangeSet([place]) - RangeSet(item.range for item in self.wanted.reserved))
        return Packing(bars, reach, free, self.pci64.downward)

    def _places_beyond(self, natural: AddrRange) -> Iterator[AddrRange]:
        assert self.pci64 is not None
        align = self.pci64.align
        for home in self.usable.ranges:
            start = -(-max(home.start, natural.start) // align) * align
            if start + natural.size - 1 <= home.last:
                yield AddrRange.from_size(start, natural.size)

    def _scattered(self, top: int, bars: Sequence[WantedBar]) -> tuple[AddrRange, Packing] | None:
        """A window as wide as it takes to have every BAR that must be reached in a usable range."""
        window = self.wanted.pci64
        assert window is not None
        start, limit = self._floor(top), self.wanted.address_last
        if not self.machine.pci64_placed:
            start = -(-start // window.align) * window.align
        if start > limit:
            return None
        above = AddrRange(start, limit)
        packing = self._packed(bars, above)
        if packing.stuck is not None:
            return above, packing
        last = max(place.last for place in packing.places.values())
        if not self.machine.pci64_placed:
            return AddrRange(start, last), packing
        first = min(place.start for place in packing.places.values()) // window.align * window.align
        return AddrRange(max(first, start), last), packing

    def _rooms(self, cursor: int) -> Iterator[Item]:
        """Keep room above everything, upward in the order given."""
        free = list(self.usable.ranges)
        if cursor:
            free = without(free, AddrRange(0, cursor - 1))
        for room in self.wanted.rooms:
            place = fit(free, room.size, room.align, False)
            if place is None:
                raise self._no_room(room, cursor, free)
            free = without(free, AddrRange(0, place.last))
            below = self._pushed(place.start, cursor) if place.start > cursor else None
            yield Item(ItemKind.ROOM, room.name, place, place, below, required=True)
