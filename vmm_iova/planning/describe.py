# SPDX-License-Identifier: Apache-2.0
"""A misfit in words: what is in the way, with every obstacle; nothing is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.check import HOLES
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.bars import fit
from vmm_iova.planning.guest import bar_title
from vmm_iova.planning.misfit import (
    AreaMisfit,
    BarMisfit,
    BarUnreached,
    DoorbellMisfit,
    Misfit,
    RamBlocked,
    RamHidden,
    RamLeft,
    RamTooMuch,
    RamTooWide,
    RoomMisfit,
    StartRefused,
    TopUnknown,
    ViommuTooWide,
)
from vmm_iova.planning.site import beyond
from vmm_iova.planning.windows import NO_TOP
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.site import Site


@record
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


def describe(misfit: Misfit, site: Site) -> tuple[str, list[Reason]]:
    """Say what is in the way, with every obstacle; nothing is tried.

    Args:
        misfit: what an attempt raised.
        site: the site of that attempt.
    """
    machine, item = site.wanted.machine, misfit.item
    if isinstance(misfit, RamBlocked):
        reasons = [
            Reason(part.item, part.span, cause, part.fits)
            for part in misfit.parts
            for cause in part.causes
        ]
        return _first(site.host, f"{reasons[0]} ({misfit.rule})"), reasons
    if isinstance(misfit, RamLeft):
        named = _named(misfit)
        takers = "; ".join(cause.text for cause in named) or "the machine has no more room"
        left = show_size(site.wanted.ram - misfit.fits)
        message = (
            f"{show_size(site.wanted.ram)} of RAM does not fit in {machine.name}: {left} too much; "
            f"{takers}"
        )
        reasons = [Reason(item, misfit.span, cause, misfit.fits) for cause in named]
        return _first(site.usable, message), reasons
    if isinstance(misfit, RamTooMuch):
        most = f"{machine.title} takes {show_size(misfit.fits)} at most"
        cause = Cause(CauseKind.GUEST, AddrRange(misfit.fits, ADDRESS_LAST), most)
        message = (
            f"RAM of {show_size(site.wanted.ram)} is more than {machine.title} takes, "
            f"{show_size(misfit.fits)}"
        )
        return message, [Reason(item, misfit.span, cause, misfit.fits)]
    if isinstance(misfit, RamTooWide):
        limit = site.wanted.limits[0]
        cause = beyond(limit.bits, limit.text)
        message = f"RAM at {misfit.span} ends beyond {limit.text}"
        return message, [Reason(item, misfit.span, cause, misfit.fits)]
    if isinstance(misfit, BarMisfit):
        return _bar_in_words(misfit, site)
    if isinstance(misfit, RoomMisfit):
        cause = misfit.causes[0]
        message = (
            f"{item} of {show_size(misfit.room.size)} does not fit above {misfit.above:#x}: "
            f"{cause.text}"
        )
        return message, [Reason(item, misfit.span, cause, 0)]
    if isinstance(misfit, DoorbellMisfit):
        edges = misfit.causes or (site.usable.edge_above(ADDRESS_LAST),)
        ways = "; ".join(dict.fromkeys(str(cause) for cause in edges[:3]))
        message = f"{item} has no place in {misfit.span}: {ways}"
        return message, [Reason(item, misfit.span, cause, misfit.fits) for cause in edges]
    if isinstance(misfit, StartRefused | RamHidden | AreaMisfit | BarUnreached):
        return _vmm_in_words(misfit, site)
    if isinstance(misfit, ViommuTooWide):
        cause, bits = misfit.causes[0], site.wanted.viommu_bits
        message = (
            f"{machine.title} does not start: the guest's IOMMU has {bits} address bits and the "
            f"host's {misfit.bits} (QEMU 9.1 and later compare them; an older one fails when the "
            f"guest maps above); {cause.text}"
        )
        return message, [Reason(item, misfit.span, cause, 0)]
    edge = site.usable.edge_above(ADDRESS_LAST)
    if isinstance(misfit, TopUnknown):
        message = f"{item} has no place: the 64-bit PCI window {NO_TOP}"
        return message, [Reason(item, edge.range, edge, 0)]
    message = f"{item} has no room above RAM, which ends at {misfit.span.start:#x}"
    return message, [Reason("the 64-bit PCI window", edge.range, edge, 0)]


def _first(usable: Usable, text: str) -> str:
    """A device that is never handed out matters more than where its RAM would go."""
    return "; besides, ".join([*(entry.text for entry in usable.unassignable[:1]), text])


def _named(misfit: RamLeft) -> list[Cause]:
    """The causes worth naming: the first holes, and the first end of the space."""
    limit = limit_of(misfit)
    return [*holes_of(misfit)[:3], *([limit] if limit else [])]


def holes_of(misfit: Misfit) -> list[Cause]:
    """Return the causes that are holes inside the aperture."""
    return [cause for cause in misfit.causes if cause.kind in HOLES]


def limit_of(misfit: Misfit) -> Cause | None:
    """Return the first cause that ends the space, or None."""
    return next((cause for cause in misfit.causes if cause.kind not in HOLES), None)


def _bar_name(bar: WantedBar) -> str:
    need = "that peers must reach " if bar.required else ""
    return f"{bar_title(bar.name)} ({show_size(bar.size)}, {need}at a multiple of {bar.align:#x})"


def roomy_windows(misfit: BarMisfit) -> list[AddrRange]:
    """The windows that would hold the BAR if nothing else were there."""
    bar = misfit.bar
    return [window for window in misfit.windows if fit([window], bar.size, bar.align, False)]


def _bar_in_words(misfit: BarMisfit, site: Site) -> tuple[str, list[Reason]]:
    """What is in a BAR's way where it would go first."""
    name, roomy = _bar_name(misfit.bar), roomy_windows(misfit)
    if roomy:
        fits = min(site.usable.room_at(roomy[0].start), roomy[0].size)
        reasons = [Reason(name, roomy[0], cause, fits) for cause in site.usable.causes_of(roomy[0])]
        if reasons:
            causes = "; ".join(dict.fromkeys(str(reason.cause) for reason in reasons[:3]))
            return f"{name} fits nowhere above RAM where devices reach it: {causes}", reasons
    kind = f"{misfit.bits}-bit PCI window"
    largest = misfit.span if misfit.windows else None
    where = f"{largest} ({show_size(largest.size)})" if largest else "no room above RAM"
    if roomy:
        where += ", which the other BARs take"
    cause = Cause(CauseKind.GUEST, misfit.span, f"{kind}: {where}")
    if not largest and site.wanted.limits:
        cause = beyond(site.wanted.limits[0].bits, site.wanted.limits[0].text)
    reason = Reason(name, misfit.span, cause, largest.size if largest else 0)
    return f"{name} has no place in the {kind}: {cause.text}", [reason]


