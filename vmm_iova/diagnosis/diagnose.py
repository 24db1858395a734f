# SPDX-License-Identifier: Apache-2.0
"""Why a call failed: the fact, where it can be had, or the likely causes and what settles them.

What is *certain* rests on a fact: of the host, of the report's own words, or of the numbers. What
is *likely* or *possible* is said with what would settle it; nothing is guessed in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.advice import actions, others_of_group
from vmm_iova.diagnosis.case import Case
from vmm_iova.diagnosis.causes import SLOT_MAX
from vmm_iova.diagnosis.error_lines import parse_reports
from vmm_iova.diagnosis.findings import Diagnosis
from vmm_iova.diagnosis.headline import headline
from vmm_iova.diagnosis.meaning import meaning
from vmm_iova.diagnosis.places import CLIENT_BITS, CORE_BITS, is_bar, judge_place
from vmm_iova.diagnosis.settling import settling
from vmm_iova.diagnosis.why import Api, Certainty, Op, Part, Why
from vmm_iova.errors import HostDataError
from vmm_iova.host.facts import Platform, RegionKind
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, GIB, MIB, AddrRange
from vmm_iova.record import replace
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.diagnosis.causes import Rule
    from vmm_iova.diagnosis.clues import Clues
    from vmm_iova.diagnosis.error_lines import Report
    from vmm_iova.diagnosis.failure import Failure
    from vmm_iova.host.usable import Usable

_SURE, _LIKELY, _POSSIBLE = Certainty.CERTAIN, Certainty.LIKELY, Certainty.POSSIBLE
_LARGE_PAGE = 1 << 16
_4G = 4 * GIB
_GRAPHICS = "0000:00:02.0"  # Intel's integrated graphics, on every machine that has it
_UNLIMITED = 1 << 52


def diagnose(
    failure: Failure,
    clues: Clues,
    usable: Usable | None = None,
    *,
    holes: Usable | None = None,
    platform: Platform | None = None,
) -> Diagnosis:
    """Say why a call failed.

    Args:
        failure: the call, from `error_lines.parse_report` or made by hand.
        clues: what the report states of the host.
        usable: where the host allows mappings, from `Host.usable`; None if its facts are not at
            hand, or do not settle the aperture.
        holes: where they do not: `Host.usable` with an aperture of 64 bits. Its holes count, its
            top does not.
        platform: the host's, if its facts are at hand.

    Returns:
        The cause, where a fact settles it, else the causes by likelihood with what settles them.

    Complexity: O(holes + rules).
    Synchronization: none required.
    """
    case = Case(failure, clues, usable, holes, platform or Platform())
    _numbers(case)
    _words(case)
    _unwound(case)
    _listing(case)
    placed = failure.op in (Op.MAP, Op.FAULT) and failure.sign is not Why.INVALID_REQUEST
    if placed or failure.sign is Why.OUTSIDE:
        judge_place(case)
    _fault(case)
    _cpu(case)
    _slot(case)
    _limits(case)
    _attach(case)
    _bars(case)
    _rest(case)
    return _done(case)


def explain(text: str, usable: Usable | None = None) -> tuple[Diagnosis, ...]:
    """Say why the calls failed that a pasted text tells of.

    Args:
        text: error lines of a VMM or of the kernel's log, whole, or a list of failed maps.
        usable: where the host allows mappings; without it the answer rests on the text alone.

    Raises:
        HostDataError: no line of it tells of a failed call.

    Complexity: O(size + failures x holes), bounded (see `error_lines.parse_report`).
    Synchronization: none required.
    """
    return _explained(parse_reports(text), usable)


def find_failures(text: str, usable: Usable | None = None) -> tuple[Diagnosis, ...]:
    """Say the same of a text that may tell of no failed call, such as a whole log.

    Args:
        text: as for `explain`.
        usable: as for `explain`.

    Returns:
        What `explain` returns; empty where it raises.

    Complexity: that of `explain`.
    Synchronization: none required.
    """
    try:
        reports = parse_reports(text)
    except HostDataError:  # raised for that alone
        return ()
    return _explained(reports, usable)


def _explained(reports: Iterable[Report], usable: Usable | None) -> tuple[Diagnosis, ...]:
    return tuple(
        diagnose(item, report.clues, usable) for report in reports for item in report.failures
    )


def _done(case: Case) -> Diagnosis:
    failure = case.failure
    findings = sorted(case.found.values(), key=lambda item: item.certainty.rank)
    settled = any(item.settles(failure) for item in findings)
    if settled:  # what is certain makes what is merely likely idle
        findings = [item for item in findings if item.certainty is _SURE]
    whys = [item.why for item in findings]
    sure = [item.why for item in findings if item.certainty is not _POSSIBLE]
    judged = case.usable or case.holes
    if failure.op is not Op.SETUP:  # where all that could be done is too much
        sure = sure or whys
    harmless = _harmless(case)
    return Diagnosis(
        failure=failure,
        headline=headline(case, findings, harmless=harmless),
        certainty=findings[0].certainty if findings else _POSSIBLE,
        harmless=harmless,
        meaning=meaning(failure, case.rules),
        findings=tuple(findings),
        verdict=case.verdict,
        host=judged.host if judged else None,
        settles=() if settled else settling(sure, case),
        actions=actions(sure, case),
        notes=tuple(case.notes),
    )


def _harmless(case: Case) -> bool:
    """Tell whether nothing failed for good: QEMU only warns when a BAR cannot be mapped."""
    call = case.failure
    peer = call.op is Op.MAP and case.clues.peer and is_bar(case)
    qemu = call.program == "QEMU"
    idle = call.warning and call.sign in (Why.PEER, Why.ALIGNMENT, Why.ENTRIES, Why.OTHER)
    ioas = call.sign is Why.BAR and qemu
    return peer or idle or ioas


# -- what the numbers alone say --------------------------------------------------------------------


def _numbers(case: Case) -> None:
    call = case.failure
    numbers = [value for value in (call.iova, call.size, call.hva) if value is not None]
    ragged = [value for value in numbers if value % BASE_PAGE]
    if ragged and call.op in (Op.MAP, Op.UNMAP, Op.MEMSLOT) and case.can(Why.ALIGNMENT):
        shown = ", ".join(f"{value:#x}" for value in ragged)
        text = f"{shown} is not a multiple of 4 KiB, as no IOMMU has smaller pages"
        case.add(Why.ALIGNMENT, _SURE, text)
    if numbers and all(value % _LARGE_PAGE == 0 for value in numbers) and len(numbers) > 1:
        case.ruled_out.add(Why.ALIGNMENT)
    for start in (call.iova, call.hva):
        if start is not None and call.size and start + call.size - 1 > ADDRESS_LAST:
            text = f"{start:#x} and {call.size:#x} bytes pass 2^64-1"
            case.add(Why.WRAP, _SURE, text)
    if call.iova is not None and call.size and Why.WRAP not in case.found:
        case.ruled_out.add(Why.WRAP)


# -- what the words alone say ----------------------------------------------------------------------


def _words(case: Case) -> None:
    call = case.failure
    told = dict(case.clues.signs)
    if call.sign is not None:
        told.setdefault(call.sign, call.text)
    for why, line in told.items():
        fits = why is call.sign or case.can(why) or not case.rules
        if not fits or why is Why.WIDTH:  # `places` compares the width with the address
            continue
        if why is Why.MEMLOCK and call.errno not in ("ENOMEM", None):
            continue
        likely = why in _LIKELY_WORDS or (call.likely and why is call.sign)
        case.add(why, _LIKELY if likely else _SURE, _told(case, why, line))


def _told(case: Case, why: Why, line: str) -> str:
    """What the words mean; the line is quoted where it is not the one that is explained."""
    rule = next((rule.text for rule in case.rules if rule.why is why), None)
    text = _TELLS.get(why) or rule or "the line says so"
    if why in (Why.NO_GROUP, Why.NO_IOMMU) and case.clues.board is not None:
        text = _BOARD.format(case.clues.board)
    return text if line == case.failure.text else f"{text}: {line[:100]!r}"


_BOARD = "{} has IOMMUs for its display and camera at most, and none for its PCIe"
_LIKELY_WORDS = (Why.NO_CDEV, Why.BAR_HELD, Why.INVALID_REQUEST)
_TELLS = {
    Why.DIRECT: "the kernel's log says that firmware demands a 1:1 mapping",
    Why.MEMLOCK: "the report names the limit of locked memory",
    Why.ISOLATION: "the kernel's log says that interrupts are not isolated",
    Why.NOT_VIABLE: "the program says that the group is not viable",
    Why.ENTRIES: "the program counts its mappings against the limit",
    Why.HOLE: "the program names the region",
    Why.REQUESTER: "the fault's reason says so",
    Why.OUTSIDE: "QEMU compares with the kernel's ranges before it asks the kernel",
}


def _unwound(case: Case) -> None:
    call = case.failure
    if call.unwound and call.errno is None:
        text = "QEMU prints errno after its message: MAP_DMA of a VFIO container has no ENOENT"
        case.add(Why.UNWOUND, _SURE, text)


def _listing(case: Case) -> None:
    """Compare with a listing of groups in the same paste."""
    call, clues = case.failure, case.clues
    listed = clues.listed
    if call.op is Op.PROBE and listed and call.device is not None and call.device not in listed:
        devices = f"{len(listed)} device" + "s" * (len(listed) != 1)
        pci = sum(name.count(":") == 2 for name in listed)
        none = " and no PCI device" if not pci else ""
        case.add(
            Why.NO_GROUP,
            _SURE,
            f"the listing has {devices} in IOMMU groups{none}: {call.device} is not among them",
        )
    if call.op is Op.PROBE and clues.board is not None and case.can(Why.NO_GROUP):
        case.add(Why.NO_GROUP, _LIKELY, _BOARD.format(clues.board))
    if call.sign is Why.NOT_VIABLE:
        others = others_of_group(case)
        if others:
            case.notes.append(f"by the listing the group also has {', '.join(others)}")


# -- faults ----------------------------------------------------------------------------------------


def _fault(case: Case) -> None:
    """Say whose fault it is, as far as the device and the address tell."""
    call = case.failure
    if call.op is not Op.FAULT or call.iova is None:
        return
    page = AddrRange(call.iova, call.iova)
    stolen = [
        item.range
        for item in case.clues.log.identity
        if item.device in (None, call.device) and item.range.overlaps(page)
    ]
    regions = case.usable.regions if case.usable is not None else ()
    kinds = (RegionKind.FIRMWARE, RegionKind.DIRECT_RELAXABLE)
    stolen += [item.range for item in regions if item.kind in kinds and item.range.overlaps(page)]
    if call.device == _GRAPHICS and call.sign is None and Why.WIDTH not in case.found:
        if stolen:
            text = f"the address is in the region {stolen[0]} that firmware keeps for it"
            case.add(Why.GRAPHICS, _SURE, text)
        elif 256 * MIB <= call.iova < _4G:
            case.add(
                Why.GRAPHICS,
                _LIKELY,
                "firmware puts the graphics' stolen memory below 4 GiB, and its display reads it "
                "before any driver maps it",
            )
    if case.found and Why.UNMAPPED_DMA not in case.found:
        return
    if call.driver is not None:
        owner = "a guest's" if "vfio" in call.driver else "the host's own"
        case.notes.append(f"{call.driver} holds the device: it is {owner}")


# -- KVM's own limits ------------------------------------------------------------------------------


def _cpu(case: Case) -> None:
    """KVM's own limit: certain where the CPU's bits are known."""
    call, wanted = case.failure, case.failure.place
    bits = case.clues.cpu_bits
    if bits is None and case.usable is not None:
        bits = case.usable.cpu_bits
    if wanted is None or call.op not in (Op.MAP, Op.MEMSLOT):
        return
    needs = wanted.last.bit_length()
    if bits is None:
        if call.op is Op.MEMSLOT and case.can(Why.CPU_BITS) and needs > CLIENT_BITS:
            case.bits = CLIENT_BITS if needs <= CORE_BITS else CORE_BITS
            text = f"{wanted} needs {needs} address bits; desktops have 39 to 46, others up to 52"
            case.add(Why.CPU_BITS, _LIKELY, text)
    elif needs > bits and (call.op is Op.MEMSLOT or case.clues.cpu_bits):
        case.bits = bits if case.bits is None else min(case.bits, bits)
        case.add(Why.CPU_BITS, _SURE, f"{wanted} needs {needs} address bits, the CPU has {bits}")
    elif call.op is Op.MEMSLOT:
        case.ruled_out.add(Why.CPU_BITS)
        case.notes.append(f"the CPU's {bits} address bits are enough for {wanted}")


def _slot(case: Case) -> None:
    """A slot has a largest size."""
    size = case.failure.size
    if case.failure.op is not Op.MEMSLOT or size is None or not case.can(Why.SLOT_SIZE):
        return
    if size > SLOT_MAX:
        text = f"{show_size(size)}, the most is {SLOT_MAX:#x} bytes"
        case.add(Why.SLOT_SIZE, _SURE, text)
    else:
        case.ruled_out.add(Why.SLOT_SIZE)


# -- limits ----------------------------------------------------------------------------------------


def _limits(case: Case) -> None:
    limits = case.usable.limits if case.usable else None
    memlock = case.clues.memlock
    if memlock is None and limits is not None:
        memlock = limits.memlock
    size, call = case.failure.size, case.failure
    if case.can(Why.MEMLOCK) and call.errno == "ENOMEM":
        if memlock is not None and 0 <= memlock < _UNLIMITED:
            over = size is not None and size > memlock
            known = over or case.clues.memlock is not None
            alone = f", this map alone pins {show_size(size)}" if over and size else ""
            text = f"RLIMIT_MEMLOCK is {show_size(memlock)}{alone}"
            case.add(Why.MEMLOCK, _SURE if known else _LIKELY, text)
        elif memlock is not None:
            case.notes.append(
                "the host states RLIMIT_MEMLOCK as unlimited: the VMM may run under another "
                "limit (systemd, container), or memory itself ran out"
            )
        else:
            case.add(Why.MEMLOCK, _LIKELY, _memlock_text(case))
    if case.can(Why.ENTRIES) and call.errno == "ENOSPC":
        limit = case.clues.entries or (limits.dma_entries if limits else None)
        shown = f"{limit}" if limit else "65535 unless somebody changed it"
        sure = _SURE if call.api is Api.TYPE1 else _LIKELY
        case.add(Why.ENTRIES, sure, f"the limit on mappings of one container is {shown}")


def _memlock_text(case: Case) -> str:
    call, qemu = case.failure, case.clues.qemu
    alone = f"this map alone pins {show_size(call.size)}; " if call.size else ""
    if qemu is not None and qemu.ram and qemu.containers > 1:
        return (
            f"the guest has an IOMMU of its own ({qemu.viommu}), so each of its "
            f"{qemu.containers} devices locks all {show_size(qemu.ram)} of RAM"
        )
    return f"{alone}memory itself that ran out has the same errno"


# -- attach ----------------------------------------------------------------------------------------


def _attach(case: Case) -> None:
    if case.failure.op not in (Op.ATTACH, Op.SET_IOMMU, Op.BIND) or not case.can(Why.DIRECT):
        return
    if case.usable is None:
        return
    blocked = case.usable.unassignable
    if blocked and case.failure.errno in ("EINVAL", "EPERM", None):
        case.add(Why.DIRECT, _SURE, blocked[0].text)
    elif not blocked:
        case.ruled_out.add(Why.DIRECT)
        groups = ", ".join(case.usable.groups[:8]) or "of the host"
        case.notes.append(f"group {groups}: no direct region, so firmware does not forbid it")


# -- BARs ------------------------------------------------------------------------------------------


def _bars(case: Case) -> None:
    """Say what the listing in the same paste tells of a BAR."""
    call = case.failure
    if call.op is not Op.BAR or not call.size:
        return
    sizes = {size for _, _, size in case.clues.bars}
    if call.sign is Why.BAR_MOVED and sizes and call.size not in sizes:
        case.notes.append(
            f"no BAR of the listing has {show_size(call.size)}: it is an expansion ROM, or a "
            "device that the listing leaves out"
        )
    if call.sign is Why.BAR_MOVED:
        case.notes.append(
            "a guest sizes a BAR by writing zeros or ones to it, which looks like a move; no map "
            "of an IOMMU is concerned"
        )
    windows = [span for _, span in case.clues.log.windows if span.start >= _4G]
    if call.sign is Why.NO_SPACE and windows:
        shown = ", ".join(f"{span} ({show_size(span.size)})" for span in windows[:3])
        case.notes.append(f"64-bit windows of the log: {shown}")


# -- the rest --------------------------------------------------------------------------------------


def _rest(case: Case) -> None:
    """Add what else the errno can mean, in the kernel's order, as possible."""
    call = case.failure
    if call.op is Op.SETUP and call.errno is None:
        return  # anything can be meant
    words = case.found.get(call.sign) if call.sign is not None else None
    if words is not None and words.certainty is not _POSSIBLE:
        return  # the words say which it is
    for rule in case.rules:
        if rule.why in case.ruled_out or rule.why in case.found or _excluded(case, rule):
            continue
        of_bar = rule.why is Why.HVA and is_bar(case)
        case.add(rule.why, _prior(case, rule), _BAR_PAGES if of_bar else rule.text)
    if len(case.found) == 1 and (call.errno or call.op is Op.FAULT):
        (only,) = case.found.values()
        open_ = only.why in _NEEDS_FACTS or (only.why is Why.HVA and is_bar(case))
        if only.certainty is _LIKELY and not open_:
            # The errno has one meaning in this call: that settles it.
            case.found[only.why] = replace(only, certainty=_SURE)


