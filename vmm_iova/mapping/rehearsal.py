# SPDX-License-Identifier: Apache-2.0
"""The attach rehearsal: what attaching a group now would do, answered without attaching it.

The kernel's own answer is one errno, and names nothing. The rules are in `vmm_iova.host.attach`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from vmm_iova import remedies as say
from vmm_iova.errors import DmaError
from vmm_iova.host.attach import AttachRefusal, Present, attach_refusals, ranges_after
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.syscalls import PAGE_SIZE
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.record import record
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.errors import PlacementError
    from vmm_iova.host.usable import Usable
    from vmm_iova.kernel.book import LiveMapping
    from vmm_iova.kernel.space import AddressSpace, SpaceFacts
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


@record
class Rehearsal:
    """The answer.

    Attributes:
        ranges: what the kernel's list would become.
        lost: what would no longer be mappable, ascending.
        mappings: live mappings in the way, each with the reason where the judge has one.
        allocations: allocations in the way: `(range, tag, reason)`; the kernel does not know of
            them, but their next map would be refused.
        refusals: every reason for which the kernel would refuse, the first first; type1 before
            Linux 5.4 takes a group whatever is mapped, and DMA fails later.
    """

    ranges: MappableRanges
    lost: tuple[AddrRange, ...]
    mappings: tuple[tuple[LiveMapping, PlacementError | None], ...]
    allocations: tuple[tuple[AddrRange, object, PlacementError | None], ...]
    refusals: tuple[AttachRefusal, ...] = ()

    @property
    def would_attach(self) -> bool:
        """Whether the kernel would take the group now."""
        return not self.refusals

    @property
    def errno(self) -> int | None:
        """What the kernel would answer; None if it would take the group."""
        return self.refusals[0].errno if self.refusals else None


def rehearse_attach(
    space: AddressSpace, newcomer: Usable, *, allocator: Allocations | None = None
) -> Rehearsal:
    """Answer what attaching a group now would do, without attaching it.

    What is not known is not held against the group: the facts of a pasted text name no drivers, and
    no interrupts. sysfs tells the regions of a group and not of each device; iommufd looks only at
    those of the device (Linux 6.6), so in a group of several it may accept what is refused here.

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
    Source: `vmm_iova.host.attach`.
    """
    present, facts = _present(space)
    if isinstance(space, Type1Container) and newcomer.groups and _joined(space, newcomer):
        return Rehearsal(present.ranges or newcomer.as_listed(), (), (), ())
    after = ranges_after(present, newcomer)
    now = present.ranges
    refusals = list(attach_refusals(present, newcomer))
    if present.way == "iommufd" and facts is not None and not facts.final:
        refusals += _locked(space)
    return Rehearsal(
        after,
        () if now is None else tuple(now.as_set() - after.as_set()),
        tuple(
            (item, newcomer.refusal(item.range)) for item in space.live if item.range not in after
        ),
        tuple(
            (item.range, item.tag, newcomer.refusal(item.range))
            for item in (allocator if allocator is not None else ())
            if item.range not in after
        ),
        tuple(refusals),
    )


def _joined(container: Type1Container, newcomer: Usable) -> bool:
    """Whether its groups are in the container, so that nothing is left to attach."""
    return {int(group) for group in newcomer.groups if group.isdecimal()} <= set(container.groups)


def _present(space: AddressSpace) -> tuple[Present, SpaceFacts | None]:
    """Ask the kernel for what there is; an empty container cannot be asked, and has nothing."""
    compat = isinstance(space, Type1Container) and space.compat
    way = "iommufd" if compat else space.kind
    try:
        facts = space.facts()
    except DmaError:
        if not (isinstance(space, Type1Container) and not space.groups):
            raise
        return Present(way), None
    mapped = tuple(
        (
            item.range,
            f"the mapping made at {item.place},",
            item.range.start | item.range.size | item.hva % PAGE_SIZE,
        )
        for item in space.live
    )
    allowed = space.allowed if isinstance(space, Ioas) else ()
    return Present(way, facts.ranges, mapped, allowed, checked=facts.ranges is not None), facts


def _locked(space: AddressSpace) -> Iterator[AttachRefusal]:
    """What is mapped before the first device is pinned when that is attached.

    Source: iopt_fill_domain, drivers/iommu/iommufd/io_pagetable.c.
    """
    budget = space.lock_budget()
    wanted = sum(-(-item.range.size // PAGE_SIZE) * PAGE_SIZE for item in space.live)
    if budget.limit is not None and budget.locked + wanted > budget.limit:
        left = format_size(max(budget.limit - budget.locked, 0))
        text = f"{format_size(wanted)} would be locked, and of RLIMIT_MEMLOCK {left} is left"
        needed = budget.locked + wanted
        hint = say.LOCK_NUMBER.format(kib=-(-needed // 1024), size=needed)
        yield AttachRefusal(errno.ENOMEM, text, hint)
