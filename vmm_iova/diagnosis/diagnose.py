# SPDX-License-Identifier: Apache-2.0
"""Why a call failed: the fact, where it can be had, or the likely causes and what settles them.

What is *certain* rests on a fact: of the host, of the report's own words, or of the numbers. What
is *likely* or *possible* is said with what would settle it; nothing is guessed in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.advice import remedies, settling
from vmm_iova.diagnosis.causes import FACTS, SLOT_MAX, Why, rules_for
from vmm_iova.diagnosis.check import Verdict, check, check_holes
from vmm_iova.diagnosis.error_lines import parse_reports
from vmm_iova.diagnosis.findings import CERTAIN, LIKELY, POSSIBLE, Diagnosis, Finding
from vmm_iova.diagnosis.meaning import meaning
from vmm_iova.host.evidence import HYPERTRANSPORT, MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.facts import IommuUnit, Source, StatedWidth
from vmm_iova.host.host import Host
from vmm_iova.host.usable import CauseKind
from vmm_iova.ranges import ADDRESS_LAST
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from vmm_iova.diagnosis.causes import Rule
    from vmm_iova.diagnosis.error_lines import Clues, Failure
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange

_RANK = {CERTAIN: 0, LIKELY: 1, POSSIBLE: 2}
_PAGE, _LARGE_PAGE = 1 << 12, 1 << 16
_CLIENT_BITS, _CORE_BITS, _SERVER_BITS = 39, 46, 48
_4G = 1 << 32


def diagnose(
    failure: Failure, clues: Clues, usable: Usable | None = None, *, holes: Usable | None = None
) -> Diagnosis:
    """Say why a call failed.

    Args:
        failure: the call, from `errorline.parse_report` or made by hand.
        clues: what the report states of the host.
        usable: where the host allows mappings, from `Host.usable`; None if its facts are not at
            hand, or do not settle the aperture.
        holes: where they do not: `Host.usable` with an aperture of 64 bits. Its holes count, its
            top does not.

    Returns:
        The cause, where a fact settles it, else the causes by likelihood with what settles them.

    Complexity: O(holes + rules).
    Synchronization: none required.
    """
    return _Diagnosing(failure, clues, usable, holes).done()


def explain(text: str, usable: Usable | None = None) -> tuple[Diagnosis, ...]:
    """Say why the calls failed that a pasted text tells of.

    Args:
        text: error lines of a VMM or of the kernel's log, whole, or a list of failed maps.
        usable: where the host allows mappings; without it the answer rests on the text alone.

    Raises:
        HostDataError: no line of it tells of a failed call.

    Complexity: O(size + failures x holes).
    Synchronization: none required.
    """
    reports = parse_reports(text)
    return tuple(
        diagnose(item, report.clues, usable) for report in reports for item in report.failures
    )


def clue_host(clues: Clues) -> Host | None:
    """Return the host as far as the report itself states it; None if it states nothing."""
    if clues.width is None and clues.vendor != "amd":
        return None
    units = (IommuUnit("ivhd0", source=Source("the report")),) if clues.vendor == "amd" else ()
    widths = (StatedWidth(clues.width, Source("the report")),) if clues.width else ()
    return Host("the report", arch="x86_64", units=units, widths=widths)


def _clue_usable(clues: Clues) -> Usable | None:
    host = clue_host(clues)
    if host is None:
        return None
    # Without a width the holes alone are judged: nothing is said about the top.
    return host.usable(aperture=None if clues.width else 64)


class _Diagnosing:
    """One diagnosis: collects findings, then sorts them and adds what can be done."""

    def __init__(
        self, failure: Failure, clues: Clues, usable: Usable | None, holes: Usable | None
    ) -> None:
        self.failure, self.clues, self.usable = failure, clues, usable
        self.holes = None if usable else holes
        self.rules = rules_for(failure.op, failure.api, failure.errno)
        self.found: dict[Why, Finding] = {}
        self.ruled_out: set[Why] = set()
        self.notes: list[str] = []
        self.verdict: Verdict | None = None
        self.bits: int | None = clues.width

    def done(self) -> Diagnosis:
        self._numbers()
        self._signs()
        if self.failure.op in ("map", "fault", "setup"):
            self._place()
        self._cpu()
        self._slot()
        self._limits()
        self._attach()
        self._rest()
        findings = sorted(self.found.values(), key=lambda item: _RANK[item.certainty])
        settled = any(item.settles(self.failure) for item in findings)
        if settled:  # what is certain makes what is merely likely idle
            findings = [item for item in findings if item.certainty == CERTAIN]
        whys = [item.why for item in findings]
        worth = [item.why for item in findings if item.certainty != POSSIBLE]
        judged = self.usable or self.holes
        if self.failure.op != "setup":  # where all that could be done is too much
            worth = worth or whys
        return Diagnosis(
            failure=self.failure,
            meaning=meaning(self.failure, self.rules),
            findings=tuple(findings),
            verdict=self.verdict,
            host=judged.host if judged else None,
            settles=() if settled else settling(whys, self.failure, self.usable, self._named()),
            fixes=remedies(worth, self.failure, self.clues, self.verdict, self.bits),
            notes=tuple(self.notes),
        )

    def _named(self) -> Usable | None:
        """The holes, if the host names any."""
        return self.holes if self.holes is not None and self.holes.regions else None

    def _add(self, why: Why, certainty: str, text: str) -> None:
        old = self.found.get(why)
        if old is None or _RANK[certainty] < _RANK[old.certainty]:
            # A fault is the hardware's, whatever the kernel would have refused.
            fact = FACTS[Why.UNMAPPED_DMA if self.failure.op == "fault" else why]
            self.found[why] = Finding(why, certainty, text, fact.since, fact.source)

    def _can(self, why: Why) -> bool:
        """Tell whether the errno of the call can mean it."""
        return any(rule.why is why for rule in self.rules)

    # -- what the numbers alone say ------------------------------------------------------------

    def _numbers(self) -> None:
        call = self.failure
        numbers = [value for value in (call.iova, call.size, call.hva) if value is not None]
        ragged = [value for value in numbers if value % _PAGE]
        if ragged and call.op in ("map", "unmap", "memslot") and self._can(Why.ALIGNMENT):
            shown = ", ".join(f"{value:#x}" for value in ragged)
            self._add(
                Why.ALIGNMENT,
                CERTAIN,
                f"{shown} is not a multiple of 4 KiB, as no IOMMU has smaller pages",
            )
        if numbers and all(value % _LARGE_PAGE == 0 for value in numbers) and len(numbers) > 1:
            self.ruled_out.add(Why.ALIGNMENT)
        for start in (call.iova, call.hva):
            if start is not None and call.size and start + call.size - 1 > ADDRESS_LAST:
                self._add(Why.WRAP, CERTAIN, f"{start:#x} and {call.size:#x} bytes pass 2^64-1")
        if call.iova is not None and call.size and Why.WRAP not in self.found:
            self.ruled_out.add(Why.WRAP)

    # -- what the words alone say --------------------------------------------------------------

    def _signs(self) -> None:
        said = dict(self.clues.signs)
        if self.failure.sign is not None:
            said.setdefault(self.failure.sign, self.failure.text)
        for why, line in said.items():
            fits = why is self.failure.sign or self._can(why) or not self.rules
            if not fits:
                continue
            if why is Why.WIDTH:
                continue  # `_place` compares the width with the address
            if why is Why.MEMLOCK and self.failure.errno not in ("ENOMEM", None):
                continue
            self._add(why, CERTAIN, f"{_SAID.get(why, 'the program says so')}: {line[:160]!r}")

    # -- where it should go --------------------------------------------------------------------

    def _place(self) -> None:
        call, wanted = self.failure, self.failure.place
        if wanted is None:
            return
        judged = self.usable or _clue_usable(self.clues)
        if self.holes is not None and not self.clues.width:
            self._hole_only(self.holes, wanted)
        elif judged is not None:
            self.verdict = self._judge(judged, wanted)
            can = self._can(Why.HOLE) or self._can(Why.WIDTH)
            if not self.verdict.ok and can:
                self._from_verdict(judged, self.verdict)
            if self.usable is not None:
                self.ruled_out |= {Why.HOLE, Why.WIDTH}
                if self.verdict.ok and can:
                    self._usable_place(self.usable, wanted)
                if self.verdict.ok:
                    return
        if call.op == "fault" and self.usable is None:
            if Why.WIDTH in dict(self.clues.signs) and Why.WIDTH not in self.found:
                self._add(Why.WIDTH, CERTAIN, "the fault's reason says so: Access beyond MGAW")
            self.ruled_out |= {Why.HOLE, Why.WIDTH}
            if self.clues.vendor:
                self._likely_holes()
            if not self.found:
                self.notes.append(
                    "with --host the address is compared with the holes and the width of the host"
                )
            return
        if self._can(Why.HOLE) and self.usable is None and self._named() is None:
            self._likely_holes()
        if self._can(Why.WIDTH) and self.usable is None and not self.clues.width:
            self._likely_width()

    def _hole_only(self, holes: Usable, wanted: AddrRange) -> None:
        """Compare with the holes that the host names, where nothing says how wide it is."""
        call = self.failure
        self.verdict = check_holes(holes, wanted, program=call.program, part=call.part)
        if self.verdict is not None:
            self._from_verdict(holes, self.verdict)
        elif self._named() is not None:
            self.ruled_out.add(Why.HOLE)
            self.notes.append(f"none of the holes that host {holes.host} names is in the way")

    def _judge(self, judged: Usable, wanted: AddrRange) -> Verdict:
        """Judge the range; of a call whose size is not known, its first page."""
        call = self.failure
        verdict = check(judged, wanted, program=call.program, part=call.part)
        if call.range is not None or verdict.next_fit is None or verdict.ok:
            return verdict
        base = say.OTHER_BASE.format(start=verdict.next_fit)
        next_usable = say.OTHER_BASE_NEAREST.format(start=verdict.next_fit)
        fixes = (next_usable if text == base else text for text in verdict.fixes)
        return replace(verdict, fixes=tuple(fixes))

    def _usable_place(self, usable: Usable, wanted: AddrRange) -> None:
        """Say what follows from an address that the facts allow."""
        if self.failure.op == "fault":
            self.notes.append(
                f"by the facts of host {usable.host} {wanted.start:#x} may be mapped: nothing was, "
                "or not for this device, or not with that access"
            )
        elif self.failure.range is None:
            room = usable.room_at(wanted.start)
            edge = usable.edge_above(wanted.start + room - 1)
            why = Why.WIDTH if edge.kind is CauseKind.APERTURE else Why.HOLE
            self._add(
                why, LIKELY, f"{show_size(room)} fit at {wanted.start:#x}, more meets {edge.text}"
            )
        else:
            self.notes.append(
                f"by the facts of host {usable.host} all of {wanted} may be mapped: the "
                "cause is another, or the facts are not those of the groups in question"
            )

    def _cpu(self) -> None:
        """KVM's own limit: certain where the CPU's bits are known."""
        call, wanted = self.failure, self.failure.place
        bits = self.clues.cpu_bits
        if bits is None and self.usable is not None:
            bits = self.usable.cpu_bits
        if wanted is None or call.op not in ("map", "memslot"):
            return
        needs = wanted.last.bit_length()
        text = f"{wanted} needs {needs} address bits, the CPU has"
        if bits is None:
            if call.op == "memslot" and self._can(Why.CPU_BITS) and needs > _CLIENT_BITS:
                self.bits = _CLIENT_BITS if needs <= _CORE_BITS else _CORE_BITS
                self._add(
                    Why.CPU_BITS,
                    LIKELY,
                    f"{wanted} needs {needs} address bits; desktops have 39 to 46, others up to 52",
                )
        elif needs > bits and (call.op == "memslot" or self.clues.cpu_bits):
            self.bits = bits if self.bits is None else min(self.bits, bits)
            self._add(Why.CPU_BITS, CERTAIN, f"{text} {bits}")
        elif call.op == "memslot":
            self.ruled_out.add(Why.CPU_BITS)
            self.notes.append(f"the CPU's {bits} address bits are enough for {wanted}")

    def _slot(self) -> None:
        """A slot has a largest size."""
        size = self.failure.size
        if self.failure.op != "memslot" or size is None or not self._can(Why.SLOT_SIZE):
            return
        if size > SLOT_MAX:
            self._add(Why.SLOT_SIZE, CERTAIN, f"{show_size(size)}, the most is {SLOT_MAX:#x} bytes")
        else:
            self.ruled_out.add(Why.SLOT_SIZE)

    def _from_verdict(self, judged: Usable, verdict: Verdict) -> None:
        if verdict.kind == "straddle":
            seam = next(iter(judged.ranges.seams), 0)
            self._add(Why.SEAM, CERTAIN, f"two ranges of the kernel's list touch at {seam:#x}")
        for cause in verdict.causes:
            if self.usable is None and not self.clues.width and cause.kind is CauseKind.APERTURE:
                continue  # the top was not known, only assumed
            if self.usable is None and cause.kind is CauseKind.TOP_PAGE:
                continue
            shown = str(cause.range)
            text = cause.text if shown in cause.text else f"{shown}: {cause.text}"
            if verdict.kind == "granule" and cause is verdict.causes[0]:
                if self._can(Why.ALIGNMENT):
                    self._add(Why.ALIGNMENT, CERTAIN, text)
            elif cause.kind is CauseKind.APERTURE:
                self.bits = (cause.range.start or 1).bit_length() - 1 or None
                self._add(Why.WIDTH, CERTAIN, f"needs {verdict.bits_needed} address bits; {text}")
            elif Why.HOLE not in self.found or self.found[Why.HOLE].certainty != CERTAIN:
                self._add(Why.HOLE, CERTAIN, text)

    def _likely_holes(self) -> None:
        wanted, vendor = self.failure.place, self.clues.vendor
        assert wanted is not None
        for span, of, vendors, sure in _KNOWN_HOLES:
            if wanted.overlaps(span) and (vendor is None or vendor in vendors):
                below = span.start - wanted.start
                fits = f"; {show_size(below)} fit below it" if below > 0 else ""
                self._add(Why.HOLE, LIKELY if vendor else sure, f"it meets {span}, {of}{fits}")
        if wanted.start < _4G and self.failure.op != "fault":
            self._add(
                Why.HOLE,
                POSSIBLE,
                "below 4 GiB firmware keeps regions for some devices (RMRR, IVMD)",
            )

    def _likely_width(self) -> None:
        wanted = self.failure.place
        assert wanted is not None
        needs = wanted.last.bit_length()
        # Desktops and laptops of Intel have 39; no AMD or Arm server has so few.
        least = _SERVER_BITS if self.clues.vendor in ("amd", "arm") else _CLIENT_BITS
        if needs <= least:
            if self.failure.errno == "EFAULT":
                self.ruled_out.add(Why.WIDTH)  # the list lets by what is too wide, not this
            elif wanted.last >= _4G:
                self._add(
                    Why.WIDTH,
                    POSSIBLE,
                    f"it needs {needs} bits: wide enough for x86, but some SoC IOMMUs have 32, and "
                    "s390 begins and ends where its DMA window does",
                )
            return
        self.bits = _CLIENT_BITS if needs <= _SERVER_BITS else _SERVER_BITS
        of = "Intel desktops and laptops and QEMU's own intel-iommu" if self.bits == 39 else "most"
        self._add(
            Why.WIDTH,
            LIKELY,
            f"it needs {needs} address bits, and the IOMMUs of {of} have {self.bits}"
            + (" (the report names such a CPU)" if self.clues.client and self.bits == 39 else ""),
        )

    # -- limits ----------------------------------------------------------------------------------

    def _limits(self) -> None:
        limits = self.usable.limits if self.usable else None
        memlock = self.clues.memlock
        if memlock is None and limits is not None:
            memlock = limits.memlock
        size = self.failure.size
        if self._can(Why.MEMLOCK) and self.failure.errno == "ENOMEM":
            if memlock is not None and memlock >= 0:
                over = size is not None and size > memlock
                known = over or self.clues.memlock is not None
                self._add(
                    Why.MEMLOCK,
                    CERTAIN if known else LIKELY,
                    f"RLIMIT_MEMLOCK is {show_size(memlock)}"
                    + (f", this map alone pins {show_size(size)}" if over and size else ""),
                )
            elif memlock == -1:
                self.notes.append(
                    "the host states RLIMIT_MEMLOCK as unlimited: the VMM may run under another "
                    "limit (systemd, container), or memory itself ran out"
                )
            else:
                self._add(
                    Why.MEMLOCK,
                    LIKELY,
                    "pinned RAM passed RLIMIT_MEMLOCK; memory that ran out has the same errno",
                )
        if self._can(Why.ENTRIES) and self.failure.errno == "ENOSPC":
            limit = self.clues.entries or (limits.dma_entries if limits else None)
            shown = f"{limit}" if limit else "65535 unless somebody changed it"
            sure = CERTAIN if self.failure.api == "type1" else LIKELY
            self._add(Why.ENTRIES, sure, f"the limit on mappings of one container is {shown}")

    # -- attach ----------------------------------------------------------------------------------

    def _attach(self) -> None:
        if self.failure.op not in ("attach", "set-iommu", "bind") or not self._can(Why.DIRECT):
            return
        if self.usable is None:
            return
        blocked = self.usable.unassignable
        if blocked and self.failure.errno in ("EINVAL", "EPERM", None):
            self._add(Why.DIRECT, CERTAIN, blocked[0].text)
        elif not blocked:
            self.ruled_out.add(Why.DIRECT)
            groups = ", ".join(self.usable.groups[:8]) or "of the host"
            self.notes.append(f"group {groups}: no direct region, so firmware does not forbid it")

    # -- the rest --------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Add what else the errno can mean, in the kernel's order, as possible."""
        if self.failure.op == "setup" and self.failure.errno is None:
            return  # anything can be meant
        for rule in self.rules:
            if rule.why in self.ruled_out or rule.why in self.found:
                continue
            if self._excluded(rule):
                continue
            self._add(rule.why, self._prior(rule), rule.text)
        if len(self.found) == 1 and (self.failure.errno or self.failure.op == "fault"):
            (only,) = self.found.values()
            if only.certainty == LIKELY and only.why not in _NEEDS_FACTS:
                # The errno has one meaning in this call: that settles it.
                self.found[only.why] = replace(only, certainty=CERTAIN)

    def _excluded(self, rule: Rule) -> bool:
        call = self.failure
        if rule.why in (Why.HOLE, Why.WIDTH) and call.place is not None:
            # The numbers were looked at: what is left is a region that only the host can name.
            return rule.why is Why.WIDTH and call.range is not None and call.range.last < _4G
        if rule.why is Why.REQUESTER:
            return True  # the fault's own reason would say so
        return rule.why is Why.BAR and call.part == "ram"

    def _prior(self, rule: Rule) -> str:
        """Give the cause that most reports of this errno turn out to have."""
        if rule.why is Why.BAR and self.failure.part == "bar":
            return CERTAIN
        if rule.why is Why.WIDTH and self.failure.place is not None:
            return POSSIBLE  # the address was looked at
        if (self.failure.errno, self.failure.part, rule.why) == ("EFAULT", "ram", Why.HVA):
            return LIKELY
        common = _COMMON.get((self.failure.op, self.failure.errno or ""))
        return LIKELY if common is rule.why or len(self.rules) == 1 else POSSIBLE


