# SPDX-License-Identifier: Apache-2.0
"""What is kept of a fleet: exact counts and intersections, classes of hosts, a few names.

`merge` is associative and commutative, and what it keeps does not depend on how the hosts were
cut into chunks: of names the lowest, of classes those with the lowest digest. A class that is
kept was in every chunk's lowest, so its count is exact; only how many are kept is bounded.
"""

from __future__ import annotations

from collections import Counter
from functools import reduce
from heapq import nsmallest
from itertools import chain
from operator import and_, attrgetter
from typing import TYPE_CHECKING, NamedTuple

from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges
from vmm_iova.record import brief, field, record, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_CLASSES = 2048
"""Classes that are kept by themselves; a fleet of one maker has dozens."""
MAX_NAMES = 5
"""Names that are kept of a class."""
MAX_PROBLEMS = 1000
"""Damaged and unsettled hosts that are kept by name, of each kind."""


EVERYTHING = MappableRanges([AddrRange(0, ADDRESS_LAST)])
"""The neutral element of intersection."""


@record
class Hole:
    """What takes addresses out on one host.

    Attributes:
        start: first address.
        last: last address.
        kind: name of the `CauseKind`.
        word: type of the reserved region, or None.
        text: the cause, one clause.
    """

    start: int
    last: int
    kind: str
    word: str | None
    text: str


@record
class Allowed:
    """What each of some hosts allows; by default, of no host, everything.

    Attributes:
        ranges: usable IOVAs.
        granule: smallest mapping unit in bytes.
        cpu_bits: physical address bits of the CPU, or None where nothing says so.
        page_sizes: bitmap of the IOMMU's page sizes; None if that of a host is not known.
    """

    ranges: MappableRanges = EVERYTHING
    granule: int = 1
    cpu_bits: int | None = None
    page_sizes: int | None = ADDRESS_LAST

    @staticmethod
    def by_all(of: Iterable[Allowed]) -> Allowed:
        """Return what every one of these allows.

        Complexity: O(n log n) in the ranges of all.
        """
        items = list(dict.fromkeys(of))
        sizes = [item.page_sizes for item in items if item.page_sizes is not None]
        return Allowed(
            intersect_all(item.ranges for item in items) or EVERYTHING,
            max((item.granule for item in items), default=1),
            min((item.cpu_bits for item in items if item.cpu_bits is not None), default=None),
            reduce(and_, sizes, ADDRESS_LAST) if len(sizes) == len(items) else None,
        )


@brief
class Problem(NamedTuple):
    """What is wrong with a host, and what would help or settle it."""

    name: str
    text: str
    fixes: tuple[str, ...] = ()


@record
class HostClass:
    """Hosts on which the same may be mapped.

    Attributes:
        digest: of all that is allowed, architecture and kinds of holes; names the class.
        hosts: how many.
        names: the lowest `MAX_NAMES` of them.
        machine: name of the machine that is planned there.
        allowed: what may be mapped.
        holes: what takes addresses out, on the first of `names`.
        layout: digest of the layout that the guest has there; None if it has none.
        refusal: why it has none, on the first of `names`.
        fixes: what would help.
        obstacle: kind and first address of what is in the way, the same on hosts of one kind.
    """

    digest: str
    hosts: int
    names: tuple[str, ...]
    machine: str
    allowed: Allowed
    holes: tuple[Hole, ...]
    layout: str | None
    refusal: str | None
    fixes: tuple[str, ...]
    obstacle: tuple[str, int] | None

    @staticmethod
    def of_all(parts: Sequence[HostClass]) -> HostClass:
        """Join the parts of one class."""
        if len(parts) == 1:
            return parts[0]
        first = min(parts, key=_names)
        return replace(first, hosts=sum(part.hosts for part in parts), names=_lowest(parts))


@record
class Share:
    """The hosts of a fleet for which one machine is planned.

    Attributes:
        counts: hosts by status (`one.Status` values); none that is damaged.
        fit: what every host allows on which the guest has a layout.
    """

    counts: Counter[str] = field(default_factory=Counter)
    fit: Allowed = field(default_factory=Allowed)


