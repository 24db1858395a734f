# SPDX-License-Identifier: Apache-2.0
"""What comes out for the facts of one host of a fleet, whatever its name. Everything pickles."""

from __future__ import annotations

import enum
import hashlib
import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from vmm_iova.errors import (
    EvidenceError,
    HostDataError,
    HostUnavailableError,
    IovaError,
    PlanError,
    RequestError,
    UnknownNameError,
)
from vmm_iova.fleet.request import written
from vmm_iova.fleet.survey import Allowed, DeviceCount, Hole, HostClass, Problem, Share, Survey
from vmm_iova.host.evidence import architecture
from vmm_iova.host.holes import demanded
from vmm_iova.host.judge import judge
from vmm_iova.machines.model import Machine
from vmm_iova.planning.describe import Reason
from vmm_iova.planning.request import machine_of
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.fleet.request import FleetRequest
    from vmm_iova.host.facts import Device, RegionKind
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Cause, Usable
    from vmm_iova.planning.layout import Layout
    from vmm_iova.ranges import AddrRange


class Status(enum.StrEnum):
    """What came out for one host."""

    FITS = "fits"
    """The guest has a layout there."""
    REFUSED = "refused"
    """It has none."""
    UNASSIGNABLE = "unassignable"
    """Firmware keeps every device that was asked for."""
    ABSENT = "absent"
    """No device or group there is the one that was asked for."""
    UNSETTLED = "unsettled"
    """The facts do not say what may be mapped."""
    DAMAGED = "damaged"
    """The snapshot could not be read."""


@record
class HostRow:
    """One host as a row of a table.

    Attributes:
        name: of the host: its file, `FILE#N` in a collection.
        status: what came out.
        machine: name of the machine that is planned there, or None where that is not known.
        layout: digest of its layout, or None.
        usable: digest of what may be mapped, or None.
        pieces: pieces of RAM.
        address_bits: bits that the layout needs.
        top_bits: bits of the highest usable address.
        granule: smallest mapping unit in bytes.
        groups: IOMMU groups.
        blocked_groups: those that current kernels keep from user space.
        reason: why not, or what is wrong, or None.
        fixes: what would help or settle it, with `; ` between, or None.
    """

    name: str
    status: Status
    machine: str | None = None
    layout: str | None = None
    usable: str | None = None
    pieces: int = 0
    address_bits: int = 0
    top_bits: int = 0
    granule: int = 0
    groups: int = 0
    blocked_groups: int = 0
    reason: str | None = None
    fixes: str | None = None


@record
class Outcome:
    """What came out for the facts of a host, whatever its name."""

    row: HostRow
    survey: Survey


def judge_host(host: Host, request: FleetRequest) -> Outcome:
    """Say what the facts of a host allow: a survey and a row without the host's name."""
    host = replace(host, name="this host")  # the same facts give the same words
    blocked = {group.id for group in host.groups if demanded(group) is not None}
    row = HostRow(
        "",
        Status.DAMAGED,  # until it is judged
        _machine(host, request),
        groups=len(host.groups),
        blocked_groups=len(blocked),
    )
    try:
        wanted, later = _wanted(host, request, blocked)
        usable = _usable(host, request, wanted)
        if later:
            usable = usable.joined(_usable(host, request, later))
    except _CannotError as error:
        return _without(host, blocked, row, error.status, error.text, ())
    except HostDataError as error:
        return _without(host, blocked, row, Status.DAMAGED, error.message, fixes_of(error))
    except (EvidenceError, HostUnavailableError, RequestError) as error:
        # RequestError: the stated granule is below the one that this host has.
        text = error.message.removeprefix("host this host: ")
        return _without(host, blocked, row, Status.UNSETTLED, text, fixes_of(error))
    place, refusal = None, None
    try:
        _check_arch(request, usable)
        place = _place(usable, request)
    except IovaError as error:
        refusal = error
    return _judged(host, blocked, row, usable, place, refusal)


@record
class _Place:
    """What a fleet keeps of the layout that a guest has on a host.

    Attributes:
        allowed: names what may be mapped there.
        digest: names the layout.
        pieces: pieces of RAM.
        address_bits: bits that it needs.
    """

    allowed: str
    digest: str
    pieces: int
    address_bits: int


_PLACES: dict[object, _Place] = {}
_MOST_PLACES = 1 << 10


