# SPDX-License-Identifier: Apache-2.0
"""Usable ranges: what may be mapped on a host, every edge with its cause. Made by `host.judge`."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.errors import ApertureError, PlacementError, ReservedError, StraddleError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet

if TYPE_CHECKING:
    from vmm_iova.host.evidence import Evidence
    from vmm_iova.host.model import EmptyRegion, Group, Limits, Note, ReservedRegion


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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class UsableRange:
    """One usable range, with the cause of each edge."""

    range: AddrRange
    start_cause: Cause
    last_cause: Cause


@dataclass(frozen=True, slots=True)
class Unassignable:
    """A group that current kernels keep from user space, and the `direct` region that does it."""

    group: Group
    region: ReservedRegion | EmptyRegion
    text: str


@dataclass(frozen=True, slots=True)
class Usable:
    """What may be mapped for a selection of groups of one host, and why not the rest.

    Attributes:
        host: name of the host.
        ranges: usable IOVAs, whole granules, each a place for one mapping.
        causes: everything that takes addresses out, in order of precedence.
        granule: smallest mapping unit in bytes.
        granule_text: where the granule comes from.
        granule_known: False when no source states it, and the safe one was taken.
        page_sizes: bitmap of IOMMU page sizes, or None when not known.
        limits: limits on mapping that the host states.
        evidence: aperture evidence that counted, strongest first.
        unassignable: groups that current kernels will not hand out; say these first.
        relaxable: `direct-relaxable` regions that are usable here, with a warning.
        regions: all reserved regions of the selection.
        groups: ids of the selected groups.
        notes: what a person should know; the sources' notes first.

    Synchronization: none required (immutable).
    """

    host: str
    ranges: MappableRanges
    causes: tuple[Cause, ...]
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
    notes: tuple[Note, ...]

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
            text = "seam: two ranges touch here, and one mapping must lie inside one"
            return Cause(CauseKind.SEAM, AddrRange(address, address), text)
        return self._cause_at(address)

    def causes_of(self, window: AddrRange) -> tuple[Cause, ...]:
        """Return what forbids parts of `window`, ascending; empty if all of it is usable.

        Where several causes cover the same bytes, the most telling one is named.

        Complexity: O(holes in the window x causes).
        """
        found: list[Cause] = []
        for hole in RangeSet([window]) - self.ranges.as_set():
            address: int | None = hole.start
            while address is not None and address <= hole.last:
                cause = self._cause_at(address)
                found.append(cause)
                address = self._next_after(cause, address)
        return tuple(dict.fromkeys(found))

    def _cause_at(self, address: int) -> Cause:
        for cause in self.causes:
            if address in cause.range:
                return cause
        for cause in self.causes:  # the rest of a granule that a hole only touches
            if address in cause.range.align_outward(self.granule):
                return cause
        return Cause(
            CauseKind.GRANULE,
            AddrRange(address, address | (self.granule - 1)),
            f"less than a granule of {self.granule:#x} bytes",
        )

    def _next_after(self, cause: Cause, address: int) -> int | None:
        last = max(cause.range.align_outward(self.granule).last, address)
        return None if last >= ADDRESS_LAST else last + 1

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
                f"{wanted} crosses {seam:#x}, where two ranges of the kernel's list touch: "
                "one mapping must lie inside one range",
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
