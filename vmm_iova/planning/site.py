# SPDX-License-Identifier: Apache-2.0
"""A site: what is wanted, and where this host allows it. It answers questions and never changes."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Literal

from vmm_iova.diagnosis.check import HOLES
from vmm_iova.host.registers import Width
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.machines.firmware import Board
from vmm_iova.planning.bars import room_for
from vmm_iova.planning.layout import GUEST_WIDTH, Item, ItemKind, OnHole, kept_for
from vmm_iova.ranges import ADDRESS_LAST, GIB, AddrRange, MappableRanges, RangeSet, power_up
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_iova.host.facts import Note
    from vmm_iova.machines.parts import Pci64Window, RamWindow
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.request import Wanted, WantedNode

    RoomOf = Callable[[RamWindow, int], Iterable[tuple[AddrRange, int]]]

Prefer = Literal["lowest", "fewest"]
"""What `split` prefers: RAM from the bottom up, or as few pieces as can be."""


class HolePolicy(enum.Enum):
    """`OnHole` inside the planner."""

    AUTO = "auto"
    SPLIT = "split"
    MOVE = "move"
    REFUSE = "refuse"

    @property
    def text(self) -> OnHole:
        """The word at the door."""
        return self.value


class Preference(enum.Enum):
    """`Prefer` inside the planner."""

    LOWEST = "lowest"
    FEWEST = "fewest"


@record
class Policy:
    """How RAM may be placed.

    Attributes:
        on_hole: what is done with RAM whose own place is not free.
        prefer: what `split` prefers.
        own: with `auto`: only what the VMM can do, and not what another could.
    """

    on_hole: HolePolicy
    prefer: Preference = Preference.LOWEST
    own: bool = False


@record
class Piece:
    """A piece of RAM: in which window, of which node, and how much of the node is still to come."""

    window: RamWindow
    node: WantedNode
    span: AddrRange
    left: int


@record
class Placed:
    """What a step placed, and what a person should know about it."""

    items: tuple[Item, ...]
    notes: tuple[Note, ...] = ()


@record
class Site:
    """What is wanted and where it may go. Made by `site_of`.

    Attributes:
        wanted: the guest in numbers.
        host: what the host allows.
        usable: the same without what the guest's own side forbids.
        windows: the machine's windows for this much RAM.
        spill: windows that RAM takes too when holes push it out of those.
        pci64: the 64-bit PCI window, grown for the BARs; None when there is none.

    Synchronization: none required (immutable).
    """

    wanted: Wanted
    host: Usable
    usable: Usable
    windows: tuple[RamWindow, ...]
    spill: tuple[RamWindow, ...]
    pci64: Pci64Window | None

    # -- RAM ---------------------------------------------------------------------------------------

    def room(
        self, window: RamWindow, align: int, ranges: MappableRanges | None = None
    ) -> Iterator[tuple[AddrRange, int]]:
        """Yield aligned room of a window, each with the last address that a ragged end may have.

        Args:
            window: of RAM.
            align: bytes.
            ranges: the ranges to take it from; default all that are usable.
        """
        ranges = self.usable.ranges if ranges is None else ranges
        return _aligned(ranges & RangeSet([window.range]), window, align)

    def own_room(self, window: RamWindow, align: int) -> Iterator[tuple[AddrRange, int]]:
        """Yield the same if no host says otherwise."""
        return _aligned(MappableRanges([window.range]), window, align)

    def flow(self, room: RoomOf, *, spilling: bool = False) -> tuple[list[Piece], int]:
        """Fill the windows from the bottom, node after node.

        Args:
            room: aligned room of a window, as `room` yields it.
            spilling: also fill `spill`.

        Returns:
            The pieces, ascending, and how many bytes are left over.
        """
        pieces: list[Piece] = []
        windows = (*self.windows, *self.spill) if spilling else self.windows
        at, cursor, over = 0, 0, 0
        for node in self.wanted.nodes:
            left = node.size
            for index, window in enumerate(windows[at:], at):
                if not left:
                    break
                for span, ragged in room(window, node.align):
                    start = max(span.start, -(-cursor // node.align) * node.align)
                    if start > span.last:
                        continue
                    # The end of all RAM may be ragged where no hole is.
                    size = left if left <= ragged - start + 1 else span.last - start + 1
                    left -= size
                    pieces.append(Piece(window, node, AddrRange.from_size(start, size), left))
                    at, cursor = index, start + size
                    if not left:
                        break
            over += left
        return pieces, over

    def around_holes(self) -> tuple[list[Piece], int]:
        """Let RAM flow around every hole, from the bottom."""
        return self.flow(self.room, spilling=True)

    def as_machine(self) -> tuple[list[Piece], int]:
        """Let RAM lie where the machine has it, whatever the host says."""
        return self.flow(self.own_room)

    def moves(self, ram_last: int) -> RamWindow | None:
        """Return the window whose RAM the VMM moves by itself; None if it moves none.

        QEMU moves what lies above 4 GiB to 1 TiB when RAM, the area for hotplugged memory or the
        64-bit PCI window reaches AMD's hole and the guest's CPU is AMD's, whatever the host has
        (hw/i386/pc.c, pc_memory_init()).
        """
        window = self.wanted.machine.ram[-1]
        if window.move_past is None or window.move_cpu not in (None, self.wanted.cpu):
            return None
        return window if self.reach(ram_last) >= window.move_past else None

    def spare(self) -> int:
        """Return how large the area for plugged memory may be for the VMM not to move RAM.

        It is 0 or less where RAM itself is too large, and 0 where the VMM moves none.
        """
        window = self.wanted.machine.ram[-1]
        if window.move_past is None or window.move_cpu not in (None, self.wanted.cpu):
            return 0
        pieces, _ = self.as_machine()
        alone = replace(self, wanted=replace(self.wanted, hotplug=0))
        return window.move_past - 1 - alone.reach(pieces[-1].span.last)

    def reach(self, ram_last: int) -> int:
        """Return the highest address that the VMM gives to anything when RAM ends there.

        The 64-bit PCI window counts with the size that was asked for (pc_max_used_gpa()).
        """
        window = self.pci64 or self.wanted.machine.pci64
        top = self.top(ram_last)
        if window is None or window.size is None:
            return top
        start = -(-self.floor(top) // window.align) * window.align
        return start + (window.size if self.pci64 else 0) - 1

    def hotplug_area(self, ram_last: int) -> AddrRange | None:
        """Return where the machine has memory that is plugged in later; None if none is wanted."""
        area, size = self.wanted.machine.hotplug, self.wanted.hotplug
        if area is None or not size:
            return None
        start = -(-max(ram_last + 1, area.floor) // area.align) * area.align
        return AddrRange.from_size(start, min(size, ADDRESS_LAST - start + 1))

    def top(self, ram_last: int) -> int:
        """Return the last address of RAM and of the area for hotplugged memory."""
        area = self.hotplug_area(ram_last)
        return area.last if area else ram_last

    def required(self) -> Iterator[tuple[RamWindow, AddrRange]]:
        """Yield what must be RAM, with its window."""
        left = self.wanted.ram
        for window in self.windows:
            if left > 0 and window.required:
                must = AddrRange.from_size(window.range.start, min(window.required, left))
                yield window, must
            left -= window.range.size

    # -- edges -------------------------------------------------------------------------------------

    def pushed(self, start: int, lowest: int) -> Cause | None:
        """Say what keeps a place from beginning at `lowest`; None where only alignment does."""
        home = self.usable.ranges.range_at(start)
        return None if home is not None and home.start <= lowest else self.cause_below(start)

    def cause_below(self, start: int) -> Cause | None:
        """Say what ends the usable range that holds `start` on its lower side."""
        home = self.usable.ranges.range_at(start)
        if home is None:
            return None
        if home.start == 0 and not self.wanted.machine.identity:
            text = "address 0 is not chosen by itself"
            return Cause(CauseKind.ZERO, AddrRange(0, 0), text)
        return self.usable.edge_below(home.start)

    def cause_above(self, last: int) -> Cause | None:
        """Say what ends the usable range that holds `last` on its upper side."""
        home = self.usable.ranges.range_at(last)
        return self.usable.edge_above(home.last) if home else None

    @property
    def widths(self) -> tuple[Width, ...]:
        """Widths of host and guest; the CPU's stands with the host's."""
        limits = [
            Width(GUEST_WIDTH, limit.bits, limit.text)
            for limit in self.wanted.limits
            if limit.bits != self.host.cpu_bits or not limit.text.startswith("physical")
        ]
        return (*self.host.widths, *limits)

    # -- what lies above RAM -----------------------------------------------------------------------

    def floor(self, top: int) -> int:
        """Return the lowest address of the 64-bit PCI window and its BARs.

        Args:
            top: last address of RAM and of the area for hotplugged memory.
        """
        return max([self._foot(top), *(item.place.last + 1 for item in self.above(top))])

    def _foot(self, top: int) -> int:
        window = self.wanted.machine.pci64
        return max(top + 1, window.floor) if window else top + 1

    def above(self, top: int) -> Iterator[Item]:
        """Yield what the machine has between RAM and the window, in order, also without one."""
        at = self._foot(top)
        for item in self.wanted.machine.above:
            at = -(-at // item.align) * item.align
            if at + item.size - 1 > self.wanted.address_last:
                return  # as QEMU does: what does not fit is left out
            yield Item(ItemKind(item.kind), item.name, AddrRange.from_size(at, item.size))
            at += item.size

    def window_place(self, ram_top: int) -> AddrRange | None:
        """Return the 64-bit PCI window as the machine has it; None if it has none, or no room."""
        if self.pci64 is None:
            return None
        stop, floor = self.wanted.address_last + 1, self.floor(ram_top)
        window = self.pci64
        if not self.wanted.machine.pci64_placed:
            bars = [bar for bar in self.wanted.bars if bar.bits == 64]
            window = self._sized_for(bars, floor)
        start = -(-floor // window.align) * window.align
        if window.start is not None:
            start = window.start
        if window.size is None:
            if not self.wanted.limits:
                return None  # "all up to the top" has no meaning without a top
            if window.share is not None:
                start = max(start, stop - stop // window.share)
            room = stop - window.top_free - start
            size = room - room % window.step if window.step else room
            return AddrRange.from_size(start, size) if size > 0 else None
        if start + window.size > stop:
            return None
        end = -(-(start + window.size) // window.last_align) * window.last_align
        return AddrRange(start, min(end, stop) - 1)

    def window_meets_hole(self, ram_last: int) -> bool:
        """Tell whether the 64-bit PCI window behind RAM would lie over a hole of the host."""
        if self.pci64 is None or self.pci64.size is None or self.pci64.start is not None:
            return False
        place = self.window_place(self.top(ram_last))
        if place is None:
            return False
        return any(cause.kind in HOLES for cause in self.usable.causes_of(place))

    def _sized_for(self, bars: Sequence[WantedBar], floor: int) -> Pci64Window:
        """The window with the size that its BARs need above `floor`, where the VMM takes one."""
        window = self.wanted.pci64
        assert window is not None
        if window.size is None or window.start is not None or not self.grows or not bars:
            return window
        if window.self_aligned:
            size = power_up(max(room_for(bars, window.align), window.size))
            return replace(window, size=size, align=size)
        start = -(-floor // window.align) * window.align
        needed = room_for(bars, window.align, start)
        return replace(window, size=max(needed, window.size))

    @property
    def grows(self) -> bool:
        """True if the 64-bit PCI window may have the size that its BARs need.

        Firmware does not look at its size, and a larger one can make the VMM move all RAM.
        """
        machine = self.wanted.machine
        return machine.pci64_sized and not self.wanted.pci64_stated and not self.wanted.firmware

    def board(self, ram: Sequence[AddrRange]) -> Board:
        """Return what firmware finds when it starts.

        Args:
            ram: places of RAM in guest addresses.
        """
        machine, limits = self.wanted.machine, self.wanted.limits
        low = [span.last + 1 for span in ram if span.last < 4 * GIB]
        high = max([4 * GIB, *(span.last + 1 for span in ram)])
        bits = limits[0].bits if limits else 0
        area = self.hotplug_area(high - 1)
        window = machine.ram[-1]
        reserved: list[AddrRange] = []
        if window.move_past is not None and window.move_to is not None:
            amd = window.move_cpu in (None, self.wanted.cpu)
            if amd and (bits >= 40 or high > window.move_past):
                reserved.append(AddrRange(window.move_past, window.move_to - 1))
        return Board(
            any("configuration" in item.name for item in machine.fixed),
            max(low, default=0),
            high,
            area.last + 1 if area else 0,
            bits,
            self.wanted.cpu,
            reserved=tuple(reserved),
            ovmf_window=self.wanted.ovmf_window,
        )


def site_of(wanted: Wanted, usable: Usable, known: Site | None = None) -> Site:
    """Return the site of a guest on a host.

    Args:
        wanted: the guest in numbers.
        usable: what the host allows.
        known: the site of a guest like it on this host, from which is taken what is the same.
    """
    machine = wanted.machine
    windows = _windows(wanted)
    causes = _guest_causes(wanted)
    same = known is not None and known.host is usable and causes == _guest_causes(known.wanted)
    return Site(
        wanted,
        usable,
        known.usable if known is not None and same else usable.narrowed(causes),
        windows,
        # A guest that is whole below the gap may still spill over it, when holes take its place.
        machine.ram[1:] if len(windows) < len(machine.ram) else (),
        _grown(wanted),
    )


def beyond(bits: int, text: str) -> Cause:
    """Make the cause for what a guest of so many address bits cannot have."""
    return Cause(CauseKind.GUEST_WIDTH, AddrRange(1 << bits, ADDRESS_LAST), text)


def _guest_causes(wanted: Wanted) -> list[Cause]:
    """What the guest's own side takes out of the usable ranges."""
    if not wanted.machine.identity:
        return []
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
    first, cap = wanted.machine.ram[0], wanted.low_ram
    rest = wanted.machine.ram[1:]
    whole = cap if cap is not None and first.cap == "all" else first.whole_below
    last = first.range.last
    if whole is not None and wanted.ram < whole:
        last, rest = whole - 1, ()
    if cap is not None:
        # hw/i386/pc_q35.c, pc_q35_init(): the smaller of QEMU's own limit and the stated one
        last = min(last, cap - 1)
        rest = wanted.machine.ram[1:] if wanted.ram > cap else rest
    range_ = AddrRange(first.range.start, last)
    return (replace(first, range=range_, whole_below=None if rest else whole), *rest)


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
