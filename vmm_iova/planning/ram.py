# SPDX-License-Identifier: Apache-2.0
"""Where RAM goes."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from vmm_iova.allocator import IovaAllocator
from vmm_iova.errors import NoSpaceError
from vmm_iova.host.facts import Note
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import (
    Misfit,
    RamBlocked,
    RamLeft,
    RamTooMuch,
    RamTooWide,
    StartRefused,
)
from vmm_iova.planning.page_tables import cost_of
from vmm_iova.planning.site import HolePolicy, Preference, beyond
from vmm_iova.ranges import ADDRESS_LAST, GIB, HUGE_PAGES, AddrRange, MappableRanges, RangeSet
from vmm_iova.record import record, replace
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.machines.parts import RamWindow
    from vmm_iova.planning.layout import Done
    from vmm_iova.planning.site import Piece, Policy, Site

_SPANS = 12  # ranges that `fewest` chooses among: 4096 choices


@record
class PlacedRam:
    """RAM with its places, what was done for them, and what a person should know about it."""

    items: tuple[Item, ...]
    done: Done = "as is"
    notes: tuple[Note, ...] = ()
    base: int = 0
    """Where RAM above 4 GiB would begin, for a guest that has none there; 0 where that is all."""

    @property
    def last(self) -> int:
        """Highest guest address of RAM."""
        return max(self.base - 1, *(span.last for span in self.spans))

    @property
    def spans(self) -> list[AddrRange]:
        """Guest addresses of RAM."""
        return [item.gpa for item in self.items if item.gpa is not None]


def place_ram(site: Site, policy: Policy) -> Iterator[PlacedRam]:
    """Yield placements of RAM, the best first.

    Raises:
        Misfit: there is none.
    """
    machine = site.wanted.machine
    if machine.ram_max is not None and site.wanted.ram > machine.ram_max:
        whole = AddrRange.from_size(machine.ram[0].range.start, site.wanted.ram)
        raise RamTooMuch("ram", whole, fits=machine.ram_max)
    if not machine.identity:
        yield _translated(site, policy)
    elif policy.on_hole is HolePolicy.AUTO:
        yield from _auto(site, policy)
    elif policy.on_hole is HolePolicy.MOVE and machine.ram[-1].move_past is not None:
        yield _by_itself(site)  # it cannot be told to, nor not to
    elif policy.on_hole is not HolePolicy.SPLIT:
        yield _whole(site, policy)
    else:
        yield from _around_holes(site, policy)


def _auto(site: Site, policy: Policy) -> Iterator[PlacedRam]:
    """What the VMM does by itself; only where that fails, what one that can split could do."""
    if policy.prefer is Preference.FEWEST and "split" in site.wanted.machine.can:
        yield from _around_holes(site, policy)
        return
    alone: Misfit | None = None
    try:
        yield _by_itself(site)
    except RamBlocked as misfit:
        alone = misfit
    if policy.own and "split" not in site.wanted.machine.can:
        if alone is not None:
            raise alone
        return
    yield from _around_holes(site, policy)  # what does not fit there fits nowhere


def _by_itself(site: Site) -> PlacedRam:
    """RAM where the VMM has it, moved if it moves it by itself, whatever the host allows."""
    pieces, over = site.as_machine()
    if over:
        raise _left_over(site, over)
    last = pieces[-1].span.last
    window = site.moves(last)
    if window is None or window.move_to is None:  # what is moved has a place to go to
        check_start(site, last)
        return _unblocked(site, pieces, "as is", (), "it stands there")
    base = window.move_to
    shift = base - window.range.start
    check_start(site, max(last + shift if last >= window.range.start else last, base - 1))
    # Windows are made for a size of RAM, so that they are told apart by their names.
    pieces = [_shifted(p, shift) if p.window.name == window.name else p for p in pieces]
    placed = _unblocked(site, pieces, "move", (), f"{site.wanted.machine.title} moves it there")
    return replace(placed, base=base)


def check_start(site: Site, ram_last: int) -> None:
    """Refuse what the VMM refuses: a guest whose 64-bit PCI window reaches beyond its addresses.

    Raises:
        StartRefused: it does not start.
    """
    window, limits = site.wanted.machine.pci64, site.wanted.limits
    reach, last = site.reach(ram_last), site.wanted.address_last
    if window is not None and window.must_fit and limits and reach > last:
        whole = AddrRange(min(last, ram_last), reach)
        raise StartRefused("the guest", whole, (beyond(limits[0].bits, limits[0].text),))


def _unblocked(
    site: Site, pieces: Sequence[Piece], done: Done, notes: Sequence[Note], rule: str
) -> PlacedRam:
    """RAM in these pieces, cut at seams; each window's RAM has to be free of holes."""
    free = site.usable.ranges.as_set()
    blocked = []
    for name in dict.fromkeys(piece.window.name for piece in pieces):
        spans = [piece.span for piece in pieces if piece.window.name == name]
        if not RangeSet(spans) <= free:
            hull = AddrRange(spans[0].start, spans[-1].last)
            blocked.append(_blocked(site, _ram_of(name), hull))
    if blocked:
        raise RamBlocked(blocked, rule)
    parts = [part for piece in pieces for part in _cut(site, piece)]
    if len(parts) > len(pieces):
        notes = (
            *notes,
            Note(
                "the VMM must map RAM in one call for each piece, cut at the seams of the "
                "kernel's list: one call for all of it, as QEMU makes, fails with EINVAL"
            ),
        )
    return PlacedRam(tuple(_items(site, parts)), done, tuple(notes))


