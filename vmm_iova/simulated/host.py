# SPDX-License-Identifier: Apache-2.0
"""A host of the judge as groups of the simulated kernel, and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import EvidenceError
from vmm_iova.host.facts import (
    Device,
    Group,
    Limits,
    RegionKind,
    ReservedRegion,
    Source,
)
from vmm_iova.host.host import Host
from vmm_iova.host.state import State
from vmm_iova.patterns import regex
from vmm_iova.ranges import RangeSet
from vmm_iova.record import replace
from vmm_iova.simulated.model import SimGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm_iova.host.evidence import Aperture
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange
    from vmm_iova.simulated.model import RegionWord

INVENTED = "0000:00:01.0"
"""The device of a host whose facts name none."""

_BDF = regex(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PAGE_SIZES = 0x4020_1000
_WORDS: Mapping[RegionKind, RegionWord] = {
    RegionKind.DIRECT: "direct",
    RegionKind.DIRECT_RELAXABLE: "direct-relaxable",
    RegionKind.MSI: "msi",
}


def group_of(
    usable: Usable,
    number: int,
    devices: tuple[str, ...],
    regions: Iterable[tuple[AddrRange, RegionWord]] = (),
) -> SimGroup | None:
    """Return a group whose IOMMU translates what the judge calls usable, or None: nothing is.

    Args:
        usable: the judge's answer for the group.
        number: of the group.
        devices: BDFs.
        regions: reserved regions that have a word; other gaps of `usable` are `reserved`.
    """
    hull = usable.ranges.hull
    if hull is None:
        return None
    worded = tuple(regions)
    gaps = usable.ranges.as_set().complement(hull) - RangeSet(where for where, _ in worded)
    return SimGroup(
        number,
        devices,
        aperture=hull,
        reserved=(*worded, *((gap, "reserved") for gap in gaps)),
        page_sizes=usable.page_sizes or _PAGE_SIZES & -usable.granule | usable.granule,
    )


def with_a_device(host: Host) -> Host:
    """Return the host; one whose facts name groups and no PCI device gets one in the first."""
    named = any(_BDF.fullmatch(name) for group in host.groups for name in group.devices)
    if named or not host.groups:
        return host
    first = replace(host.groups[0], devices=(*host.groups[0].devices, INVENTED))
    device = Device(INVENTED, first.id)
    return replace(host, groups=(first, *host.groups[1:]), devices=(*host.devices, device))


def groups_of(host: Host, aperture: Aperture | None) -> list[SimGroup]:
    """Return the groups of a host that have evidence for what their IOMMU translates.

    Raises:
        EvidenceError: none has; `aperture` states it.
    """
    groups: list[SimGroup] = []
    unsettled: list[EvidenceError] = []
    for index, group in enumerate(host.groups):
        try:
            usable = host.usable(groups=[group.id], aperture=aperture)
        except EvidenceError as error:
            unsettled.append(error)
            continue
        devices = tuple(name for name in group.devices if _BDF.fullmatch(name))
        regions = [
            (region.range, _WORDS.get(region.kind, "reserved")) for region in group.regions or ()
        ]
        number = int(group.id) if group.id.isdecimal() else index
        simulated = group_of(usable, number, devices, regions)
        if simulated is not None:
            groups.append(simulated)
    if unsettled and not groups:
        raise unsettled[0]
    return groups


def release_of(host: Host, newest: tuple[int, int]) -> tuple[int, int]:
    """Return the kernel release of a host, as far as the simulation knows it."""
    version = re.match(r"(\d+)\.(\d+)", host.release or "")
    return (
        newest if version is None else min(newest, max((4, 4), (int(version[1]), int(version[2]))))
    )


def host_of(
    groups: Iterable[SimGroup],
    page: int,
    limits: Limits,
    *,
    foreign: Mapping[str, str],
    unsafe_interrupts: bool,
) -> Host:
    """Return what sysfs of a simulated kernel says: groups, devices, regions, and no aperture."""
    groups = tuple(groups)
    facts, devices = [], []
    for group in sorted(groups, key=lambda item: item.number):
        number = str(group.number)
        source = Source(f"/sys/kernel/iommu_groups/{number}/reserved_regions")
        regions = tuple(
            ReservedRegion(where, RegionKind(word), word, source, number)
            for where, word in sorted(group.reserved)
        )
        facts.append(Group(number, group.devices, regions))
        devices += [
            Device(bdf, number, driver=foreign.get(bdf, group.driver)) for bdf in group.devices
        ]
    return Host(
        "the simulated host",
        origin="the simulated kernel",
        page_size=page,
        groups=tuple(facts),
        devices=tuple(sorted(devices, key=lambda device: device.name)),
        limits=limits,
        sysfs=True,
        state=State(
            remaps_interrupts=all(group.isolated_msi for group in groups),
            unsafe_interrupts=unsafe_interrupts,
            unsafe_iommufd=unsafe_interrupts,
        ),
    )
