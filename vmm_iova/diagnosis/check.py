# SPDX-License-Identifier: Apache-2.0
"""Why not: what is in the way of a range or of a plan, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.filled_remedies import Advice, fill
from vmm_iova.host.facts import RegionKind
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.ranges import BASE_PAGE, AddrRange, RangeSet
from vmm_iova.record import record, replace
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LEAST_TOP = 1 << 36  # fewer address bits than 36 make no guest that starts
_ROOMY = 1 << 38  # a guest whose addresses end below it has little room for large BARs
HOLES = (CauseKind.REGION, CauseKind.PLATFORM, CauseKind.KERNEL_GAP, CauseKind.GUEST)
"""Causes that are holes inside the aperture, rather than an end of it."""


@record
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


def check(
    usable: Usable, wanted: AddrRange, *, program: str | None = None, part: str | None = None
) -> Verdict:
    """Say whether `wanted` may be one mapping and, if not, what forbids it and what would help.

    Args:
        usable: where the host allows mappings.
        wanted: the range.
        program: VMM whose options the fixes name; None names those of all.
        part: `ram`, `bar`, or None when it is not known: RAM is not moved by fewer address bits.

    Complexity: O(holes).
    Synchronization: none required.
    """
    page = usable.granule if usable.granule_known else BASE_PAGE
    holes = usable.causes_of(wanted)
    causes = (*_misaligned(usable, wanted, page), *holes)
    kind = _kind(usable, wanted, causes)
    room = 0
    if not wanted.start % page:  # a start that is refused has no room
        room = min(usable.room_at(wanted.start), wanted.size) // page * page
    below = [item.last for item in usable.ranges if holes and item.last < holes[0].range.start]
    made = Verdict(
        range=wanted,
        ok=kind == "ok",
        kind=kind,
        causes=causes,
        room=room,
        limit=max(below, default=wanted.start + room - 1 if room else None),
        bits_needed=wanted.last.bit_length(),
        pieces=tuple(usable.ranges & RangeSet([wanted])),
        next_fit=wanted.start if kind == "ok" else _next_fit(usable, wanted, page),
        warnings=tuple(_warnings(usable, wanted)),
        fixes=(),
    )
    if made.ok:
        return made
    return replace(made, fixes=tuple(_fixes(made, usable, page, program, part)))


def check_holes(
    holes: Usable, wanted: AddrRange, *, program: str | None = None, part: str | None = None
) -> Verdict | None:
    """Say which hole forbids a range although is unknown the IOVA space is.

    Args:
        holes: `Host.usable` with an aperture of 64 bits: its holes count, its top does not.
        wanted: the range.
        program: as for `check`.
        part: as for `check`.

    Returns:
        The refusal, which names no place that is not known to be one; None if no hole is in the
        way, so that the width decides.

    Complexity: O(holes).
    Synchronization: none required.
    """
    made = check(holes, wanted, program=program, part=part)
    assumed = (CauseKind.APERTURE, CauseKind.TOP_PAGE)
    causes = tuple(cause for cause in made.causes if cause.kind not in assumed)
    if not causes:
        return None
    if made.kind == "granule":
        return replace(made, causes=causes, next_fit=None)
    hole = causes[0].range
    fixes = [say.OTHER_BASE_OUTSIDE.format(hole=hole)]
    fixes += _below_the_hole(made, program, part, holes.arch)
    fixes += region_fixes(causes, holes)
    if RegionKind.DIRECT in {cause.region.kind for cause in causes if cause.region is not None}:
        fixes = [*region_fixes(causes, holes), fixes[0]]
    return replace(
        made,
        kind="conflict",
        causes=causes,
        room=0,
        limit=None,
        pieces=(),
        next_fit=None,
        fixes=tuple(fixes),
    )


def _misaligned(usable: Usable, wanted: AddrRange, page: int) -> Iterator[Cause]:
    """The kernel looks at the alignment before it looks at the place (vfio_dma_do_map)."""
    ragged = [
        f"{name} {value:#x}"
        for name, value in (("start", wanted.start), ("size", wanted.size))
        if value % page
    ]
    if ragged:
        why = usable.granule_text if page == usable.granule else "no IOMMU has smaller pages"
        are = "is not a multiple" if len(ragged) == 1 else "are not multiples"
        text = f"{wanted}: {' and '.join(ragged)} {are} of {page:#x} ({why})"
        yield Cause(CauseKind.GRANULE, wanted, text)


def _kind(usable: Usable, wanted: AddrRange, causes: Sequence[Cause]) -> str:
    if causes:
        first = causes[0].kind
        if first is CauseKind.GRANULE and causes[0].range == wanted:
            return "granule"
        return "conflict" if first in HOLES else "outside_aperture"
    return "ok" if wanted in usable.ranges else "straddle"


def _warnings(usable: Usable, wanted: AddrRange) -> list[str]:
    found = [
        f"overlaps direct-relaxable {region.range} ({region.source}): allowed once the host's "
        "driver has let go of the device"
        if region.kind is RegionKind.DIRECT_RELAXABLE
        else f"overlaps the RMRR {region.range} ({region.source}), which is no hole for a device "
        "that can be assigned"
        for region in usable.relaxable
        if region.range.overlaps(wanted)
    ]
    if (wanted.start | wanted.size) % usable.granule and not usable.granule_known:
        found.append(
            f"not a multiple of {usable.granule:#x}: fails on a kernel with pages of that size "
            f"({usable.granule_text})"
        )
    return found


def _next_fit(usable: Usable, wanted: AddrRange, page: int) -> int | None:
    """Nearest place where all of it fits: the lowest above, else the highest below.

    The place is aligned as the one that was asked for, up to its size: a BAR must stay so. A size
    that is not whole pages is rounded up to them.
    """
    size = -(-wanted.size // page) * page
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


def _fixes(
    verdict: Verdict, usable: Usable, page: int, program: str | None, part: str | None
) -> Iterator[str]:
    """What can be done, the most promising first; `check` and `explain` say the same."""
    wanted = verdict.range
    if verdict.kind == "granule":
        whole = wanted.align_outward(page)
        held = f": {whole} holds all of it" if whole in usable.ranges else ""
        yield say.WHOLE_GRANULES.format(page=page, held=held)
        if held:
            return
    if verdict.kind == "straddle":
        yield say.MAP_PIECES.format(pieces=", ".join(map(str, verdict.pieces)))
    top = usable.ranges.hull.last + 1 if usable.ranges.hull else 0
    beyond = any(cause.kind is CauseKind.APERTURE for cause in verdict.causes)
    if beyond and part != "ram" and wanted.last >= top >= _LEAST_TOP:
        bits, size = top.bit_length() - 1, wanted.size
        fewer = fewer_bits(bits, verdict.bits_needed, program, usable.arch, bars=size)
        if fewer is not None:
            yield str(fewer)
    regions = region_fixes(verdict.causes, usable)
    if RegionKind.DIRECT in _kinds(verdict):
        yield from regions  # wherever it goes, a current kernel keeps the device
    if verdict.next_fit is not None:
        yield say.OTHER_BASE.format(start=verdict.next_fit)
    if verdict.kind in ("conflict", "outside_aperture"):
        if len(verdict.pieces) > 1:
            yield say.MAP_AROUND.format(pieces=", ".join(map(str, verdict.pieces)))
        elif verdict.room:
            yield say.SMALLER.format(size=show_size(verdict.room), start=wanted.start)
        yield from _below_the_hole(verdict, program, part, usable.arch)
    yield from (text for text in regions if RegionKind.DIRECT not in _kinds(verdict))
    if beyond and wanted.last >= top:
        yield say.WIDER_DEVICE


def _kinds(verdict: Verdict) -> set[RegionKind]:
    return {cause.region.kind for cause in verdict.causes if cause.region is not None}


def _below_the_hole(
    verdict: Verdict, program: str | None, part: str | None, arch: str | None
) -> Iterator[str]:
    """BARs go to the top of the guest's addresses: with fewer bits that is below the hole."""
    holes = [cause.range.start for cause in verdict.causes if cause.kind in HOLES]
    if part != "ram" and verdict.kind == "conflict" and holes and holes[0] >= _ROOMY:
        bits = holes[0].bit_length() - 1
        fewer = fewer_bits(bits, program=program, arch=arch, bars=verdict.range.size)
        if fewer is not None:
            yield say.IF_A_BAR.format(fewer=fewer, below=holes[0])


