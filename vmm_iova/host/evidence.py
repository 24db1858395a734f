# SPDX-License-Identifier: Apache-2.0
"""Evidence for the aperture of a group: what there is, how strong it is, what it says."""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.host.facts import Facts, Group, IommuUnit, KernelRanges, RegionKind, Source
from vmm_iova.host.registers import Width, amd_width, vtd_first_stage, vtd_width
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet
from vmm_iova.record import record
from vmm_iova.units import parse_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MSI_X86 = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
"""Interrupt window of x86, never translated (Intel SDM 3A, 11.11.1; AMD APM 2, 16.11)."""

HYPERTRANSPORT = AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)
"""AMD's reserved 12 GiB below 1 TiB (drivers/iommu/amd/iommu.c, amd_iommu_get_resv_regions)."""

MSI_ARM_SOFTWARE = AddrRange(0x0800_0000, 0x080F_FFFF)
"""Where the kernel maps MSI doorbells on Arm (MSI_IOVA_BASE, arm-smmu and virtio-iommu)."""


Aperture = int | str | AddrRange | RangeSet | MappableRanges
"""What a user may state: bits, text, or ranges."""


class EvidenceKind(enum.Enum):
    """Kinds of aperture evidence, strongest first."""

    KERNEL_LIST = "kernel range list"
    ZPCI = "zPCI base capability"
    REGISTERS = "width registers"
    STATED = "stated by the user"


@record
class Evidence:
    """One piece of evidence for the aperture.

    Attributes:
        kind: what it is.
        ranges: what it allows.
        text: one line that says where it comes from and what it says.
        source: where.
        group: the group that it is about, or None for all.
        bound: True if it only bounds from above, as registers do.
        granule: smallest page in bytes that came with it, or None.
        page_sizes: bitmap of page sizes that came with it, or None.
    """

    kind: EvidenceKind
    ranges: MappableRanges
    text: str
    source: Source
    group: str | None = None
    bound: bool = False
    granule: int | None = None
    page_sizes: int | None = None


@record
class Findings:
    """What a search for evidence found about one group.

    Attributes:
        evidence: strongest first; empty when there is none.
        caps: upper bounds of the hardware, that hold whatever else says.
        looked_at: everything that was looked at, and why it counts or not.
    """

    evidence: tuple[Evidence, ...]
    caps: tuple[Evidence, ...]
    looked_at: tuple[str, ...]


@lru_cache(64)
def width_ranges(bits: int) -> MappableRanges:
    """Return `0 .. 2^bits-1`."""
    return MappableRanges([AddrRange(0, (1 << bits) - 1)])


def stated_evidence(aperture: Aperture) -> Evidence:
    """Turn what the user states into evidence.

    Args:
        aperture: bits (`48`, `"48"`), a range (`"0x0-0x7fffffffff"`), several with commas between,
            or ranges.

    Raises:
        RequestError: not a width from 1 to 64, nor ranges.
    """
    source = Source("--aperture")
    if isinstance(aperture, str):
        text = aperture.strip().lower().removesuffix("bits").removesuffix("bit").rstrip(" -")
        if not (text.isdecimal() and len(text) < 4):
            spans = [parse_range(part, "aperture") for part in aperture.split(",")]
            return _stated(MappableRanges(RangeSet(spans)), source)
        aperture = int(text)
    if isinstance(aperture, AddrRange):
        return _stated(MappableRanges([aperture]), source)
    if isinstance(aperture, (RangeSet, MappableRanges)):
        return _stated(MappableRanges(aperture), source)
    if isinstance(aperture, bool) or not isinstance(aperture, int) or not 1 <= aperture <= 64:
        raise RequestError(
            f"aperture {aperture!r} is not a width from 1 to 64 bits, nor ranges",
            field="aperture",
            value=aperture,
            hint="write --aperture 48, or a range like 0x100000000-0x8ffffffff",
        )
    ranges = width_ranges(aperture)
    return Evidence(EvidenceKind.STATED, ranges, f"stated: {aperture} bits", source)


def _stated(ranges: MappableRanges, source: Source) -> Evidence:
    shown = ", ".join(map(str, ranges[:4])) + (", ..." if len(ranges) > 4 else "")
    return Evidence(EvidenceKind.STATED, ranges, f"stated: {shown or 'nothing'}", source)


