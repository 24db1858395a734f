# SPDX-License-Identifier: Apache-2.0
"""One host of a fleet: its text in, a survey of one host out. Pure, and everything pickles."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import (
    EvidenceError,
    HostUnavailableError,
    IovaError,
    MisalignedError,
    PlacementError,
    PlanError,
    RequestError,
)
from vmm_iova.fleet.survey import DeviceCount, Hole, HostClass, Survey, merge_all
from vmm_iova.guest.explain import Reason
from vmm_iova.guest.machine import Machine, load_machine
from vmm_iova.guest.plan import Guest, OnHole, plan
from vmm_iova.host.evidence import stated_evidence
from vmm_iova.host.load import decode_text, parse_hosts
from vmm_iova.host.model import Host, RegionKind
from vmm_iova.ranges import check_granule

if TYPE_CHECKING:
    from vmm_iova.guest.layout import Layout
    from vmm_iova.host.model import Group
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange, RangeSet

_CACHED = 1024  # hosts whose facts were judged, kept by each worker


class Status(enum.Enum):
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


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """What is asked of every host of a fleet.

    Attributes:
        guest: what is wanted; its machine may be a name, a file or a `Machine`.
        on_hole: as in `vmm_iova.plan`.
        groups: IOMMU groups that are needed on each host; None for those that can be assigned.
        devices: devices by name that are needed on each host.
        pci_class: hex digits that the class of a needed device begins with (`"0302"` for 3D
            controllers), or None.
        aperture: as in `Host.usable`; narrows, and counts where a host has no evidence.
        granule: as in `Host.usable`.
        strict: as in `Host.usable`.
    """

    guest: Guest
    on_hole: OnHole = "split"
    groups: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    pci_class: str | None = None
    aperture: int | str | AddrRange | RangeSet | None = None
    granule: int | None = None
    strict: bool = False

    def resolved(self) -> FleetRequest:
        """Return the same, tried on a host that allows everything, and with its machine loaded.

        What makes no sense is said before the first host is judged; and a worker elsewhere may not
        have the file of the machine.

        Raises:
            RequestError: it makes no sense on any host.
            UnknownNameError: there is no such machine.
        """
        machine = self.guest.machine
        if not isinstance(machine, Machine):
            machine = load_machine(machine)
        made = replace(self, guest=replace(self.guest, machine=machine))
        if self.aperture is not None:
            stated_evidence(self.aperture)
        if self.granule is not None:
            check_granule(self.granule)
        with contextlib.suppress(PlacementError, MisalignedError):
            plan(made.guest, Host("any host", page_size=4096).usable(aperture=64), self.on_hole)
        return made


@dataclass(frozen=True, slots=True)
class HostRow:
    """One host as a row of a table.

    Attributes:
        name: of the host: its file, `FILE#N` in a collection.
        status: value of `Status`.
        layout: digest of its layout, or None.
        usable: digest of what may be mapped, or None.
        pieces: pieces of RAM.
        address_bits: bits that the layout needs.
        top_bits: bits of the highest usable address.
        granule: smallest mapping unit in bytes.
        groups: IOMMU groups.
        blocked_groups: those that current kernels keep from user space.
        reason: why not, or None.
    """

    name: str
    status: str
    layout: str | None = None
    usable: str | None = None
    pieces: int = 0
    address_bits: int = 0
    top_bits: int = 0
    granule: int = 0
    groups: int = 0
    blocked_groups: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came out for the facts of a host, whatever its name."""

    row: HostRow
    survey: Survey


_CACHE: OrderedDict[bytes, _Outcome] = OrderedDict()