def _place(usable: Usable, request: FleetRequest) -> _Place:
    """Plan, once for hosts that differ in nothing that places depend on.

    Raises:
        PlanError: there is no layout; its words depend on more, so that it is not kept.
    """
    key = (
        written(request),
        tuple([(item.start, item.last) for item in usable.ranges]),
        tuple(
            [
                (cause.kind, cause.range.start, cause.range.last, _kind(cause))
                for cause in usable.causes
            ]
        ),
        tuple(usable.seams),
        usable.granule,
        usable.page_sizes,
        usable.cpu_bits,
        usable.arch,
    )
    place = _PLACES.get(key)
    if place is None:
        layout = request.plan(usable)
        place = _Place(
            _allowed_digest(usable), layout_digest(layout), len(layout.ram), layout.address_bits
        )
        if len(_PLACES) >= _MOST_PLACES:
            _PLACES.clear()
        _PLACES[key] = place
    return place


def _machine(host: Host, request: FleetRequest) -> str | None:
    """Name the machine that is planned; the architecture where there is none for it."""
    arch = architecture(host, host.groups)
    try:
        return machine_of(request.guest, arch).name
    except UnknownNameError:
        return arch


def _usable(host: Host, request: FleetRequest, groups: list[str] | None) -> Usable:
    return judge(
        host,
        groups=groups,
        aperture=request.aperture,
        granule=request.granule,
        strict=request.strict,
        beside=False,
    )


def _check_arch(request: FleetRequest, usable: Usable) -> None:
    machine = request.guest.machine
    if isinstance(machine, Machine) and usable.arch not in (None, machine.arch):
        raise PlanError(
            f"machine {machine.name} is {machine.arch}, but the host is {usable.arch}: KVM cannot "
            "run it there",
            fixes=(f"--machine of {usable.arch}, or none for the usual one of each host",),
        )