_NONE = frozenset[str]()


def in_front(
    host: Facts, groups: Iterable[Group | None]
) -> list[tuple[Group | None, frozenset[str]]]:
    """Return each group with the names of the units that it is behind; none where nothing says it.

    Args:
        host: the facts.
        groups: the groups; None for a host whose facts name no groups.

    Complexity: O(devices + groups).
    """
    units = frozenset(unit.name for unit in host.units)
    sets: dict[str | None, frozenset[str]] = {name: frozenset((name,)) for name in units}
    behind = {device.name: sets.get(device.iommu, _NONE) for device in host.devices}
    return [(group, _in_front(group.devices if group else (), behind)) for group in groups]


def _in_front(names: Sequence[str], behind: Mapping[str, frozenset[str]]) -> frozenset[str]:
    if len(names) == 1:  # as most groups have
        return behind.get(names[0], _NONE)
    return _NONE.union(*(behind.get(name, _NONE) for name in names))


def units_of(host: Facts, sets: Iterable[frozenset[str]]) -> Sequence[IommuUnit]:
    """Return the units of some sets of names; all of the host stand for a set without any."""
    found = {unit.name: unit for names in dict.fromkeys(sets) for unit in _named(host, names)}
    return tuple(found.values())


def _named(host: Facts, names: frozenset[str]) -> Sequence[IommuUnit]:
    return [unit for unit in host.units if unit.name in names] if names else host.units


def search(
    host: Facts, groups: Iterable[tuple[Group | None, frozenset[str]]]
) -> Iterator[tuple[Group | None, Findings]]:
    """Look for evidence of the aperture that each group has.

    Args:
        host: the facts.
        groups: the groups, as `in_front` returns them.

    Returns:
        A group, and what was found. Where registers alone tell, of the groups behind the same
        units the first stands for all.

    Complexity: O(groups x lists of the kernel), and each set of units is read once.
    """
    of_groups = bool(host.kernel_ranges or host.windows)
    read: dict[frozenset[str], Findings] = {}
    for group, names in groups:
        if names not in read:
            read[names] = _registers(host, _named(host, names))
        elif not of_groups:
            continue
        yield group, _search(host, group, read[names])


def _registers(host: Facts, units: Sequence[IommuUnit]) -> Findings:
    """What the registers of units tell."""
    looked: list[str] = []
    widths = list(_widths(host, units, looked))
    if not widths:
        looked.append("width registers in sysfs: none that say a width")
    least = sorted(widths, key=lambda item: item.bits)[:1]
    return Findings(
        tuple(item.evidence for item in least),
        tuple(item.cap for item in widths if item.certain),
        tuple(looked),
    )


def _search(host: Facts, group: Group | None, registers: Findings) -> Findings:
    looked: list[str] = []
    pieces: list[Evidence] = []
    for listed in host.kernel_ranges:
        pieces += _from_kernel(listed, group, looked)
    if not host.kernel_ranges:
        looked.append("the kernel's range list (VFIO or iommufd): not among the facts")
    pieces += _from_zpci(host, group)
    looked += registers.looked_at
    if any(item.regions is not None for item in host.groups):
        looked.append("sysfs reserved_regions: names holes, never the aperture")
    return Findings((*pieces, *registers.evidence), registers.caps, tuple(looked))


def _from_kernel(
    listed: KernelRanges, group: Group | None, looked: list[str]
) -> Iterator[Evidence]:
    where = f"the kernel's range list ({listed.source})"
    if not listed.ranges:
        looked.append(f"{where}: empty, as for a container that has no IOMMU behind it")
    elif list(listed.ranges) == [AddrRange(0, ADDRESS_LAST)]:
        looked.append(
            f"{where}: one range 0..2^64-1 is what iommufd says before any device is attached"
        )
    elif listed.groups is not None and group is not None and group.id not in listed.groups:
        looked.append(f"{where}: read for group {', '.join(listed.groups)}, not for {group.title}")
    else:
        api = "" if listed.api == "text" else f" ({listed.api})"
        shown = ", ".join(map(str, listed.ranges[:4])) + (", ..." if len(listed.ranges) > 4 else "")
        yield Evidence(
            EvidenceKind.KERNEL_LIST,
            listed.ranges,
            f"kernel range list{api}, {listed.source}: {shown}",
            listed.source,
            group.id if group and listed.groups is not None else None,
            granule=listed.granule,
            page_sizes=listed.page_sizes,
        )