def survey_text(
    content: bytes, name: str, request: FleetRequest
) -> tuple[Survey, tuple[HostRow, ...]]:
    """Judge one snapshot or pasted text; nothing about it raises.

    Hosts with the same facts but for their names are judged once: a worker keeps the last ones.

    Args:
        content: the file.
        name: what to call it.
        request: what is asked, best `resolved`.

    Complexity: O(size) for parsing, milliseconds for judging, once for the same facts.
    Synchronization: none required; the cache only ever holds what would be computed again.
    """
    try:
        text = decode_text(content, name)
        key = _key(text, request)
        known = _CACHE.get(key) if key else None
        if known is not None and key:
            _CACHE.move_to_end(key)
            outcomes = [(name, known)]
        else:
            hosts = parse_hosts(text, name)
            outcomes = [
                (name if len(hosts) == 1 else f"{name}#{index}", _judge(host, request))
                for index, host in enumerate(hosts, 1)
            ]
            if key and len(outcomes) == 1:
                _CACHE[key] = outcomes[0][1]
                while len(_CACHE) > _CACHED:
                    _CACHE.popitem(last=False)
    except IovaError as error:
        return damaged(name, _without_name(error.message, name))
    except Exception as error:  # one strange file does not end the survey of a fleet
        return damaged(name, f"defect of vmm-iova: {type(error).__name__}: {error}")
    named = [_named(outcome, host) for host, outcome in outcomes]
    return merge_all(survey for survey, _ in named), tuple(row for _, row in named)


def _without_name(message: str, name: str) -> str:
    """Take the file's name off the front of a message that will stand beside it."""
    rest = message.removeprefix(name)
    if rest == message:
        return message
    number, colon, text = rest.removeprefix(":").partition(":")
    at_line = rest.startswith(":") and colon and number.isdecimal()
    return f"line {number}:{text}" if at_line else rest.lstrip(": ")


def damaged(name: str, problem: str) -> tuple[Survey, tuple[HostRow, ...]]:
    """Return the survey of a host that could not be read."""
    status = Status.DAMAGED.value
    survey = Survey(Counter({status: 1}), problems={status: ((name, problem),)})
    return survey, (HostRow(name, status, reason=problem),)


def _key(text: str, request: FleetRequest) -> bytes | None:
    """Digest what the answer depends on: all facts but the names that make hosts different."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None  # the reader says what is wrong
    if not isinstance(data, dict):
        return None
    for field in ("name", "origin", "generator", "notes"):
        data.pop(field, None)
    facts = json.dumps(data, separators=(",", ":"))
    return hashlib.blake2b(f"{facts}\0{request!r}".encode(), digest_size=16).digest()


def _named(outcome: _Outcome, name: str) -> tuple[Survey, HostRow]:
    """Give an outcome its host's name."""
    survey = outcome.survey
    return (
        replace(
            survey,
            classes={key: replace(item, names=(name,)) for key, item in survey.classes.items()},
            problems={
                key: tuple((name, text) for _, text in named)
                for key, named in survey.problems.items()
            },
            devices={
                key: replace(item, blocked=(name, item.blocked[1])) if item.blocked else item
                for key, item in survey.devices.items()
            },
        ),
        replace(outcome.row, name=name),
    )


def _judge(host: Host, request: FleetRequest) -> _Outcome:
    host = replace(host, name="this host")  # the same facts give the same words
    blocked = {group.id for group in host.groups if _direct(group)}
    row = HostRow("", "", groups=len(host.groups), blocked_groups=len(blocked))
    wanted = _wanted(host, request)
    if wanted is not None and not wanted:
        return _without(host, blocked, row, Status.ABSENT, "has none of the devices asked for")
    if wanted is None and host.groups:
        wanted = [group.id for group in host.groups if group.id not in blocked]
        if not wanted:
            text = "firmware demands direct regions of every group"
            return _without(host, blocked, row, Status.UNASSIGNABLE, text)
    held = [group for group in wanted or () if group in blocked]
    if held:
        text = f"firmware demands a direct region of group {', '.join(held)}"
        return _without(host, blocked, row, Status.UNASSIGNABLE, text)
    try:
        usable = host.usable(
            groups=wanted,
            aperture=request.aperture,
            granule=request.granule,
            strict=request.strict,
        )
    except (EvidenceError, HostUnavailableError, RequestError) as error:
        # RequestError: the stated granule is below the one that this host has.
        text = error.message.removeprefix("host this host: ")
        return _without(host, blocked, row, Status.UNSETTLED, text)
    layout, refusal = None, None
    try:
        _check_arch(request, usable)
        layout = plan(request.guest, usable, request.on_hole)
    except IovaError as error:
        refusal = error
    return _judged(host, blocked, row, usable, layout, refusal)


def _check_arch(request: FleetRequest, usable: Usable) -> None:
    machine = request.guest.machine
    if isinstance(machine, Machine) and usable.arch not in (None, machine.arch):
        raise PlanError(
            f"machine {machine.name} is {machine.arch}, but the host is {usable.arch}: KVM cannot "
            "run it there"
        )