class _CannotError(Exception):
    """The host has nothing to hand out of what is asked for."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _wanted(
    host: Host, request: FleetRequest, blocked: set[str]
) -> tuple[list[str] | None, list[str]]:
    """Return the groups that are needed now, None for a host without any, and later.

    Raises:
        _CannotError: the host lacks one, or cannot hand it out.
    """
    now = list(dict.fromkeys(_asked(host, request)))
    later = [_group(host, name) for name in request.also_fit or ()]
    if not now and host.groups:
        now = [group.id for group in host.groups if group.translated and group.id not in blocked]
        if not now:
            text = "firmware demands direct regions of every group"
            if not blocked:
                text = "every group is a no-IOMMU group of VFIO: nothing translates"
            raise _CannotError(Status.UNASSIGNABLE, text)
    elif host.sysfs and not (host.groups or host.kernel_ranges or host.windows):
        text = "it has no IOMMU groups: no IOMMU is in use"
        raise _CannotError(Status.UNASSIGNABLE, text)
    untranslated = {group.id for group in host.groups if not group.translated}
    for held, text in (
        (blocked, "firmware demands a direct region of group"),
        (untranslated, "nothing translates the no-IOMMU group"),
    ):
        kept = [group for group in (*now, *later) if group in held]
        if kept:
            raise _CannotError(Status.UNASSIGNABLE, f"{text} {', '.join(kept)}")
    return now or None, later


def _asked(host: Host, request: FleetRequest) -> Iterator[str]:
    """Groups of what the request names.

    Raises:
        _CannotError: the host lacks one.
    """
    for name in request.groups or ():
        yield _group(host, name)
    for name in request.devices or ():
        try:
            yield _group_of(host.device(name))
        except UnknownNameError:
            raise _CannotError(Status.ABSENT, f"it has no device {name}") from None
    if request.pci_class:
        prefix = request.pci_class.lower().removeprefix("0x")
        of_class = [
            device
            for device in host.devices
            if device.pci_class is not None and f"{device.pci_class:06x}".startswith(prefix)
        ]
        if not of_class:
            raise _CannotError(Status.ABSENT, f"it has no device of class {prefix}")
        yield from map(_group_of, of_class)


def _group(host: Host, name: str) -> str:
    try:
        return host.group(name).id
    except UnknownNameError:
        raise _CannotError(Status.ABSENT, f"it has no group {name}") from None


def _group_of(device: Device) -> str:
    if device.group is None:
        text = f"{device.name} is in no IOMMU group: no IOMMU translates it"
        raise _CannotError(Status.UNASSIGNABLE, text)
    return device.group


def _without(
    host: Host,
    blocked: set[str],
    row: HostRow,
    status: Status,
    text: str,
    fixes: tuple[str, ...],
) -> Outcome:
    count = Counter({status.value: 1})
    known = status is not Status.DAMAGED and architecture(host, host.groups) is not None
    survey = Survey(
        count,
        shares={row.machine: Share(count)} if known and row.machine else {},
        problems={status.value: (Problem("", text, fixes),)},
        devices=_devices(host, blocked, False),
    )
    row = replace(row, status=status, reason=text, fixes=joined(fixes))
    return Outcome(row, survey)


def _judged(
    host: Host,
    blocked: set[str],
    row: HostRow,
    usable: Usable,
    place: _Place | None,
    refusal: IovaError | None,
) -> Outcome:
    status = Status.REFUSED if place is None else Status.FITS
    holes = tuple(
        Hole(span.start, span.last, cause.kind.name, _word(cause), cause.text)
        for span, cause in usable.hole_causes.items()
    )
    allowed = Allowed(usable.ranges, usable.granule, usable.cpu_bits, usable.page_sizes)
    digest = place.allowed if place else _allowed_digest(usable)
    machine = row.machine or str(usable.arch)
    host_class = HostClass(
        digest,
        1,
        ("",),
        machine,
        allowed,
        holes,
        place.digest if place else None,
        refusal.message if refusal else None,
        () if refusal is None else fixes_of(refusal),
        _obstacle(refusal),
    )
    count = Counter({status.value: 1})
    survey = Survey(
        count,
        {digest: host_class},
        usable.ranges,
        {machine: Share(count, Allowed() if place is None else allowed)},
        devices=_devices(host, blocked, place is not None),
    )
    row = replace(
        row,
        status=status,
        layout=place.digest if place else None,
        usable=digest,
        pieces=place.pieces if place else 0,
        address_bits=place.address_bits if place else 0,
        top_bits=usable.ranges[-1].last.bit_length() if usable.ranges else 0,
        granule=usable.granule,
        reason=host_class.refusal,
        fixes=joined(host_class.fixes),
    )
    return Outcome(row, survey)


def _obstacle(refusal: IovaError | None) -> tuple[str, int] | None:
    reasons = getattr(refusal, "reasons", ())
    if not reasons or not isinstance(reasons[0], Reason):
        return None
    return reasons[0].cause.kind.name, reasons[0].cause.range.start


def _word(cause: Cause) -> str | None:
    return cause.region.word if cause.region else None


def _kind(cause: Cause) -> RegionKind | None:
    return cause.region.kind if cause.region else None


def _devices(host: Host, blocked: set[str], fits: bool) -> dict[tuple[str, str], DeviceCount]:
    """Count groups by the class and driver of their devices."""
    seen: defaultdict[tuple[int | None, str], set[str]] = defaultdict(set)
    for device in host.devices:
        if device.group is not None:
            code = device.pci_class
            seen[None if code is None else code >> 8, device.driver or ""].add(device.group)
    texts = {
        group.id: f"direct region of {group.title}"
        if group.id in blocked
        else f"nothing translates {group.title}"
        for group in host.groups
        if group.id in blocked or not group.translated
    }
    counts = {}
    for (known, driver), groups in seen.items():
        held = sorted(groups & texts.keys())
        free = len(groups) - len(held)
        example = ("", texts[held[0]]) if held else None
        there = fits and free > 0
        counts["" if known is None else f"{known:04x}", driver] = DeviceCount(
            len(groups),
            free,
            free if fits else 0,
            1,
            int(there),
            ("",) if there else (),
            example,
        )
    return dict(sorted(counts.items()))


def _allowed_digest(usable: Usable) -> str:
    """Name what may be mapped: equal for hosts of one class."""
    return _digest(
        [
            [(item.start, item.last) for item in usable.ranges],
            [usable.granule, usable.cpu_bits, usable.page_sizes],
            usable.arch,
            [
                (span.start, span.last, cause.kind.name)
                for span, cause in usable.hole_causes.items()
            ],
        ]
    )


def layout_digest(layout: Layout) -> str:
    """Name a layout: equal for equal places of RAM and windows."""
    return _digest(
        [
            (item.kind.value, [_ends(item.gpa), _ends(item.iova)])
            for item in layout.items
            if item.kind.value in ("ram", "window")
        ]
    )


def _ends(span: AddrRange | None) -> tuple[int, int] | None:
    return None if span is None else (span.start, span.last)


def _digest(data: object) -> str:
    return hashlib.blake2b(json.dumps(data).encode(), digest_size=8).hexdigest()


def joined(fixes: tuple[str, ...]) -> str | None:
    """Return the fixes as one field of a row."""
    return "; ".join(fixes) or None


def fixes_of(error: IovaError) -> tuple[str, ...]:
    """What would help, or settle it."""
    if isinstance(error, EvidenceError):
        return tuple(error.settles)
    if isinstance(error, PlanError):
        return tuple(error.fixes)
    return (error.hint,) if error.hint else ()