def _from_zpci(host: Facts, group: Group | None) -> Iterator[Evidence]:
    for window in host.windows:
        if group is None or window.device in group.devices or not group.devices:
            yield Evidence(
                EvidenceKind.ZPCI,
                MappableRanges([window.range]),
                f"zPCI base capability of {window.device}: {window.range}",
                window.source,
                group.id if group else None,
            )


@record
class _Width:
    """A width that a register or the kernel states.

    Attributes:
        bits: what a sysfs-only estimate may count on.
        hardware_bits: what the hardware can walk at most, whatever tables the kernel picks.
        certain: the register was read beyond doubt.
    """

    bits: int
    hardware_bits: int
    certain: bool
    text: str
    source: Source

    @property
    def evidence(self) -> Evidence:
        ranges = width_ranges(self.bits)
        return Evidence(EvidenceKind.REGISTERS, ranges, self.text, self.source, bound=True)

    @property
    def cap(self) -> Evidence:
        ranges = width_ranges(self.hardware_bits)
        return Evidence(EvidenceKind.REGISTERS, ranges, self.text, self.source, bound=True)


def _widths(host: Facts, units: Iterable[IommuUnit], looked: list[str]) -> Iterator[_Width]:
    for unit in units:
        if unit.cap is not None and unit.vendor == "intel":
            yield from _vtd(unit, looked)
        elif unit.features is not None and unit.vendor == "amd":
            yield from _amd(unit, host.release, looked)
        else:
            looked.append(f"{unit.name}: publishes no width")
    for width in host.widths:
        text = f"the kernel's own words, {width.source}: IOMMU width {width.bits} bits"
        yield _Width(width.bits, width.bits, True, text, width.source)


def _vtd(unit: IommuUnit, looked: list[str]) -> Iterator[_Width]:
    if unit.cap is None:
        return
    width = vtd_width(unit.cap)
    tables = "/".join(map(str, width.table_bits)) or "no known"
    text = (
        f"VT-d registers of {unit.name}, {unit.source}: cap {unit.cap:x}, "
        f"MGAW {width.mgaw_bits} bits, page tables of {tables} bits"
    )
    if not width.usable_bits:
        looked.append(f"{text}: makes no sense")
        return
    bits, stage = width.usable_bits, ""
    first_stage = vtd_first_stage(unit.cap, unit.ecap or 0)
    if first_stage is not None and first_stage < bits:
        bits = first_stage
        stage = "; the lower half of first-stage tables, scalable mode"
    shown = (
        f"IOMMU {unit.name} translates {bits} bits, up to {(1 << bits) - 1:#x} (cap {unit.cap:x}, "
        f"{unit.source}{stage})"
    )
    yield _Width(bits, width.usable_bits, True, shown, unit.source)


def _amd(unit: IommuUnit, release: str | None, looked: list[str]) -> Iterator[_Width]:
    width = amd_width(unit.features or "", release)
    text = f"AMD-Vi features of {unit.name}, {unit.source}: {unit.features}"
    if not width.bits:
        looked.append(f"{text}: {width.doubt or 'page-table depth is a reserved value'}")
        return
    doubt = f" ({width.doubt})" if width.doubt else ""
    shown = f"{text}: host page tables of {width.bits} bits{doubt}; v2 tables have 47 or 48"
    yield _Width(width.bits, width.bits, width.doubt is None, shown, unit.source)


def is_x86(host: Facts) -> bool:
    """Tell whether the facts can only come from an x86 host."""
    if host.arch in ("x86_64", "i386", "i686") or host.log_regions:
        return True
    if any(unit.vendor in ("intel", "amd") for unit in host.units):
        return True
    regions = (region for group in host.groups for region in group.regions or ())
    if any(region.kind is RegionKind.MSI and region.range == MSI_X86 for region in regions):
        return True
    lists = (listed.ranges.as_set() for listed in host.kernel_ranges)
    return any(MSI_X86 in ~ranges and MSI_X86.start - 1 in ranges for ranges in lists)