def _wanted(host: Host, request: FleetRequest) -> list[str] | None:
    """Return the groups that are needed; empty if the host lacks one; None for all."""
    if not (request.groups or request.devices or request.pci_class):
        return None
    found: dict[str, None] = {}
    ids = {group.id for group in host.groups}
    for group in request.groups or ():
        if group not in ids:
            return []
        found[group] = None
    by_name = {device.name: device.group for device in host.devices}
    for name in request.devices or ():
        of = by_name.get(name) or by_name.get(f"0000:{name}")
        if of is None:
            return []
        found[of] = None
    if request.pci_class:
        prefix = request.pci_class.lower().removeprefix("0x")
        of_class = [
            device.group
            for device in host.devices
            if device.pci_class is not None
            and f"{device.pci_class:06x}".startswith(prefix)
            and device.group is not None
        ]
        found.update(dict.fromkeys(of_class))
    return list(found)


def _direct(group: Group) -> bool:
    every: tuple[Any, ...] = (*(group.regions or ()), *group.empty_regions)
    return any(item.kind is RegionKind.DIRECT for item in every)


def _without(host: Host, blocked: set[str], row: HostRow, status: Status, text: str) -> _Outcome:
    survey = Survey(
        Counter({status.value: 1}),
        problems={status.value: (("", text),)},
        devices=_devices(host, blocked, False),
    )
    return _Outcome(replace(row, status=status.value, reason=text), survey)


def _judged(
    host: Host,
    blocked: set[str],
    row: HostRow,
    usable: Usable,
    layout: Layout | None,
    refusal: IovaError | None,
) -> _Outcome:
    status = Status.FITS if layout is not None else Status.REFUSED
    holes = tuple(
        Hole(
            span.start,
            span.last,
            usable.hole_causes[span].kind.name,
            _word(usable.hole_causes[span]),
            usable.hole_causes[span].text,
        )
        for span in usable.holes
    )
    digest = _digest(
        [
            [(item.start, item.last) for item in usable.ranges],
            usable.granule,
            usable.arch,
            [(item.start, item.last, item.kind) for item in holes],
        ]
    )
    laid = None if layout is None else layout_digest(layout)
    top_bits = usable.ranges[-1].last.bit_length() if usable.ranges else 0
    made = HostClass(
        digest,
        1,
        ("",),
        usable.ranges,
        usable.granule,
        holes,
        laid,
        refusal.message if refusal else None,
        tuple(getattr(refusal, "fixes", ())),
        _obstacle(refusal),
        top_bits,
    )
    survey = Survey(
        Counter({status.value: 1}),
        {digest: made},
        usable.ranges,
        usable.ranges if layout is not None else None,
        usable.granule,
        devices=_devices(host, blocked, layout is not None),
    )
    row = replace(
        row,
        status=status.value,
        layout=laid,
        usable=digest,
        pieces=len(layout.ram) if layout else 0,
        address_bits=layout.address_bits if layout else 0,
        top_bits=top_bits,
        granule=usable.granule,
        reason=made.refusal,
    )
    return _Outcome(row, survey)


def _obstacle(refusal: IovaError | None) -> tuple[str, int] | None:
    reasons = getattr(refusal, "reasons", ())
    if not reasons or not isinstance(reasons[0], Reason):
        return None
    return reasons[0].cause.kind.name, reasons[0].cause.range.start


def _word(cause: Any) -> str | None:
    return cause.region.word if cause.region else None


def _devices(host: Host, blocked: set[str], fits: bool) -> dict[tuple[str, str], DeviceCount]:
    """Count groups by the class and driver of their devices."""
    seen: dict[tuple[str, str], set[str]] = {}
    for device in host.devices:
        if device.group is not None:
            known = "" if device.pci_class is None else f"{device.pci_class >> 8:04x}"
            seen.setdefault((known, device.driver or ""), set()).add(device.group)
    texts = {group.id: group.title for group in host.groups if group.id in blocked}
    found = {}
    for key, groups in seen.items():
        held = sorted(groups & blocked)
        free = len(groups) - len(held)
        example = ("", f"direct region of {texts[held[0]]}") if held else None
        found[key] = DeviceCount(len(groups), free, free if fits else 0, 1, example)
    return found


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