def fewer_bits(
    bits: int,
    needed: int | None = None,
    program: str | None = None,
    arch: str | None = None,
    *,
    bars: int = 0,
    purpose: str = "",
) -> Advice | None:
    """Say how VMMs are told to give a guest fewer address bits.

    Args:
        bits: what the host has.
        needed: what the guest used, or None.
        program: VMM to name; None names all. For one that has no such option there is None.
        arch: of the host; QEMU has the option on x86 only.
        bars: bytes of the guest's BARs, as far as they are known: where they do not fit into the
            firmware's window, an eighth of the address space, fewer bits do not help.
        purpose: what for, where the guest runs without, such as "to have peer-to-peer: ".
    """
    if 2 * bars > (1 << bits) // 8:
        return None
    programs: Sequence[str] = MODELS["kernel"] if program is None else MODELS.get(program, ())
    if arch not in (None, "x86_64"):
        programs = [name for name in programs if name == "Cloud Hypervisor" and arch == "aarch64"]
    if not programs:
        return None
    instead = f" instead of {needed}" if needed else ""
    chosen = tuple(programs)
    return fill(say.FEWER_BITS, only=chosen, bits=bits, instead=instead, purpose=purpose)


_QEMU_FAMILY = ("QEMU", "libvirt", "Proxmox")
MODELS = {
    "QEMU": _QEMU_FAMILY,  # which libvirt and Proxmox start
    "libvirt": ("libvirt",),
    "Proxmox": ("Proxmox",),
    "Cloud Hypervisor": ("Cloud Hypervisor",),
    "kernel": (*_QEMU_FAMILY, "Cloud Hypervisor"),  # its log does not say for which VMM
}
"""Programs whose guests can be given fewer address bits, with whose options to name."""