def _ram_of(window: str) -> str:
    return "RAM" if window.lower() == "ram" else f"{window} RAM"


# -- around the holes ------------------------------------------------------------------------------


def _around_holes(site: Site, policy: Policy) -> Iterator[PlacedRam]:
    for items in _fewest(site) if policy.prefer is Preference.FEWEST else [_split(site)]:
        yield _around(site, items)


def _around(site: Site, items: Sequence[Item]) -> PlacedRam:
    own, _ = site.as_machine()
    as_is = [item.place for item in items] == [piece.span for piece in own]
    if as_is and site.moves(own[-1].span.last) is None:
        return PlacedRam(tuple(items))
    machine = site.wanted.machine
    note = Note(
        f"{machine.title} does not do this: it neither cuts RAM around holes nor lets it lie as "
        "here, so this layout needs a VMM that can"
    )
    return PlacedRam(tuple(items), "split", () if "split" in machine.can else (note,))


def _split(site: Site) -> list[Item]:
    """Fill the windows in order, around the holes."""
    free = site.usable.ranges.as_set()
    for window, must in site.required():
        if not RangeSet([must]) <= free:
            name = f"the first {format_size(must.size)} of {_ram_of(window.name)}"
            raise RamBlocked([_blocked(site, name, must)], "the machine needs RAM there")
    pieces, over = site.around_holes()
    _check_aligned(site, pieces)
    if over:
        raise _left_over(site, over)
    return _items(site, pieces)


def _fewest(site: Site) -> Iterator[list[Item]]:
    """Fill some of the ranges only: the fewest pieces first."""
    lowest = _split(site)  # raises where not even all ranges together suffice
    every = [
        span
        for window in (*site.windows, *site.spill)
        for span in site.usable.ranges & RangeSet([window.range])
    ]
    required = [must for _, must in site.required()]
    must = [span for span in every if any(map(span.overlaps, required))]
    largest = sorted(every, key=lambda span: (-span.size, span.start))
    some = sorted({*must, *largest[:_SPANS]})
    by_spans: dict[tuple[AddrRange, ...], list[Piece]] = {}
    for count in range(1, len(some) + 1):
        for chosen in combinations(some, count):
            if set(must) <= set(chosen):
                pieces, over = _flow_through(site, MappableRanges(chosen))
                if not over:
                    by_spans[tuple(piece.span for piece in pieces)] = pieces
        if by_spans and min(map(len, by_spans)) <= count:
            break
    least = min(map(len, by_spans), default=0)
    best = sorted((cost_of(spans, site.usable), spans) for spans in by_spans if len(spans) == least)
    for _, spans in best[:8]:
        yield _items(site, by_spans[spans])
    yield lowest  # the lowest end there is, if nothing else leaves room for what is above RAM


