# SPDX-License-Identifier: Apache-2.0
"""Usable ranges: what may be mapped on a host, every edge with its cause. Made by `host.judge`."""

from __future__ import annotations

import enum
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING

from vmm_iova import shown
from vmm_iova.errors import ApertureError, PlacementError, ReservedError, StraddleError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_iova.host.evidence import Evidence
    from vmm_iova.host.facts import EmptyRegion, Group, Limits, Note, ReservedRegion
    from vmm_iova.host.obstacles import Obstacle
    from vmm_iova.host.registers import Width


class CauseKind(enum.Enum):
    """Why an address is not usable."""

    REGION = "reserved region"
    PLATFORM = "fixed by the platform"
    KERNEL_GAP = "left out of the kernel's list"
    APERTURE = "outside of the aperture"
    TOP_PAGE = "last page below 2^64"
    SPACE = "end of the 64-bit space"
    SEAM = "seam between two ranges"
    GRANULE = "less than a granule"
    GUEST = "kept for the guest"
    GUEST_WIDTH = "beyond the guest's addresses"
    ZERO = "address 0, which is not chosen by itself"
    SAVED = "as a saved layout has it"


_OF_THE_KERNEL = (CauseKind.REGION, CauseKind.PLATFORM, CauseKind.KERNEL_GAP, CauseKind.APERTURE)


@record
class Cause:
    """What forbids a span, or ends a range.

    Attributes:
        kind: what sort of cause.
        range: the span that it takes out; for a seam or an end of space, the address beside it.
        text: one clause for messages, naming region, group and source.
        region: the reserved region, where it is one.
    """

    kind: CauseKind
    range: AddrRange
    text: str
    region: ReservedRegion | None = None

    def __str__(self) -> str:
        return self.text


@record
class UsableRange:
    """One usable range, with the cause of each edge."""

    range: AddrRange
    start_cause: Cause
    last_cause: Cause


@record
class Unassignable:
    """A group that current kernels keep from user space, and the `direct` region that does it."""

    group: Group
    region: ReservedRegion | EmptyRegion
    text: str


