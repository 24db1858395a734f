# SPDX-License-Identifier: Apache-2.0
"""The judge: turns the facts of a host into usable ranges, every edge with its cause.

The rules (docs/design.md, "Rules of truth"):

* an aperture has evidence, or there is no answer;
* the strongest evidence of each group counts: the kernel's list, then the zPCI capability, then
  width registers, then what the user states; several groups are intersected;
* hardware registers cap even the kernel's list (VT-d on Linux 5.4 lists 57 bits on any hardware),
  and what the user states can only narrow;
* `direct`, `reserved`, `msi` and unknown words are holes, also where the kernel's list leaves them
  usable: a later attach would take them away. `direct-relaxable` is usable, with a warning, and a
  hole when `strict`;
* touching ranges of the kernel's list stay two, and a region of length 0 makes a seam;
* the last page below 2^64 is left out (kernels before 6.18 lose mappings that end there).
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from vmm_iova.errors import EvidenceError, HostDataError, HostUnavailableError, RequestError
from vmm_iova.host.evidence import (
    HYPERTRANSPORT,
    MSI_X86,
    Evidence,
    EvidenceKind,
    familiar,
    is_amd,
    is_x86,
    search,
    stated_evidence,
    units_of,
)
from vmm_iova.host.model import (
    PASTED,
    EmptyRegion,
    Group,
    Host,
    Note,
    RegionKind,
    ReservedRegion,
    Source,
)
from vmm_iova.host.usable import Cause, CauseKind, Unassignable, Usable, cut_holes
from vmm_iova.host.width import vtd_page_sizes
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet, check_granule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PAGE_X86 = 4096  # x86 and s390 have no other base page
_PAGE_LARGEST = 65536  # largest base page of arm64, riscv64, ppc64: right on smaller ones too
_TOP_PAGE = 4096
_STRENGTH = list(EvidenceKind)
_ARCHITECTURE = Source("fixed by the architecture")


def judge(
    host: Host,
    *,
    groups: Iterable[str | int] | None = None,
    devices: Iterable[str] | None = None,
    aperture: int | str | AddrRange | RangeSet | None = None,
    granule: int | None = None,
    strict: bool = False,
) -> Usable:
    """Judge which IOVAs may be mapped for these groups or devices together.

    Args:
        host: the facts.
        groups: group numbers; default all groups of the host.
        devices: device names (BDFs), instead of or beside groups.
        aperture: what the user states: bits, a range, or ranges. It counts where nothing stronger
            is known, and narrows what is.
        granule: smallest mapping unit in bytes, if the user knows it.
        strict: treat `direct-relaxable` regions as holes.

    Returns:
        The usable ranges with granule, evidence and causes.

    Raises:
        EvidenceError: nothing says what the aperture is, or where the holes are.
        UnknownNameError: no such group or device.
        HostDataError: a selected group's list of regions is damaged.
        HostUnavailableError: it could not be read, or the host has no IOMMU groups.
        RequestError: `aperture` or `granule` makes no sense.

    Complexity: O((ranges + regions) log) for a host; microseconds to a millisecond.
    Synchronization: none required.
    """
    return _Judge(host, _select(host, groups, devices), strict).judge(aperture, granule)


def _select(
    host: Host, groups: Iterable[str | int] | None, devices: Iterable[str] | None
) -> tuple[Group, ...]:
    groups = (groups,) if isinstance(groups, (str, int)) else groups
    devices = (devices,) if isinstance(devices, str) else devices
    if groups is None and devices is None:
        if host.sysfs and not (host.groups or host.kernel_ranges or host.windows):
            raise HostUnavailableError(
                f"host {host.name} has no IOMMU groups: no IOMMU is in use",
                source=host.name,
                hint="switch the IOMMU on in the firmware and, on Intel, boot with intel_iommu=on; "
                "or plan for another host with --host",
            )
        return host.groups
    chosen = {group.id: group for group in (host.group(item) for item in groups or ())}
    for name in devices or ():
        device = host.device(name)
        if device.group is None:
            raise HostUnavailableError(
                f"device {device.name} is in no IOMMU group: no IOMMU translates it",
                source=device.name,
            )
        chosen[device.group] = host.group(device.group)
    if not chosen:
        raise RequestError("no group and no device was named", field="groups", value=())
    return tuple(group for group in host.groups if group.id in chosen)


class _Judge:
    """One judgement: collects evidence, causes and notes, then cuts the ranges."""

    def __init__(self, host: Host, groups: tuple[Group, ...], strict: bool) -> None:
        self.host = host
        self.groups = groups
        self.strict = strict
        self.notes: list[Note] = list(host.notes)
        self.causes: list[Cause] = []
        self.evidence: list[Evidence] = []
        self.caps: list[Evidence] = []
        self.relaxable: list[ReservedRegion] = []
        self.listed: set[str | None] = set()  # groups whose holes the kernel's own list has

    def judge(
        self, stated: int | str | AddrRange | RangeSet | None, granule_stated: int | None
    ) -> Usable:
        aperture = self._aperture(stated)
        regions = self._regions()
        known = self._known_granule()
        granule, granule_text = self._granule(granule_stated, known)
        granule_known = granule_stated is not None or known is not None
        raw = aperture - RangeSet(cause.range for cause in self.causes)
        top = AddrRange(ADDRESS_LAST + 1 - max(granule, _TOP_PAGE), ADDRESS_LAST)
        if raw.overlapping(top):
            text = "last page below 2^64, where kernels before 6.18 lose mappings"
            self.causes.append(Cause(CauseKind.TOP_PAGE, top, text))
            raw = raw - RangeSet([top])
        seams = self._seams()
        for seam in seams:
            raw = raw.split_at(seam)
        self._add_aperture_causes()
        ranges = raw.align_inward(granule)
        self._add_slivers(ranges, granule, seams)
        if not ranges:
            self.notes.append(Note("nothing is usable: holes and aperture leave no whole granule"))
        parts = cut_holes(self.causes)
        return Usable(
            host=self.host.name,
            ranges=ranges,
            causes=tuple(self.causes),
            holes=MappableRanges(parts),
            hole_causes=parts,
            seams=seams,
            granule=granule,
            granule_text=granule_text,
            granule_known=granule_known,
            page_sizes=self._page_sizes(),
            limits=self.host.limits,
            evidence=tuple(self.evidence),
            unassignable=tuple(self._unassignable()),
            relaxable=tuple(self.relaxable),
            regions=regions,
            groups=tuple(group.id for group in self.groups),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    # -- aperture ------------------------------------------------------------------------------

    def _aperture(self, stated: int | str | AddrRange | RangeSet | None) -> MappableRanges:
        said = stated_evidence(stated) if stated is not None else None
        looked: list[str] = []
        for group in self.groups or (None,):
            findings = search(self.host, group)
            looked += (line for line in findings.looked_at if line not in looked)
            self.caps += (cap for cap in findings.caps if cap not in self.caps)
            if findings.evidence:
                strongest = findings.evidence[0].kind
                if strongest is EvidenceKind.KERNEL_LIST:
                    self.listed.add(group.id if group else None)
                same = [item for item in findings.evidence if item.kind is strongest]
                self.evidence += (item for item in same if item not in self.evidence)
            elif said is None:
                raise self._no_evidence(group, looked)
        if said is not None:
            self.evidence.append(said)
        self.evidence.sort(key=lambda item: _STRENGTH.index(item.kind))
        ranges = MappableRanges([AddrRange(0, ADDRESS_LAST)])
        for item in self.evidence:
            ranges = ranges & item.ranges
        for cap in self.caps:
            ranges = self._cap(ranges, cap)
        if said is not None and said.ranges and ranges and said.ranges[-1].last > ranges[-1].last:
            self.notes.append(
                Note(f"{said.text}, but {self.evidence[0].text}: the smaller of the two counts")
            )
        return ranges

    def _cap(self, ranges: MappableRanges, cap: Evidence) -> MappableRanges:
        limit = cap.ranges[-1].last
        if not ranges or ranges[-1].last <= limit:
            return ranges
        if cap not in self.evidence:
            self.evidence.append(cap)
        self.notes.append(
            Note(
                f"{self.evidence[0].text} goes up to {ranges[-1].last:#x}, but {cap.text}: the "
                f"registers win, a mapping above {limit:#x} fails with EFAULT"
            )
        )
        return ranges & cap.ranges

    def _no_evidence(self, group: Group | None, looked: Sequence[str]) -> EvidenceError:
        of = f" for {group.title}" if group else ""
        return EvidenceError(
            f"host {self.host.name}: nothing says how wide the IOVA space is{of}, and a width is "
            "not guessed",
            looked_at=looked,
            settles=(
                "--aperture BITS or --aperture START-LAST, if you know it",
                "the kernel's own range list (VFIO or iommufd), pasted or captured on that host",
                "the zPCI base capability (start_dma, end_dma) of the device, Linux 5.10"
                if self._is_s390()
                else "a lower bound that is surely there, such as --aperture 32",
            ),
        )

    def _is_s390(self) -> bool:
        named = (self.host.arch or "").startswith("s390")
        return named or any(unit.vendor == "s390" for unit in self.host.units)

    def _add_aperture_causes(self) -> None:
        for item in self.evidence:
            for gap in ~item.ranges.as_set():
                self.causes.append(self._outside(item, gap))

    def _outside(self, item: Evidence, gap: AddrRange) -> Cause:
        hull = item.ranges.hull
        inner = hull is not None and hull.start < gap.start and gap.last < hull.last
        if not inner:
            side = "below" if gap.start == 0 and hull is not None else "above"
            edge = hull and (hull.start if side == "below" else hull.last)
            text = f"aperture: {side} {edge:#x}, {item.text}" if hull else f"aperture: {item.text}"
            return Cause(CauseKind.APERTURE, gap, text)
        name = familiar(gap)
        also = f" ({name})" if name else ""
        if item.kind is EvidenceKind.KERNEL_LIST:
            text = f"left out of the kernel's range list{also}, {item.source}"
            return Cause(CauseKind.KERNEL_GAP, gap, text)
        return Cause(CauseKind.APERTURE, gap, f"aperture: left out{also}, {item.text}")

    # -- holes ---------------------------------------------------------------------------------

    def _seams(self) -> dict[int, str]:
        """Where two ranges touch without being one, and why."""
        found: dict[int, str] = {}
        for item in self.evidence:
            for seam in item.ranges.seams:
                found.setdefault(seam, f"two ranges of a list touch there, {item.source}")
        for group in self.groups:
            for empty in group.empty_regions:
                text = f"{empty.word} region of length 0 of {group.title}, {empty.source}"
                found.setdefault(empty.start, text)
        return found

    def _add_slivers(self, ranges: MappableRanges, granule: int, seams: dict[int, str]) -> None:
        """Give a cause to each granule that no hole touches but a seam cuts."""
        taken = RangeSet(cause.range for cause in self.causes).align_outward(granule)
        for span in ~(ranges.as_set() | taken):
            cut = next((f": {text}" for seam, text in seams.items() if seam in span), "")
            text = f"granules of {granule:#x} bytes that a seam cuts{cut}"
            self.causes.append(Cause(CauseKind.GRANULE, span, text))

    @property
    def all_listed(self) -> bool:
        """Tell whether the kernel's own lists have the holes of the whole selection."""
        return (
            {group.id for group in self.groups} <= self.listed if self.groups else bool(self.listed)
        )

    def _regions(self) -> tuple[ReservedRegion, ...]:
        """Add a cause for each hole and return all regions of the selection."""
        regions: list[ReservedRegion] = []
        for group in self.groups:
            if group.regions is None:
                self._missing(group)
            elif not group.regions and group.id not in self.listed:
                self._empty(group)
            regions += group.regions or ()
        regions += self._from_log()
        regions += self._platform(regions)
        for same in _alike(regions):
            if same[0].kind is RegionKind.DIRECT_RELAXABLE and not self.strict:
                self.relaxable.append(same[0])
                continue
            self.causes.append(self._hole(same))
        self._compare(regions)
        return tuple(regions)

    def _missing(self, group: Group) -> None:
        problem = group.damaged or group.unreadable
        if group.id in self.listed:
            what = problem or f"{group.title} has no reserved_regions file"
            self.notes.append(Note(f"{what}: the kernel's own list has the holes", False))
        elif group.damaged:
            raise HostDataError(
                group.damaged,
                source=group.id,
                hint="select other groups, or bring the kernel's own range list",
            )
        elif group.unreadable:
            raise HostUnavailableError(
                f"{group.title}: its reserved regions could not be read: {group.unreadable}",
                source=group.id,
                hint="capture as a user who may read it, or bring the kernel's range list",
            )
        elif not is_x86(self.host):
            raise EvidenceError(
                f"{group.title} has no reserved_regions file (kernel before 4.11), so nothing says "
                "where its holes are",
                looked_at=("sysfs reserved_regions: no such file",),
                settles=("the kernel's own range list (VFIO, Linux 5.4)", "a newer kernel"),
            )
        else:
            self.notes.append(
                Note(
                    f"{group.title} has no reserved_regions file (kernel before 4.11): firmware "
                    "regions (RMRR, IVMD) are not known; the holes of the architecture are kept"
                )
            )

    def _empty(self, group: Group) -> None:
        if not is_x86(self.host):
            self.notes.append(
                Note(
                    f"{group.title}: reserved_regions is empty, which does not mean unrestricted "
                    "(s390 up to Linux 6.1 and RISC-V print none)"
                )
            )

    def _from_log(self) -> list[ReservedRegion]:
        """RMRRs of a log name no device: holes, unless something better names the holes."""
        log = list(self.host.log_regions)
        if not log:
            return []
        better = "the kernel's range list" if self.all_listed else None
        if not better and self.groups:
            named = (group.regions or group.id in self.listed for group in self.groups)
            better = "sysfs, which names the groups that they bind," if all(named) else None
        if better:
            self.notes.append(
                Note(f"{len(log)} RMRR lines of the log were not used: {better} is better", False)
            )
            return []
        self.notes.append(
            Note(
                f"the log names {len(log)} RMRRs but not their devices: all are taken as holes; "
                "a device that has one which is not USB or graphics cannot be assigned at all"
            )
        )
        return log

    def _platform(self, regions: Sequence[ReservedRegion]) -> Iterable[ReservedRegion]:
        """Add what x86 hardware never translates where no source names it."""
        if self.all_listed or not is_x86(self.host):
            return
        fixed = [(MSI_X86, RegionKind.MSI)]
        if is_amd(self.host) and not any(group.regions for group in self.groups):
            fixed.append((HYPERTRANSPORT, RegionKind.RESERVED))
        for span, kind in fixed:
            if not any(span in region.range for region in regions if region.kind is kind):
                yield ReservedRegion(span, kind, kind.value, _ARCHITECTURE)

    def _hole(self, same: Sequence[ReservedRegion]) -> Cause:
        """The cause for one region, which several groups may have."""
        region = same[0]
        name = familiar(region.range)
        if region.source is _ARCHITECTURE:
            text = f"{name}, fixed by the architecture"
            return Cause(CauseKind.PLATFORM, region.range, text, region)
        also = f" ({name})" if name else ""
        why = " (strict)" if region.kind is RegionKind.DIRECT_RELAXABLE else ""
        text = f"{region.word} region {region.range}{self._owners(same)}{also}{why}, "
        text += str(region.source) + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        return Cause(CauseKind.REGION, region.range, text, region)

    def _owners(self, same: Sequence[ReservedRegion]) -> str:
        ids = {region.group for region in same} - {None, PASTED}
        owners = [group for group in self.groups if group.id in ids]
        if len(owners) <= 1:
            return f" of {owners[0].title}" if owners else ""
        shown = ", ".join(group.id for group in owners[:8])
        return f" of groups {shown}" + (f" and {len(owners) - 8} more" if len(owners) > 8 else "")

    def _compare(self, regions: Sequence[ReservedRegion]) -> None:
        """Say where sysfs and the kernel's list disagree about a hole, and which one won."""
        lists = [item for item in self.evidence if item.kind is EvidenceKind.KERNEL_LIST]
        named = RangeSet(region.range for region in regions)
        for item in lists:
            listed = item.ranges.as_set()
            for same in _alike(regions):
                region = same[0]
                relaxed = region.kind is RegionKind.DIRECT_RELAXABLE
                if not relaxed and not RangeSet([region.range]).isdisjoint(listed):
                    self.notes.append(
                        Note(
                            f"{region.source} reserves {region.range} ({region.word}), but the "
                            f"kernel's list ({item.source}) leaves it usable: the region wins, a "
                            "later attach would take it away"
                        )
                    )
            hull = item.ranges.hull
            if not regions or hull is None:
                continue
            for gap in listed.complement(hull):
                if not RangeSet([gap]) <= named:
                    self.notes.append(
                        Note(
                            f"the kernel's list ({item.source}) leaves out {gap}, which sysfs does "
                            "not name: the list wins",
                            False,
                        )
                    )

    def _unassignable(self) -> Iterable[Unassignable]:
        for group in self.groups:
            # An empty one counts too: require_direct does not look at the length.
            every: Sequence[ReservedRegion | EmptyRegion] = (
                *(group.regions or ()),
                *group.empty_regions,
            )
            direct = next((item for item in every if item.kind is RegionKind.DIRECT), None)
            if direct is None:
                continue
            span = direct.range if isinstance(direct, ReservedRegion) else f"{direct.start:#x}+0"
            text = (
                f"the devices of {group.title} cannot be given to a guest on current kernels: "
                f"firmware demands the direct region {span} ({direct.source}); Linux 6.8 and later "
                "refuse with EINVAL, VT-d before that with EPERM"
            )
            yield Unassignable(group, direct, text)

    # -- granule -------------------------------------------------------------------------------

    def _granule(self, stated: int | None, known: tuple[int, str] | None) -> tuple[int, str]:
        if stated is None:
            return known or self._likely_granule()
        check_granule(stated)
        if known is not None and stated < known[0]:
            raise RequestError(
                f"granule {stated:#x} was stated, but the {known[1]} says {known[0]:#x}",
                field="granule",
                value=stated,
            )
        return stated, "stated by the user"

    def _known_granule(self) -> tuple[int, str] | None:
        sizes = [
            (item.granule, f"kernel's range list, {item.source}")
            for item in self.evidence
            if item.granule
        ]
        if self.host.page_size:
            # type1 and iommufd never map less than a page of the kernel.
            sizes.append((self.host.page_size, "page size of the host's kernel"))
        return max(sizes, key=lambda pair: pair[0]) if sizes else None

    def _likely_granule(self) -> tuple[int, str]:
        x86 = is_x86(self.host)
        if x86 or self._is_s390():
            return _PAGE_X86, f"base page of {'x86' if x86 else 's390'}; the source states none"
        return (
            _PAGE_LARGEST,
            "largest base page there is, right on every kernel; the source states none "
            "(--granule 4K if you know it)",
        )

    def _page_sizes(self) -> int | None:
        """Page sizes that all units of the selection take: the kernel's bitmap, or registers."""
        bitmaps = [item.page_sizes for item in self.evidence if item.page_sizes]
        if not bitmaps:
            groups: tuple[Group | None, ...] = self.groups or (None,)
            units = {unit for group in groups for unit in units_of(self.host, group)}
            bitmaps = [
                vtd_page_sizes(unit.cap)
                for unit in units
                if unit.vendor == "intel" and unit.cap is not None
            ]
        return reduce(int.__and__, bitmaps) if bitmaps else None


def _alike(regions: Iterable[ReservedRegion]) -> Iterable[list[ReservedRegion]]:
    """Put together the regions of several groups that say the same; keep the order."""
    found: dict[tuple[AddrRange, str], list[ReservedRegion]] = {}
    for region in regions:
        found.setdefault((region.range, region.word), []).append(region)
    return found.values()
