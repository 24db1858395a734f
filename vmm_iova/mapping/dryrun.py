# SPDX-License-Identifier: Apache-2.0
"""Rehearse the mapping of a layout on a kernel in memory: the calls, their answers, the limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import PlanError
from vmm_iova.kernel.device import open_space
from vmm_iova.mapping.mapped import map_pieces
from vmm_iova.mapping.piece import Piece
from vmm_iova.planning.layout import ItemKind
from vmm_iova.ranges import AddrRange, Hva, Iova, RangeSet
from vmm_iova.record import record
from vmm_iova.simulated import SimulatedKernel
from vmm_iova.simulated.host import group_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.planning.layout import Item, Layout

_BDF = "0000:00:01.0"
_MEMORY = 1 << 62  # where the memory is said to be in this process; nobody looks there
_BARS = 1 << 63


@record
class DryRun:
    """What the kernel in memory answered.

    Attributes:
        via: `type1` or `iommufd`.
        calls: map calls that it took, each as `(IOVAs, name)`.
        entries_left: map calls that could still be made, or None where there is no limit.
    """

    via: SpaceKind
    calls: tuple[tuple[AddrRange, str], ...]
    entries_left: int | None


def dry_run(layout: Layout, via: SpaceKind = "type1") -> DryRun:
    """Map a layout on a kernel that has the ranges, granule and limits of its host.

    What is mapped is all RAM, and the BARs that peers must reach. Those an iommufd refuses with
    EFAULT: it pins memory, and there is none behind a BAR (drivers/iommu/iommufd/pages.c).

    Args:
        layout: from `vmm_iova.plan`.
        via: `type1` or `iommufd`.

    Returns:
        The calls that were taken.

    Raises:
        PlanError: the layout has no RAM that devices can reach, or its host no usable range.
        PrecheckError: the kernel would refuse; carries every problem, before any call.
        MappingError: it refused (errno of the call).

    Complexity: one call a piece.
    Synchronization: none required.
    """
    usable = layout.usable
    group = group_of(usable, 1, (_BDF,))
    if group is None:
        raise PlanError(f"host {usable.host} has no usable range to map in")
    memlock = usable.limits.memlock
    kernel = SimulatedKernel(
        [group],
        page=usable.granule,
        dma_entry_limit=65535 if usable.limits.dma_entries is None else usable.limits.dma_entries,
        # A planner need not be the process that maps: without a stated limit none is rehearsed.
        memlock=None if memlock is None or memlock < 0 else memlock,
    )
    bars = [item for item in layout.items if item.kind is ItemKind.BAR and item.required]
    pieces = [*_pieces(layout.ram, _MEMORY), *_pieces(bars, _BARS)]
    if via == "iommufd":
        kernel.memory.absent = RangeSet(
            AddrRange.from_size(piece.hva, piece.size) for piece in pieces if piece.hva >= _BARS
        )
    with open_space([_BDF], kernel=kernel, via=via) as space:
        with map_pieces(space, pieces, usable=usable):
            live = list(space.live)
            left = space.facts().entries_left
        calls = zip(live, pieces, strict=True)
        return DryRun(via, tuple((item.range, str(piece.tag)) for item, piece in calls), left)


def _pieces(items: Iterable[Item], base: int) -> list[Piece]:
    """Memory that is congruent to its IOVA, as GuestMemory makes it."""
    return [
        Piece(Iova(item.iova.start), item.iova.size, Hva(base + item.iova.start), item.name)
        for item in items
        if item.iova is not None
    ]
