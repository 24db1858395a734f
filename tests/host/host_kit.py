# SPDX-License-Identifier: Apache-2.0
"""Short ways to write down facts, for the tests of the host wing."""

from vmm_iova.host.facts import (
    Device,
    EmptyRegion,
    Group,
    IommuUnit,
    KernelRanges,
    RegionKind,
    ReservedRegion,
    Source,
)
from vmm_iova.host.host import Host
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


def where(group, line=1):
    """The sysfs file of a group, as a source."""
    return Source(f"/sys/kernel/iommu_groups/{group}/reserved_regions", line)


def region(start, last, word="reserved", group="1", line=1):
    kind = WORDS.get(word, RegionKind.UNKNOWN)
    return ReservedRegion(AddrRange(start, last), kind, word, where(group, line), group)


def empty_region(start, word="reserved", group="1", line=9):
    return EmptyRegion(start, WORDS.get(word, RegionKind.UNKNOWN), word, where(group, line), group)


def msi(group="1"):
    return region(MSI.start, MSI.last, "msi", group)


def group(number="1", *regions, **fields):
    return Group(number, regions=regions, **fields)


def host(*groups, **fields):
    return Host("box", groups=groups, **fields)


def x86(*groups, **fields):
    """An x86 host with nothing that says its width."""
    return Host("box", arch="x86_64", groups=groups, **fields)


def intel(*groups, cap=CAP_48, **fields):
    """An Intel host: one unit, whose registers are the aperture evidence."""
    unit = IommuUnit("dmar0", cap=cap, ecap=0xF020DE, source=Source("/sys/class/iommu/dmar0"))
    return Host("box", arch="x86_64", groups=groups, units=(unit,), **fields)


def kernel_list(*pairs, groups=None, granule=None, page_sizes=None, api="type1"):
    ranges = MappableRanges(AddrRange(*pair) for pair in pairs)
    return KernelRanges(ranges, api, Source("VFIO capture"), groups, granule, page_sizes)


def device(name, group_id=None, iommu=None):
    return Device(name, group=group_id, iommu=iommu)


def spans(ranges):
    """Ranges as plain pairs, so that a failure reads well."""
    return [(item.start, item.last) for item in ranges]


def note_texts(noted):
    return "\n".join(note.text for note in noted.notes)


def warnings_of(noted):
    return [note.text for note in noted.notes if note.warning]


def covered(usable):
    """Every address that is usable or has a cause."""
    causes = usable.causes_of(AddrRange(0, TOP))
    outward = (cause.range.align_outward(usable.granule) for cause in causes)
    return usable.ranges.as_set() | RangeSet(outward)


def edge_causes(usable):
    """The causes of both edges of each range, in order."""
    return [cause for edge in usable.edges for cause in (edge.start_cause, edge.last_cause)]


def line(start, last, word):
    """A line of `reserved_regions` in the exact format of the kernel."""
    return f"0x{start:016x} 0x{last:016x} {word}\n"


MSI_LINE = line(MSI.start, MSI.last, "msi")
