# SPDX-License-Identifier: Apache-2.0
"""Short ways to write down the facts of a host, and to read what is judged of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vmm_iova.host.facts import (
    Device,
    EmptyRegion,
    Group,
    IommuUnit,
    KernelRanges,
    Note,
    RangesFrom,
    RegionKind,
    ReservedRegion,
    Source,
)
from vmm_iova.host.host import Host
from vmm_iova.host.usable import Cause, Usable
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet

TOP = ADDRESS_LAST  # 2^64-1
PAGE = 0x1000  # base page of x86
PAGE_64K = 0x10000  # base page of many Arm server kernels
TOP_PAGE = AddrRange(0xFFFFFFFFFFFFF000, TOP)  # kernels before 6.18 lose mappings there

MSI = AddrRange(0xFEE00000, 0xFEEFFFFF)  # x86 interrupt window, every VT-d and AMD-Vi
HT = AddrRange(0xFD00000000, 0xFFFFFFFFFF)  # AMD HyperTransport, the 12 GiB below 1 TiB
SW_MSI = AddrRange(0x8000000, 0x80FFFFF)  # Arm: software MSI window

CAP_39 = 0xC0000020E60262  # Ivy Bridge: MGAW 39, 3-level tables: 39 bits
CAP_48 = 0xD2078C106F0466  # server: MGAW 48, 4-level tables: 48 bits
LAST_39 = 0x7FFFFFFFFF  # 2^39-1
LAST_48 = 0xFFFFFFFFFFFF  # 2^48-1
LAST_57 = 0x1FFFFFFFFFFFFFF  # 2^57-1, what VT-d lists on Linux 5.4 whatever the hardware

WORDS = {kind.value: kind for kind in RegionKind}


def where(group: str, line: int = 1) -> Source:
    """The sysfs file of a group, as a source."""
    return Source(f"/sys/kernel/iommu_groups/{group}/reserved_regions", line)


def region(
    start: int, last: int, word: str = "reserved", group: str = "1", line: int = 1
) -> ReservedRegion:
    kind = WORDS.get(word, RegionKind.UNKNOWN)
    return ReservedRegion(AddrRange(start, last), kind, word, where(group, line), group)


def empty_region(
    start: int, word: str = "reserved", group: str = "1", line: int = 9
) -> EmptyRegion:
    return EmptyRegion(start, WORDS.get(word, RegionKind.UNKNOWN), word, where(group, line), group)


def msi(group: str = "1") -> ReservedRegion:
    return region(MSI.start, MSI.last, "msi", group)


def group(number: str = "1", *regions: ReservedRegion, **fields: Any) -> Group:
    return Group(number, regions=regions, **fields)


def host(*groups: Group, **fields: Any) -> Host:
    return Host("box", groups=groups, **fields)


def x86(*groups: Group, **fields: Any) -> Host:
    """An x86 host with nothing that says its width."""
    return Host("box", arch="x86_64", groups=groups, **fields)


def intel(*groups: Group, cap: int = CAP_48, **fields: Any) -> Host:
    """An Intel host: one unit, whose registers are the aperture evidence."""
    unit = IommuUnit("dmar0", cap=cap, ecap=0xF020DE, source=Source("/sys/class/iommu/dmar0"))
    return Host("box", arch="x86_64", groups=groups, units=(unit,), **fields)


def kernel_list(
    *pairs: tuple[int, int],
    groups: tuple[str, ...] | None = None,
    granule: int | None = None,
    page_sizes: int | None = None,
    api: RangesFrom = "type1",
) -> KernelRanges:
    ranges = MappableRanges(AddrRange(*pair) for pair in pairs)
    return KernelRanges(ranges, api, Source("VFIO capture"), groups, granule, page_sizes)


def device(name: str, group_id: str | None = None, iommu: str | None = None) -> Device:
    return Device(name, group=group_id, iommu=iommu)


def spans(ranges: Iterable[AddrRange]) -> list[tuple[int, int]]:
    """Ranges as plain pairs, so that a failure reads well."""
    return [(item.start, item.last) for item in ranges]


class Noted(Protocol):
    """Facts, or what is judged of them."""

    @property
    def notes(self) -> Sequence[Note]: ...


def note_texts(noted: Noted) -> str:
    return "\n".join(note.text for note in noted.notes)


def warnings_of(noted: Noted) -> list[str]:
    return [note.text for note in noted.notes if note.warning]


def covered(usable: Usable) -> RangeSet:
    """Every address that is usable or has a cause."""
    causes = usable.causes_of(AddrRange(0, TOP))
    outward = (cause.range.align_outward(usable.granule) for cause in causes)
    return usable.ranges.as_set() | RangeSet(outward)


def edge_causes(usable: Usable) -> list[Cause]:
    """The causes of both edges of each range, in order."""
    return [cause for edge in usable.edges for cause in (edge.start_cause, edge.last_cause)]


def line(start: int, last: int, word: str) -> str:
    """A line of `reserved_regions` in the exact format of the kernel."""
    return f"0x{start:016x} 0x{last:016x} {word}\n"


MSI_LINE = line(MSI.start, MSI.last, "msi")
