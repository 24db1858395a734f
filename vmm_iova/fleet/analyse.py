# SPDX-License-Identifier: Apache-2.0
"""The answer for a fleet: one layout for all, or groups that share one, and who is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.fleet.outcome import Status, layout_digest
from vmm_iova.fleet.survey import Allowed
from vmm_iova.host.facts import Limits, RegionKind, ReservedRegion, Source
from vmm_iova.host.usable import Cause, CauseKind, Usable, cut_holes
from vmm_iova.machines.catalogue import load_machine
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_iova.fleet.request import FleetRequest
    from vmm_iova.fleet.survey import DeviceCount, HostClass, Problem, Survey
    from vmm_iova.planning.layout import Layout

_MOST_CAUSES = 64  # holes that are named one by one; more make no readable map


@record
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


@record
class Blocker:
    """Hosts that stand in the way of one layout for all.

    Attributes:
        why: one clause.
        hosts: how many hosts.
        names: some of them.
        status: what came out; `FITS` for hosts that have a layout, but not the others' one.
        fixes: what would help.
    """

    why: str
    hosts: int
    names: tuple[str, ...]
    status: Status
    fixes: tuple[str, ...] = ()


@record
class Fleet:
    """The answer.

    A machine is of one architecture, so a fleet of several has an answer for each machine.

    Attributes:
        hosts: hosts in all.
        counts: hosts by status.
        machines: by machine, hosts by status.
        layouts: by machine, the layout that every host of it can have, those aside that do not
            settle it; None if there is none.
        groups: hosts that share a layout, the largest group first; one a machine when all do.
        blockers: who stands in the way or does not settle it, the most hosts first.
        problems: by status, names with what is wrong (the lowest ones, see `survey.MAX_PROBLEMS`).
        devices: by PCI class and driver.
        classes: classes of hosts on which the same may be mapped.
        truncated: True if there were more classes than are kept: groups and blockers then tell of
            a sample, while counts and `layouts` are exact.
        by_host: True if each host's architecture chose its machine.
    """

    hosts: int
    counts: Mapping[str, int]
    machines: Mapping[str, Mapping[str, int]]
    layouts: Mapping[str, Layout | None]
    groups: tuple[LayoutGroup, ...]
    blockers: tuple[Blocker, ...]
    problems: Mapping[str, tuple[Problem, ...]]
    devices: Mapping[tuple[str, str], DeviceCount]
    classes: tuple[HostClass, ...]
    truncated: bool
    by_host: bool

    @property
    def layout(self) -> Layout | None:
        """The layout that every host can have that could be read; None if there is none."""
        read = self.hosts - self.counts.get(Status.DAMAGED.value, 0)
        if len(self.layouts) != 1 or self.counts.get(Status.FITS.value, 0) != read:
            return None
        return next(iter(self.layouts.values()))

    @property
    def complete(self) -> bool:
        """True if every host was read and can have the guest, and hosts of a machine share one."""
        fits = self.counts.get(Status.FITS.value, 0) == self.hosts
        return fits and None not in self.layouts.values()


def analyse(survey: Survey, request: FleetRequest) -> Fleet:
    """Make the answer of a survey.

    Hosts of a machine are put together greedily, the most numerous class first: a class joins the
    first group whose hosts still have a layout with it. The result depends on the survey alone.

    Complexity: O(groups x log classes) plans, each O(classes x holes).
    Synchronization: none required.
    """
    request = request.resolved()
    ordered = sorted(survey.classes.values(), key=lambda item: (-item.hosts, item.digest))
    groups: list[LayoutGroup] = []
    layouts: dict[str, Layout | None] = {}
    blockers = _refused([item for item in ordered if item.layout is None])
    for machine, share in survey.shares.items():
        able = [item for item in ordered if item.layout is not None and item.machine == machine]
        fits = share.counts.get(Status.FITS.value, 0)
        for_machine = _for_machine(request, machine) if fits else request
        sharing = _groups(able, for_machine)
        open_ = share.counts.get(Status.UNSETTLED.value, 0)
        settled = fits and fits + open_ == sum(share.counts.values())
        layouts[machine] = _try(able, for_machine, share.fit) if settled else None
        if layouts[machine] is None and sharing:
            blockers += _apart(sharing, for_machine)
        groups += sharing
    for status in (Status.UNASSIGNABLE, Status.ABSENT, Status.UNSETTLED):
        blockers += _named(survey, status)
    blockers.sort(key=lambda item: (-item.hosts, item.names, item.why))
    return Fleet(
        hosts=survey.hosts,
        counts=dict(sorted(survey.counts.items())),
        machines={
            name: dict(sorted(share.counts.items())) for name, share in survey.shares.items()
        },
        layouts=layouts,
        groups=tuple(sorted(groups, key=lambda group: (-group.hosts, group.digest))),
        blockers=tuple(blockers),
        problems=survey.problems,
        devices=survey.devices,
        classes=tuple(ordered),
        truncated=survey.truncated,
        by_host=request.guest.machine is None,
    )


def _for_machine(request: FleetRequest, machine: str) -> FleetRequest:
    """The request for the hosts of one machine, where each host's architecture chooses it."""
    if request.guest.machine is not None:
        return request
    return replace(request, guest=replace(request.guest, machine=load_machine(machine)))


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
    return Blocker(why, hosts, tuple(names), status, shown)


