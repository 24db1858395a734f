# SPDX-License-Identifier: Apache-2.0
"""Everything that the kernel would refuse, found and explained before the first ioctl.

The kernel has one word, EINVAL, for a misaligned address, a hole and a wrap. Here each has its own
error with the piece, the number and what would do. All problems are reported, not the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vmm_iova import remedies as say
from vmm_iova.errors import (
    ApertureError,
    EvidenceError,
    IovaError,
    LimitError,
    MisalignedError,
    OccupiedError,
    RangeOverflowError,
    RequestError,
    ReservedError,
    StraddleError,
)
from vmm_iova.kernel.syscalls import PAGE_SIZE
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.errors import PlacementError
    from vmm_iova.kernel.book import LiveMapping
    from vmm_iova.kernel.space import AddressSpace, SpaceFacts
    from vmm_iova.mapping.piece import Piece


class Judge(Protocol):
    """What can say why a range is refused, such as `vmm_iova.Usable`."""

    @property
    def ranges(self) -> MappableRanges:
        """Where mappings may lie."""

    def refusal(self, range: AddrRange, /) -> PlacementError | None:  # noqa: A002
        """Return why a range cannot be mapped, or None when it can."""


def precheck(
    space: AddressSpace, pieces: Sequence[Piece], *, usable: Judge | None = None
) -> tuple[IovaError, ...]:
    """Find every reason why the kernel would refuse one of these pieces.

    Only what is already known is looked at: one query of the facts, no mapping is tried. Whether
    memory is there, and how much other processes of the same user have locked in iommufd, only the
    kernel knows.

    Args:
        space: where they are to go.
        pieces: what is to be mapped.
        usable: the host's judge; names causes, stands in where the kernel gives no ranges, and
            narrows them where it knows of a hole that a later attach would take away.

    Returns:
        The problems, in the order of the pieces, limits last; empty when all is well.

    Raises:
        EvidenceError: neither the kernel nor a judge says which addresses are valid.
        DmaError: the kernel does not answer the query.

    Complexity: O(n log n + m log m) for n pieces and m live mappings.
    Synchronization: external.
    """
    facts = space.facts()
    refusal = facts.ranges if facts.final else None  # before an attach a list means nothing
    ranges = refusal if refusal is not None else usable.ranges if usable else None
    if ranges is None:
        raise EvidenceError(
            "nothing says which IOVAs this container can map",
            looked_at=[
                f"{facts.source}: no list of ranges (Linux before 5.4, or no IOMMU)"
                if facts.final
                else f"{facts.source}: no device is attached yet, so its list means nothing"
            ],
            settles=["the host's facts: pass usable=host.usable(...)", "Linux 5.4"],
        )
    problems: list[IovaError] = []
    sound: list[tuple[Piece, AddrRange]] = []
    for piece in pieces:
        wrong = list(_shape(piece, facts.granule))
        problems += wrong
        try:
            where = piece.range
        except RequestError:
            continue  # _shape has said so
        sound.append((piece, where))
        if not wrong:
            problem = _place(piece, where, ranges, usable, facts)
            if problem is not None:
                problems.append(problem)
    problems += _overlaps(space, sound)
    problems += _limits(space, facts, [piece for piece, _ in sound])
    return tuple(problems)


def _shape(piece: Piece, granule: int) -> Iterator[IovaError]:
    """Sizes and alignments, which need no knowledge of the host but its granule."""
    if piece.size < 1:
        yield RequestError(f"{piece} has no bytes", field="size", value=piece.size)
        return
    if not (piece.read or piece.write):
        yield RequestError(f"{piece} may be neither read nor written", field="read", value=False)
    if piece.size > ADDRESS_LAST:
        yield RangeOverflowError(
            f"{piece} has more bytes than one call can name, 2^64-1",
            field="size",
            value=piece.size,
        )
        return
    for field, start in (("iova", piece.iova), ("hva", piece.hva)):
        if start < 0 or start + piece.size - 1 > ADDRESS_LAST:
            yield RangeOverflowError(
                f"{piece}: from {field} {start:#x} on it reaches beyond 2^64-1",
                field=field,
                value=start,
            )
    for field, value in (("iova", piece.iova), ("hva", piece.hva), ("size", piece.size)):
        if value % granule:
            yield MisalignedError(
                f"{piece}: {field} {value:#x} is not a multiple of the granule {granule:#x}",
                field=field,
                value=value,
                align=granule,
            )


def _place(
    piece: Piece,
    where: AddrRange,
    ranges: MappableRanges,
    usable: Judge | None,
    facts: SpaceFacts,
) -> IovaError | None:
    refusal = usable.refusal(where) if usable is not None else None
    if refusal is not None:
        refusal.add_note(f"for {piece}")
        return refusal
    if where in ranges:
        return None
    if where in RangeSet(ranges):
        seam = next(seam for seam in ranges.seams if where.start < seam <= where.last)
        return StraddleError(
            f"{piece} crosses {seam:#x}, where two ranges of the kernel touch",
            range=where,
            seam=seam,
        )
    hull = ranges.hull
    if hull is None or where.last > hull.last or where.start < hull.start:
        below = [item.last for item in ranges if item.last < where.last]
        text = "nothing" if hull is None else str(hull)
        return ApertureError(
            f"{piece} lies outside of what the IOMMU translates, {text}",
            range=where,
            limit=max(below) if below else None,
            detail=f"told by {facts.source}",
        )
    hole = next(gap for gap in ~RangeSet(ranges) if gap.overlaps(where))
    return ReservedError(
        f"{piece} touches {hole}, which the kernel keeps",
        range=where,
        region=hole,
        cause=facts.source,
        detail=f"{facts.source} leaves {hole} out",
    )


def _overlaps(
    space: AddressSpace, pieces: list[tuple[Piece, AddrRange]]
) -> Iterator[OccupiedError]:
    ascending = sorted(pieces, key=lambda item: item[1])
    widest: tuple[Piece, AddrRange] | None = None
    for piece, where in ascending:
        if widest is not None and where.start <= widest[1].last:
            yield OccupiedError(
                f"{piece} overlaps {widest[0]}",
                range=where,
                owner=widest[0].tag,
                owner_range=widest[1],
            )
        if widest is None or where.last > widest[1].last:
            widest = (piece, where)
        live = space.live.overlapping(where)
        if live:
            yield OccupiedError(
                f"{piece} overlaps the live mapping {live[0].range}, made at {live[0].place}",
                range=where,
                owner=None,
                owner_range=live[0].range,
                hint=say.UNMAP_SAME,
            )


def _limits(space: AddressSpace, facts: SpaceFacts, pieces: list[Piece]) -> Iterator[LimitError]:
    if facts.entries_left is not None and len(pieces) > facts.entries_left:
        in_use = len(space.live)
        yield LimitError(
            f"{len(pieces)} pieces need as many entries, and {facts.entries_left} are left",
            limit="dma_entry_limit",
            needed=in_use + len(pieces),
            available=facts.entries_left,
            hint=say.ENTRIES_NUMBER.format(entries=in_use + len(pieces)),
        )
    budget = space.lock_budget()
    if budget.limit is None:
        return
    # The kernel counts whole pages, and each mapping anew (vfio_pin_pages_remote).
    wanted = sum(-(-piece.size // PAGE_SIZE) * PAGE_SIZE for piece in pieces)
    if budget.locked + wanted > budget.limit:
        needed = budget.locked + wanted
        yield LimitError(
            f"{format_size(wanted)} would be locked, and of RLIMIT_MEMLOCK "
            f"{format_size(max(budget.limit - budget.locked, 0))} is left",
            limit="RLIMIT_MEMLOCK",
            needed=needed,
            available=max(budget.limit - budget.locked, 0),
            hint=say.LOCK_NUMBER.format(kib=-(-needed // 1024), size=needed),
        )


# -- attach rehearsal: what would be in the way, and what the ranges would become ----------------


class Allocations(Protocol):
    """What can say what is allocated, such as `vmm_iova.IovaAllocator`."""

    def __iter__(self) -> Iterator[Owned]:
        """Yield the allocations, ascending."""


class Owned(Protocol):
    """One allocation."""

    @property
    def range(self) -> AddrRange:
        """Its addresses."""

    @property
    def tag(self) -> object:
        """Its tag."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The answer.

    Attributes:
        ranges: what the space's ranges would become.
        lost: what would no longer be mappable, ascending.
        mappings: live mappings in the way, each with the reason; the kernel would refuse.
        allocations: allocations in the way: `(range, tag, reason)`; the kernel does not know of
            them, but their next map would be refused.
        refusal: why the group cannot be attached at all, or None.
    """

    ranges: MappableRanges
    lost: tuple[AddrRange, ...]
    mappings: tuple[tuple[LiveMapping, PlacementError | None], ...]
    allocations: tuple[tuple[AddrRange, object, PlacementError | None], ...]
    refusal: str | None = None

    @property
    def would_attach(self) -> bool:
        """Whether the kernel would take the group now."""
        return not self.mappings and self.refusal is None and bool(self.ranges)


def rehearse_attach(
    space: AddressSpace, newcomer: Judge, *, allocator: Allocations | None = None
) -> Rehearsal:
    """Answer what attaching a group now would do, without attaching it.

    The kernel's own answer is EINVAL (type1) or EADDRINUSE (iommufd), and names nothing.

    Args:
        space: as it is now.
        newcomer: the judge's answer for the group alone: `host.usable(groups=[23])`.
        allocator: whose allocations are to be looked at, too.

    Returns:
        What is in the way, and the new ranges.

    Raises:
        DmaError: the kernel does not tell the present ranges.

    Complexity: O(n log r) for n mappings and r ranges.
    Synchronization: external.
    Source: vfio_iommu_aper_conflict, vfio_iommu_resv_conflict (Linux 5.4).
    """
    now = space.facts().ranges
    after = newcomer.ranges if now is None else now & newcomer.ranges
    lost = () if now is None else tuple(now.as_set() - after.as_set())
    mappings = tuple(
        (item, newcomer.refusal(item.range)) for item in space.live if item.range not in after
    )
    allocations = tuple(
        (item.range, item.tag, newcomer.refusal(item.range))
        for item in (allocator if allocator is not None else ())
        if item.range not in after
    )
    refused = [item.text for item in getattr(newcomer, "unassignable", ())]
    return Rehearsal(after, lost, mappings, allocations, "; ".join(refused) or None)