_BAR_PAGES = (
    "the pages of the BAR cannot be had: the device does not decode memory, or sleeps, while it is "
    "mapped"
)
_NEEDS_FACTS = (
    Why.HOLE,
    Why.WIDTH,
    Why.MEMLOCK,
    Why.DIRECT,
    Why.CPU_BITS,
    Why.GRAPHICS,
    Why.NO_CDEV,
    Why.NO_DOMAIN,
    Why.NO_GROUP,
    Why.INVALID_REQUEST,
)


def _excluded(case: Case, rule: Rule) -> bool:
    call = case.failure
    if call.op in (Op.FAULT, Op.START, Op.BAR):
        return rule.why is not Why.UNMAPPED_DMA or any(
            item.certainty is not _POSSIBLE for item in case.found.values()
        )
    if call.unwound and call.errno is None:
        return True
    if rule.why in (Why.HOLE, Why.WIDTH) and call.place is not None:
        # The numbers were looked at: what is left is a region that only the host can name.
        if call.errno == "EFAULT":
            return True
        return rule.why is Why.WIDTH and call.range is not None and call.range.last < _4G
    return rule.why is Why.BAR and call.part is Part.RAM


def _prior(case: Case, rule: Rule) -> Certainty:
    """Give the cause that most reports of this errno turn out to have."""
    call = case.failure
    if rule.why is Why.BAR and call.errno == "EFAULT" and is_bar(case):
        return _SURE if call.api is Api.IOMMUFD else _LIKELY
    if rule.why is Why.WIDTH and (call.place is not None or call.errno == "EFAULT"):
        return _POSSIBLE  # the address was looked at, or only old kernels answer so
    if (call.errno, rule.why) == ("EFAULT", Why.HVA):
        return _POSSIBLE if is_bar(case) and call.api is not Api.TYPE1 else _LIKELY
    common = _COMMON.get((call.op, call.errno or ""))
    return _LIKELY if common is rule.why or len(case.rules) == 1 else _POSSIBLE


_COMMON = {
    (Op.MAP, "EINVAL"): Why.WIDTH,
    (Op.ATTACH, "EINVAL"): Why.DIRECT,
    (Op.SET_IOMMU, "EINVAL"): Why.DIRECT,
    (Op.BIND, "EINVAL"): Why.DIRECT,
    (Op.ATTACH, "EPERM"): Why.ISOLATION,
    (Op.SET_IOMMU, "EPERM"): Why.ISOLATION,
    (Op.FAULT, ""): Why.UNMAPPED_DMA,
    (Op.UNMAP, "EINVAL"): Why.CUT,
    (Op.UNMAP, "ENOENT"): Why.NOT_MAPPED,
    (Op.PROBE, "ENODEV"): Why.NO_GROUP,
    (Op.PROBE, "EINVAL"): Why.NO_GROUP,
    (Op.GET_DEVICE, "ENOTTY"): Why.MEDIATED,
    (Op.SET_IOMMU, "EIO"): Why.NO_DOMAIN,
    (Op.OPEN, "ENOENT"): Why.ABSENT,
}