@record
class DeviceCount:
    """Devices of one class and driver over the fleet.

    Attributes:
        groups: IOMMU groups that hold one.
        assignable: those whose devices current kernels hand out.
        fits: those on hosts where the guest has a layout, too.
        hosts: hosts that have one.
        fit_hosts: hosts on which one can be assigned to the guest.
        names: the lowest `MAX_NAMES` of those.
        blocked: example of what forbids the others, with its host; None if nothing does.
    """

    groups: int = 0
    assignable: int = 0
    fits: int = 0
    hosts: int = 0
    fit_hosts: int = 0
    names: tuple[str, ...] = ()
    blocked: tuple[str, str] | None = None

    @staticmethod
    def of_all(parts: Sequence[DeviceCount]) -> DeviceCount:
        """Add counts."""
        if len(parts) == 1:
            return parts[0]
        return DeviceCount(
            sum(part.groups for part in parts),
            sum(part.assignable for part in parts),
            sum(part.fits for part in parts),
            sum(part.hosts for part in parts),
            sum(part.fit_hosts for part in parts),
            _lowest(parts),
            min((part.blocked for part in parts if part.blocked), default=None),
        )


_names = attrgetter("names")


def _lowest(parts: Iterable[HostClass | DeviceCount]) -> tuple[str, ...]:
    """The lowest names of several."""
    return tuple(nsmallest(MAX_NAMES, chain.from_iterable(map(_names, parts))))


@record
class Survey:
    """What is known of the hosts that were looked at. An empty one is neutral in `merge`.

    Attributes:
        counts: hosts by status (`one.Status` values).
        classes: by digest.
        all_ranges: what every judged host allows; None before the first.
        shares: by the name of the machine that is planned; without hosts that are damaged, or
            unsettled down to their architecture.
        problems: by status, the lowest names with what is wrong.
        devices: by PCI class (4 hex digits) and driver.
        truncated: True if there are more classes than are kept.

    Synchronization: none required (treated as immutable).
    """

    counts: Counter[str] = field(default_factory=Counter)
    classes: dict[str, HostClass] = field(default_factory=dict)
    all_ranges: MappableRanges | None = None
    shares: dict[str, Share] = field(default_factory=dict)
    problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)
    devices: dict[tuple[str, str], DeviceCount] = field(default_factory=dict)
    truncated: bool = False

    @property
    def hosts(self) -> int:
        """Hosts in all, damaged ones included."""
        return sum(self.counts.values())

    def merge(self, other: Survey) -> Survey:
        """Join two surveys of different hosts.

        Complexity: O(classes + ranges), whatever the number of hosts.
        """
        return merge_all((self, other))


def merge_all(surveys: Iterable[Survey]) -> Survey:
    """Join surveys of different hosts; their order does not matter.

    Complexity: O(sum of their classes and ranges).
    """
    counts: Counter[str] = Counter()
    classes: dict[str, list[HostClass]] = {}
    every: list[MappableRanges | None] = []
    shares: dict[str, list[Share]] = {}
    truncated = False
    problems: dict[str, list[Problem]] = {}
    devices: dict[tuple[str, str], list[DeviceCount]] = {}
    for survey in surveys:
        counts.update(survey.counts)
        for digest, item in survey.classes.items():
            classes.setdefault(digest, []).append(item)
        every.append(survey.all_ranges)
        for name, share in survey.shares.items():
            shares.setdefault(name, []).append(share)
        truncated = truncated or survey.truncated
        for status, named in survey.problems.items():
            problems.setdefault(status, []).extend(named)
        for key, count in survey.devices.items():
            devices.setdefault(key, []).append(count)
    if len(classes) > MAX_CLASSES:
        truncated = True
        classes = {key: classes[key] for key in nsmallest(MAX_CLASSES, classes)}
    return Survey(
        counts,
        {key: HostClass.of_all(parts) for key, parts in sorted(classes.items())},
        intersect_all(every),
        {name: _joined(of) for name, of in sorted(shares.items())},
        {key: tuple(nsmallest(MAX_PROBLEMS, hosts)) for key, hosts in sorted(problems.items())},
        {key: DeviceCount.of_all(parts) for key, parts in sorted(devices.items())},
        truncated,
    )


def _joined(of: Iterable[Share]) -> Share:
    counts: Counter[str] = Counter()
    fits: list[Allowed] = []
    for share in of:
        counts.update(share.counts)
        fits.append(share.fit)
    return Share(counts, Allowed.by_all(fits))


def intersect(ours: MappableRanges | None, theirs: MappableRanges | None) -> MappableRanges | None:
    """Intersect, None being everything."""
    if ours is None or ours == theirs:
        return theirs
    return ours if theirs is None else ours & theirs


def intersect_all(of: Iterable[MappableRanges | None]) -> MappableRanges | None:
    """Intersect many, in pairs: holes that differ make the result longer with each one.

    Complexity: O(n log n) in the ranges of all.
    """
    left: list[MappableRanges | None] = list(dict.fromkeys(of))
    while len(left) > 1:
        odd = left[-1:] if len(left) % 2 else []
        left = [*map(intersect, left[::2], left[1::2]), *odd]
    return left[0] if left else None
