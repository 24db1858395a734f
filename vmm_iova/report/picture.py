# SPDX-License-Identifier: Apache-2.0
"""What a picture of an address space shows: boxes in columns, and remarks beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.evidence import familiar
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.planning.layout import Item, ItemKind, Layout
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet
from vmm_iova.record import record
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@record
class Box:
    """One rectangle: what it covers, how it looks, what it says."""

    id: str
    css: str
    range: AddrRange
    name: str
    title: str
    detail: str = ""  # a line of its own, for addresses
    proof: str = ""  # where it comes from, for a remark
    aside: bool = False  # right of what it overlaps: only devices see it

    @property
    def stop(self) -> int:
        """The address behind it; 2^64 behind the last one."""
        return self.range.last + 1


@record
class Remark:
    """What is said beside a column about an edge, or the span from `start` up to `stop`."""

    start: int
    stop: int
    head: str
    proof: str
    title: str
    css: str = "aside"


# -- what is to be seen: the host ------------------------------------------------------------------


def _noun(cause: Cause) -> str:
    """A cause in a few words."""
    known = familiar(cause.range)
    if known is not None:
        return known.removeprefix("the ")
    if cause.region is not None:
        return f"{cause.region.word} region"
    return {
        CauseKind.APERTURE: "end of the aperture" if cause.range.start else "start of the aperture",
        CauseKind.KERNEL_GAP: "left out by the kernel",
        CauseKind.SEAM: "seam: two ranges touch",
    }.get(cause.kind, cause.kind.value)


def _proof(cause: Cause) -> str:
    """Where a cause comes from, in one line."""
    if cause.region is None:
        return cause.text
    return f"{cause.range} {cause.region.word}, {cause.region.source}"


def host_boxes(usable: Usable, guest_last: int | None) -> list[Box]:
    """The boxes of the host, ascending; up to what ends the range above `guest_last`."""
    stop = ADDRESS_LAST + 1
    if guest_last is not None:
        home = usable.ranges.range_at(min(guest_last + 1, ADDRESS_LAST))
        stop = home.last + 1 if home else guest_last + 1
    boxes = [usable_box(span) for span in usable.ranges if span.start < stop]
    gaps = [gap for gap in ~usable.ranges.as_set() if gap.start <= stop]
    if gaps:  # asked once for all, because each question walks all ranges
        causes = list(reversed(usable.causes_of(AddrRange(0, gaps[-1].last))))
        for gap in gaps:
            boxes += _holes(usable, gap, stop, causes)
    for region in usable.relaxable:
        if guest_last is None or region.range.start <= guest_last:
            why = f"{region.range} {region.word}, {region.source}: once the host's driver let go"
            boxes = [part for box in boxes for part in _relaxed(box, region.range, why)]
    return sorted(boxes, key=lambda box: box.range)


def usable_box(span: AddrRange) -> Box:
    """A span that may be mapped."""
    title = f"usable {span}, {show_size(span.size)}"
    return Box(f"usable-{span.start:#x}", "usable", span, "usable", title)


def _holes(usable: Usable, gap: AddrRange, stop: int, causes: list[Cause]) -> Iterator[Box]:
    """One box for each cause in a gap between usable ranges, of those that begin up to `stop`.

    Takes the causes from the back of the list; none reaches from one gap into the next.
    """
    start = gap.start
    while start <= min(gap.last, stop) and causes:
        cause = causes.pop()
        reach = max(cause.range.align_outward(usable.granule).last, start)
        last = min(reach, gap.last) if causes else gap.last
        span = AddrRange(start, last)
        where, title = f"hole-{start:#x}", f"{span}, {show_size(span.size)}: {cause.text}"
        yield Box(where, "hole", span, _noun(cause), title, proof=_proof(cause))
        start = last + 1


def _relaxed(box: Box, region: AddrRange, why: str) -> list[Box]:
    """Mark what a relaxable region covers of a usable box; other boxes stay as they are."""
    shared = box.range.intersect(region) if box.css == "usable" else None
    if shared is None:
        return [box]
    where, name = f"relaxable-{shared.start:#x}", "usable with a warning: direct-relaxable or RMRR"
    rest = RangeSet([box.range]) - RangeSet([shared])
    marked = Box(where, "relaxable", shared, name, f"{name}\n{why}", proof=why)
    return [marked, *map(usable_box, rest)]


# -- what is to be seen: the guest -----------------------------------------------------------------


def guest_boxes(layout: Layout, view: str) -> list[Box]:
    """The boxes of the guest: as it sees them (`gpa`), as devices do (`iova`), or both in one."""
    boxes = []
    for index, item in enumerate(layout.items, 1):
        span = {"gpa": item.gpa, "iova": item.iova}.get(view, item.place)
        if span is not None:
            suffix = "-gpa" if view == "gpa" and item.iova else ""
            boxes.append(_item_box(item, f"item-{index}{suffix}", span))
    for index, told in enumerate(layout.guest_reserved if view != "iova" else (), 1):
        title, name = f"{told.range}: {told.cause}", "tell the guest: reserved"
        boxes.append(Box(f"reserved-{index}", "reserved", told.range, name, title))
    return boxes


def _item_box(item: Item, where: str, span: AddrRange) -> Box:
    is_ram = item.kind is ItemKind.RAM
    name = item.name if not is_ram else "RAM" if item.name.lower() == "ram" else f"RAM {item.name}"
    if item.node is not None:
        name += f", node {item.node}"
    lines = [
        f"{name}, {show_size(span.size)}",
        f"guest addresses {item.gpa}" if item.gpa else "not seen by the guest",
        f"IOVAs {item.iova}" if item.iova else "no device reaches it",
        f"starts after: {item.start_cause}" if item.start_cause else "",
        f"stops before: {item.last_cause}" if item.last_cause else "",
    ]
    title, detail = "\n".join(filter(None, lines)), str(span) if is_ram else ""
    return Box(where, item.kind.value, span, name, title, detail, aside=item.gpa is None)


def unused_boxes(usable: Usable | None, host: Sequence[Box], guest: Sequence[Box]) -> list[Box]:
    """Marks for what nobody uses: gaps, and the rest above the last item."""
    marks = []
    guest_last = max(box.range.last for box in guest)
    free = RangeSet(box.range for box in host if box.css == "usable")
    for gap in free - RangeSet(box.range for box in guest):
        if gap.start > guest_last and usable is not None:
            cause = usable.edge_above(gap.last)
            name, ends = f"usable up to {gap.last:#x}", f"then: {_noun(cause)}"
            marks.append(Box("rest", "rest", gap, name, f"{name}; ends: {cause.text}", ends))
        else:
            title = f"{gap}, {show_size(gap.size)}: nothing of the guest is here"
            marks.append(Box(f"gap-{gap.start:#x}", "gap", gap, "nothing here", title))
    return marks


def cut_remarks(layout: Layout, ram: str) -> Iterator[Remark]:
    """One remark for each cut: the range of the host that forced it, and its source.

    It stands where devices see the pieces, because what forced it is there, too.
    """
    of_host = set(layout.usable.causes)
    parts = [item for item in layout.items if item.kind in (ItemKind.RAM, ItemKind.WINDOW)]
    for below, item in zip([None, *parts], [*parts, None], strict=True):
        stops, starts = below and below.last_cause, item and item.start_cause
        low = (below.iova or below.place).last + 1 if below else 0
        high = (item.iova or item.place).start if item else low
        wanted = [(below, "stops before", stops, low), (item, "starts after", starts, high)]
        if stops and stops == starts:
            wanted = [(below, "goes around", stops, low)]
        for subject, verb, cause, at in wanted:
            if subject and cause:
                named = cause in of_host
                noun, proof = (_noun(cause), _proof(cause)) if named else (cause.text, "")
                what = f"{ram if subject.kind is ItemKind.RAM else subject.name} {verb}"
                stop = high if verb == "goes around" else at
                yield Remark(at, stop, f"{what}: {noun}", proof, f"{what}: {cause}", "cut")


def other_remarks(layout: Layout, host: Sequence[Box], proofs: set[str]) -> Iterator[Remark]:
    """What else of the host a reader should know: interrupt windows, and RAM that needs care."""
    for item in layout.items:
        cause = item.start_cause if item.kind is ItemKind.MSI else None
        if cause and _proof(cause) not in proofs:
            head, span = f"interrupts only: {_noun(cause)}", item.place
            yield Remark(span.start, span.last + 1, head, _proof(cause), cause.text)
    for box in host:
        if box.css == "relaxable" and any(item.place.overlaps(box.range) for item in layout.ram):
            yield hole_remark(box)


def hole_remark(box: Box) -> Remark:
    """Say beside a box what it is and where that is written."""
    return Remark(box.range.start, box.stop, box.name, box.proof, box.title)