@record
class Usable:
    """What may be mapped for a selection of groups of one host, and why not the rest.

    Attributes:
        host: name of the host.
        ranges: usable IOVAs, whole granules, each a place for one mapping.
        causes: everything that takes addresses out, in order of precedence.
        holes: what is taken out, cut so that each part has one cause: the first of `causes`.
        hole_causes: the cause of each part of `holes`.
        seams: why two ranges that touch at an address are not one.
        granule: smallest mapping unit in bytes.
        granule_text: where the granule comes from.
        granule_known: False when no source states it, the architecture has several, and the one
            that is right on all was taken.
        page_sizes: bitmap of IOMMU page sizes, or None when not known.
        limits: limits on mapping that the host states, and that count for who read its facts.
        evidence: aperture evidence that counted, strongest first.
        unassignable: groups that current kernels will not hand out; say these first.
        relaxable: `direct-relaxable` regions that are usable here, with a warning.
        regions: all reserved regions of the selection.
        groups: ids of the selected groups.
        arch: architecture of the host, where a fact says it.
        notes: what a person should know; the sources' notes first.
        widths: every address width that the facts state, side by side.
        cpu_bits: physical address bits of the host's CPU, or None when not known.
        later: those of `groups` that were joined to the selection, to be attached later.
        obstacles: what keeps the groups from user space as the host is set up now.

    Synchronization: none required (immutable).
    """

    host: str
    ranges: MappableRanges
    causes: tuple[Cause, ...]
    holes: MappableRanges
    hole_causes: Mapping[AddrRange, Cause]
    seams: Mapping[int, str]
    granule: int
    granule_text: str
    granule_known: bool
    page_sizes: int | None
    limits: Limits
    evidence: tuple[Evidence, ...]
    unassignable: tuple[Unassignable, ...]
    relaxable: tuple[ReservedRegion, ...]
    regions: tuple[ReservedRegion, ...]
    groups: tuple[str, ...]
    arch: str | None
    notes: tuple[Note, ...]
    widths: tuple[Width, ...] = ()
    cpu_bits: int | None = None
    later: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()

    def as_listed(self) -> MappableRanges:
        """Return what a kernel lists for these groups: also what is left out here by choice.

        That is the last page below 2^64, and what is less than a granule.

        Complexity: O(causes log).
        """
        cuts = (cause.range for cause in self.causes if cause.kind in _OF_THE_KERNEL)
        left = MappableRanges([AddrRange(0, ADDRESS_LAST)]) - RangeSet(cuts)
        for seam in self.seams:
            left = left.split_at(seam)
        return left

    def text(self, *, verbose: bool = False) -> str:
        """Return the whole space as lines: what is usable, and the cause of everything between.

        Args:
            verbose: sizes in bytes.
        """
        return shown.text_of(self, verbose=verbose)

    def svg(self) -> str:
        """Return the picture as `vmm-iova show -o map.svg` draws it: a whole SVG document."""
        return shown.svg_of(self)

    _repr_svg_ = svg

    def _repr_html_(self) -> str:
        return shown.html_of(self)

    def narrowed(self, causes: Sequence[Cause]) -> Usable:
        """Return these ranges without what more causes take out.

        What was not usable before keeps its cause.

        Complexity: O((ranges + causes) log).
        """
        return self._recut(causes) if causes else self

    def _recut(self, causes: Sequence[Cause]) -> Usable:
        every = (*self.causes, *causes)
        parts = cut_holes(every)
        ranges = self.ranges - RangeSet(cause.range for cause in causes)
        return replace(
            self,
            ranges=ranges.align_inward(self.granule),
            causes=every,
            holes=MappableRanges(parts),
            hole_causes=parts,
        )

    def joined(self, other: Usable) -> Usable:
        """Return what is usable here and, too, for another selection of groups of this host.

        What the other one alone takes out says so in its cause; its devices that cannot be assigned
        and its regions count as well.

        Complexity: O((ranges + causes) log).
        """
        named = ", ".join(other.groups) or other.host
        ours = {(cause.range, cause.text) for cause in self.causes}
        more = [
            replace(cause, text=f"{cause.text} (to also fit {named})")
            for cause in other.causes
            if (cause.range, cause.text) not in ours
        ]
        coarse = self if self.granule >= other.granule else other
        start = replace(
            self,
            ranges=self.ranges & other.ranges,
            granule=coarse.granule,
            granule_text=coarse.granule_text,
            granule_known=self.granule_known and other.granule_known,
            seams={**other.seams, **self.seams},
            page_sizes=_common(self.page_sizes, other.page_sizes),
            unassignable=tuple(dict.fromkeys((*self.unassignable, *other.unassignable))),
            relaxable=tuple(dict.fromkeys((*self.relaxable, *other.relaxable))),
            regions=tuple(dict.fromkeys((*self.regions, *other.regions))),
            groups=tuple(dict.fromkeys((*self.groups, *other.groups))),
            later=(*self.later, *(name for name in other.groups if name not in self.groups)),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
            widths=tuple(dict.fromkeys((*self.widths, *other.widths))),
            obstacles=tuple(dict.fromkeys((*self.obstacles, *other.obstacles))),
        )
        for seam, text in start.seams.items():
            if seam % start.granule:
                cut = AddrRange(seam, seam).align_outward(start.granule)
                clause = f"granules of {start.granule:#x} bytes that a seam cuts: {text}"
                more.append(Cause(CauseKind.GRANULE, cut, clause))
        return start._recut(more)

    @property
    def edges(self) -> tuple[UsableRange, ...]:
        """The usable ranges with the cause of both edges, ascending."""
        return tuple(
            UsableRange(item, self.edge_below(item.start), self.edge_above(item.last))
            for item in self.ranges
        )

    def edge_below(self, start: int) -> Cause:
        """Say why the address below `start`, the start of a usable range, is not part of it."""
        return self._beside(start - 1)

    def edge_above(self, last: int) -> Cause:
        """Say why the address above `last`, the last of a usable range, is not part of it."""
        return self._beside(last + 1)

    def _beside(self, address: int) -> Cause:
        if not 0 <= address <= ADDRESS_LAST:
            clamped = min(max(address, 0), ADDRESS_LAST)
            text = f"{'bottom' if address < 0 else 'top'} of the 64-bit space"
            return Cause(CauseKind.SPACE, AddrRange(clamped, clamped), text)
        if address in self.ranges:
            return self._seam(address if address in self.seams else address + 1)
        return self._cause_at(address)

    def _seam(self, start: int) -> Cause:
        """Why two ranges touch at `start` without being one."""
        text = self.seams.get(start, "a granule that was rounded away")
        whole = f"seam at {start:#x}, which no mapping may cross: {text}"
        return Cause(CauseKind.SEAM, AddrRange(start, start), whole)

    def causes_of(self, window: AddrRange) -> tuple[Cause, ...]:
        """Return what forbids parts of `window`, ascending; empty if all of it is usable.

        Where several causes cover the same bytes, the most telling one is named.

        Complexity: O(log n + holes in the window).
        """
        causes: dict[Cause, None] = {}
        for gap in self._gaps(window):
            # A hole takes the whole granules that it touches, so look as far as they reach.
            touched = self.holes.overlapping(gap.align_outward(self.granule))
            causes.update(dict.fromkeys(self.hole_causes[hole] for hole in touched))
        return tuple(causes)

    def _gaps(self, window: AddrRange) -> Iterator[AddrRange]:
        """What of a window is not usable, ascending."""
        start = window.start
        for item in self.ranges.overlapping(window):
            if start < item.start:
                yield AddrRange(start, item.start - 1)
            start = item.last + 1
        if start <= window.last:
            yield AddrRange(start, window.last)

    def _cause_at(self, address: int) -> Cause:
        block = AddrRange(address, address).align_outward(self.granule)
        hole = self.holes.range_at(address) or self.holes.overlapping(block)[0]
        return self.hole_causes[hole]

    def room_at(self, start: int) -> int:
        """Return how many bytes one mapping at `start` could have; 0 if `start` is not usable."""
        home = self.ranges.range_at(start)
        return 0 if home is None else home.last - start + 1

    def refusal(self, wanted: AddrRange) -> PlacementError | None:
        """Return the error that says why `wanted` cannot be one mapping, or None if it can.

        The error is ReservedError (which region, group and source), ApertureError (with the last
        usable address below) or StraddleError.

        Complexity: O(log n) when it can.
        """
        if wanted in self.ranges:
            return None
        causes = self.causes_of(wanted)
        if not causes:
            seam = next(seam for seam in self.ranges.seams if seam > wanted.start)
            return StraddleError(
                f"{wanted} is no single mapping: {self._seam(seam).text}",
                range=wanted,
                seam=seam,
            )
        cause = causes[0]
        room = self.room_at(wanted.start)
        detail = f"at {wanted.start:#x} at most {room:#x} bytes fit" if room else None
        if cause.kind in (CauseKind.REGION, CauseKind.PLATFORM, CauseKind.KERNEL_GAP):
            return ReservedError(
                f"{wanted} touches {cause.range}: {cause.text}",
                range=wanted,
                region=cause.range,
                cause=cause.text,
                detail=detail,
            )
        below = [item.last for item in self.ranges if item.last < max(cause.range.start, 1)]
        limit = max(below, default=None)
        return ApertureError(
            f"{wanted} is outside of what may be mapped: {cause.text}",
            range=wanted,
            limit=limit,
            detail=detail or (f"the last usable address below is {limit:#x}" if limit else None),
        )


def _common(ours: int | None, theirs: int | None) -> int | None:
    """Page sizes of both; those of one where the other does not say."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours & theirs


def cut_holes(causes: Sequence[Cause]) -> dict[AddrRange, Cause]:
    """Cut overlapping causes into parts, ascending, each with the first cause that covers it.

    Complexity: O(n log n).
    """
    starts = sorted((cause.range.start, rank) for rank, cause in enumerate(causes))
    cuts = sorted({cause.range.start for cause in causes} | {c.range.last + 1 for c in causes})
    open_: list[int] = []  # ranks of causes that have begun, the first in precedence on top
    parts: dict[AddrRange, Cause] = {}
    begun = 0
    for start, stop in pairwise(cuts):
        while begun < len(starts) and starts[begun][0] <= start:
            heappush(open_, starts[begun][1])
            begun += 1
        while open_ and causes[open_[0]].range.last < start:
            heappop(open_)
        if open_:
            parts[AddrRange(start, stop - 1)] = causes[open_[0]]
    return parts
