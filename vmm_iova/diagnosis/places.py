# SPDX-License-Identifier: Apache-2.0
"""Where a range should go, against what is known, or likely, of the host's widths and holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.check import Verdict, check, check_holes
from vmm_iova.diagnosis.why import Certainty, Op, Part, Why
from vmm_iova.host.evidence import HYPERTRANSPORT, MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.facts import IommuUnit, KernelRanges, Source, StatedWidth
from vmm_iova.host.host import Host
from vmm_iova.host.usable import CauseKind
from vmm_iova.ranges import MappableRanges
from vmm_iova.record import replace
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from vmm_iova.diagnosis.case import Case
    from vmm_iova.diagnosis.clues import Clues
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange

CLIENT_BITS, CORE_BITS, SERVER_BITS = 39, 46, 48
"""Address bits: IOMMUs of Intel desktops, most CPUs, most servers."""
_4G = 1 << 32
_SURE, _LIKELY, _POSSIBLE = Certainty.CERTAIN, Certainty.LIKELY, Certainty.POSSIBLE
_THE_REPORT = Source("the report")


def clue_host(clues: Clues) -> Host | None:
    """Return the host as far as the report itself states it; None if it states nothing."""
    if clues.ranges:
        listed = KernelRanges(MappableRanges(clues.ranges), "text", _THE_REPORT)
        return Host("the report", kernel_ranges=(listed,))
    if clues.width is None and clues.vendor != "amd":
        return None
    units = (IommuUnit("ivhd0", source=_THE_REPORT),) if clues.vendor == "amd" else ()
    widths = (StatedWidth(clues.width, _THE_REPORT),) if clues.width else ()
    return Host("the report", arch="x86_64", units=units, widths=widths)


def _clue_usable(clues: Clues) -> Usable | None:
    host = clue_host(clues)
    if host is None:
        return None
    # Without a width the holes alone are judged: nothing is said about the top.
    return host.usable(aperture=None if clues.width or clues.ranges else 64)


def judge_place(case: Case) -> None:
    """Compare the place with the facts, or with what hosts are likely to have."""
    call, wanted = case.failure, case.failure.place
    if wanted is None:
        return
    judged = case.usable or _clue_usable(case.clues)
    if case.holes is not None and not case.clues.width:
        _holes_only(case, case.holes, wanted)
    elif judged is not None:
        case.verdict = _judge(case, judged, wanted)
        can = case.can(Why.HOLE) or case.can(Why.WIDTH)
        if not case.verdict.ok and can:
            _from_verdict(case, judged, case.verdict)
        if case.usable is not None:
            case.ruled_out |= {Why.HOLE, Why.WIDTH}
            if case.verdict.ok and can:
                _usable_place(case, case.usable, wanted)
            if case.verdict.ok:
                return
    if call.op is Op.FAULT and case.usable is None:
        if Why.WIDTH in dict(case.clues.signs) and Why.WIDTH not in case.found:
            case.add(Why.WIDTH, _SURE, "the fault's reason says so: Access beyond MGAW")
        case.ruled_out |= {Why.HOLE, Why.WIDTH}
        if case.clues.vendor:
            _likely_holes(case, wanted)
        return
    if case.can(Why.HOLE) and case.usable is None and case.named is None:
        _likely_holes(case, wanted)
    if case.can(Why.WIDTH) and case.usable is None and not case.clues.width:
        _likely_width(case, wanted)


def _holes_only(case: Case, holes: Usable, wanted: AddrRange) -> None:
    """Compare with the holes that the host names, where is unknown it is."""
    call = case.failure
    case.verdict = check_holes(holes, wanted, program=call.program, part=call.part)
    if case.verdict is not None:
        _from_verdict(case, holes, case.verdict)
    elif case.named is not None:
        case.ruled_out.add(Why.HOLE)
        case.notes.append(f"none of the holes that host {holes.host} names is in the way")


def _judge(case: Case, judged: Usable, wanted: AddrRange) -> Verdict:
    """Judge the range; of a call whose size is not known, its first page."""
    call = case.failure
    verdict = check(judged, wanted, program=call.program, part=call.part)
    if call.range is not None or verdict.next_fit is None or verdict.ok:
        return verdict
    base = say.OTHER_BASE.format(start=verdict.next_fit)
    nearest = say.OTHER_BASE_NEAREST.format(start=verdict.next_fit)
    fixes = (nearest if text == base else text for text in verdict.fixes)
    return replace(verdict, fixes=tuple(fixes))


def _usable_place(case: Case, usable: Usable, wanted: AddrRange) -> None:
    """Say what follows from an address that the facts allow."""
    if case.failure.op is Op.FAULT:
        case.notes.append(
            f"by the facts of {usable.host} {wanted.start:#x} may be mapped: nothing was, "
            "or not for this device, or not with that access"
        )
    elif case.failure.range is None:
        room = usable.room_at(wanted.start)
        edge = usable.edge_above(wanted.start + room - 1)
        why = Why.WIDTH if edge.kind is CauseKind.APERTURE else Why.HOLE
        text = f"{show_size(room)} fit at {wanted.start:#x}, more overlaps {edge.text}"
        case.add(why, _LIKELY, text)
    else:
        case.notes.append(
            f"by the facts of {usable.host} all of {wanted} may be mapped: the "
            "cause is another, or the facts are not those of the groups in question"
        )


def _from_verdict(case: Case, judged: Usable, verdict: Verdict) -> None:
    known = case.usable is not None or bool(case.clues.ranges)
    if verdict.kind == "straddle":
        seam = next(iter(judged.ranges.seams), 0)
        case.add(Why.SEAM, _SURE, f"two ranges of the kernel's list touch at {seam:#x}")
    for cause in verdict.causes:
        if not known and not case.clues.width and cause.kind is CauseKind.APERTURE:
            continue  # the top was not known, only assumed
        if not known and cause.kind is CauseKind.TOP_PAGE:
            continue
        shown = str(cause.range)
        text = cause.text if shown in cause.text else f"{shown}: {cause.text}"
        if verdict.kind == "granule" and cause is verdict.causes[0]:
            if case.can(Why.ALIGNMENT):
                case.add(Why.ALIGNMENT, _SURE, text)
        elif cause.kind is CauseKind.APERTURE:
            case.bits = (cause.range.start or 1).bit_length() - 1 or None
            case.add(
                Why.WIDTH,
                _SURE,
                f"the address needs {verdict.bits_needed} bits; {cause.text}",
            )
        elif Why.HOLE not in case.found or case.found[Why.HOLE].certainty is not _SURE:
            case.add(Why.HOLE, _SURE, text)


def _likely_holes(case: Case, wanted: AddrRange) -> None:
    vendor = case.clues.vendor
    for span, of, vendors, sure in _KNOWN_HOLES:
        if wanted.overlaps(span) and (vendor is None or vendor in vendors):
            below = span.start - wanted.start
            fits = f"; {show_size(below)} fit below it" if below > 0 else ""
            certainty = _LIKELY if vendor else sure
            case.add(Why.HOLE, certainty, f"it overlaps {span}, {of}{fits}")
    if wanted.start < _4G and case.failure.op is not Op.FAULT:
        case.add(
            Why.HOLE, _POSSIBLE, "below 4 GiB firmware keeps regions for some devices (IVMD, RMR)"
        )


def _likely_width(case: Case, wanted: AddrRange) -> None:
    call, clues = case.failure, case.clues
    needs = wanted.last.bit_length()
    # Desktops and laptops of Intel have 39; no AMD or Arm server has so few.
    least = SERVER_BITS if clues.vendor in ("amd", "arm") else CLIENT_BITS
    if needs <= least:
        if call.errno == "EFAULT":
            case.ruled_out.add(Why.WIDTH)  # the list lets by what is too wide, not this
        elif wanted.last >= _4G:
            case.add(
                Why.WIDTH,
                _POSSIBLE,
                f"it needs {needs} bits: wide enough for x86, but some SoC IOMMUs have 32, and "
                "s390 begins and ends where its DMA window does",
            )
        return
    case.bits = CLIENT_BITS if needs <= SERVER_BITS else SERVER_BITS
    if call.errno == "EFAULT":
        # Only there does the kernel's list let by what its driver then refuses.
        if clues.release is None or clues.release in _WIDE_LISTS:
            text = f"it needs {needs} bits; Linux 5.4 to 5.9 answer so where VT-d has fewer"
            case.add(Why.WIDTH, _POSSIBLE, text)
        else:
            case.ruled_out.add(Why.WIDTH)
        return
    whose = (
        "IOMMUs of Intel desktops and laptops translate 39"
        if case.bits == CLIENT_BITS
        else "most IOMMUs translate 48"
    )
    named = " (the report names such a CPU)" if clues.client and case.bits == CLIENT_BITS else ""
    case.add(Why.WIDTH, _LIKELY, f"the address needs {needs} bits; {whose}{named}")


_WIDE_LISTS = ("5.4", "5.5", "5.6", "5.7", "5.8", "5.9")
_KNOWN_HOLES = (
    (HYPERTRANSPORT, "which AMD keeps for HyperTransport, if the host has it", ("amd",), _LIKELY),
    (MSI_X86, "the interrupt window, if the host is x86", ("amd", "intel"), _LIKELY),
    (
        MSI_ARM_SOFTWARE,
        "where Arm kernels map the MSI doorbells, if the host is Arm",
        ("arm",),
        _POSSIBLE,
    ),
)


def is_bar(case: Case) -> bool:
    """Tell whether the map is one of device memory: by the words, or by QEMU's next line."""
    return case.failure.part is Part.BAR or (case.clues.peer and case.failure.part is None)