def _named(survey: Survey, status: Status) -> list[Blocker]:
    """Put the hosts of one status together by what is wrong."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, text, fixes in survey.problems.get(status, ()):
        alike.setdefault((text, fixes), []).append(name)
    kept = sum(map(len, alike.values()))
    blockers = [
        Blocker(text, len(names), tuple(names[:5]), status, fixes)
        for (text, fixes), names in alike.items()
    ]
    rest = survey.counts.get(status, 0) - kept
    if rest:
        blockers.append(Blocker(f"{status}, beyond the {kept} that are named", rest, (), status))
    return blockers


def _groups(able: Sequence[HostClass], request: FleetRequest) -> list[LayoutGroup]:
    left, groups = list(able), []
    while left:
        group = _Growing(request)
        rejected = group.add(left)
        layout = group.layout()
        if layout is None or len(rejected) == len(left):
            break  # what fits alone fits as the first of a group: not reached
        names = sorted(name for item in group.members for name in item.names)[:5]
        hosts = sum(item.hosts for item in group.members)
        groups.append(
            LayoutGroup(layout, layout_digest(layout), hosts, tuple(names), tuple(group.members))
        )
        left = rejected
    return sorted(groups, key=lambda group: (-group.hosts, group.digest))


class _Growing:
    """A group that takes each class in turn with which its hosts still have a layout.

    Many are tried at once, and in halves where that fails: what no layout is left for with some
    of them has none with all. The outcome is that of taking them one by one.
    """

    def __init__(self, request: FleetRequest) -> None:
        self.request = request
        self.members: list[HostClass] = []
        self.allowed = Allowed()

    def add(self, batch: list[HostClass]) -> list[HostClass]:
        """Take what fits, and return the rest."""
        allowed = Allowed.by_all([self.allowed, *(item.allowed for item in batch)])
        same = bool(self.members) and allowed == self.allowed
        if same or _try([*self.members, *batch], self.request, allowed) is not None:
            self.members += batch
            self.allowed = allowed
            return []
        if len(batch) == 1:
            return batch
        half = len(batch) // 2
        return self.add(batch[:half]) + self.add(batch[half:])

    def layout(self) -> Layout | None:
        return _try(self.members, self.request, self.allowed) if self.members else None


def _apart(groups: Sequence[LayoutGroup], request: FleetRequest) -> list[Blocker]:
    """Say of each group but the largest what keeps its hosts out of it."""
    largest = [item.allowed for item in groups[0].classes]
    blockers = []
    for group in groups[1:]:
        first = group.classes[0]
        why = "it has no layout with the largest group"
        fixes: tuple[str, ...] = ()
        try:
            members = [first, *groups[0].classes]  # its own holes are named first
            request.plan(common_usable(members, Allowed.by_all([*largest, first.allowed])))
        except IovaError as error:
            why = f"together with the largest group: {error.message}"
            fixes = tuple(getattr(error, "fixes", ()))
        blockers.append(Blocker(why, group.hosts, group.names, Status.FITS, fixes))
    return blockers


def _try(members: Sequence[HostClass], request: FleetRequest, allowed: Allowed) -> Layout | None:
    try:
        return request.plan(common_usable(members, allowed))
    except IovaError:
        return None


def common_usable(members: Sequence[HostClass], allowed: Allowed) -> Usable:
    """Return what may be mapped on every host of some classes, each hole with its hosts.

    Args:
        members: the classes; of holes that several have, the first one's words are taken.
        allowed: what all of them allow.
    """
    granule = allowed.granule
    ranges = allowed.ranges.align_inward(granule)
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
        page_sizes=allowed.page_sizes,
        limits=Limits(),
        evidence=(),
        unassignable=(),
        relaxable=(),
        regions=(),
        groups=(),
        arch=None,  # each host was judged with its own
        notes=(),
        cpu_bits=allowed.cpu_bits,
    )


def _causes(members: Sequence[HostClass], ranges: MappableRanges) -> Iterable[Cause]:
    """What the hosts take out, the same hole of several told once with all their names."""
    whole = len(ranges) > _MOST_CAUSES
    having: dict[tuple[int, int, str], list[HostClass]] = {}
    words: dict[tuple[int, int, str], tuple[str | None, str]] = {}
    for item in members:
        for hole in item.holes:
            key = (hole.start, hole.last, hole.kind)
            having.setdefault(key, []).append(item)
            words.setdefault(key, (hole.word, hole.text))
    count = len(members)
    for (start, last, kind), of in having.items():
        span = AddrRange(start, last)
        word, text = words[start, last, kind]
        clause = text if whole or len(of) == count else f"{text} [{_who(of)}]"
        region = None
        if word is not None:
            region = ReservedRegion(span, _kind(word), word, Source("fleet"))
        yield Cause(CauseKind[kind], span, clause, region)


def _kind(word: str) -> RegionKind:
    try:
        return RegionKind(word)
    except ValueError:
        return RegionKind.UNKNOWN


def _who(of: Sequence[HostClass]) -> str:
    names = sorted(name for item in of for name in item.names)[:2]
    more = sum(item.hosts for item in of) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
