# SPDX-License-Identifier: Apache-2.0
"""Walking the capability chains of VFIO's answers without trusting them.

A chain is a list of headers, each with the offset of the next from the start of the answer. Ids may
repeat, chains may loop, offsets may point outside, and since the 64-bit fields lay unaligned before
Linux 6.6 nothing is said about alignment either. What is contradictory is refused; what is unknown
is stepped over; of a newer version the known beginning is read.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from vmm_iova.errors import CapabilityError
from vmm_iova.kernel import uapi
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterator


@record
class Capability:
    """One capability, as it lies in the answer.

    Attributes:
        id: what it is; see `uapi.CAP_*`.
        version: its layout; later ones begin like the first.
        offset: byte in the answer.
        payload: its bytes, header included, up to the next capability or the end of the answer.
    """

    id: int
    version: int
    offset: int
    payload: memoryview


def walk(answer: bytes | bytearray, first: int, total: int, floor: int) -> Iterator[Capability]:
    """Yield the capabilities of an answer, each id once, in the order of the chain.

    A second capability of an id that was seen is left out: which of two the kernel means
    cannot be known, and every reader of the kernel's own takes the first.

    Args:
        answer: what the kernel wrote, from the start of the INFO structure.
        first: `cap_offset`; 0 is an empty chain.
        total: bytes of the answer that are valid.
        floor: the first offset that a capability may have (the end of the fixed part).

    Raises:
        CapabilityError: an offset lies in the fixed part or outside of the answer, or the chain
            comes back to where it was.

    Complexity: O(n log n) for n capabilities.
    Source: drivers/vfio/vfio_main.c, vfio_info_cap_add and vfio_info_cap_shift (Linux 7.3).
    """
    total = min(total, len(answer))
    heads: dict[int, dict[str, int]] = {}
    offset = first
    while offset:
        if offset < floor or offset + uapi.CAP_HEADER.size > total:
            raise CapabilityError(
                f"a capability at byte {offset:#x} lies outside of {floor:#x} to {total:#x}",
                offset=offset,
            )
        if offset in heads:
            raise CapabilityError(
                f"the chain of capabilities comes back to byte {offset:#x}", offset=offset
            )
        heads[offset] = uapi.CAP_HEADER.read(answer, offset)
        offset = heads[offset]["next"]
    ascending = sorted(heads)
    stops = dict(zip(ascending, [*ascending[1:], total], strict=False))
    seen: set[int] = set()
    view = memoryview(answer).toreadonly()
    for offset, head in heads.items():
        if head["id"] not in seen:
            seen.add(head["id"])
            yield Capability(head["id"], head["version"], offset, view[offset : stops[offset]])


@record
class Type1Facts:
    """What `VFIO_IOMMU_GET_INFO` says.

    Attributes:
        page_sizes: bitmap of the page sizes of the IOMMU, or 0 when the kernel does not say.
        ranges: where mappings may lie, or None: the kernel does not say (before 5.4, or mediated
            devices only). None is NOT "everywhere".
        entries_left: MAP calls that can still be made, or None (before 5.10).
        dirty_page_sizes: bitmap of page sizes for dirty tracking, or 0 when there is none.
        max_dirty_bitmap: bytes of one dirty bitmap, or 0.
        unknown: ids of capabilities that were stepped over.
    """

    page_sizes: int
    ranges: MappableRanges | None
    entries_left: int | None
    dirty_page_sizes: int = 0
    max_dirty_bitmap: int = 0
    unknown: tuple[int, ...] = ()


def read_type1_info(answer: bytes | bytearray) -> Type1Facts:
    """Read an answer to `VFIO_IOMMU_GET_INFO`.

    Args:
        answer: from `uapi.grow_by_argsz`.

    Raises:
        CapabilityError: the chain or one of the known capabilities contradicts itself.
    """
    fixed = uapi.TYPE1_INFO.read(answer)
    page_sizes = fixed["iova_pgsizes"] if fixed["flags"] & uapi.INFO_PGSIZES else 0
    ranges: MappableRanges | None = None
    entries: int | None = None
    dirty_sizes = dirty_limit = 0
    unknown = []
    has_caps = fixed["flags"] & uapi.INFO_CAPS
    chain = walk(answer, fixed["cap_offset"] if has_caps else 0, fixed["argsz"], 16)
    for cap in chain:
        if cap.id == uapi.CAP_IOVA_RANGE:
            ranges = read_ranges(cap)
        elif cap.id == uapi.CAP_DMA_AVAIL:
            entries = uapi.DMA_AVAIL.read(cap.payload)["avail"]
        elif cap.id == uapi.CAP_MIGRATION:
            fields = uapi.MIGRATION.read(cap.payload)
            dirty_sizes = fields["pgsize_bitmap"]
            dirty_limit = fields["max_dirty_bitmap_size"]
        else:
            unknown.append(cap.id)
    return Type1Facts(page_sizes, ranges, entries, dirty_sizes, dirty_limit, tuple(unknown))


def read_ranges(cap: Capability) -> MappableRanges:
    """Read the list of valid IOVA ranges; the kernel does not promise an order.

    Raises:
        CapabilityError: the list is longer than the answer, a range is upside down, or two overlap.
    """
    count = uapi.IOVA_RANGE_HEAD.read(cap.payload)["nr_iovas"]
    step, at = uapi.IOVA_RANGE.size, uapi.IOVA_RANGE_HEAD.size
    if at + step * count > len(cap.payload):
        raise CapabilityError(
            f"the range capability names {count} ranges, the answer has room for "
            f"{(len(cap.payload) - at) // step}",
            offset=cap.offset,
        )
    pairs = sorted(uapi.IOVA_RANGE.codec.iter_unpack(cap.payload[at : at + step * count]))
    return checked_ranges(pairs, cap.offset)


def checked_ranges(pairs: list[tuple[int, int]], offset: int = 0) -> MappableRanges:
    """Make ranges of ascending `(start, last)` pairs that the kernel gave.

    Raises:
        CapabilityError: a pair is upside down, or two overlap.
    """
    for start, last in pairs:
        if last < start:
            raise CapabilityError(
                f"the kernel gives a range from {start:#x} down to {last:#x}", offset=offset
            )
    for below, above in itertools.pairwise(pairs):
        if above[0] <= below[1]:
            raise CapabilityError(
                f"the kernel gives the overlapping ranges {below[0]:#x}-{below[1]:#x} and "
                f"{above[0]:#x}-{above[1]:#x}",
                offset=offset,
            )
    return MappableRanges(AddrRange(start, last) for start, last in pairs)


@record
class ZpciFacts:
    """What an s390 device says of itself; the only evidence for its aperture before Linux 5.4.

    Attributes:
        dma: lowest and highest usable DMA address.
        version: of the base capability.
        function_type: `pft`.
        group_id: `gid`.
        space_mask: DMA address space mask of the function group, or None.
        msi_address: where MSIs go, or None.
    """

    dma: AddrRange
    version: int
    function_type: int
    group_id: int
    space_mask: int | None = None
    msi_address: int | None = None


@record
class DeviceFacts:
    """What `VFIO_DEVICE_GET_INFO` says.

    Attributes:
        flags: `uapi.DEVICE_FLAG_*`.
        regions: count of regions.
        irqs: count of interrupt indexes.
        zpci: facts of an s390 function, or None.
        unknown: ids of capabilities that were stepped over.
    """

    flags: int
    regions: int
    irqs: int
    zpci: ZpciFacts | None = None
    unknown: tuple[int, ...] = ()


def read_device_info(answer: bytes | bytearray) -> DeviceFacts:
    """Read an answer to `VFIO_DEVICE_GET_INFO`.

    Raises:
        CapabilityError: the chain or one of the known capabilities contradicts itself.

    Source: include/uapi/linux/vfio_zdev.h, drivers/vfio/pci/vfio_pci_zdev.c (Linux 5.10).
    """
    fixed = uapi.DEVICE_INFO.read(answer)
    base: dict[str, int] | None = None
    group: dict[str, int] = {}
    version, base_offset = 0, 0
    unknown = []
    has_caps = fixed["flags"] & uapi.DEVICE_FLAG_CAPS
    chain = walk(answer, fixed["cap_offset"] if has_caps else 0, fixed["argsz"], 16)
    for cap in chain:
        if cap.id == uapi.CAP_ZPCI_BASE:
            base, version, base_offset = uapi.ZPCI_BASE.read(cap.payload), cap.version, cap.offset
        elif cap.id == uapi.CAP_ZPCI_GROUP:
            group = uapi.ZPCI_GROUP.read(cap.payload)
        else:
            unknown.append(cap.id)
    zpci = None
    if base is not None:
        pair = (base["start_dma"], base["end_dma"])
        zpci = ZpciFacts(
            checked_ranges([pair], base_offset)[0],
            version,
            base["pft"],
            base["gid"],
            group.get("dasm"),
            group.get("msi_addr"),
        )
    return DeviceFacts(
        fixed["flags"], fixed["num_regions"], fixed["num_irqs"], zpci, tuple(unknown)
    )


def read_region_info(answer: bytes | bytearray) -> tuple[dict[str, int], RangeSet]:
    """Read an answer to `VFIO_DEVICE_GET_REGION_INFO`.

    Returns:
        The fixed fields, and which offsets of the region may be mapped (`mmap`).

    Raises:
        CapabilityError: the chain contradicts itself, or an area lies outside of the region.

    Source: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_get_region_info (Linux 4.6 to 7.3).
    """
    fixed = uapi.REGION_INFO.read(answer)
    if not fixed["flags"] & uapi.REGION_FLAG_MMAP or not fixed["size"]:
        return fixed, RangeSet()
    whole = RangeSet([AddrRange.from_size(0, fixed["size"])])
    has_caps = fixed["flags"] & uapi.REGION_FLAG_CAPS
    first = fixed["cap_offset"] if has_caps else 0
    for cap in walk(answer, first, fixed["argsz"], uapi.REGION_INFO.size):
        if cap.id == uapi.CAP_SPARSE_MMAP:
            return fixed, _sparse(cap, whole)
    return fixed, whole


def _sparse(cap: Capability, whole: RangeSet) -> RangeSet:
    head = uapi.SPARSE_HEAD.read(cap.payload)
    places = range(uapi.SPARSE_HEAD.size, len(cap.payload), uapi.SPARSE_AREA.size)
    if head["nr_areas"] > len(places):
        raise CapabilityError(
            f"{head['nr_areas']} areas do not fit a capability of {len(cap.payload)} bytes",
            offset=cap.offset,
        )
    fields = [uapi.SPARSE_AREA.read(cap.payload, at) for at in places[: head["nr_areas"]]]
    areas = RangeSet(AddrRange.from_size(f["offset"], f["size"]) for f in fields if f["size"])
    if areas - whole:
        raise CapabilityError(
            f"the area {(areas - whole)[0]} that may be mapped lies outside of its region",
            offset=cap.offset,
        )
    return areas