def region_fixes(causes: Sequence[Cause], usable: Usable) -> list[str]:
    """What can be done about the regions in the way."""
    fixes: list[str] = []
    regions = [cause.region for cause in causes if cause.region]
    relaxable = [item for item in regions if item.kind is RegionKind.DIRECT_RELAXABLE]
    inside = any(
        item.kind is not RegionKind.DIRECT_RELAXABLE and item.range.overlaps(region.range)
        for region in relaxable
        for item in usable.regions
    )
    if regions and len(relaxable) == len(regions) and not inside:
        fixes.append(say.WITHOUT_STRICT)
    if any(region.kind in (RegionKind.DIRECT, RegionKind.FIRMWARE) for region in regions):
        fixes.append(str(fill(say.FIRMWARE_REGION)))
    same = {(region.range, region.word) for region in regions}
    groups = {item.group for item in usable.regions if (item.range, item.word) in same} - {None}
    if groups and groups < set(usable.groups):  # of the rest, none has the region
        named = {
            "with --groups": sorted(map(str, groups - set(usable.later))),
            "of --also-fit": sorted(map(str, groups & set(usable.later))),
        }
        parts = [f"group {', '.join(names)} {how}" for how, names in named.items() if names]
        fixes.append(say.LEAVE_OUT.format(groups=" and ".join(parts)))
    if any(cause.kind is CauseKind.GUEST for cause in causes):
        fixes.append(say.OTHER_RESERVE)
    return fixes
