# SPDX-License-Identifier: Apache-2.0
"""Why not: what is in the way of a range or of a plan, and what would help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_iova.errors import PlanError
from vmm_iova.host.evidence import EvidenceKind
from vmm_iova.host.model import RegionKind
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MIB = 1 << 20
_SMALLEST_PAGE = 4096  # no kernel with an IOMMU has a smaller base page
HOLES = (CauseKind.REGION, CauseKind.PLATFORM, CauseKind.KERNEL_GAP, CauseKind.GUEST)
"""Causes that are holes inside the aperture, rather than an end of it."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one part cannot be where it should.

    Attributes:
        item: the part.
        range: where it should be.
        cause: what is in the way: region, group and source, or an edge of the aperture.
        fits: bytes that fit at the start of `range`.
    """

    item: str
    range: AddrRange
    cause: Cause
    fits: int

    def __str__(self) -> str:
        fits = f"; {show_size(self.fits)} fit there" if self.fits else ""
        return f"{self.item} at {self.range} meets {self.cause.range}: {self.cause.text}{fits}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one range may be one mapping.

    Attributes:
        range: what was asked.
        ok: True if it may.
        kind: `ok`, `conflict` (a hole is in the way), `outside_aperture`, `straddle` (it needs two
            mappings) or `granule` (misaligned).
        causes: everything in the way, ascending.
        room: bytes that fit at this start.
        limit: last usable address below what is in the way, or None.
        bits_needed: address bits that the range needs.
        pieces: what of the range may be mapped, one mapping each.
        next_fit: nearest address at which all of it fits, or None.
        warnings: what to know although it may be mapped.
        fixes: what can be done, the most promising first.
    """

    range: AddrRange
    ok: bool
    kind: str
    causes: tuple[Cause, ...]
    room: int
    limit: int | None
    bits_needed: int
    pieces: tuple[AddrRange, ...]
    next_fit: int | None
    warnings: tuple[str, ...]
    fixes: tuple[str, ...]


def check(usable: Usable, wanted: AddrRange) -> Verdict:
    """Say whether `wanted` may be one mapping and, if not, what forbids it and what would help.

    Complexity: O(holes).
    Synchronization: none required.
    """
    causes = usable.causes_of(wanted)
    ragged = (wanted.start | (wanted.last + 1)) % usable.granule
    kind = _kind(usable, wanted, causes, bool(ragged))
    room = min(usable.room_at(wanted.start), wanted.size)
    below = [item.last for item in usable.ranges if causes and item.last < causes[0].range.start]
    shared = usable.ranges & RangeSet([wanted])
    next_fit = _next_fit(usable, wanted) if kind != "ok" else wanted.start
    made = Verdict(
        range=wanted,
        ok=kind == "ok",
        kind=kind,
        causes=causes,
        room=room,
        limit=max(below, default=wanted.start + room - 1 if room else None),
        bits_needed=wanted.last.bit_length(),
        pieces=tuple(shared),
        next_fit=next_fit,
        warnings=tuple(_warnings(usable, wanted, bool(ragged))),
        fixes=(),
    )
    return made if made.ok else _with_fixes(made, usable)


def _kind(usable: Usable, wanted: AddrRange, causes: Sequence[Cause], ragged: bool) -> str:
    if causes:
        return "conflict" if causes[0].kind in HOLES else "outside_aperture"
    if wanted not in usable.ranges:
        return "straddle"
    if (wanted.start | (wanted.last + 1)) % _SMALLEST_PAGE:
        return "granule"
    return "granule" if ragged and usable.granule_known else "ok"


def _warnings(usable: Usable, wanted: AddrRange, ragged: bool) -> list[str]:
    found = [
        f"overlaps direct-relaxable {region.range} ({region.source}): allowed once the host's "
        "driver has let go of the device"
        for region in usable.relaxable
        if region.range.overlaps(wanted)
    ]
    if ragged and not usable.granule_known:
        found.append(
            f"not a multiple of {usable.granule:#x}: fails on a kernel with pages of that size "
            f"({usable.granule_text})"
        )
    return found


