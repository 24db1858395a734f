# SPDX-License-Identifier: Apache-2.0
"""Refusals of a plan: what is in the way, every width, and fixes that were tried."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from vmm_iova.diagnosis.check import Reason, does_not_fit, refusal
from vmm_iova.errors import PlanError
from vmm_iova.host.registers import width_line
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.bars import fit
from vmm_iova.planning.request import AddressLimit
from vmm_iova.planning.site import Ground, OnHole, beyond
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.request import WantedBar

NO_TOP = "reaches up to the top of the guest's addresses, which nothing states (--phys-bits N)"


_MOST_BITS = 52  # no x86 or arm64 CPU has more physical address bits
_LEAST_BAR = 1 << 20  # smallest size that a resizable BAR can have (PCIe specification, 7.8.6)


class Refusals(Ground):
    """The errors of a plan."""

    def _reasons(self, item: str, span: AddrRange) -> list[Reason]:
        fits = min(self.usable.room_at(span.start), span.size)
        return [Reason(item, span, cause, fits) for cause in self.usable.causes_of(span)]

    def _refusal(self, reasons: list[Reason], why: str) -> PlanError:
        others = self._alternatives()
        made = refusal(self.host, reasons, why, others, self._most(reasons))
        if not others and not self.probing and self.on_hole != "split":
            fixes = [*self._less(), *made.fixes]
            made = PlanError(made.message, reasons=made.reasons, fixes=fixes, detail=made.detail)
        return self._with_widths(made, reasons)

    def _less(self) -> Iterator[str]:
        """What fits with `split`, tried."""
        pieces, over = self._flow(self._room, spilling=True)
        fits = (self.ram - over) >> 20 << 20
        if not pieces or not fits or not self.machine.identity:
            return
        if self._works(fits, "split"):
            yield f"with --on-hole split, --ram {fits >> 20}MiB fits"

    def _too_little(self, over: int) -> PlanError:
        """RAM does not fit: say what ends the space, and which alignment would do."""
        spans = RangeSet(window.range for window in (*self.windows, *self.spill))
        causes = [cause for span in spans for cause in self.usable.causes_of(span)]
        made = does_not_fit(self.usable, self.machine.name, self.ram, over, causes)
        if not self.probing and made.fixes and made.fixes[0].startswith("--ram "):
            fits = self._most_that_works((self.ram - over) >> 20)
            fixes = [*([f"--ram {fits}MiB fits"] if fits else []), *made.fixes[1:]]
            if fits and f"--ram {format_size(fits << 20).replace(' ', '')} fits" == made.fixes[0]:
                fixes[0] = made.fixes[0]
            made = PlanError(made.message, reasons=made.reasons, fixes=fixes, detail=made.detail)
        made = self._with_widths(made, [r for r in made.reasons if isinstance(r, Reason)])
        if made.fixes or self.probing:
            return made
        return PlanError(
            made.message, reasons=made.reasons, fixes=self._next(over), detail=made.detail
        )

    def _next(self, over: int) -> list[str]:
        """Where less RAM alone is not enough: what is in the way then."""
        fits = (self.ram - over) >> 20
        if not fits:
            return ["another machine, or a device behind another IOMMU"]
        node = replace(self.wanted.nodes[0], name=None, size=fits << 20)
        try:
            self.again(replace(self.wanted, ram=fits << 20, nodes=(node,)), self.on_hole)
        except PlanError as error:
            return [f"less RAM is not enough: with --ram {fits}MiB, {error.message}"]
        return ["less RAM"]

    def _most_that_works(self, most: int) -> int:
        """The largest RAM up to `most` MiB that can be planned with all the rest, tried; else 0."""
        if self._works(most << 20, self.on_hole):
            return most
        works, fails = 0, most
        while fails - works > max(1, min(fails >> 8, 1 << 10)):  # to a part in 256, or a GiB
            middle = (works + fails) // 2
            if self._works(middle << 20, self.on_hole):
                works = middle
            else:
                fails = middle
        for whole in ((works >> 10) + 1 << 10, works >> 10 << 10):  # GiB read better
            if 0 < whole < most and self._works(whole << 20, self.on_hole):
                return whole
        return works

    def _works(self, ram: int, policy: OnHole) -> bool:
        """Tell whether all can be planned with so much RAM in one node, by doing it."""
        pages = max(node.page_size or 1 for node in self.wanted.nodes)
        if not ram or ram % max(pages, self.host.granule):
            return False
        node = replace(self.wanted.nodes[0], name=None, size=ram)
        try:
            self.again(replace(self.wanted, ram=ram, nodes=(node,)), policy)
        except PlanError:
            return False
        return True

    def _too_much(self, most: int) -> PlanError:
        name = self.machine.title
        cause = Cause(
            CauseKind.GUEST,
            AddrRange(most, ADDRESS_LAST),
            f"{name} takes {show_size(most)} at most",
        )
        reason = Reason(
            "ram", AddrRange.from_size(self.machine.ram[0].range.start, self.ram), cause, most
        )
        fits = 0 if self.probing else self._most_that_works(most >> 20) << 20
        fixes = [f"--ram {format_size(fits).replace(' ', '')} is the most"] if fits else []
        return PlanError(
            f"RAM of {show_size(self.ram)} is more than {name} takes, {show_size(most)}",
            reasons=[reason],
            fixes=[*fixes, "another machine"],
        )

    def _too_wide(self, span: AddrRange) -> PlanError:
        limit = self.wanted.limits[0]
        cause = beyond(limit.bits, limit.text)
        fits = (1 << limit.bits) - span.start
        made = PlanError(
            f"RAM at {span} ends beyond {limit.text}", reasons=[Reason("ram", span, cause, fits)]
        )
        return self._with_widths(made, [Reason("ram", span, cause, fits)])

    def _no_bar(self, bar: WantedBar, windows: Sequence[AddrRange], kind: str) -> PlanError:
        """A BAR has no place: say what is in its way where it would go first."""
        need = "that peers must reach " if bar.required else ""
        what = f"BAR {bar.name} ({show_size(bar.size)}, {need}at a multiple of {bar.align:#x})"
        roomy = [w for w in windows if fit([w], bar.size, bar.align, False)]
        reasons = self._reasons(what, roomy[0]) if roomy else []
        if not reasons:
            best = max(windows, key=lambda w: w.size, default=None)
            where = f"{best} ({show_size(best.size)})" if best else "no room above RAM"
            if roomy:
                where += ", which the other BARs take"
            cause = Cause(CauseKind.GUEST, best or AddrRange(0, 0), f"{kind} PCI window: {where}")
            if not best and self.wanted.limits:
                cause = beyond(self.wanted.limits[0].bits, self.wanted.limits[0].text)
            reasons = [Reason(what, best or AddrRange(0, 0), cause, best.size if best else 0)]
            message = f"{what} has no place in the {kind} PCI window: {cause.text}"
        else:
            causes = "; ".join(dict.fromkeys(str(reason.cause) for reason in reasons[:3]))
            message = f"{what} fits nowhere above RAM where devices reach it: {causes}"
        fixes = [f"--on-hole {name} has room" for name in self._alternatives()]
        if self.wanted.pci64_stated and bar.bits == 64:
            fixes.insert(0, "without --pci64 the window grows for the BARs")
        if roomy and any(reason.cause.kind is CauseKind.APERTURE for reason in reasons):
            start = -(-roomy[0].start // bar.align) * bar.align
            bits = (start + bar.size - 1).bit_length()
            fixes.append(f"a device behind an IOMMU of {bits} address bits")
        if bar.bits == 64 and self._works_with(bar, replace(bar, bits=32)):
            fixes.append(f"--bar {bar.name}={format_size(bar.size).replace(' ', '')},32 has room")
        if bar.required and self._works_with(bar, replace(bar, required=False)):
            fixes.append("mark it optional: only peer-to-peer between devices is lost")
        fixes += self._less_for(bar)
        return self._with_widths(PlanError(message, reasons=reasons, fixes=fixes), reasons)

    def _less_for(self, bar: WantedBar) -> Iterator[str]:
        """How much less RAM, or how small a BAR, leaves all a place, tried."""
        if self.probing:
            return
        fits = self._most_that_works(self.ram >> 20)
        if fits:
            yield f"--ram {format_size(fits << 20).replace(' ', '')} leaves room"
        size = bar.size
        while size > _LEAST_BAR:
            size = 1 << (size - 1).bit_length() - 1
            if self._works_with(bar, replace(bar, size=size, align=size)):
                yield f"a BAR of {show_size(size)} has room (resizable BAR on the device)"
                return
        yield "another machine, or fewer BARs"

    def _works_with(self, bar: WantedBar, instead: WantedBar) -> bool:
        """Tell whether all has a place with another BAR instead of this one, by doing it."""
        bars = tuple(instead if other == bar else other for other in self.wanted.bars)
        try:
            if not self.probing:
                self.again(replace(self.wanted, bars=bars), self.on_hole)
        except PlanError:
            return False
        return True

    def _no_top(self, bar: WantedBar) -> PlanError:
        edge = self.usable.edge_above(ADDRESS_LAST)
        option = self.machine.option("phys_bits", bits="N")
        how = f" ({option})" if option else ""
        return PlanError(
            f"BAR {bar.name} has no place: the 64-bit PCI window {NO_TOP}",
            reasons=[Reason(f"BAR {bar.name}", edge.range, edge, 0)],
            fixes=[f"--phys-bits N{how}"],
        )

    def _no_window(self, size: int, top: int) -> PlanError:
        edge = self.usable.edge_above(ADDRESS_LAST)
        return PlanError(
            f"the 64-bit PCI window of {show_size(size)} has no room above RAM, which ends at "
            f"{top:#x}",
            reasons=[Reason("the 64-bit PCI window", edge.range, edge, 0)],
            fixes=["a smaller --pci64, or --pci64 0 for none"],
        )

    def _no_room(self, room: WantedBar, cursor: int, free: Sequence[AddrRange]) -> PlanError:
        last = self.wanted.address_last
        span = AddrRange(min(cursor, last), last)
        causes = self.usable.causes_of(span)
        edge = causes[0] if causes else self.usable.edge_above(last)
        reason = Reason(f"room {room.name}", span, edge, 0)
        what = f"room {room.name} of {show_size(room.size)}"
        message = f"{what} does not fit above {cursor:#x}: {edge.text}"
        aligned = (span.align_inward(room.align) for span in free)
        most = max((span.size for span in aligned if span is not None), default=0)
        size = format_size(most).replace(" ", "")
        fixes = [f"--room {room.name}={size} fits"] if most else []
        fits = 0 if self.probing else self._most_that_works(self.ram >> 20)
        if fits:
            fixes.append(f"--ram {format_size(fits << 20).replace(' ', '')} leaves room")
        return self._with_widths(PlanError(message, reasons=[reason], fixes=fixes), [reason])

    def _with_widths(self, error: PlanError, reasons: Sequence[Reason]) -> PlanError:
        """Add every width, and what to do, to a refusal that a width is the cause of."""
        by_width = [
            r for r in reasons if r.cause.kind in (CauseKind.APERTURE, CauseKind.GUEST_WIDTH)
        ]
        fixes, details = list(error.fixes), [error.detail] if error.detail else []
        if by_width and not self.probing:
            widths = self._widths()
            if widths:
                details.append(f"widths: {width_line(widths)}")
            if any(r.cause.kind is CauseKind.GUEST_WIDTH for r in by_width):
                fixes[:0] = self._wider()
        smaller = None if self.probing else self._smaller_align()
        if smaller is not None:
            fixes.insert(0, f"--align {format_size(smaller).replace(' ', '')} has room")
        return PlanError(
            error.message, reasons=error.reasons, fixes=fixes, detail="; ".join(details) or None
        )

    def _wider(self) -> list[str]:
        """How to give the guest more address bits, if the host lets more of them help; tried."""
        limit = self.wanted.limits[0]
        needed = next(filter(self._works_with_bits, range(limit.bits + 1, _MOST_BITS + 1)), None)
        if needed is None:
            return []
        if self.host.cpu_bits is not None and needed > self.host.cpu_bits:
            return [f"a host whose CPU has {needed} physical address bits"]
        if self.machine.phys_bits is not None and needed > self.machine.phys_bits:
            return [f"another machine: {self.machine.title} has {limit.bits} address bits at most"]
        option = self.machine.option("phys_bits", bits=needed)
        return [f"--phys-bits {needed}" + (f" ({option})" if option else "")]

    def _works_with_bits(self, bits: int) -> bool:
        """Tell whether all has a place with so many guest address bits, by doing it."""
        limits = (AddressLimit(bits, ""),)
        try:
            self.again(replace(self.wanted, limits=limits), self.on_hole)
        except PlanError:
            return False
        return True

    def _smaller_align(self) -> int | None:
        """The largest smaller alignment with which all fits, tried."""
        least = max(node.page_size or 1 for node in self.wanted.nodes)
        asked = max(node.align for node in self.wanted.nodes)
        for align in (1 << 30, 1 << 21, self.host.granule):
            if max(least, self.host.granule) <= align < asked:
                try:
                    self.again(self.wanted.aligned(align), self.on_hole)
                except PlanError:
                    continue
                return align
        return None

    def _alternatives(self) -> dict[str, list[AddrRange]]:
        """Policies that would work, tried: nothing is proposed on a guess."""
        found: dict[str, list[AddrRange]] = {}
        if self.probing or not self.machine.identity:
            return found
        for policy in get_args(OnHole):
            if policy in (self.on_hole, "refuse"):
                continue
            try:
                found[policy] = [item.place for item in self.again(self.wanted, policy).ram]
            except PlanError:
                continue
        return found

    def _most(self, reasons: list[Reason]) -> int:
        """RAM that stays below a single obstacle in the topmost window; else 0."""
        if self.on_hole != "refuse" or len(reasons) != 1 or not self.machine.identity:
            return 0
        pieces, _ = self._flow(self._own_room)
        spans = [piece.span for piece in pieces if piece.window is pieces[-1].window]
        if reasons[0].range != AddrRange(spans[0].start, spans[-1].last):
            return 0
        most = self.ram - reasons[0].range.size + reasons[0].fits if reasons[0].fits else 0
        whole = most >> 20 << 20 or most  # as the fix says it
        return most if not self.probing and self._works(whole, self.on_hole) else 0
