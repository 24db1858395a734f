# SPDX-License-Identifier: Apache-2.0
"""The planner: where the RAM, doorbells, windows and BARs of a guest go, or why they cannot.

Three policies for RAM whose place in the machine model is not free (`on_hole`):

* `refuse`: the machine's own place or nothing;
* `split`: RAM keeps its order and flows around the holes;
* `move`: what may move goes elsewhere as a whole, as QEMU moves all RAM above 4 GiB to 1 TiB when
  it, or the 64-bit PCI window behind it, would meet AMD's hole (hw/i386/pc.c, pc_memory_init).

The result depends on the arguments alone: same input, same layout, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

from vmm_iova.errors import NoSpaceError, PlanError, RequestError
from vmm_iova.guest.bars import Packing, fit, room_for, without
from vmm_iova.guest.explain import HOLES, Reason, does_not_fit, refusal
from vmm_iova.guest.layout import GuestReserved, Item, ItemKind, Layout
from vmm_iova.guest.request import Guest, Wanted, WantedBar, WantedNode, resolve
from vmm_iova.host.evidence import MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.model import Note, RegionKind
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.host.width import Width, width_line
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_iova.allocator import IovaAllocator
    from vmm_iova.guest.machine import Pci64Window, RamWindow

OnHole = Literal["split", "move", "refuse"]
"""Policies for RAM whose own place is not free."""

Prefer = Literal["lowest", "fewest"]
"""What `split` prefers: RAM from the bottom up, or as few pieces as can be."""

__all__ = ["Guest", "OnHole", "Prefer", "plan"]

_GIB = 1 << 30
_MSI_WINDOWS = (MSI_X86, MSI_ARM_SOFTWARE)
_AUTO = (1 << 30, 1 << 21, 1)
_NO_TOP = "reaches up to the top of the guest's addresses, which nothing states (--phys-bits N)"
_SPANS = 12  # ranges that `fewest` chooses among: 4096 choices


def plan(
    guest: Guest,
    usable: Usable,
    on_hole: OnHole = "split",
    *,
    also_fit: Sequence[Usable] = (),
    keep: Layout | dict[str, Any] | None = None,
    prefer: Prefer = "lowest",
) -> Layout:
    """Place a guest on a host.

    Args:
        guest: what is wanted.
        usable: where the host allows it, from `Host.usable`.
        on_hole: what to do when the machine's own place for RAM is not free.
        also_fit: what other groups of the host allow, from `Host.usable(groups=...)`: the layout
            holds for them too, so that they can be attached later.
        keep: a layout that a guest already has, or its JSON. It is kept where it still can be;
            else the new layout names every change in `changes`.
        prefer: with `split`: `lowest` fills from the bottom; `fewest` takes the fewest pieces,
            then the fewest page-table entries, then the fewest tables, then the lowest.

    Returns:
        The layout: items ascending by address, with the host fact behind every cut.

    Raises:
        PlanError: it cannot be done; `reasons` has every obstacle and `fixes` what would help.
        RequestError: a size, alignment or policy makes no sense.
        MisalignedError: RAM is not a multiple of the granule, or of the pages that back it.
        UnknownNameError: no such machine model.
        HostDataError: `keep` is no layout.

    Complexity: O(holes + windows), well below 5 ms for a host (bench/test_plan.py); `fewest` looks
        at up to 4096 choices of the 12 largest ranges.
    Synchronization: none required.
    """
    for name, value, known in (
        ("on_hole", on_hole, get_args(OnHole)),
        ("prefer", prefer, get_args(Prefer)),
    ):
        if value not in known:
            raise RequestError(
                f"{name} {value!r} is none of {', '.join(known)}", field=name, value=value
            )
    wanted = resolve(guest, usable)
    for other in also_fit:
        usable = usable.joined(other)
    if keep is not None:
        from vmm_iova.guest.keep import plan_kept  # few plans keep an older one

        return plan_kept(
            wanted, usable, keep, lambda: _best(guest, wanted, usable, on_hole, prefer)
        )
    return _best(guest, wanted, usable, on_hole, prefer)


def _best(guest: Guest, wanted: Wanted, usable: Usable, on_hole: OnHole, prefer: Prefer) -> Layout:
    """Plan; with `align="auto"`, with the alignment that costs least."""
    if guest.align != "auto":
        return Planner(wanted, usable, on_hole, prefer).plan()
    made: list[tuple[tuple[int, int, int], Layout]] = []
    refused: PlanError | None = None
    for align in _AUTO:
        try:
            layout = Planner(
                wanted.aligned(max(align, usable.granule)), usable, on_hole, prefer
            ).plan()
        except PlanError as error:
            refused = error
            continue
        made.append((_cost([item.place for item in layout.ram], usable), layout))
    if not made and refused is not None:
        raise refused
    return min(made, key=lambda pair: pair[0])[1]


def _cost(spans: Sequence[AddrRange], usable: Usable) -> tuple[int, int, int]:
    """Pieces, page-table entries, table bytes: what one layout of RAM costs."""
    from vmm_iova.guest.budget import ALL_LEAVES, page_tables

    tables = page_tables(spans, usable.page_sizes or ALL_LEAVES)
    return len(spans), sum(count for _, count in tables.leaves), tables.table_bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of RAM: in which window, of which node, and how much of the node is still to come."""

    window: RamWindow
    node: WantedNode
    span: AddrRange
    left: int


