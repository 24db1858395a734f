# SPDX-License-Identifier: Apache-2.0
"""What `show`, `plan`, `diff` and `fleet` answer first, and how a refusal reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.errors import EvidenceError, PlanError
from vmm_iova.ranges import GIB
from vmm_iova.report.answer import Answer, Tone
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.fleet import Fleet
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.difference import Difference
    from vmm_iova.planning.layout import Layout
    from vmm_iova.planning.start import Start


def layout_answer(layout: Layout, cost: Budget, start: Start | None = None) -> Answer:
    """Say whether the guest starts, or fits where that is not known, and what to do.

    Args:
        layout: where it is.
        cost: what mapping it takes.
        start: what it needs to start; None where only its addresses are asked for.
    """
    blocked = layout.usable.unassignable
    guest = _placed(layout)
    bound = any(item.bound for item in layout.usable.evidence)
    certainty = "likely" if bound else "certain"
    if layout.changes:
        return Answer(
            "CHANGED",
            f"the saved layout cannot stay; planned anew: {guest}",
            "unsure",
            reasons=tuple(layout.changes),
            certainty=certainty,
        )
    settings = (*layout.settings, *cost.settings, *layout.otherwise)
    stopped = start is not None and layout.starts and start.verdict == "does not start"
    if blocked and not stopped:
        devices = ", ".join(dict.fromkeys(entry.group.title for entry in blocked))
        return Answer(
            "FITS, BUT",
            f"a requested device cannot be assigned on current kernels ({devices}); {guest}",
            "unsure",
            actions=settings,
            reasons=(*(entry.text for entry in blocked[:1]), *layout.reasons),
            certainty=certainty,
        )
    verdict = f"{guest}; {layout.address_bits} address bits"
    if start is not None and layout.starts and start.verdict != "not known":
        return _started(start, verdict, layout, certainty)
    if not layout.starts:
        arch = "arm" if layout.machine.arch == "aarch64" else "x86"
        another = f"a VMM that cuts RAM around holes: --machine own-{arch} plans for one"
        return Answer(
            "NOT AS IT IS",
            f"{layout.machine.title} cannot have RAM around the holes of this host; {verdict}",
            "unsure",
            actions=(another, *settings),
            reasons=layout.reasons,
            certainty=certainty,
        )
    doubts = () if start is None else tuple(_doubts(start))
    if layout.reasons:  # where RAM goes is what they are about, or stands in the map
        ram = f"{show_size(layout.ram_bytes)} of RAM in {layout.machine.name}"
        return Answer(
            "FITS, BUT",
            f"{layout.reasons[0]}; {ram}, {layout.address_bits} address bits",
            "unsure",
            actions=(*layout.otherwise, *layout.settings, *cost.settings),
            reasons=layout.reasons[1:],
            doubts=doubts,
            certainty=certainty,
        )
    return Answer(
        "FITS",
        verdict,
        "good",
        actions=settings,
        doubts=doubts,
        certainty=certainty,
    )


def _placed(layout: Layout) -> str:
    """How much RAM is where, in how many pieces."""
    pieces = len(layout.ram)
    count = "1 piece" if pieces == 1 else f"{pieces} pieces"
    base = next((item.place.start for item in layout.ram if item.place.start >= 4 * GIB), 0)
    how = {
        "as is": "where its VMM puts it",
        "split": "cut around holes",
        "move": f"moved to {base:#x} by its VMM",
    }
    done = f"{how.get(layout.policy, layout.policy)}, in {count}"
    return f"{show_size(layout.ram_bytes)} of RAM in {layout.machine.name}, {done}"


def _started(start: Start, guest: str, layout: Layout, certainty: str) -> Answer:
    """Say whether a guest that has its addresses starts."""
    amiss = start.rows_that_are("not ok")
    actions = (*(text for row in amiss for text in row.do), *layout.otherwise, *layout.settings)
    if start.verdict == "starts and works" and layout.reasons:
        verdict, reasons = f"{layout.reasons[0]}; {guest}", layout.reasons[1:]
        return Answer("STARTS, BUT", verdict, "unsure", actions, reasons, certainty=certainty)
    if start.verdict == "starts and works":
        return Answer("STARTS AND WORKS", guest, "good", actions=actions, certainty=certainty)
    first, reasons = amiss[0].text, (*(row.text for row in amiss[1:]), *layout.reasons)
    if start.verdict == "starts, but":
        verdict = f"{first}; {guest}"
        return Answer("STARTS, BUT", verdict, "unsure", actions, reasons, certainty=certainty)
    verdict = f"{first}; its addresses would do: {guest}"
    return Answer("DOES NOT START", verdict, "bad", actions, reasons, certainty=certainty)


def _doubts(start: Start) -> Iterator[str]:
    """What is not known of the host, and what settles it; one line where all of it is not."""
    unknown = start.rows_that_are("not known")
    names = [row.what for row in unknown]
    if {"memory", "interrupts"} <= set(names):  # no source says what the host has at the moment
        yield str(say.SETTLE_START)
        return
    yield f"whether it starts is not known: {', '.join(names)}"
    yield from dict.fromkeys(text for row in unknown for text in row.do)


def host_answer(
    host: Host, usable: Usable | None, error: Exception | None, holes: Usable | None = None
) -> Answer:
    """Say how much may be mapped on a host, or what is missing to know it."""
    if holes is not None and holes.unassignable:  # firmware forbids a device, however wide it is
        entry = holes.unassignable[0]
        unknown = (getattr(error, "message", ""),) if error else ()
        settles = error.settles if isinstance(error, EvidenceError) else ()
        return Answer("NOT ASSIGNABLE", entry.text, "bad", tuple(settles), unknown)
    if usable is None:
        settles = error.settles if isinstance(error, EvidenceError) else ()
        hint = getattr(error, "hint", None)
        word = "UNKNOWN" if isinstance(error, EvidenceError) else "NOT USABLE"
        verdict = getattr(error, "message", None) or "nothing says what may be mapped"
        actions = tuple(settles) or ((hint,) if hint else ())
        return Answer(word, verdict, "unsure", actions=actions, certainty="certain")
    if not usable.ranges:
        return Answer("NOTHING", f"on {host.name} nothing may be mapped", "bad")
    top, count = usable.ranges[-1].last, len(usable.ranges)
    ranges = "1 range" if count == 1 else f"{count} ranges"
    size = show_size(sum(item.size for item in usable.ranges))
    verdict = f"{size} of IOVAs on {host.name}, in {ranges} up to {top:#x}"
    bound = any(item.bound for item in usable.evidence)
    certainty = "likely" if bound else "certain"
    if usable.unassignable:
        reasons = tuple(entry.text for entry in usable.unassignable)
        return Answer("USABLE, BUT", verdict, "unsure", reasons=reasons, certainty=certainty)
    return Answer("USABLE", verdict, "good", certainty=certainty)


def capture_answer(host: Host, output: str | None) -> Answer:
    """Say what a snapshot holds, and what it lacks for a plan."""
    listed = bool(host.kernel_ranges)
    counts = (
        ("IOMMU group", len(host.groups)),
        ("device", len(host.devices)),
        ("remapping unit", len(host.units)),
        ("region", len(host.log_regions)),
    )
    held = [f"{count} {what}{'s' * (count != 1)}" for what, count in counts if count]
    held += ["the kernel's range list"] if listed else []
    together = " and ".join(filter(None, (", ".join(held[:-1]), held[-1])))
    where = f"{output} has " if output else ""
    file = output or "FILE"
    actions = (say.PLAN_WITH.format(file=file),)
    doubts = () if listed else (say.SETTLE_LIST,)
    reasons = tuple(note.text for note in host.notes if note.warning)
    verdict = f"{where}{together} of {host.name}"
    certainty = "certain" if listed else "likely"
    return Answer("CAPTURED", verdict, "good", actions, reasons, doubts, (host.origin,), certainty)


def difference_answer(difference: Difference, left: str, right: str) -> Answer:
    """Say whether two hosts or layouts differ for a guest."""
    if difference.same:
        return Answer("SAME", f"{left} and {right}: no difference for a guest", "good")
    guest = tuple(difference.guest)
    changes = "nothing changes for a guest" if not guest else f"a guest sees {len(guest)} changes"
    if len(guest) == 1:
        changes = "a guest sees 1 change"
    return Answer("DIFFERENT", f"{left} and {right}: {changes}", "unsure", reasons=guest)


def fleet_answer(fleet: Fleet, verdict: str) -> Answer:
    """Say how many hosts can have the guest, and who stands in the way first."""
    able = fleet.counts.get("fits", 0)
    word = "ALL FIT" if able == fleet.hosts else "SOME FIT" if able else "NONE FITS"
    tone: Tone = "good" if able == fleet.hosts else "unsure" if able else "bad"
    fixes = [text for item in fleet.blockers for text in item.fixes]
    return Answer(word, verdict, tone, actions=tuple(fixes[:1]))


def refusal_answer(error: PlanError | EvidenceError) -> Answer:
    """Say that a plan is refused, or cannot be judged, what would do, and what is in the way."""
    reasons = (error.detail,) if error.detail else ()
    if isinstance(error, EvidenceError):
        actions = tuple(error.settles)
        return Answer("UNKNOWN", error.message, "unsure", actions=actions, reasons=reasons)
    actions = tuple(error.fixes) or ((error.hint,) if error.hint else ())
    return Answer("REFUSED", error.message, "bad", actions=actions, reasons=reasons)
