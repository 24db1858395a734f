# SPDX-License-Identifier: Apache-2.0
"""What every step of planning stands on: what is wanted, where it may go, and how RAM flows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vmm_iova.host.registers import Width
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.planning.bars import room_for
from vmm_iova.planning.layout import Item, ItemKind, kept_for
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_iova.host.facts import Note
    from vmm_iova.machines.model import Pci64Window, RamWindow
    from vmm_iova.planning.layout import Layout
    from vmm_iova.planning.request import Wanted, WantedBar, WantedNode

OnHole = Literal["split", "move", "refuse"]
"""Policies for RAM whose own place is not free."""

Prefer = Literal["lowest", "fewest"]
"""What `split` prefers: RAM from the bottom up, or as few pieces as can be."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of RAM: in which window, of which node, and how much of the node is still to come."""

    window: RamWindow
    node: WantedNode
    span: AddrRange
    left: int


class Ground(ABC):
    """What is wanted and where it may go; the later steps are subclasses, in order."""

    def __init__(
        self,
        wanted: Wanted,
        usable: Usable,
        on_hole: OnHole,
        prefer: Prefer = "lowest",
        *,
        probing: bool = False,
    ) -> None:
        self.probing = probing
        self.wanted = wanted
        self.machine = wanted.machine
        self.ram = wanted.ram
        self.pci64 = _grown(wanted)
        self.host = usable
        self.usable = usable.narrowed(_guest_causes(wanted)) if wanted.machine.identity else usable
        self.on_hole = on_hole
        self.prefer = prefer
        self.free = self.usable.ranges.as_set()
        self.allowed = self.usable.ranges
        self.windows = _windows(wanted)
        # A guest that is whole below the gap may still spill over it, when holes take its place.
        self.spill = self.machine.ram[1:] if len(self.windows) < len(self.machine.ram) else ()
        self.notes: list[Note] = []
        self.policy = "as is"

    @abstractmethod
    def again(self, wanted: Wanted, policy: OnHole) -> Layout:
        """Plan something else on the same host, to know whether it would work.

        Raises:
            PlanError: it would not.
        """

    def _widths(self) -> tuple[Width, ...]:
        """Widths of host and guest; the CPU's stands with the host's."""
        said = [
            Width("guest, physical", limit.bits, limit.text)
            for limit in self.wanted.limits
            if limit.bits != self.host.cpu_bits or not limit.text.startswith("physical")
        ]
        return (*self.host.widths, *said)

    def _room(self, window: RamWindow, align: int) -> Iterable[tuple[AddrRange, int]]:
        """Aligned room of a window, each with the last address that a ragged end may have."""
        return _aligned(self.allowed & RangeSet([window.range]), window, align)

    def _own_room(self, window: RamWindow, align: int) -> Iterable[tuple[AddrRange, int]]:
        """The same if no host says otherwise."""
        return _aligned(MappableRanges([window.range]), window, align)

    def _flow(
        self,
        room: Callable[[RamWindow, int], Iterable[tuple[AddrRange, int]]],
        *,
        spilling: bool = False,
    ) -> tuple[list[Piece], int]:
        """Fill the windows from the bottom, node after node; return what is left over, too."""
        pieces: list[Piece] = []
        windows = (*self.windows, *self.spill) if spilling else self.windows
        at, cursor, over = 0, 0, 0
        for node in self.wanted.nodes:
            left = node.size
            for index, window in enumerate(windows[at:], at):
                if not left:
                    break
                for span, ragged in room(window, node.align):
                    start = span.start
                    if index == at and cursor > start:
                        start = -(-cursor // node.align) * node.align
                    if start > span.last:
                        continue
                    size = min(span.last - start + 1, left)
                    if size < left <= ragged - start + 1:
                        size = left  # the end of all RAM may be ragged where no hole is
                    left -= size
                    pieces.append(Piece(window, node, AddrRange.from_size(start, size), left))
                    at, cursor = index, start + size
                    if not left:
                        break
            over += left
        return pieces, over

    def _pushed(self, start: int, lowest: int) -> str | None:
        """Say what keeps a place from beginning at `lowest`; None where only alignment does."""
        home = self.usable.ranges.range_at(start)
        return None if home is not None and home.start <= lowest else self._cause_below(start)

    def _cause_below(self, start: int) -> str | None:
        """What ends the usable range that holds `start` on its lower side."""
        home = self.usable.ranges.range_at(start)
        if home is None or (home.start == 0 and not self.machine.identity):
            return "address 0 is not chosen by itself" if home else None
        return self.usable.edge_below(home.start).text

    def _cause_above(self, last: int) -> str | None:
        """What ends the usable range that holds `last` on its upper side."""
        home = self.usable.ranges.range_at(last)
        return self.usable.edge_above(home.last).text if home else None

    def _floor(self, ram_last: int) -> int:
        """Lowest address of the 64-bit PCI window and its BARs."""
        behind = [item.place.last + 1 for item in self._above(ram_last)]
        floor = self.pci64.floor if self.pci64 else 0
        return max([ram_last + 1, floor, *behind])

    def _above(self, ram_last: int) -> Iterator[Item]:
        """What the machine has between RAM and the window, in order; also without a window."""
        floor = self.machine.pci64.floor if self.machine.pci64 else 0
        at = max(ram_last + 1, floor)
        for item in self.machine.above:
            at = -(-at // item.align) * item.align
            if at + item.size - 1 > self.wanted.address_last:
                return  # as QEMU does: what does not fit is left out
            yield Item(ItemKind(item.kind), item.name, AddrRange.from_size(at, item.size))
            at += item.size

    def _window_place(self, ram_last: int) -> AddrRange | None:
        """The 64-bit PCI window as the machine has it; None if it has none, or no room."""
        if self.pci64 is None:
            return None
        top, floor = self.wanted.address_last, self._floor(ram_last)
        window = self.pci64
        if not self.machine.pci64_placed:
            bars = [bar for bar in self.wanted.bars if bar.bits == 64]
            window = self._sized_for(bars, floor)
        start = -(-floor // window.align) * window.align
        if window.start is not None:
            start = window.start
        if window.size is None:
            if not self.wanted.limits:
                return None  # "all up to the top" has no meaning without a top
            if window.share is not None:
                start = max(start, top + 1 - (top + 1) // window.share)
            room = top + 1 - window.top_free - start
            size = room - room % window.step if window.step else room
            return AddrRange.from_size(start, size) if size > 0 else None
        if start + window.size - 1 > top:
            return None
        return AddrRange.from_size(start, window.size)

    def _sized_for(self, bars: Sequence[WantedBar], floor: int) -> Pci64Window:
        """The window with the size that its BARs need above `floor`, where the VMM takes one."""
        window = self.wanted.pci64
        assert window is not None
        if window.size is None or window.start is not None or not self._grows or not bars:
            return window
        if window.self_aligned:
            size = 1 << (max(room_for(bars, 1), window.size) - 1).bit_length()
            return replace(window, size=size, align=size)
        start = -(-floor // window.align) * window.align
        needed = room_for(bars, window.align, start)
        return replace(window, size=max(needed, window.size))

    @property
    def _grows(self) -> bool:
        """True if the window may have the size that its BARs need."""
        return self.machine.pci64_sized and not self.wanted.pci64_stated


def beyond(bits: int, text: str) -> Cause:
    """Make the cause for what a guest of so many address bits cannot have."""
    return Cause(CauseKind.GUEST_WIDTH, AddrRange(1 << bits, ADDRESS_LAST), text)


def _guest_causes(wanted: Wanted) -> list[Cause]:
    """What the guest's own side takes out of the usable ranges."""
    causes = [Cause(CauseKind.GUEST, item.range, kept_for(item.name)) for item in wanted.reserved]
    causes += (beyond(limit.bits, limit.text) for limit in wanted.limits[:1] if limit.bits < 64)
    return causes


def _aligned(
    room: MappableRanges, window: RamWindow, align: int
) -> Iterator[tuple[AddrRange, int]]:
    for span in room:
        cut = span.align_inward(align)
        if window.whole_below is not None and span.last == window.range.last:
            start = -(-span.start // align) * align
            if start <= span.last:
                yield cut or AddrRange(start, span.last), span.last
        elif cut is not None:
            yield cut, cut.last


def _windows(wanted: Wanted) -> tuple[RamWindow, ...]:
    """The machine's windows for this much RAM."""
    first = wanted.machine.ram[0]
    if first.whole_below is None:
        return wanted.machine.ram
    if wanted.ram >= first.whole_below:
        return (replace(first, whole_below=None), *wanted.machine.ram[1:])
    return (replace(first, range=AddrRange(first.range.start, first.whole_below - 1)),)


def _grown(wanted: Wanted) -> Pci64Window | None:
    """The 64-bit window, grown for the BARs, and aligned for them where it can be placed."""
    window = wanted.pci64
    if window is None or window.size is None or window.start is not None or wanted.pci64_stated:
        return window
    if not wanted.machine.pci64_placed:
        return window  # `_sized_for` grows it from where it must begin
    bars = [bar for bar in wanted.bars if bar.bits == 64]
    needed = room_for(bars, window.align)
    if needed <= window.size:
        return window
    return replace(window, size=needed, align=max(window.align, *(bar.align for bar in bars)))
