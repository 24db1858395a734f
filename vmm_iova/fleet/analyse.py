# SPDX-License-Identifier: Apache-2.0
"""The answer for a fleet: one layout for all, or groups that share one, and who is in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.fleet.one import Status, layout_digest
from vmm_iova.fleet.survey import EVERYTHING, intersect, intersect_all
from vmm_iova.guest.plan import plan
from vmm_iova.host.model import Limits, RegionKind, ReservedRegion, Source
from vmm_iova.host.usable import Cause, CauseKind, Usable, cut_holes
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_iova.fleet.one import FleetRequest
    from vmm_iova.fleet.survey import DeviceCount, HostClass, Survey
    from vmm_iova.guest.layout import Layout

_MOST_CAUSES = 64  # holes that are named one by one; more make no readable map


@dataclass(frozen=True, slots=True)
class LayoutGroup:
    """Hosts that can all have the same layout.

    Attributes:
        layout: it.
        digest: names it.
        hosts: how many hosts.
        names: some of them.
        classes: the classes of hosts that are in it, largest first.
    """

    layout: Layout
    digest: str
    hosts: int
    names: tuple[str, ...]
    classes: tuple[HostClass, ...]


@dataclass(frozen=True, slots=True)
class Blocker:
    """Hosts that stand in the way of one layout for all.

    Attributes:
        why: one clause.
        hosts: how many hosts.
        names: some of them.
        status: value of `Status`; `fits` for hosts that have a layout, but not the others' one.
        fixes: what would help.
    """

    why: str
    hosts: int
    names: tuple[str, ...]
    status: str
    fixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """The answer.

    Attributes:
        hosts: hosts in all.
        counts: hosts by status.
        layout: the layout that every host can have that could be read; None if there is none.
        groups: hosts that share a layout, the largest group first; one when all do.
        blockers: who stands in the way, the most hosts first.
        problems: by status, names with what is wrong (the lowest ones, see `survey.MAX_PROBLEMS`).
        devices: by PCI class and driver.
        classes: classes of hosts on which the same may be mapped.
        truncated: True if there were more classes than are kept: groups and blockers then tell of
            a sample, while counts and `layout` are exact.
    """

    hosts: int
    counts: Mapping[str, int]
    layout: Layout | None
    groups: tuple[LayoutGroup, ...]
    blockers: tuple[Blocker, ...]
    problems: Mapping[str, tuple[tuple[str, str], ...]]
    devices: Mapping[tuple[str, str], DeviceCount]
    classes: tuple[HostClass, ...]
    truncated: bool

    @property
    def complete(self) -> bool:
        """True if every host was read, its facts settled, and one layout fits all."""
        return self.layout is not None and self.counts.get(Status.FITS.value, 0) == self.hosts


def analyse(survey: Survey, request: FleetRequest) -> Fleet:
    """Make the answer of a survey.

    Hosts are put together greedily, the most numerous class first: a class joins the first group
    whose hosts still have a layout with it. The result depends on the survey alone.

    Complexity: O(groups x log classes) plans, each O(classes x holes).
    Synchronization: none required.
    """
    request = request.resolved()
    ordered = sorted(survey.classes.values(), key=lambda item: (-item.hosts, item.digest))
    able = [item for item in ordered if item.layout is not None]
    groups = _groups(able, request)
    layout = None
    others = survey.hosts - survey.counts.get(Status.FITS.value, 0)
    others -= survey.counts.get(Status.DAMAGED.value, 0)
    if others == 0 and survey.fit_ranges is not None:
        layout = _try(able, request, survey.fit_ranges, survey.granule)
    blockers = _refused([item for item in ordered if item.layout is None])
    if layout is None and groups:
        blockers += _apart(groups, request)
    for status in (Status.UNASSIGNABLE, Status.ABSENT, Status.UNSETTLED):
        blockers += _named(survey, status.value)
    blockers.sort(key=lambda item: (-item.hosts, item.names, item.why))
    return Fleet(
        hosts=survey.hosts,
        counts=dict(sorted(survey.counts.items())),
        layout=layout,
        groups=groups,
        blockers=tuple(blockers),
        problems=survey.problems,
        devices=survey.devices,
        classes=tuple(ordered),
        truncated=survey.truncated,
    )


def _refused(ordered: Sequence[HostClass]) -> list[Blocker]:
    """Put together the classes that the same thing keeps from having the guest."""
    alike: dict[object, list[HostClass]] = {}
    for item in ordered:
        alike.setdefault(item.obstacle or item.refusal, []).append(item)
    return [_blocker(of, of[0].refusal or "no layout", Status.REFUSED) for of in alike.values()]


def _blocker(
    of: Sequence[HostClass], why: str, status: Status, fixes: tuple[str, ...] | None = None
) -> Blocker:
    names = sorted(name for item in of for name in item.names)[:5]
    hosts = sum(item.hosts for item in of)
    shown = of[0].fixes if fixes is None else fixes
    return Blocker(why, hosts, tuple(names), status.value, shown)


def _named(survey: Survey, status: str) -> list[Blocker]:
    """Put the hosts of one status together by what is wrong."""
    by_text: dict[str, list[str]] = {}
    for name, text in survey.problems.get(status, ()):
        by_text.setdefault(text, []).append(name)
    kept = sum(map(len, by_text.values()))
    found = [Blocker(text, len(names), tuple(names[:5]), status) for text, names in by_text.items()]
    rest = survey.counts.get(status, 0) - kept
    if rest:
        found.append(Blocker(f"{status}, beyond the {kept} that are named", rest, (), status))
    return found


def _groups(able: Sequence[HostClass], request: FleetRequest) -> tuple[LayoutGroup, ...]:
    left, found = list(able), []
    while left:
        group = _Growing(request)
        rejected = group.add(left)
        layout = group.layout()
        if layout is None or len(rejected) == len(left):
            break  # what fits alone fits as the first of a group: not reached
        names = sorted(name for item in group.members for name in item.names)[:5]
        hosts = sum(item.hosts for item in group.members)
        found.append(
            LayoutGroup(layout, layout_digest(layout), hosts, tuple(names), tuple(group.members))
        )
        left = rejected
    return tuple(sorted(found, key=lambda group: (-group.hosts, group.digest)))


class _Growing:
    """A group that takes each class in turn with which its hosts still have a layout.

    Many are tried at once, and in halves where that fails: what no layout is left for with some
    of them has none with all. The outcome is that of taking them one by one.
    """

    def __init__(self, request: FleetRequest) -> None:
        self.request = request
        self.members: list[HostClass] = []
        self.ranges: MappableRanges | None = None
        self.granule = 1

    def add(self, batch: list[HostClass]) -> list[HostClass]:
        """Take what fits, and return the rest."""
        ranges = intersect_all([self.ranges, *(item.ranges for item in batch)])
        granule = max(self.granule, *(item.granule for item in batch))
        same = ranges == self.ranges and granule == self.granule
        if same or _try([*self.members, *batch], self.request, ranges, granule) is not None:
            self.members += batch
            self.ranges, self.granule = ranges, granule
            return []
        if len(batch) == 1:
            return batch
        half = len(batch) // 2
        return self.add(batch[:half]) + self.add(batch[half:])

    def layout(self) -> Layout | None:
        return _try(self.members, self.request, self.ranges, self.granule)


def _apart(groups: Sequence[LayoutGroup], request: FleetRequest) -> list[Blocker]:
    """Say of each group but the largest what keeps its hosts out of it."""
    ranges = intersect_all(item.ranges for item in groups[0].classes)
    granule = max(item.granule for item in groups[0].classes)
    found = []
    for group in groups[1:]:
        first = group.classes[0]
        joint = intersect(ranges, first.ranges) or EVERYTHING
        why = "it has no layout with the largest group"
        fixes: tuple[str, ...] = ()
        try:
            members = [first, *groups[0].classes]  # its own holes are named first
            usable = common_usable(members, joint, max(granule, first.granule))
            plan(request.guest, usable, request.on_hole)
        except IovaError as error:
            why = f"together with the largest group: {error.message}"
            fixes = tuple(getattr(error, "fixes", ()))
        found.append(Blocker(why, group.hosts, group.names, Status.FITS.value, fixes))
    return found


def _try(
    members: Sequence[HostClass],
    request: FleetRequest,
    ranges: MappableRanges | None,
    granule: int,
) -> Layout | None:
    if ranges is None:
        return None
    try:
        usable = common_usable(members, ranges, granule)
        return plan(request.guest, usable, request.on_hole)
    except IovaError:
        return None


def common_usable(members: Sequence[HostClass], ranges: MappableRanges, granule: int) -> Usable:
    """Return what may be mapped on every host of some classes, each hole with its hosts.

    Args:
        members: the classes; of holes that several have, the first one's words are taken.
        ranges: the intersection of their ranges.
        granule: the largest of their granules.
    """
    ranges = ranges.align_inward(granule)
    causes = list(_causes(members, ranges))
    taken = RangeSet(cause.range for cause in causes).align_outward(granule)
    left = ~(ranges.as_set() | taken)
    causes += [
        Cause(CauseKind.GRANULE, span, "a hole of a host that is not kept by name, or a sliver")
        for span in left
    ]
    parts = cut_holes(causes)
    hosts = sum(item.hosts for item in members)
    return Usable(
        host=members[0].names[0] if hosts == 1 else f"{hosts} hosts",
        ranges=ranges,
        causes=tuple(causes),
        holes=MappableRanges(parts),
        hole_causes=parts,
        seams=dict.fromkeys(ranges.seams, "two ranges of a host's list touch there"),
        granule=granule,
        granule_text="largest of the hosts",
        granule_known=True,
        page_sizes=None,
        limits=Limits(),
        evidence=(),
        unassignable=(),
        relaxable=(),
        regions=(),
        groups=(),
        arch=None,  # each host was judged with its own
        notes=(),
    )


def _causes(members: Sequence[HostClass], ranges: MappableRanges) -> Iterable[Cause]:
    """What the hosts take out, the same hole of several told once with all their names."""
    whole = len(ranges) > _MOST_CAUSES
    found: dict[tuple[int, int, str], list[HostClass]] = {}
    words: dict[tuple[int, int, str], tuple[str | None, str]] = {}
    for item in members:
        for hole in item.holes:
            key = (hole.start, hole.last, hole.kind)
            found.setdefault(key, []).append(item)
            words.setdefault(key, (hole.word, hole.text))
    count = len(members)
    for (start, last, kind), of in found.items():
        span = AddrRange(start, last)
        word, text = words[start, last, kind]
        told = text if whole or len(of) == count else f"{text} [{_who(of)}]"
        region = None
        if word is not None:
            region = ReservedRegion(span, _kind(word), word, Source("fleet"))
        yield Cause(CauseKind[kind], span, told, region)


def _kind(word: str) -> RegionKind:
    try:
        return RegionKind(word)
    except ValueError:
        return RegionKind.UNKNOWN


def _who(of: Sequence[HostClass]) -> str:
    names = sorted(name for item in of for name in item.names)[:2]
    more = sum(item.hosts for item in of) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