def _flow_through(site: Site, ranges: MappableRanges) -> tuple[list[Piece], int]:
    return site.flow(lambda window, align: site.room(window, align, ranges), spilling=True)


def _check_aligned(site: Site, pieces: Sequence[Piece]) -> None:
    """Refuse an alignment that keeps RAM away from where the machine must have it."""
    covered = RangeSet(piece.span for piece in pieces)
    for _, must in site.required():
        if not RangeSet([must]) <= covered:
            align = max(node.align for node in site.wanted.nodes)
            home = site.usable.ranges.range_at(must.start) or must
            cause = site.usable.edge_above(home.last)
            name = f"the first {format_size(must.size)} of RAM"
            part = Misfit(name, must, [cause], home.last + 1)
            raise RamBlocked([part], f"aligned to {format_size(align)}")


def _items(site: Site, pieces: Sequence[Piece]) -> list[Item]:
    """Pieces of RAM as items, with what cut them: nothing where machine or size did."""
    items: list[Item] = []
    before: AddrRange | None = None
    for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
        span, window = piece.span, piece.window
        home = site.usable.ranges.range_at(span.start)
        start_cause = last_cause = None
        if home != before:
            start_cause = site.pushed(span.start, window.range.start)
        if after is not None and span.last < window.range.last:
            same_home = home is not None and after.span.start in home
            last_cause = None if same_home else site.cause_above(span.last)
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


# -- in the machine's own place, or moved as a whole -----------------------------------------------


def _whole(site: Site, policy: Policy) -> PlacedRam:
    """Leave everything in the machine's own place, or move what may move as a whole."""
    pieces, over = site.as_machine()
    if over:
        raise _left_over(site, over)
    free, moves = site.usable.ranges.as_set(), policy.on_hole is HolePolicy.MOVE
    blocked: list[Misfit] = []
    done: Done = "as is"
    notes: list[Note] = []
    used = [window for window in site.windows if any(p.window is window for p in pieces)]
    for window in used:
        spans = [piece.span for piece in pieces if piece.window is window]
        hull = AddrRange(spans[0].start, spans[-1].last)
        topmost = window is used[-1]
        in_hole = not RangeSet(spans) <= free
        window_in_hole = topmost and moves and site.window_meets_hole(hull.last)
        if not in_hole and not window_in_hole:
            continue
        target = _target(site, window, spans) if moves and window.movable and topmost else None
        if target is not None:
            shift = target - hull.start
            pieces = [_shifted(p, shift) if p.window is window else p for p in pieces]
            done = "move"
            if window.movable_note:
                notes.append(Note(window.movable_note))
        elif in_hole:
            blocked.append(_blocked(site, _ram_of(window.name), hull))
    if blocked:
        raise RamBlocked(blocked, f"on-hole {policy.on_hole.text}")
    return _unblocked(site, pieces, done, notes, f"on-hole {policy.on_hole.text}")


def _cut(site: Site, piece: Piece) -> Iterator[Piece]:
    """Cut RAM at the seams of the kernel's list, each piece being one mapping."""
    left = piece.left + piece.span.size
    for part in site.usable.ranges & RangeSet([piece.span]):
        left -= part.size
        yield replace(piece, span=part, left=left)