class Planner:
    """One planning: wanted, usable ranges and policy in, layout or refusal out."""

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
        self.notes: list[Note] = []
        self.policy = "as is"

    def plan(self) -> Layout:
        """Place everything.

        Raises:
            PlanError: it cannot be.
        """
        most = self.machine.ram_max
        if most is not None and self.ram > most:
            raise self._too_much(most)
        refused: PlanError | None = None
        for pieces in self._ram_choices():
            said = list(self.notes)
            self.policy = self._policy_of(pieces)
            try:
                return self.finish(pieces)
            except PlanError as error:
                refused = refused or error
                self.notes = said
        assert refused is not None  # _ram_choices raises when there is none
        raise refused

    def finish(self, pieces: Sequence[Item], kept: Sequence[Item] = ()) -> Layout:
        """Place everything else around RAM.

        Args:
            pieces: the RAM.
            kept: windows, BARs and rooms that have their place already.
        """
        placed = list(kept) if kept else self._others(pieces)
        items = [*pieces, *placed, *self._reserved_items(), *self._fixed(), *self._msi()]
        items.sort(key=lambda item: (item.place, item.kind.value, item.name))
        first = [Note(entry.text) for entry in self.host.unassignable]
        return Layout(
            machine=self.machine,
            ram_bytes=self.ram,
            on_hole=self.on_hole,
            policy=self.policy,
            items=tuple(items),
            guest_reserved=tuple(self._told(items)),
            usable=self.host,
            notes=(*first, *self._relaxable(pieces), *self.notes, *self.host.notes),
            page_sizes=tuple((node.name, node.size, node.page_size) for node in self.wanted.nodes),
            viommu=self.wanted.viommu,
            devices=self.wanted.devices,
            widths=self._widths(),
        )

    def _policy_of(self, pieces: Sequence[Item]) -> str:
        if self.on_hole != "split" or not self.machine.identity:
            return self.policy
        own, _ = self._flow(self._own_room)
        return "split" if len(pieces) > len(own) else "as is"

    def _widths(self) -> tuple[Width, ...]:
        """Widths of host and guest; the CPU's stands with the host's."""
        said = [
            Width("guest, physical", limit.bits, limit.text)
            for limit in self.wanted.limits
            if limit.bits != self.host.cpu_bits or not limit.text.startswith("physical")
        ]
        return (*self.host.widths, *said)

    # -- RAM: IOVA equals guest address ----------------------------------------------------------

    def _ram_choices(self) -> Iterator[list[Item]]:
        """Placements of RAM, the best first.

        Raises:
            PlanError: there is none.
        """
        if not self.machine.identity:
            yield self._translated()
        elif self.on_hole != "split":
            yield self._natural()
        elif self.prefer == "lowest":
            yield self._split()
        else:
            yield from self._fewest()

    def _room(self, window: RamWindow, align: int) -> Iterable[tuple[AddrRange, int]]:
        """Aligned room of a window, each with the last address that a ragged end may have."""
        return _aligned(self.allowed & RangeSet([window.range]), window, align)

    def _own_room(self, window: RamWindow, align: int) -> Iterable[tuple[AddrRange, int]]:
        """The same if no host says otherwise."""
        return _aligned(MappableRanges([window.range]), window, align)

    def _flow(
        self, room: Callable[[RamWindow, int], Iterable[tuple[AddrRange, int]]]
    ) -> tuple[list[_Piece], int]:
        """Fill the windows from the bottom, node after node; return what is left over, too."""
        pieces: list[_Piece] = []
        at, cursor, over = 0, 0, 0
        for node in self.wanted.nodes:
            left = node.size
            for index, window in enumerate(self.windows[at:], at):
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
                    pieces.append(_Piece(window, node, AddrRange.from_size(start, size), left))
                    at, cursor = index, start + size
                    if not left:
                        break
            over += left
        return pieces, over

    def _split(self) -> list[Item]:
        """Fill the windows in order, around the holes."""
        self._check_required()
        pieces, over = self._flow(self._room)
        if over:
            raise self._too_little(over)
        self._check_aligned(pieces)
        return self._items(pieces)

    def _fewest(self) -> Iterator[list[Item]]:
        """Fill some of the ranges only: the fewest pieces first.

        Raises:
            PlanError: not even all ranges together suffice.
        """
        whole = self._split()  # raises what there is to say
        every = [
            span
            for window in self.windows
            for span in self.usable.ranges & RangeSet([window.range])
        ]
        must = [span for span in every if any(span.overlaps(r) for r in self._required())]
        largest = sorted(every, key=lambda span: (-span.size, span.start))
        some = sorted({*must, *largest[:_SPANS]})
        choices: list[tuple[tuple[int, int, int], list[AddrRange], list[Item]]] = []
        for count in range(1, len(some) + 1):
            for chosen in combinations(some, count):
                if not set(must) <= set(chosen):
                    continue
                self.allowed = MappableRanges(chosen)
                pieces, over = self._flow(self._room)
                if not over:
                    items = self._items(pieces)
                    places = [item.place for item in items]
                    choices.append((_cost(places, self.usable), places, items))
            if choices and min(choices, key=lambda c: c[0])[0][0] <= count:
                break
        self.allowed = self.usable.ranges
        choices.sort(key=lambda choice: (choice[0], choice[1]))
        for _, _, items in choices[:8]:
            yield items
        yield whole  # the lowest end there is, if nothing else leaves room for what is above RAM

    def _required(self) -> Iterator[AddrRange]:
        left = self.ram
        for window in self.windows:
            if left > 0 and window.required:
                yield AddrRange.from_size(window.range.start, min(window.required, left))
            left -= window.range.size

    def _check_required(self) -> None:
        for window in self.windows:
            for must in self._required():
                if must.start == window.range.start and not RangeSet([must]) <= self.free:
                    name = f"the first {format_size(must.size)} of {window.name} RAM"
                    raise self._refusal(self._reasons(name, must), "the machine needs RAM there")

    def _check_aligned(self, pieces: Sequence[_Piece]) -> None:
        """Refuse an alignment that keeps RAM away from where the machine must have it."""
        covered = RangeSet(piece.span for piece in pieces)
        for must in self._required():
            if not RangeSet([must]) <= covered:
                align = max(node.align for node in self.wanted.nodes)
                home = self.usable.ranges.range_at(must.start) or must
                cause = self.usable.edge_above(home.last)
                reason = Reason(
                    f"the first {format_size(must.size)} of RAM", must, cause, home.last + 1
                )
                raise self._refusal([reason], f"aligned to {format_size(align)}")

    def _items(self, pieces: Sequence[_Piece]) -> list[Item]:
        """Pieces of RAM as items, with what cut them: nothing where machine or size did."""
        items: list[Item] = []
        before: AddrRange | None = None
        for index, piece in enumerate(pieces):
            span, window = piece.span, piece.window
            home = self.usable.ranges.range_at(span.start)
            start_cause = last_cause = None
            if span.start > window.range.start and home != before:
                start_cause = self._cause_below(span.start)
            if (piece.left or index + 1 < len(pieces)) and span.last < window.range.last:
                above = pieces[index + 1].span.start if index + 1 < len(pieces) else None
                same_home = above is not None and home is not None and above in home
                last_cause = None if same_home else self._cause_above(span.last)
            before = home
            items.append(
                Item(
                    ItemKind.RAM,
                    window.name,
                    span,
                    span,
                    start_cause,
                    last_cause,
                    node=piece.node.name,
                )
            )
        return items

    def _cause_below(self, start: int) -> str | None:
        """What ends the usable range that holds `start` on its lower side."""
        home = self.usable.ranges.range_at(start)
        return self.usable.edge_below(home.start).text if home else None

    def _cause_above(self, last: int) -> str | None:
        """What ends the usable range that holds `last` on its upper side."""
        home = self.usable.ranges.range_at(last)
        return self.usable.edge_above(home.last).text if home else None

    def _natural(self) -> list[Item]:
        """Leave everything in the machine's own place, or move what may move as a whole."""
        pieces, over = self._flow(self._own_room)
        if over:
            raise self._too_little(over)
        reasons: list[Reason] = []
        used = [window for window in self.windows if any(p.window is window for p in pieces)]
        for window in used:
            spans = [piece.span for piece in pieces if piece.window is window]
            hull = AddrRange(spans[0].start, spans[-1].last)
            topmost = window is used[-1]
            blocked = not RangeSet(spans) <= self.free
            window_blocked = topmost and self.on_hole == "move" and self._window_meets_hole(hull)
            if not blocked and not window_blocked:
                continue
            target = None
            if self.on_hole == "move" and window.movable and topmost:
                target = self._target(window, spans)
            if target is not None:
                shift = target - hull.start
                pieces = [_shifted(p, shift) if p.window is window else p for p in pieces]
                self.policy = "move"
                if window.movable_note:
                    self.notes.append(Note(window.movable_note))
            elif blocked:
                reasons += self._reasons(f"{window.name} RAM", hull)
        if reasons:
            raise self._refusal(reasons, f"on-hole {self.on_hole}")
        return self._items([part for piece in pieces for part in self._cut(piece)])

    def _cut(self, piece: _Piece) -> Iterator[_Piece]:
        """Cut RAM at the seams of the kernel's list, each piece being one mapping."""
        parts = list(self.usable.ranges & RangeSet([piece.span]))
        left = piece.left + piece.span.size
        for part in parts:
            left -= part.size
            yield replace(piece, span=part, left=left)

    def _target(self, window: RamWindow, spans: Sequence[AddrRange]) -> int | None:
        """Where all of a window's RAM goes instead, or None."""
        base, last = spans[0].start, spans[-1].last
        if window.move_to is not None:
            starts: list[int] = [window.move_to]
        else:
            step = max(_GIB, *(node.align for node in self.wanted.nodes))
            starts = [-(-home.start // step) * step for home in self.usable.ranges]
        for start in starts:
            shift = start - base
            if last + shift > ADDRESS_LAST or start < window.range.start:
                continue
            moved = RangeSet(AddrRange(s.start + shift, s.last + shift) for s in spans)
            hull = AddrRange(start, last + shift)
            if moved <= self.free and not self._window_meets_hole(hull):
                return start
        return None

    def _window_meets_hole(self, top: AddrRange) -> bool:
        """Tell whether the 64-bit PCI window behind RAM would lie over a hole of the host."""
        if self.pci64 is None or self.pci64.size is None or self.pci64.start is not None:
            return False
        place = self._window_place(top.last)
        if place is None:
            return False
        return any(cause.kind in HOLES for cause in self.usable.causes_of(place))

    # -- RAM: IOVA chosen by the allocator ---------------------------------------------------------

    def _translated(self) -> list[Item]:
        """Guest RAM is contiguous for the guest; its IOVAs come from the allocator."""
        from vmm_iova.allocator import IovaAllocator  # loads the engine, which few plans need

        window = self.windows[0]
        allocator = IovaAllocator(self.usable)
        align = max(node.align for node in self.wanted.nodes)
        if window.range.start + self.ram - 1 > self.wanted.address_last:
            raise self._too_wide(AddrRange.from_size(window.range.start, self.ram))
        try:
            spans = [AddrRange.from_size(allocator.allocate(self.ram, align=align), self.ram)]
        except NoSpaceError as error:
            if self.on_hole != "split":
                raise self._not_in_one(error) from error
            spans = self._spread(allocator, align)
            self.policy = "split"
        items, gpa = [], window.range.start
        for index, span in enumerate(spans):
            below, last = self._cause_below(span.start), index == len(spans) - 1
            above = None if last else self._cause_above(span.last)
            for part, node in self._of_nodes(span, gpa - window.range.start):
                seen = AddrRange.from_size(gpa + part.start - span.start, part.size)
                starts = below if part.start == span.start else None
                stops = above if part.last == span.last else None
                items.append(Item(ItemKind.RAM, window.name, seen, part, starts, stops, node=node))
            gpa += span.size
        return items

    def _of_nodes(self, span: AddrRange, offset: int) -> Iterator[tuple[AddrRange, str | None]]:
        """Cut a span, `offset` bytes into all RAM, where a node ends."""
        at = 0
        for node in self.wanted.nodes:
            start, last = max(at, offset), min(at + node.size, offset + span.size) - 1
            if start <= last:
                yield AddrRange(span.start + start - offset, span.start + last - offset), node.name
            at += node.size

    def _not_in_one(self, error: NoSpaceError) -> PlanError:
        largest = error.largest_free or AddrRange(0, ADDRESS_LAST)
        cause = self.usable.edge_above(largest.last)
        reason = Reason("ram in one piece", largest, cause, error.largest_aligned)
        return self._refusal([reason], f"on-hole {self.on_hole}")

    def _spread(self, allocator: IovaAllocator, align: int) -> list[AddrRange]:
        """Take free spans from the bottom until all RAM has its place."""
        left, spans = self.ram, []
        for free in list(allocator.free_spans()):
            room = (free if free.start else AddrRange(1, free.last)).align_inward(align)
            if left and room is not None:
                size = min(left, room.size)
                spans.append(AddrRange.from_size(allocator.allocate_at(room.start, size), size))
                left -= size
        if left:
            raise does_not_fit(self.usable, self.machine.name, self.ram, left)
        return spans

    # -- windows, BARs, rooms ----------------------------------------------------------------------

    def _others(self, pieces: Sequence[Item]) -> list[Item]:
        """Everything above RAM, and BARs below 4 GiB."""
        top = max(item.gpa.last for item in pieces if item.gpa is not None)
        low = [bar for bar in self.wanted.bars if bar.bits == 32]
        high = [bar for bar in self.wanted.bars if bar.bits == 64]
        if self.pci64 is None:
            low, high = [*low, *high], []  # such a machine gives out all BARs below 4 GiB
        items = [*self._low_bars(low), *self._high(top, high)]
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
            self.notes.append(Note(f"the 64-bit PCI window {_NO_TOP}: left out"))
            return
        place, packing = self._best_place(natural, top, bars)
        if packing.stuck is not None:
            raise self._no_bar(bars[packing.stuck], [place] if place else [], "64-bit")
        if place is None:
            self.notes.append(Note("the 64-bit PCI window has no room above RAM: left out"))
            return
        own = self.wanted.pci64
        if own is not None and own.size is not None and own.size < place.size:
            self._say_grown(place)
        moved = natural is None or place.start > natural.start
        cause = self._cause_below(place.start) if moved else None
        reached = place in self.usable.ranges
        if not reached and self.machine.identity and not bars and window.size is not None:
            self._say_unreached(f"the 64-bit PCI window {place}", place)
        iova = place if self.machine.identity and reached else None
        yield Item(ItemKind.WINDOW, "64-bit PCI window", place, iova, cause)
        yield from self._bar_items(bars, packing)

    def _say_grown(self, place: AddrRange) -> None:
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
        roaming = floating and self.on_hole == "split" and self.machine.identity
        if roaming and natural is not None:
            places += self._places_beyond(natural)
        packed = [(place, self._packed(bars, place)) for place in places]
        for place, packing in packed:
            if packing.all_reached and (bars or not floating or place in self.usable.ranges):
                return place, packing
        good = next((pair for pair in packed if pair[1].stuck is None), None)
        if good is not None and not (bars and roaming):
            return good
        scattered = self._scattered(top, bars) if bars and roaming else None
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
        start, limit = max(top + 1, window.floor), self.wanted.address_last
        if start > limit:
            return None
        above = AddrRange(start, limit)
        packing = self._packed(bars, above)
        if packing.stuck is not None:
            return above, packing
        last = max(place.last for place in packing.places.values())
        first = min(place.start for place in packing.places.values()) // window.align * window.align
        return AddrRange(max(first, start), last), packing

    def _window_place(self, ram_last: int) -> AddrRange | None:
        """The 64-bit PCI window as the machine has it; None if it has none, or no room."""
        window = self.pci64
        if window is None:
            return None
        top = self.wanted.address_last
        start = -(-max(ram_last + 1, window.floor) // window.align) * window.align
        if window.start is not None:
            start = window.start
        if window.size is None:
            if not self.wanted.limits:
                return None  # "all up to the top" has no meaning without a top
            if window.share is not None:
                start = max(start, top + 1 - (top + 1) // window.share)
            return (
                AddrRange(start, top - window.top_free) if start < top - window.top_free else None
            )
        if start + window.size - 1 > top:
            return None
        return AddrRange.from_size(start, window.size)

    def _rooms(self, cursor: int) -> Iterator[Item]:
        """Keep room above everything, upward in the order given."""
        free = list(self.usable.ranges)
        if cursor:
            free = without(free, AddrRange(0, cursor - 1))
        for room in self.wanted.rooms:
            place = fit(free, room.size, room.align, False)
            if place is None:
                raise self._no_room(room, cursor)
            free = without(free, AddrRange(0, place.last))
            below = self._cause_below(place.start) if place.start > cursor else None
            yield Item(ItemKind.ROOM, room.name, place, place, below, required=True)

    # -- what stands by itself ---------------------------------------------------------------------

    def _reserved_items(self) -> Iterator[Item]:
        for item in self.wanted.reserved:
            yield Item(ItemKind(item.kind), item.name, item.range)

    def _fixed(self) -> Iterator[Item]:
        windows = {region.range for region in self._msi_ranges()}
        for fixed in self.machine.fixed:
            if fixed.kind == "doorbell" and fixed.range in windows:
                continue  # the host's window at the same place is shown instead
            yield Item(ItemKind(fixed.kind), fixed.name, fixed.range)

    def _msi_ranges(self) -> list[Cause]:
        """The host's interrupt windows: its msi regions, or known gaps of the kernel's list."""
        found: dict[AddrRange, Cause] = {}
        for cause in self.host.causes:
            said = cause.region is not None and cause.region.kind is RegionKind.MSI
            known = cause.kind is CauseKind.KERNEL_GAP and cause.range in _MSI_WINDOWS
            if said or known:
                found.setdefault(cause.range, cause)
        return list(found.values())

    def _msi(self) -> Iterator[Item]:
        doorbells = {item.range for item in self.machine.doorbells}
        for cause in self._msi_ranges():
            shared = cause.range in doorbells
            name = "MSI doorbell" if shared else "MSI window of the host"
            gpa = cause.range if shared else None
            yield Item(ItemKind.MSI, name, gpa, cause.range, cause.text, cause.text)

    def _told(self, items: list[Item]) -> Iterator[GuestReserved]:
        """Holes of the host inside what the guest takes for RAM or BAR space."""
        if not self.machine.identity:
            return
        counts = (ItemKind.RAM, ItemKind.WINDOW, ItemKind.BAR, ItemKind.ROOM)
        spans = []
        for window in self.windows:
            tops = [
                item.gpa.last
                for item in items
                if item.gpa is not None and item.kind in counts and item.gpa.start in window.range
            ]
            if tops:
                spans.append(AddrRange(window.range.start, max(tops)))
        spans += (item.gpa for item in items if item.gpa is not None and self._outside(item))
        inside = RangeSet([AddrRange(0, self.wanted.address_last)])
        told = (RangeSet(spans) & inside) - self.free
        for span in told:
            causes = self.usable.causes_of(span)
            for cause in causes:
                shared = cause.range.align_outward(self.usable.granule).intersect(span)
                if shared is not None:
                    yield GuestReserved(shared, cause.text)

    def _outside(self, item: Item) -> bool:
        """Tell whether a BAR, or the 64-bit window, lies in no RAM window."""
        counts = item.kind is ItemKind.BAR or item.name == "64-bit PCI window"
        return counts and not any(item.place.start in window.range for window in self.windows)

    def _relaxable(self, pieces: Sequence[Item]) -> Iterator[Note]:
        for region in self.usable.relaxable:
            if any(item.iova and item.iova.overlaps(region.range) for item in pieces):
                yield Note(
                    f"RAM overlaps direct-relaxable {region.range} ({region.source}): allowed once "
                    "the host's driver has let go of the device; strict keeps it out"
                )

    # -- refusals ----------------------------------------------------------------------------------

    def _reasons(self, item: str, span: AddrRange) -> list[Reason]:
        fits = min(self.usable.room_at(span.start), span.size)
        return [Reason(item, span, cause, fits) for cause in self.usable.causes_of(span)]

    def _refusal(self, reasons: list[Reason], why: str) -> PlanError:
        made = refusal(self.host, reasons, why, self._alternatives(), self._most(reasons))
        if not made.fixes and not self.probing:
            fixes = [*self._less(), "a host, or a device, that leaves this free"]
            made = PlanError(made.message, reasons=made.reasons, fixes=fixes, detail=made.detail)
        return self._with_widths(made, reasons)

    def _less(self) -> Iterator[str]:
        """What fits with `split`, tried."""
        pieces, over = self._flow(self._room)
        fits = (self.ram - over) >> 20 << 20
        if not pieces or not fits or not self.machine.identity:
            return
        node = replace(self.wanted.nodes[0], size=fits)
        less = replace(self.wanted, ram=fits, nodes=(node,))
        try:
            Planner(less, self.host, "split", probing=True).plan()
        except PlanError:
            return
        yield f"--on-hole split with --ram {format_size(fits).replace(' ', '')}"

    def _too_little(self, over: int) -> PlanError:
        """RAM does not fit: say what ends the space, and which alignment would do."""
        made = does_not_fit(self.usable, self.machine.name, self.ram, over)
        return self._with_widths(made, [r for r in made.reasons if isinstance(r, Reason)])

    def _too_much(self, most: int) -> PlanError:
        name = self.machine.title
        cause = Cause(
            CauseKind.GUEST,
            AddrRange(most, ADDRESS_LAST),
            f"{name} takes {show_size(most)} at most",
        )
        reason = Reason(
            "ram", AddrRange.from_size(self.machine.ram[0].range.start, self.ram), cause, most
        )
        return PlanError(
            f"RAM of {show_size(self.ram)} is more than {name} takes, {show_size(most)}",
            reasons=[reason],
            fixes=[f"--ram {format_size(most).replace(' ', '')} is the most", "another machine"],
        )

    def _too_wide(self, span: AddrRange) -> PlanError:
        limit = self.wanted.limits[0]
        cause = _beyond(limit.bits, limit.text)
        fits = (1 << limit.bits) - span.start
        made = PlanError(
            f"RAM at {span} ends beyond {limit.text}", reasons=[Reason("ram", span, cause, fits)]
        )
        return self._with_widths(made, [Reason("ram", span, cause, fits)])

    def _no_bar(self, bar: WantedBar, windows: Sequence[AddrRange], kind: str) -> PlanError:
        """A BAR has no place: say what is in its way where it would go first."""
        need = "that peers must reach " if bar.required else ""
        what = f"BAR {bar.name} ({show_size(bar.size)}, {need}at a multiple of {bar.align:#x})"
        roomy = [w for w in windows if w.size >= bar.size]
        if not roomy:
            best = max(windows, key=lambda w: w.size, default=None)
            where = f"{best} ({show_size(best.size)})" if best else "no room above RAM"
            cause = Cause(CauseKind.GUEST, best or AddrRange(0, 0), f"{kind} PCI window: {where}")
            if not best and self.wanted.limits:
                cause = _beyond(self.wanted.limits[0].bits, self.wanted.limits[0].text)
            reasons = [Reason(what, best or AddrRange(0, 0), cause, best.size if best else 0)]
            message = f"{what} has no place in the {kind} PCI window: {cause.text}"
        else:
            reasons = self._reasons(what, roomy[0])
            causes = "; ".join(dict.fromkeys(str(reason.cause) for reason in reasons[:3]))
            message = f"{what} fits nowhere above RAM where devices reach it: {causes}"
        fixes = [f"--on-hole {name} has room" for name in self._alternatives()]
        if bar.required:
            fixes.append("mark it optional: only peer-to-peer between devices is lost")
        fixes.append("less RAM, or a smaller BAR (resizable BAR) on the device")
        return self._with_widths(PlanError(message, reasons=reasons, fixes=fixes), reasons)

    def _no_top(self, bar: WantedBar) -> PlanError:
        edge = self.usable.edge_above(ADDRESS_LAST)
        option = self.machine.option("phys_bits", bits="N")
        how = f" ({option})" if option else ""
        return PlanError(
            f"BAR {bar.name} has no place: the 64-bit PCI window {_NO_TOP}",
            reasons=[Reason(f"BAR {bar.name}", edge.range, edge, 0)],
            fixes=[f"--phys-bits N{how}"],
        )

    def _no_room(self, room: WantedBar, cursor: int) -> PlanError:
        last = self.wanted.address_last
        span = AddrRange(min(cursor, last), last)
        causes = self.usable.causes_of(span)
        edge = causes[0] if causes else self.usable.edge_above(last)
        reason = Reason(f"room {room.name}", span, edge, 0)
        size = show_size(room.size)
        message = f"room {room.name} of {size} does not fit above {cursor:#x}: {edge.text}"
        fixes = ["less RAM, or less room"]
        return self._with_widths(PlanError(message, reasons=[reason], fixes=fixes), [reason])

    def _with_widths(self, error: PlanError, reasons: Sequence[Reason]) -> PlanError:
        """Add every width, and what to do, to a refusal that a width is the cause of."""
        by_width = [
            r for r in reasons if r.cause.kind in (CauseKind.APERTURE, CauseKind.GUEST_WIDTH)
        ]
        fixes, details = list(error.fixes), [error.detail] if error.detail else []
        if by_width and not self.probing:
            widths = self._widths()
            if widths:
                details.append(f"widths: {width_line(widths)}")
            if any(r.cause.kind is CauseKind.GUEST_WIDTH for r in by_width):
                fixes.insert(0, self._wider())
        smaller = None if self.probing else self._smaller_align()
        if smaller is not None:
            fixes.insert(0, f"--align {format_size(smaller).replace(' ', '')} has room")
        return PlanError(
            error.message, reasons=error.reasons, fixes=fixes, detail="; ".join(details) or None
        )

    def _wider(self) -> str:
        """How to give the guest more address bits."""
        limit, needed = self.wanted.limits[0], self._needed_bits()
        if self.host.cpu_bits is not None and needed > self.host.cpu_bits:
            return f"a host whose CPU has {needed} physical address bits"
        if self.machine.phys_bits is not None and needed > self.machine.phys_bits:
            return f"another machine: {self.machine.title} has {limit.bits} address bits at most"
        option = self.machine.option("phys_bits", bits=needed)
        return f"--phys-bits {needed}" + (f" ({option})" if option else "")

    def _needed_bits(self) -> int:
        """Address bits that the same plan takes when nothing but the host bounds it."""
        free = replace(self.wanted, limits=())
        try:
            return Planner(free, self.host, self.on_hole, probing=True).plan().address_bits
        except PlanError:
            own = self.machine.ram[-1].range.start + self.ram
            return max(own.bit_length(), self.wanted.limits[0].bits + 1)

    def _smaller_align(self) -> int | None:
        """The largest smaller alignment with which all fits, tried."""
        least = max(node.page_size or 1 for node in self.wanted.nodes)
        asked = max(node.align for node in self.wanted.nodes)
        for align in (1 << 30, 1 << 21, self.host.granule):
            if max(least, self.host.granule) <= align < asked:
                other = Planner(self.wanted.aligned(align), self.host, self.on_hole, probing=True)
                try:
                    other.plan()
                except PlanError:
                    continue
                return align
        return None

    def _alternatives(self) -> dict[str, list[AddrRange]]:
        """Policies that would work, tried: nothing is proposed on a guess."""
        found: dict[str, list[AddrRange]] = {}
        if self.probing or not self.machine.identity:
            return found
        for policy in get_args(OnHole):
            if policy in (self.on_hole, "refuse"):
                continue
            other = Planner(self.wanted, self.host, policy, probing=True)
            try:
                found[policy] = [item.place for item in other.plan().ram]
            except PlanError:
                continue
        return found

    def _most(self, reasons: list[Reason]) -> int:
        """RAM that stays below a single obstacle in the topmost window; else 0."""
        if self.on_hole == "split" or len(reasons) != 1 or not self.machine.identity:
            return 0
        pieces, _ = self._flow(self._own_room)
        spans = [piece.span for piece in pieces if piece.window is pieces[-1].window]
        if reasons[0].range != AddrRange(spans[0].start, spans[-1].last):
            return 0
        return self.ram - reasons[0].range.size + reasons[0].fits if reasons[0].fits else 0


def _shifted(piece: _Piece, shift: int) -> _Piece:
    return replace(piece, span=AddrRange(piece.span.start + shift, piece.span.last + shift))


def _beyond(bits: int, text: str) -> Cause:
    return Cause(CauseKind.GUEST_WIDTH, AddrRange(1 << bits, ADDRESS_LAST), text)


def _guest_causes(wanted: Wanted) -> list[Cause]:
    """What the guest's own side takes out of the usable ranges."""
    causes = [
        Cause(CauseKind.GUEST, item.range, f"kept for {item.name}, as asked for")
        for item in wanted.reserved
    ]
    causes += (_beyond(limit.bits, limit.text) for limit in wanted.limits[:1] if limit.bits < 64)
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
    """The 64-bit window, grown for the BARs where its size was not asked for and is not fixed."""
    window = wanted.pci64
    if window is None or window.size is None or window.start is not None or wanted.pci64_stated:
        return window
    bars = [bar for bar in wanted.bars if bar.bits == 64]
    needed = room_for(bars, window.align)
    if needed <= window.size:
        return window
    return replace(window, size=needed, align=max(window.align, *(bar.align for bar in bars)))
