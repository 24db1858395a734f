# SPDX-License-Identifier: Apache-2.0
"""The holes of a selection of groups: what takes addresses out, and who says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import EvidenceError, HostDataError, HostUnavailableError
from vmm_iova.host.evidence import (
    HYPERTRANSPORT,
    MSI_X86,
    Evidence,
    EvidenceKind,
    familiar,
    is_amd,
    is_x86,
)
from vmm_iova.host.facts import (
    PASTED,
    EmptyRegion,
    Facts,
    Group,
    Note,
    RegionKind,
    ReservedRegion,
    Source,
)
from vmm_iova.host.usable import Cause, CauseKind, Unassignable
from vmm_iova.ranges import RangeSet
from vmm_iova.record import collector, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_RELAXED = (RegionKind.DIRECT_RELAXABLE, RegionKind.FIRMWARE)
"""Regions that no device has to keep while user space has it; `strict` keeps them."""
_DIRECT = RegionKind.DIRECT
_ARCHITECTURE = Source("fixed by the architecture")


def find_holes(
    host: Facts,
    groups: Sequence[Group],
    evidence: Sequence[Evidence],
    listed: set[str | None],
    *,
    strict: bool,
) -> Holes:
    """Find what is not mappable inside of the aperture.

    Args:
        host: the facts.
        groups: the selection.
        evidence: what was found for the aperture; the kernel's lists have holes too.
        listed: ids of groups whose holes the kernel's own list has; None for a host without groups.
        strict: treat `direct-relaxable` regions as holes.

    Raises:
        HostDataError: a group's list of regions is damaged and nothing better has its holes.
        HostUnavailableError: it could not be read.
        EvidenceError: there is none, and the architecture does not say where holes are.
    """
    holes = Holes(host, tuple(groups), tuple(evidence), listed, strict)
    holes.find()
    return holes


@collector
class Holes:
    """What `find_holes` found.

    Attributes:
        causes: holes, each with its cause, in order of precedence.
        regions: all reserved regions of the selection.
        relaxable: `direct-relaxable` regions, and RMRRs of a log, that are no holes here.
        notes: what a person should know.
    """

    host: Facts
    groups: tuple[Group, ...]
    evidence: tuple[Evidence, ...]
    listed: set[str | None]
    strict: bool
    causes: list[Cause] = field(default_factory=list)
    regions: list[ReservedRegion] = field(default_factory=list)
    relaxable: list[ReservedRegion] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    _x86: bool = False

    @property
    def all_listed(self) -> bool:
        """Tell whether the kernel's own lists have the holes of the whole selection."""
        return (
            {group.id for group in self.groups} <= self.listed if self.groups else bool(self.listed)
        )

    def find(self) -> None:
        """Add a cause for each hole."""
        self._x86 = is_x86(self.host)  # looks at all groups, and is asked for each of them
        regions = self.regions
        for group in self.groups:
            if group.regions is None:
                self._missing(group)
            elif not group.regions and group.id not in self.listed:
                self._empty(group)
            regions += group.regions or ()
        regions += self._from_log()
        regions += self._platform(regions)
        for same in _alike(regions):
            if same[0].kind in _RELAXED and not self.strict:
                self.relaxable.append(same[0])
                continue
            self.causes.append(self._hole(same))
        self._compare(regions)

    def _missing(self, group: Group) -> None:
        problem = group.damaged or group.unreadable
        if group.id in self.listed:
            what = problem or f"{group.title} has no list of reserved regions"
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
        elif not self._x86:
            raise EvidenceError(
                f"{group.title} has no list of reserved regions (none before 4.11), so "
                "nothing says where its holes are",
                looked_at=("sysfs reserved_regions: no such file",),
                settles=("the kernel's own range list (VFIO, Linux 5.4)", "a newer kernel"),
            )
        else:
            self.notes.append(
                Note(
                    f"{group.title} has no list of reserved regions (none before 4.11): firmware "
                    "regions (RMRR, IVMD) are not known; the holes of the architecture are kept"
                )
            )

    def _empty(self, group: Group) -> None:
        if not self._x86:
            self.notes.append(
                Note(
                    f"{group.title}: reserved_regions is empty, which does not mean unrestricted "
                    "(s390 up to Linux 6.1 and RISC-V print none)"
                )
            )

    def _from_log(self) -> list[ReservedRegion]:
        """RMRRs of a log name no device, and are holes of none that can be assigned.

        VT-d skips those of USB and graphics (`direct-relaxable`), and any other keeps its device
        from user space (drivers/iommu/intel/iommu.c, device_rmrr_is_relaxable; require_direct).
        """
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
        spans = ", ".join(str(region.range) for region in log[:3])
        more = ", ..." if len(log) > 3 else ""
        strict = "taken as holes (strict)" if self.strict else "no holes"
        self.notes.append(
            Note(
                f"RMRRs of the log, whose devices it does not name ({spans}{more}): {strict}; if "
                "one is the assigned device's, USB and graphics let go of it, and any other device "
                "is kept by the kernel"
            )
        )
        return log

    def _platform(self, regions: Sequence[ReservedRegion]) -> Iterable[ReservedRegion]:
        """Add what x86 hardware never translates where no source names it."""
        if self.all_listed or not self._x86:
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
        why = " (strict)" if region.kind in _RELAXED else ""
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
        if not lists:
            return
        named = RangeSet(region.range for region in regions)
        for item in lists:
            listed = item.ranges.as_set()
            for same in _alike(regions):
                region = same[0]
                relaxed = region.kind in _RELAXED
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


def unassignable(groups: Iterable[Group], *, x86: bool) -> Iterable[Unassignable]:
    """Name each group that current kernels keep from user space, by its first direct region."""
    for group in groups:
        direct = demanded(group)
        if direct is None:
            continue
        span = direct.range if isinstance(direct, ReservedRegion) else f"{direct.start:#x}+0"
        text = (
            f"the devices of {group.title} cannot be given to a guest on current kernels: "
            f"firmware demands the direct region {span} ({direct.source}); Linux 6.8 and later "
            "refuse with EINVAL" + (", VT-d before that with EPERM" if x86 else "")
        )
        yield Unassignable(group, direct, text)


def demanded(group: Group) -> ReservedRegion | EmptyRegion | None:
    """Return the first direct region, for which current kernels keep a group from user space.

    An empty one counts too: require_direct does not look at the length.
    """
    for item in group.regions or ():
        if item.kind is _DIRECT:
            return item
    for empty in group.empty_regions:
        if empty.kind is _DIRECT:
            return empty
    return None


def _alike(regions: Iterable[ReservedRegion]) -> Iterable[list[ReservedRegion]]:
    """Put together the regions of several groups that say the same; keep the order."""
    alike: dict[tuple[int, int, str], list[ReservedRegion]] = {}
    for region in regions:
        span = region.range
        alike.setdefault((span.start, span.last, region.word), []).append(region)
    return alike.values()