def _target(site: Site, window: RamWindow, spans: Sequence[AddrRange]) -> int | None:
    """Where all of a window's RAM goes instead, or None."""
    base, last = spans[0].start, spans[-1].last
    if window.move_to is not None:
        starts: list[int] = [window.move_to]
    else:
        step = max(GIB, *(node.align for node in site.wanted.nodes))
        starts = [-(-home.start // step) * step for home in site.usable.ranges]
    free = site.usable.ranges.as_set()
    for start in starts:
        shift = start - base
        if last + shift > ADDRESS_LAST or start < window.range.start:
            continue
        moved = RangeSet(AddrRange(s.start + shift, s.last + shift) for s in spans)
        if moved <= free and not site.window_meets_hole(last + shift):
            return start
    return None


def _shifted(piece: Piece, shift: int) -> Piece:
    return replace(piece, span=AddrRange(piece.span.start + shift, piece.span.last + shift))


# -- IOVAs chosen by the allocator -----------------------------------------------------------------


def _translated(site: Site, policy: Policy) -> PlacedRam:
    """Guest RAM is contiguous for the guest; its IOVAs come from the allocator."""
    window, ram = site.windows[0], site.wanted.ram
    allocator = IovaAllocator(site.usable)
    align = max(node.align for node in site.wanted.nodes)
    if window.range.start + ram - 1 > site.wanted.address_last:
        limit = site.wanted.address_last + 1 - window.range.start
        raise RamTooWide("ram", AddrRange.from_size(window.range.start, ram), fits=limit)
    done: Done = "as is"
    try:
        spans = [AddrRange.from_size(_in_one(allocator, ram, align), ram)]
    except NoSpaceError as error:
        if policy.on_hole not in (HolePolicy.SPLIT, HolePolicy.AUTO):
            largest = error.largest_free or AddrRange(0, ADDRESS_LAST)
            cause = site.usable.edge_above(largest.last)
            part = Misfit("ram in one piece", largest, [cause], error.largest_aligned)
            raise RamBlocked([part], f"on-hole {policy.on_hole.value}") from error
        spans = _spread(site, allocator, align)
        done = "split"
    items, gpa = [], window.range.start
    for index, span in enumerate(spans):
        below, last = site.cause_below(span.start), index == len(spans) - 1
        above = None if last else site.cause_above(span.last)
        for iova, node in _of_nodes(site, span, gpa - window.range.start):
            place = AddrRange.from_size(gpa + iova.start - span.start, iova.size)
            starts = below if iova.start == span.start else None
            stops = above if iova.last == span.last else None
            items.append(Item(ItemKind.RAM, window.name, place, iova, starts, stops, node=node))
        gpa += span.size
    return PlacedRam(tuple(items), done)


def _of_nodes(site: Site, span: AddrRange, offset: int) -> Iterator[tuple[AddrRange, str | None]]:
    """Cut a span, `offset` bytes into all RAM, where a node ends."""
    at = 0
    for node in site.wanted.nodes:
        start, last = max(at, offset), min(at + node.size, offset + span.size) - 1
        if start <= last:
            yield AddrRange(span.start + start - offset, span.start + last - offset), node.name
        at += node.size


def _in_one(allocator: IovaAllocator, ram: int, align: int) -> int:
    """Allocate all RAM in one piece, so that the largest pages can map it if there is room."""
    for page in HUGE_PAGES:
        if ram >= page:
            try:
                return allocator.allocate(ram, align=max(page, align))
            except NoSpaceError:
                continue
    return allocator.allocate(ram, align=align)


def _spread(site: Site, allocator: IovaAllocator, align: int) -> list[AddrRange]:
    """Take free spans from the bottom until all RAM has its place."""
    left, spans = site.wanted.ram, []
    for free in list(allocator.free_spans()):
        room = (free if free.start else AddrRange(1, free.last)).align_inward(align)
        if left and room is not None:
            size = min(left, room.size)
            spans.append(AddrRange.from_size(allocator.allocate_at(room.start, size), size))
            left -= size
    if left:
        raise _left_over(site, left)
    return spans


# -- what does not fit -----------------------------------------------------------------------------


def _blocked(site: Site, item: str, span: AddrRange) -> Misfit:
    fits = min(site.usable.room_at(span.start), span.size)
    return Misfit(item, span, site.usable.causes_of(span), fits)


def _left_over(site: Site, over: int) -> RamLeft:
    spans = RangeSet(window.range for window in (*site.windows, *site.spill))
    causes = [cause for span in spans for cause in site.usable.causes_of(span)]
    top = site.usable.ranges.hull
    where = AddrRange(top.last if top else 0, ADDRESS_LAST)
    return RamLeft("ram", where, causes, site.wanted.ram - over)