_KNOWN_HOLES = (
    (HYPERTRANSPORT, "which AMD keeps for HyperTransport, if the host has it", ("amd",), LIKELY),
    (MSI_X86, "the interrupt window, if the host is x86", ("amd", "intel"), LIKELY),
    (
        MSI_ARM_SOFTWARE,
        "where Arm kernels map the MSI doorbells, if the host is Arm",
        ("arm",),
        POSSIBLE,
    ),
)
_NEEDS_FACTS = (Why.HOLE, Why.WIDTH, Why.MEMLOCK, Why.DIRECT, Why.CPU_BITS)
_COMMON = {
    ("map", "EINVAL"): Why.WIDTH,
    ("map", "EFAULT"): Why.BAR,
    ("attach", "EINVAL"): Why.DIRECT,
    ("set-iommu", "EINVAL"): Why.DIRECT,
    ("bind", "EINVAL"): Why.DIRECT,
    ("attach", "EPERM"): Why.ISOLATION,
    ("set-iommu", "EPERM"): Why.ISOLATION,
    ("fault", ""): Why.UNMAPPED_DMA,
    ("unmap", "EINVAL"): Why.CUT,
    ("unmap", "ENOENT"): Why.NOT_MAPPED,
}
_SAID = {
    Why.DIRECT: "the kernel's log says that firmware demands a 1:1 mapping",
    Why.MEMLOCK: "the report names the limit of locked memory",
    Why.ISOLATION: "the kernel's log says that interrupts are not isolated",
    Why.NOT_VIABLE: "the program says that the group is not viable",
    Why.ENTRIES: "the program counts its mappings against the limit",
    Why.HOLE: "the program names the region",
    Why.ORDER: "the program says so",
    Why.REQUESTER: "the fault's reason says so",
}
