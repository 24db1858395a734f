# SPDX-License-Identifier: Apache-2.0
"""Where several sources say what a group's aperture is: whether they agree, and which one wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.evidence import EvidenceKind
from vmm_iova.host.facts import Note
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.host.evidence import Evidence
    from vmm_iova.host.facts import Facts, Group

_EXACT = (EvidenceKind.KERNEL_LIST, EvidenceKind.ZPCI)
"""Sources that say where an aperture begins and ends; registers only bound it."""


_TOPS = (1 << 42, 1 << 53, 1 << 64)
"""Where the upper region of an s390 group ends, by the kind of its translation table."""


def compare_sources(
    host: Facts, group: Group | None, evidence: Sequence[Evidence]
) -> tuple[Note, ...]:
    """Name sources that disagree, with the one that wins, and say where several agree.

    Args:
        host: the facts.
        group: the group that they are about, or None.
        evidence: all that was found for it, strongest first.

    Complexity: O(sources x ranges).
    """
    exact = [item for item in evidence if item.kind in _EXACT and item.ranges]
    if not exact:
        return ()
    winner, hull = exact[0], exact[0].ranges.hull
    notes = []
    agreeing = [winner]
    for item in exact[1:]:
        if item.ranges.hull == hull and (
            item.kind is not winner.kind or item.ranges == winner.ranges
        ):
            agreeing.append(item)
        elif item.kind is winner.kind:
            notes.append(
                Note(f"two sources disagree: {winner.text}; {item.text}: what both allow counts")
            )
        else:
            notes.append(
                Note(f"two sources disagree: {winner.text}; {item.text}: the first of them wins")
            )
    names = [item.kind.value for item in agreeing]
    if group is not None and open_gap(group) == hull:
        names.append("reserved regions")
    if len(names) > 1:
        of = f" of {group.title}" if group is not None else f" of {host.name}"
        notes.append(Note(f"{len(names)} sources agree on {hull}{of}: {', '.join(names)}", False))
    return tuple(notes)


def open_gap(group: Group | None) -> AddrRange | None:
    """Return the one span that a group's reserved regions leave open between them, or None.

    On s390 they reserve all below and above the DMA window (drivers/iommu/s390-iommu.c, Linux 6.2).
    """
    regions = sorted(region.range for region in (group.regions or ()) if group) if group else []
    if len(regions) < 2 or regions[0].start or regions[-1].last + 1 not in _TOPS:
        return None
    inner = AddrRange(0, min(regions[-1].last, ADDRESS_LAST))
    gaps = list(RangeSet(regions).complement(inner))
    return gaps[0] if len(gaps) == 1 else None
