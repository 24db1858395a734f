# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel takes a group into an address space that others use already.

The rules of both backends differ, and so do their errnos. Sources, Linux 5.4 to 7.3:

* who owns a group, and its interrupts: `vmm_iova.host.obstacles`;
* type1: vfio_iommu_type1_attach_group, vfio_iommu_aper_conflict, vfio_iommu_resv_conflict,
  vfio_iommu_resv_exclude (drivers/vfio/vfio_iommu_type1.c);
* iommufd: iommufd_device_bind (device.c), iopt_table_add_domain, iopt_reserve_iova and
  iopt_table_enforce_dev_resv_regions (io_pagetable.c).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange, MappableRanges


@record
class AttachRefusal:
    """One reason for which the kernel refuses an attach.

    Attributes:
        errno: what it answers; it names nothing.
        text: one clause.
        hint: what helps.
        range: the mapping or the allowed range in the way, or None.
    """

    errno: int
    text: str
    hint: str
    range: AddrRange | None = None


@record
class Present:
    """An address space as it is: what the rules look at.

    Attributes:
        way: the interface behind it.
        ranges: the kernel's list; None where it has none (before 5.4), or nothing is attached.
        mapped: live mappings, each with what to call it, and the alignment that it has (address,
            size and place in the page taken together).
        allowed: what IOMMU_IOAS_ALLOW_IOVAS was given.
        checked: False for type1 before 5.4, which looks at nothing.
    """

    way: SpaceKind
    ranges: MappableRanges | None = None
    mapped: Sequence[tuple[AddrRange, str, int]] = ()
    allowed: Sequence[AddrRange] = ()
    checked: bool = True


def ranges_after(present: Present, newcomer: Usable) -> MappableRanges:
    """Return the kernel's list as it will be."""
    wanted = newcomer.as_listed()
    return wanted if present.ranges is None else present.ranges & wanted


def attach_refusals(present: Present, newcomer: Usable) -> Iterable[AttachRefusal]:
    """Yield every reason for a refusal, in the order in which the kernel comes to them.

    Args:
        present: the address space.
        newcomer: the judge's answer for the group alone: `host.usable(groups=[23])`.

    Complexity: O(n log r) for n mappings and r ranges.
    """
    owned, interrupts = _of_the_host(present.way, newcomer)
    if present.way == "iommufd":
        yield from interrupts  # iommufd_device_bind looks at them first
    yield from owned
    after = ranges_after(present, newcomer)
    if present.checked:
        yield from _in_the_way(present, newcomer, after)
    if present.way == "type1":
        if present.checked and not after:
            text = "no address is left that all groups of the container translate"
            yield AttachRefusal(errno.EINVAL, text, say.OTHER_CONTAINER)
        yield from interrupts


def _of_the_host(
    way: SpaceKind, newcomer: Usable
) -> tuple[list[AttachRefusal], list[AttachRefusal]]:
    """Reasons that no address has: who owns the group, and, apart, its interrupts."""
    owned: list[AttachRefusal] = []
    interrupts: list[AttachRefusal] = []
    for obstacle in newcomer.obstacles:
        number = obstacle.refuses(way)
        if number is None:
            continue
        late = number == errno.EPERM and len(obstacle.errno) == 1
        (interrupts if late else owned).append(AttachRefusal(number, obstacle.text, obstacle.hint))
    owned += [
        AttachRefusal(errno.EINVAL, item.text, say.FREE_DEVICE) for item in newcomer.unassignable
    ]
    return owned, interrupts


def _in_the_way(
    present: Present, newcomer: Usable, after: MappableRanges
) -> Iterable[AttachRefusal]:
    number = errno.EADDRINUSE if present.way == "iommufd" else errno.EINVAL
    granule = newcomer.granule if newcomer.granule_known else 1
    for where, name, alignment in present.mapped:
        if where not in after:
            text = f"{name} {where} {_why(newcomer, where)}"
            yield AttachRefusal(number, text, say.ATTACH_FIRST, where)
        elif alignment % granule:
            text = f"{name} {where} is not aligned to {granule:#x}, as the group's IOMMU asks"
            yield AttachRefusal(number, text, say.WHOLE_PAGES, where)
    if present.way == "iommufd":
        for where in present.allowed:
            if where not in after:
                text = f"the allowed range {where} {_why(newcomer, where)}"
                yield AttachRefusal(number, text, say.ALLOW_LESS, where)


def _why(newcomer: Usable, where: AddrRange) -> str:
    cause = next((cause for cause in newcomer.causes if cause.range.overlaps(where)), None)
    if cause is not None:
        return f"overlaps {cause.range}: {cause.text}"
    seam = next((item for item in newcomer.seams if where.start < item <= where.last), None)
    if seam is not None:
        return f"crosses {seam:#x}: {newcomer.seams[seam]}"
    return "is outside of what the present groups translate"