def _next_fit(usable: Usable, wanted: AddrRange) -> int | None:
    """Nearest place where all of it fits: the lowest above, else the highest below.

    The place is aligned as the one that was asked for, up to its size: a BAR must stay so.
    """
    size = wanted.size
    natural = wanted.start & -wanted.start or usable.granule
    align = max(min(natural, 1 << (size - 1).bit_length()), usable.granule)
    below = None
    for home in usable.ranges:
        start = -(-max(home.start, wanted.start) // align) * align
        if start + size - 1 <= home.last:
            return start
        highest = (home.last + 1 - size) // align * align
        if highest >= max(home.start, 1):  # 0 is not proposed by itself
            below = highest
    return below


def _with_fixes(verdict: Verdict, usable: Usable) -> Verdict:
    fixes = []
    wanted, next_fit = verdict.range, verdict.next_fit
    if verdict.kind == "granule":
        fixes.append(f"make start and size multiples of {usable.granule:#x}")
    if verdict.kind == "straddle":
        fixes.append("map it in pieces: " + ", ".join(map(str, verdict.pieces)))
    if verdict.kind == "outside_aperture":
        hull = usable.ranges.hull
        wide = verdict.causes[0].kind is CauseKind.APERTURE
        if wide and hull is not None and wanted.last > hull.last:
            bits = (hull.last + 1).bit_length() - 1
            fixes.append(
                f"keep guest addresses below {hull.last + 1:#x}: {bits} physical address bits for "
                f"the guest instead of {verdict.bits_needed} (QEMU: phys-bits={bits}; libvirt: "
                f"<maxphysaddr mode='emulate' bits='{bits}'/>)"
            )
    if next_fit is not None:
        fixes.append(f"another base: all of it fits at {next_fit:#x}")
    if verdict.kind == "conflict":
        if len(verdict.pieces) > 1:
            fixes.append("map around it: " + ", ".join(map(str, verdict.pieces)))
        elif verdict.room:
            fixes.append(f"a smaller one: {show_size(verdict.room)} fit at {wanted.start:#x}")
    fixes += region_fixes(verdict.causes, usable)
    return replace(verdict, fixes=tuple(fixes))


def region_fixes(causes: Sequence[Cause], usable: Usable) -> list[str]:
    """What can be done about the regions in the way."""
    fixes = []
    regions = [cause.region for cause in causes if cause.region]
    relaxable = [item for item in regions if item.kind is RegionKind.DIRECT_RELAXABLE]
    inside = any(
        item.kind is not RegionKind.DIRECT_RELAXABLE and item.range.overlaps(region.range)
        for region in relaxable
        for item in usable.regions
    )
    if regions and len(relaxable) == len(regions) and not inside:
        fixes.append("without --strict the direct-relaxable region may be used")
    if any(region.kind in (RegionKind.DIRECT, RegionKind.FIRMWARE) for region in regions):
        fixes.append(
            "switch off in the firmware what asks for the region (legacy USB, integrated "
            "graphics, remote management), or assign a device that it does not bind"
        )
    same = {(region.range, region.word) for region in regions}
    groups = {item.group for item in usable.regions if (item.range, item.word) in same} - {None}
    if groups and groups < set(usable.groups):  # of the rest, none has the region
        fixes.append(f"leave out group {', '.join(sorted(map(str, groups)))} with --groups")
    return fixes


def _first(usable: Usable, text: str) -> str:
    """A device that is never handed out matters more than where its RAM would go."""
    return "; besides, ".join([*(entry.text for entry in usable.unassignable[:1]), text])


def _ram(size: int) -> str:
    """An option to paste: the size, cut to whole MiB."""
    whole = size // _MIB * _MIB
    exact = format_size(whole).replace(" ", "")
    return f"--ram {f'{whole // _MIB}MiB' if exact.startswith('0x') else exact}"


def refusal(
    usable: Usable,
    reasons: Sequence[Reason],
    why: str,
    alternatives: Mapping[str, Sequence[AddrRange]],
    most: int,
) -> PlanError:
    """Make the error for RAM that meets something.

    Args:
        usable: where it was planned.
        reasons: every obstacle, lowest first.
        why: which rule was in force.
        alternatives: policies that were tried and work, with the places that they give.
        most: largest RAM in bytes that the rule could place; 0 when that is not the way out.
    """
    fixes = [
        f"--on-hole {policy} puts RAM at {', '.join(map(str, places))}"
        for policy, places in alternatives.items()
    ]
    fixes += region_fixes([reason.cause for reason in reasons], usable)
    if most >= _MIB:
        fixes.append(f"{_ram(most)} stays below it")
    if not fixes:
        fixes.append(
            "a device whose group does not have this hole, or a VMM whose memory can lie elsewhere"
        )
    also = "; ".join(str(reason) for reason in reasons[1:4])
    return PlanError(
        _first(usable, f"{reasons[0]} ({why})"),
        reasons=reasons,
        fixes=fixes,
        detail=f"also: {also}" if also else None,
    )


def _worth(holes: Sequence[Cause], limit: Cause | None, left: int) -> list[Cause]:
    """The holes, without the relaxable ones where giving all of them back is not enough."""
    relaxable = [
        cause
        for cause in holes
        if cause.region is not None and cause.region.kind is RegionKind.DIRECT_RELAXABLE
    ]
    stop = limit.range.start if limit is not None else ADDRESS_LAST
    gain = sum(min(c.range.last, stop) - min(c.range.start, stop) for c in relaxable)
    return [cause for cause in holes if gain >= left or cause not in relaxable]


def does_not_fit(
    usable: Usable, machine: str, ram: int, left: int, causes: Sequence[Cause]
) -> PlanError:
    """Make the error for RAM that is more than the machine's places have room for.

    Args:
        usable: where it was planned.
        machine: its name.
        ram: bytes asked for.
        left: bytes that found no place.
        causes: what takes room away from the machine's places, ascending.
    """
    fits = ram - left
    top = usable.ranges.hull
    where = AddrRange(top.last if top else 0, ADDRESS_LAST)
    holes = [cause for cause in causes if cause.kind in HOLES]
    limit = next((cause for cause in causes if cause.kind not in HOLES), None)
    named = holes[:3] + ([limit] if limit else [])
    shown = "; ".join(cause.text for cause in named) or "the machine has no more room"
    fixes = [f"{_ram(fits)} fits"] if fits >= _MIB else []
    fixes += region_fixes(_worth(holes, limit, left), usable)
    stated = any(item.kind is EvidenceKind.STATED for item in usable.evidence)
    if stated and limit is not None and limit.kind is CauseKind.APERTURE:
        fixes.append("a wider --aperture, if the host really has it")
    fixes.append("a device behind an IOMMU with more address bits or fewer holes")
    return PlanError(
        _first(
            usable,
            f"{machine} RAM of {show_size(ram)} does not fit: {show_size(left)} are left over; "
            f"what takes the room: {shown}",
        ),
        reasons=[Reason("ram", where, cause, fits) for cause in named],
        fixes=fixes,
    )