def architecture(host: Facts, groups: Sequence[Group]) -> str | None:
    """Return the architecture as `uname -m` prints it, where a fact says it.

    Args:
        host: the facts.
        groups: those whose regions count.
    """
    if host.arch:
        return host.arch
    if is_x86(host):
        return "x86_64"
    vendors = {unit.vendor for unit in host.units}
    named = {"arm": "aarch64", "apple": "aarch64", "s390": "s390x", "riscv": "riscv64"}
    architectures = {named[vendor] for vendor in vendors & set(named)}
    spans = {region.range for group in groups for region in group.regions or ()}
    if not architectures and MSI_ARM_SOFTWARE in spans:
        return "aarch64"  # virtio-iommu has the window on other machines too, but not alone
    return architectures.pop() if len(architectures) == 1 else None


def is_amd(host: Facts) -> bool:
    """Tell whether the facts can only come from an AMD host."""
    return any(unit.vendor == "amd" for unit in host.units)


def familiar(item: AddrRange) -> str | None:
    """Name a span that the architecture fixes, or None."""
    return {
        MSI_X86: "the x86 interrupt window",
        HYPERTRANSPORT: "the AMD HyperTransport range",
        MSI_ARM_SOFTWARE: "the window of Arm's software MSI",
    }.get(item)


_MASKS = 8  # device masks that are listed; a list of hundreds hides what limits


def host_widths(
    host: Facts,
    groups: Sequence[Group],
    units: Sequence[IommuUnit],
    evidence: Sequence[Evidence],
) -> tuple[Width, ...]:
    """List the widths of the IOMMUs, the kernel, the CPU and the devices of a selection.

    Args:
        host: the facts.
        groups: the selection.
        units: those in front of it.
        evidence: what counted for it.

    Units with the same registers are one entry, which says how many there are.
    """
    widths = [*_units(host, units)]
    for item in evidence:
        hull = item.ranges.hull
        if hull is None or item.kind is EvidenceKind.REGISTERS:
            continue
        what = {
            EvidenceKind.KERNEL_LIST: "aperture of the kernel",
            EvidenceKind.ZPCI: "zPCI DMA window",
        }.get(item.kind, "aperture as stated")
        widths.append(Width(what, hull.last.bit_length(), str(item.source)))
    widths += (
        Width("IOMMU as the kernel printed it", item.bits, str(item.source)) for item in host.widths
    )
    if host.cpu_bits is not None:
        widths.append(Width("CPU, physical", host.cpu_bits, host.cpu_source))
    members = {name for group in groups for name in group.devices}
    of_bits: dict[int, list[str]] = {}
    for device in host.devices:
        if device.name in members and device.dma_mask_bits:
            of_bits.setdefault(device.dma_mask_bits, []).append(device.name)
    for bits, names in sorted(of_bits.items())[:_MASKS]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"DMA mask of the host's driver, {names[0]}{more}"
        widths.append(Width(what, bits, "dma_mask_bits in sysfs", False))
    return tuple(dict.fromkeys(widths))


def _units(host: Facts, every: Sequence[IommuUnit]) -> Iterator[Width]:
    alike: dict[tuple[int | None, int | None, str | None, str], list[IommuUnit]] = {}
    for unit in every:
        key = (unit.cap, unit.ecap, unit.features, unit.vendor)
        alike.setdefault(key, []).append(unit)
    for (cap, ecap, features, vendor), units in alike.items():
        of = units[0].name + (f" and {len(units) - 1} alike" if len(units) > 1 else "")
        source = str(units[0].source)
        if cap is not None and vendor == "intel":
            width = vtd_width(cap)
            yield Width(f"MGAW of {of}", width.mgaw_bits, source)
            if width.table_bits:
                yield Width(f"deepest page table of {of}", width.table_bits[-1], source)
            first = None if ecap is None else vtd_first_stage(cap, ecap)
            if first is not None and width.usable_bits:
                yield Width(f"first-stage tables of {of}, lower half", first, source)
        elif features is not None and vendor == "amd":
            bits = amd_width(features, host.release).bits
            if bits:
                yield Width(f"host page tables of {of}", bits, source)
