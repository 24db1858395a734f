# SPDX-License-Identifier: Apache-2.0
"""Where RAM goes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.check import HOLES, Reason
from vmm_iova.errors import NoSpaceError, PlanError
from vmm_iova.host.facts import Note
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.page_tables import cost_of
from vmm_iova.planning.refuse import Refusals
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.allocator import IovaAllocator
    from vmm_iova.machines.model import RamWindow
    from vmm_iova.planning.site import Piece

_GIB = 1 << 30
_SPANS = 12  # ranges that `fewest` chooses among: 4096 choices


class Ram(Refusals):
    """The step that places RAM."""

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

    def _split(self) -> list[Item]:
        """Fill the windows in order, around the holes."""
        self._check_required()
        pieces, over = self._flow(self._room, spilling=True)
        self._check_aligned(pieces)
        if over:
            raise self._too_little(over)
        return self._items(pieces)

    def _fewest(self) -> Iterator[list[Item]]:
        """Fill some of the ranges only: the fewest pieces first.

        Raises:
            PlanError: not even all ranges together suffice.
        """
        whole = self._split()  # raises what there is to say
        every = [
            span
            for window in (*self.windows, *self.spill)
            for span in self.usable.ranges & RangeSet([window.range])
        ]
        must = [span for span in every if any(span.overlaps(r) for r in self._required())]
        largest = sorted(every, key=lambda span: (-span.size, span.start))
        some = sorted({*must, *largest[:_SPANS]})
        found: dict[tuple[AddrRange, ...], list[Piece]] = {}
        for count in range(1, len(some) + 1):
            for chosen in combinations(some, count):
                if set(must) <= set(chosen):
                    self.allowed = MappableRanges(chosen)
                    pieces, over = self._flow(self._room, spilling=True)
                    if not over:
                        found[tuple(piece.span for piece in pieces)] = pieces
            if found and min(map(len, found)) <= count:
                break
        self.allowed = self.usable.ranges
        least = min(map(len, found), default=0)
        best = sorted(
            (cost_of(spans, self.usable), spans) for spans in found if len(spans) == least
        )
        for _, spans in best[:8]:
            yield self._items(found[spans])
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

    def _check_aligned(self, pieces: Sequence[Piece]) -> None:
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

    def _items(self, pieces: Sequence[Piece]) -> list[Item]:
        """Pieces of RAM as items, with what cut them: nothing where machine or size did."""
        items: list[Item] = []
        before: AddrRange | None = None
        for index, piece in enumerate(pieces):
            span, window = piece.span, piece.window
            home = self.usable.ranges.range_at(span.start)
            start_cause = last_cause = None
            if span.start > window.range.start and home != before:
                start_cause = self._pushed(span.start, window.range.start)
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
            elif self.machine.pci64 is not None and window.move_to is not None:
                # QEMU moves RAM in this case whatever the host allows, and then fails.
                place = self._window_place(hull.last)
                assert place is not None  # it meets a hole
                reasons += self._reasons("the 64-bit PCI window behind RAM", place)
        if reasons:
            raise self._refusal(reasons, f"on-hole {self.on_hole}")
        parts = [part for piece in pieces for part in self._cut(piece)]
        if len(parts) > len(pieces):
            self.notes.append(
                Note(
                    "the VMM must map RAM in one call for each piece, cut at the seams of the "
                    "kernel's list: one call for all of it, as QEMU makes, fails with EINVAL"
                )
            )
        return self._items(parts)

    def _cut(self, piece: Piece) -> Iterator[Piece]:
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

    # -- IOVA chosen by the allocator ------------------------------------------------------------

    def _translated(self) -> list[Item]:
        """Guest RAM is contiguous for the guest; its IOVAs come from the allocator."""
        from vmm_iova.allocator import IovaAllocator  # loads the engine, which few plans need

        window = self.windows[0]
        allocator = IovaAllocator(self.usable)
        align = max(node.align for node in self.wanted.nodes)
        if window.range.start + self.ram - 1 > self.wanted.address_last:
            raise self._too_wide(AddrRange.from_size(window.range.start, self.ram))
        try:
            spans = [AddrRange.from_size(self._in_one(allocator, align), self.ram)]
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

    def _in_one(self, allocator: IovaAllocator, align: int) -> int:
        """Allocate all RAM in one piece, so that the largest pages can map it if there is room."""
        for page in (_GIB, 1 << 21):
            if self.ram >= page > align:
                try:
                    return allocator.allocate(self.ram, align=page)
                except NoSpaceError:
                    continue
        return allocator.allocate(self.ram, align=align)

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
            raise self._too_little(left)
        return spans


def _shifted(piece: Piece, shift: int) -> Piece:
    return replace(piece, span=AddrRange(piece.span.start + shift, piece.span.last + shift))