def _vmm_in_words(misfit: Misfit, site: Site) -> tuple[str, list[Reason]]:
    """What the VMM or its firmware would do, and why that cannot be."""
    title, item, span = site.wanted.machine.title, misfit.item, misfit.span
    if isinstance(misfit, StartRefused):
        bits = span.last.bit_length()
        message = (
            f"{title} does not start: with its 64-bit PCI window the guest reaches {span.last:#x}, "
            f"which takes {bits} address bits; {misfit.causes[0].text}"
        )
        return message, [Reason(item, span, misfit.causes[0], 0)]
    if isinstance(misfit, RamHidden):
        message = (
            f"the guest of {title} loses RAM {span}: the 64-bit PCI window lies over it, and the "
            "VMM does not say so"
        )
        cause = Cause(CauseKind.GUEST, span, "the 64-bit PCI window")
        return message, [Reason(item, span, cause, misfit.fits)]
    if isinstance(misfit, AreaMisfit):
        reasons = [Reason(item, span, cause, 0) for cause in misfit.causes]
        return f"{reasons[0]} ({title} has it right above RAM)", reasons
    assert isinstance(misfit, BarUnreached)
    bar = f"{bar_title(misfit.bar.name)} ({show_size(misfit.bar.size)})"
    where = f"{misfit.firmware} puts {bar} at {span}"
    if misfit.inside is not None:
        cause = Cause(CauseKind.GUEST, span, misfit.inside)
        return f"{where}, {misfit.inside}", [Reason(item, span, cause, 0)]
    reasons = [Reason(item, span, cause, 0) for cause in misfit.causes]
    causes = "; ".join(dict.fromkeys(str(cause) for cause in misfit.causes[:3]))
    return f"{where}, where peers do not reach it: {causes}", reasons
