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

from vmm_iova import remedies as say
from vmm_iova.errors import EvidenceError, HostUnavailableError, RequestError
from vmm_iova.host.agreement import compare_sources, open_gap
from vmm_iova.host.evidence import (
    Aperture,
    Evidence,
    EvidenceKind,
    architecture,
    familiar,
    host_widths,
    in_front,
    is_x86,
    search,
    stated_evidence,
    units_of,
)
from vmm_iova.host.facts import Facts, Group, Limits, Note
from vmm_iova.host.holes import find_holes, unassignable
from vmm_iova.host.obstacles import find_obstacles, iommu_hint
from vmm_iova.host.registers import vtd_page_sizes
from vmm_iova.host.usable import Cause, CauseKind, Usable, cut_holes
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet, check_granule
from vmm_iova.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.facts import IommuUnit

_PAGE_X86 = 4096  # x86 and s390 have no other base page
_PAGE_LARGEST = 65536  # largest base page of arm64, riscv64, ppc64: right on smaller ones too
_TOP_PAGE = 4096
_STRENGTH = list(EvidenceKind)
_EVERYTHING = MappableRanges([AddrRange(0, ADDRESS_LAST)])


def judge(
    host: Facts,
    *,
    groups: Iterable[str | int] | None = None,
    devices: Iterable[str] | None = None,
    aperture: Aperture | None = None,
    granule: int | None = None,
    strict: bool = False,
    beside: bool = True,
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
        beside: say also what stands beside the addresses, `widths` and `obstacles`, which are text
            for each group and device; a fleet asks for addresses alone.

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
    return _Judge(host, _select(host, groups, devices), strict).judge(
        aperture, granule, beside=beside
    )


def _select(
    host: Facts, groups: Iterable[str | int] | None, devices: Iterable[str] | None
) -> tuple[Group, ...]:
    groups = (groups,) if isinstance(groups, (str, int)) else groups
    devices = (devices,) if isinstance(devices, str) else devices
    if groups is None and devices is None:
        if host.sysfs and not (host.groups or host.kernel_ranges or host.windows):
            raise HostUnavailableError(
                f"host {host.name} has no IOMMU groups: no IOMMU is in use",
                source=host.name,
                hint=f"{iommu_hint(host.platform, host.arch)}; {say.OR_ANOTHER_HOST}",
            )
        return _translated(host.groups)
    known = {group.id: group for group in host.groups}
    chosen = {name: known.get(name) or host.group(name) for name in map(str, groups or ())}
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
    return _translated(tuple([group for group in host.groups if group.id in chosen]))


def _translated(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    for group in groups:
        if not group.translated:
            raise HostUnavailableError(
                f"{group.title} is a no-IOMMU group of VFIO: nothing translates, an IOVA would be "
                "a physical address, and there is nothing to map",
                source=group.id,
                hint="use a device behind an IOMMU, or leave the group out with --groups",
            )
    return groups


def _strength(item: Evidence) -> tuple[int, int]:
    """Strongest first, and of equals the narrowest: it is the one that limits."""
    hull = item.ranges.hull
    return _STRENGTH.index(item.kind), hull.last if hull else 0


class _Judge:
    """One judgement: collects evidence, causes and notes, then cuts the ranges."""

    def __init__(self, host: Facts, groups: tuple[Group, ...], strict: bool) -> None:
        self.host = host
        self.groups = groups
        self.strict = strict
        self.in_front = in_front(host, groups or (None,))
        self.notes: list[Note] = list(host.notes)
        self.causes: list[Cause] = []
        self.evidence: list[Evidence] = []
        self.caps: list[Evidence] = []
        self.listed: set[str | None] = set()  # groups whose holes the kernel's own list has

    def judge(self, stated: Aperture | None, granule_stated: int | None, *, beside: bool) -> Usable:
        aperture = self._aperture(stated)
        holes = find_holes(self.host, self.groups, self.evidence, self.listed, strict=self.strict)
        self.causes += holes.causes
        self.notes += holes.notes
        known = self._known_granule()
        granule, granule_text = self._granule(granule_stated, known)
        one_size = is_x86(self.host) or self._is_s390()  # these have no other base page
        granule_known = granule_stated is not None or known is not None or one_size
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
        units = units_of(self.host, (names for _, names in self.in_front))
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
            page_sizes=self._page_sizes(units),
            limits=self._limits(),
            evidence=tuple(self.evidence),
            unassignable=tuple(unassignable(self.groups, x86=is_x86(self.host))),
            arch=architecture(self.host, self.groups),
            relaxable=tuple(holes.relaxable),
            regions=tuple(holes.regions),
            groups=tuple(group.id for group in self.groups),
            notes=tuple(dict.fromkeys(self.notes)),
            widths=host_widths(self.host, self.groups, units, self.evidence) if beside else (),
            cpu_bits=self.host.cpu_bits,
            obstacles=tuple(find_obstacles(self.host, self.groups)) if beside else (),
        )

    # -- aperture ------------------------------------------------------------------------------

    def _aperture(self, stated: Aperture | None) -> MappableRanges:
        claim = stated_evidence(stated) if stated is not None else None
        looked: list[str] = []
        for group, findings in search(self.host, self.in_front):
            looked += (line for line in findings.looked_at if line not in looked)
            self.caps += (cap for cap in findings.caps if cap not in self.caps)
            if findings.evidence:
                strongest = findings.evidence[0].kind
                if strongest is EvidenceKind.KERNEL_LIST:
                    self.listed.add(group.id if group else None)
                same = [item for item in findings.evidence if item.kind is strongest]
                self.notes += compare_sources(self.host, group, findings.evidence)
                self.evidence += (item for item in same if item not in self.evidence)
            elif claim is None:
                raise self._no_evidence(group, looked)
        if claim is not None:
            self.evidence.append(claim)
        self.evidence.sort(key=_strength)
        ranges = _EVERYTHING
        for item in self.evidence:
            ranges = ranges & item.ranges
        for cap in self.caps:
            ranges = self._cap(ranges, cap)
        if (
            claim is not None
            and claim.ranges
            and ranges
            and claim.ranges[-1].last > ranges[-1].last
        ):
            self.notes.append(
                Note(f"{claim.text}, but {self.evidence[0].text}: the smaller of the two counts")
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
                f"registers win, a mapping above {limit:#x} fails"
            )
        )
        return ranges & cap.ranges

    def _no_evidence(self, group: Group | None, looked: Sequence[str]) -> EvidenceError:
        gap = open_gap(group)
        of = f" for {group.title}" if group else ""
        ids = sorted({name for item in self.host.kernel_ranges for name in item.groups or ()})
        select = [f"only the groups that the kernel was asked about: --groups {','.join(ids)}"]
        return EvidenceError(
            f"the IOVA width of {self.host.name} is unknown{of}: none of its facts states an "
            "aperture",
            looked_at=looked,
            settles=(
                *(select if ids else ()),
                f"--aperture {gap}, which its reserved regions leave open"
                if gap is not None
                else "--aperture START-LAST, if you know it (DMA does not begin at 0 on s390)"
                if self._is_s390()
                else "--aperture BITS or --aperture START-LAST, if you know it",
                "the kernel's own range list (VFIO or iommufd), pasted, or captured on that host: "
                "vmm-iova capture --ask-kernel -s BDF",
                "the zPCI base capability (start_dma, end_dma) of the device, Linux 5.10"
                if self._is_s390()
                else "a width that you are sure of, such as --aperture 32",
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
        if hull is None or gap not in hull:
            side = "below" if gap.start == 0 and hull is not None else "above"
            edge = hull and (hull.start if side == "below" else hull.last)
            bound = item.bound and side == "above"  # which says itself up to where
            text = item.text if bound or not hull else f"{side} {edge:#x}, {item.text}"
            return Cause(CauseKind.APERTURE, gap, text)
        name = familiar(gap)
        also = f" ({name})" if name else ""
        if item.kind is EvidenceKind.KERNEL_LIST:
            text = f"left out of the kernel's range list{also}, {item.source}"
            return Cause(CauseKind.KERNEL_GAP, gap, text)
        return Cause(CauseKind.APERTURE, gap, f"left out{also}, {item.text}")

    # -- holes ---------------------------------------------------------------------------------

    def _seams(self) -> dict[int, str]:
        """Where two ranges touch without being one, and why."""
        texts: dict[int, str] = {}
        for item in self.evidence:
            for seam in item.ranges.seams:
                texts.setdefault(seam, f"two ranges of a list touch there, {item.source}")
        for group in self.groups:
            for empty in group.empty_regions:
                text = f"{empty.word} region of length 0 of {group.title}, {empty.source}"
                texts.setdefault(empty.start, text)
        return texts

    def _add_slivers(self, ranges: MappableRanges, granule: int, seams: dict[int, str]) -> None:
        """Give a cause to each granule that no hole touches but a seam cuts."""
        if not seams:
            return  # every other edge of a range is that of a cause
        taken = RangeSet(cause.range for cause in self.causes).align_outward(granule)
        for span in ~(ranges.as_set() | taken):
            cut = next((f": {text}" for seam, text in seams.items() if seam in span), "")
            text = f"granules of {granule:#x} bytes that a seam cuts{cut}"
            self.causes.append(Cause(CauseKind.GRANULE, span, text))

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
                hint=f"state {known[0]:#x}, or leave it out",
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

    def _limits(self) -> Limits:
        """The limits that count: with CAP_IPC_LOCK nothing counts locked memory."""
        if self.host.state.may_lock:
            return replace(self.host.limits, memlock=None)
        return self.host.limits

    def _page_sizes(self, units: Iterable[IommuUnit]) -> int | None:
        """Page sizes that all units of the selection take: the kernel's bitmap, or registers."""
        bitmaps = [item.page_sizes for item in self.evidence if item.page_sizes]
        if not bitmaps:
            bitmaps = [
                vtd_page_sizes(unit.cap)
                for unit in units
                if unit.vendor == "intel" and unit.cap is not None
            ]
        return reduce(int.__and__, bitmaps) if bitmaps else None
