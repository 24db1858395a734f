# SPDX-License-Identifier: Apache-2.0
"""Attach rehearsal: what would be in the way, and what the ranges would become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmm_iova.errors import PlacementError
    from vmm_iova.kernel.space import AddressSpace, LiveMapping
    from vmm_iova.mapping.precheck import Judge
    from vmm_iova.ranges import AddrRange, MappableRanges


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


if TYPE_CHECKING:
    from collections.abc import Iterator


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
