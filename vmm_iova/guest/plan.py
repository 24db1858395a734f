# SPDX-License-Identifier: Apache-2.0
"""The planner: where the RAM, doorbells and windows of a guest go on a host, or why they cannot.

Three policies for RAM whose place in the machine model is not free (`on_hole`):

* `refuse`: the machine's own place or nothing;
* `split`: RAM keeps its order and flows around the holes;
* `move`: what may move goes elsewhere as a whole, as QEMU moves all RAM above 4 GiB to 1 TiB when
  it, or the 64-bit PCI window behind it, would meet AMD's hole (hw/i386/pc.c, pc_memory_init).

The result depends on the arguments alone: same input, same layout, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vmm_iova.errors import MisalignedError, NoSpaceError, PlanError, RequestError
from vmm_iova.guest.explain import HOLES, Reason, does_not_fit, refusal
from vmm_iova.guest.layout import GuestReserved, Item, ItemKind, Layout
from vmm_iova.guest.machine import Machine, Pci64Window, RamWindow, load_machine
from vmm_iova.host.evidence import MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.model import Note, RegionKind
from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet, check_granule
from vmm_iova.units import format_size, parse_size, show_size

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from vmm_iova.allocator import IovaAllocator

OnHole = Literal["split", "move", "refuse"]
"""Policies for RAM whose own place is not free."""

_GIB = 1 << 30
_MSI_WINDOWS = (MSI_X86, MSI_ARM_SOFTWARE)


@dataclass(frozen=True, slots=True)
class Guest:
    """What a VMM wants.

    Attributes:
        machine: model by name, path of a TOML file, or a `Machine`.
        ram: size of all RAM: text (`"1.5TiB"`) or bytes; a multiple of the host's granule.
        pci64: size of the 64-bit PCI window; None for the machine's default, 0 for none.
        align: where a piece of RAM may begin and, at a hole, end: text or bytes, a power of two;
            default the granule. Give `"2MiB"` or `"1GiB"` for RAM backed by such pages.
    """

    machine: str | os.PathLike[str] | Machine
    ram: str | int
    pci64: str | int | None = None
    align: str | int | None = None


def plan(guest: Guest, usable: Usable, on_hole: OnHole = "split") -> Layout:
    """Place a guest on a host.

    Args:
        guest: what is wanted.
        usable: where the host allows it, from `Host.usable`.
        on_hole: what to do when the machine's own place for RAM is not free.

    Returns:
        The layout: items ascending by address, with the host fact behind every cut.

    Raises:
        PlanError: it cannot be done; `reasons` has every obstacle and `fixes` what would help.
        RequestError: a size, alignment or policy makes no sense.
        MisalignedError: RAM is not a multiple of the granule.
        UnknownNameError: no such machine model.

    Complexity: O(holes + windows), well below 5 ms for a host (bench/test_plan.py).
    Synchronization: none required.
    """
    if not isinstance(usable, Usable):
        raise RequestError(
            f"a plan needs what Host.usable returns, not {type(usable).__name__}",
            field="usable",
            value=usable,
        )
    if on_hole not in get_args(OnHole):
        raise RequestError(
            f"on_hole {on_hole!r} is none of split, move, refuse", field="on_hole", value=on_hole
        )
    machine = guest.machine if isinstance(guest.machine, Machine) else load_machine(guest.machine)
    ram = parse_size(guest.ram, "ram")
    align = usable.granule
    if guest.align is not None:
        align = max(check_granule(parse_size(guest.align, "align"), "align"), align)
    if ram % usable.granule:
        raise MisalignedError(
            f"ram {ram:#x} is not a multiple of the granule {usable.granule:#x} "
            f"({usable.granule_text})",
            field="ram",
            value=ram,
            align=usable.granule,
            hint=f"{ram // usable.granule * usable.granule:#x} or "
            f"{(ram // usable.granule + 1) * usable.granule:#x} are",
        )
    return _Planner(
        machine, ram, align, _pci64(guest, machine, usable.granule), usable, on_hole
    ).plan()


def _pci64(guest: Guest, machine: Machine, granule: int) -> Pci64Window | None:
    default = machine.pci64
    if guest.pci64 is None:
        return default
    if guest.pci64 in (0, "0"):
        return None
    size = parse_size(guest.pci64, "pci64")
    if size % granule:
        raise MisalignedError(
            f"pci64 {size:#x} is not a multiple of the granule {granule:#x}",
            field="pci64",
            value=size,
            align=granule,
        )
    if default is None:
        raise RequestError(
            f"machine {machine.name} has no 64-bit PCI window", field="pci64", value=guest.pci64
        )
    return Pci64Window(size, default.align, default.floor)


class _Planner:
    """One planning: machine, sizes and usable ranges in, layout or refusal out."""

    def __init__(
        self,
        machine: Machine,
        ram: int,
        align: int,
        pci64: Pci64Window | None,
        usable: Usable,
        on_hole: OnHole,
        *,
        probing: bool = False,
    ) -> None:
        self.probing = probing
        self.machine = machine
        self.ram = ram
        self.align = align
        self.pci64 = pci64
        self.usable = usable
        self.on_hole = on_hole
        self.free = usable.ranges.as_set()
        self.windows = _windows(machine, ram)
        # A guest that is whole below the gap may still spill over it, when holes take its place.
        self.spill = machine.ram[1:] if len(self.windows) < len(machine.ram) else ()
        self.notes: list[Note] = []
        self.policy = "as is"

    def plan(self) -> Layout:
        pieces = self.place_ram()
        top = max(item.gpa.last for item in pieces if item.gpa is not None)
        items = [
            *pieces,
            *self._above(top),
            *self._window(top),
            *self._fixed(),
            *self._msi(),
        ]
        items.sort(key=lambda item: (item.place, item.kind.value, item.name))
        first = [Note(entry.text) for entry in self.usable.unassignable]
        return Layout(
            machine=self.machine,
            ram_bytes=self.ram,
            on_hole=self.on_hole,
            policy=self.policy,
            items=tuple(items),
            guest_reserved=tuple(self._reserved(items)),
            usable=self.usable,
            notes=(
                *first,
                *self._mismatch(),
                *self._relaxable(pieces),
                *self.notes,
                *self.usable.notes,
            ),
        )

    def place_ram(self) -> list[Item]:
        """Place RAM alone; raise PlanError where it cannot be."""
        if not self.machine.identity:
            return self._translated()
        return self._split() if self.on_hole == "split" else self._natural()

    # -- RAM: IOVA equals guest address ----------------------------------------------------------

    def _split(self) -> list[Item]:
        """Fill the windows in order, around the holes."""
        pieces: list[Item] = []
        left = self.ram
        for window in (*self.windows, *self.spill):
            if left == 0:
                break
            self._check_required(window)
            room = (self.usable.ranges & RangeSet([window.range])).align_inward(self.align)
            for span in room:
                size = min(span.size, left)
                left -= size
                pieces.append(self._piece(window, AddrRange.from_size(span.start, size), left))
                if left == 0:
                    break
        if left:
            raise self._too_large(left)
        if [item.place for item in pieces] != [span for _, span in self._own_places()]:
            self.policy = "split"
            if self.machine.split_note:
                self.notes.append(Note(self.machine.split_note))
        return pieces

    def _too_large(self, left: int) -> PlanError:
        """What the machine's windows cannot hold, with the holes that take their room."""
        spans = RangeSet(window.range for window in (*self.windows, *self.spill))
        causes = [cause for span in spans for cause in self.usable.causes_of(span)]
        return does_not_fit(self.usable, self.machine.name, self.ram, left, causes)

    def _check_required(self, window: RamWindow) -> None:
        if not window.required:
            return
        must = AddrRange.from_size(window.range.start, min(window.required, self.ram))
        if not RangeSet([must]) <= self.free:
            name = f"the first {format_size(must.size)} of {window.name} RAM"
            raise self._refusal(self._reasons(name, must), "the machine needs RAM there")

    def _piece(self, window: RamWindow, span: AddrRange, left: int) -> Item:
        """One piece of RAM, and what cut it: nothing where the machine or the size did."""
        start_cause = last_cause = None
        if span.start > window.range.start:
            start_cause = self._cause_below(span.start)
        if left and span.last < window.range.last:
            last_cause = self._cause_above(span.last)
        return Item(ItemKind.RAM, window.name, span, span, start_cause, last_cause)

    def _cause_below(self, start: int) -> str | None:
        """What ends the usable range that holds `start` on its lower side."""
        home = self.usable.ranges.range_at(start)
        if home is None or (home.start == 0 and not self.machine.identity):
            return "address 0 is not chosen by itself" if home else None
        return self.usable.edge_below(home.start).text

    def _cause_above(self, last: int) -> str | None:
        """What ends the usable range that holds `last` on its upper side."""
        home = self.usable.ranges.range_at(last)
        return self.usable.edge_above(home.last).text if home else None

    def _own_places(self) -> list[tuple[RamWindow, AddrRange]]:
        """Where the machine puts RAM if no host says otherwise."""
        places, left = [], self.ram
        for window in self.windows:
            if left:
                size = min(left, window.range.size)
                left -= size
                places.append((window, AddrRange.from_size(window.range.start, size)))
        return places

    def _natural(self) -> list[Item]:
        """Leave everything in the machine's own place, or move what may move as a whole."""
        places = self._own_places()
        missing = self.ram - sum(span.size for _, span in places)
        if missing:
            raise self._too_large(missing)
        reasons = []
        for index, (window, span) in enumerate(places):
            topmost = index == len(places) - 1
            blocked = not RangeSet([span]) <= self.free
            window_blocked = topmost and self.on_hole == "move" and self._window_meets_hole(span)
            if not blocked and not window_blocked:
                continue
            target = None
            if self.on_hole == "move" and window.movable and topmost:
                target = self._target(window, span)
            if target is not None:
                places[index] = (window, target)
                self.policy = "move"
                if window.movable_note:
                    self.notes.append(Note(window.movable_note))
            elif blocked:
                reasons += self._reasons(f"{window.name} RAM", span)
            elif self.machine.pci64 is not None and window.move_to is not None:
                # QEMU moves RAM in this case whatever the host allows, and then fails.
                place = self._window_place(span.last)
                assert place is not None  # it meets a hole
                reasons += self._reasons("the 64-bit PCI window behind RAM", place)
        if reasons:
            raise self._refusal(reasons, f"on-hole {self.on_hole}")
        return [piece for window, span in places for piece in self._cut(window, span)]

    def _cut(self, window: RamWindow, span: AddrRange) -> Iterator[Item]:
        """Cut RAM at the seams of the kernel's list, each piece being one mapping."""
        pieces = list(self.usable.ranges & RangeSet([span]))
        for index, piece in enumerate(pieces):
            yield self._piece(window, piece, len(pieces) - 1 - index)

    def _target(self, window: RamWindow, span: AddrRange) -> AddrRange | None:
        """Where all of a window's RAM goes instead, or None."""
        if window.move_to is not None:
            starts: list[int] = [window.move_to]
        else:
            step = max(_GIB, self.align)
            starts = [-(-home.start // step) * step for home in self.usable.ranges]
        for start in starts:
            if start + span.size - 1 > ADDRESS_LAST or start < window.range.start:
                continue
            moved = AddrRange.from_size(start, span.size)
            if RangeSet([moved]) <= self.free and not self._window_meets_hole(moved):
                return moved
        return None

    def _window_meets_hole(self, top: AddrRange) -> bool:
        """Tell whether the 64-bit PCI window behind RAM would lie over a hole of the host."""
        place = self._window_place(top.last)
        if place is None:
            return False
        return any(cause.kind in HOLES for cause in self.usable.causes_of(place))

    # -- RAM: IOVA chosen by the allocator ---------------------------------------------------------

    def _translated(self) -> list[Item]:
        """Guest RAM is contiguous for the guest; its IOVAs come from the allocator."""
        from vmm_iova.allocator import IovaAllocator  # loads the engine, which few plans need

        window = self.windows[0]
        allocator = IovaAllocator(self.usable)
        try:
            spans = [AddrRange.from_size(self._in_one(allocator), self.ram)]
        except NoSpaceError as error:
            if self.on_hole != "split":
                raise self._not_in_one(error) from error
            spans = self._spread(allocator)
            self.policy = "split"
        items, gpa = [], window.range.start
        for index, span in enumerate(spans):
            below, last = self._cause_below(span.start), index == len(spans) - 1
            above = None if last else self._cause_above(span.last)
            seen = AddrRange.from_size(gpa, span.size)
            items.append(Item(ItemKind.RAM, window.name, seen, span, below, above))
            gpa += span.size
        return items

    def _in_one(self, allocator: IovaAllocator) -> int:
        """Allocate all RAM in one piece, so that the largest pages can map it if there is room."""
        for page in (_GIB, 1 << 21):
            if self.ram >= page > self.align:
                try:
                    return allocator.allocate(self.ram, align=page)
                except NoSpaceError:
                    continue
        return allocator.allocate(self.ram, align=self.align)

    def _not_in_one(self, error: NoSpaceError) -> PlanError:
        largest = error.largest_free or AddrRange(0, ADDRESS_LAST)
        cause = self.usable.edge_above(largest.last)
        reason = Reason("ram in one piece", largest, cause, error.largest_aligned)
        return self._refusal([reason], f"on-hole {self.on_hole}")

    def _spread(self, allocator: IovaAllocator) -> list[AddrRange]:
        """Take free spans from the bottom until all RAM has its place."""
        left, spans = self.ram, []
        for free in list(allocator.free_spans()):
            room = (free if free.start else AddrRange(1, free.last)).align_inward(self.align)
            if left and room is not None:
                size = min(left, room.size)
                spans.append(AddrRange.from_size(allocator.allocate_at(room.start, size), size))
                left -= size
        if left:
            raise self._too_large(left)
        return spans

    # -- everything else ---------------------------------------------------------------------------

    def _window_place(self, ram_last: int) -> AddrRange | None:
        """The 64-bit PCI window right behind RAM, as the machine has it; None if it has none."""
        window = self.pci64
        if window is None:
            return None
        behind = [item.place.last + 1 for item in self._above(ram_last)]
        floor = max([ram_last + 1, window.floor, *behind])
        start = -(-floor // window.align) * window.align
        if start + window.size - 1 > ADDRESS_LAST:
            return None
        return AddrRange.from_size(start, window.size)

    def _above(self, ram_last: int) -> Iterator[Item]:
        """What the machine has between RAM and the window, in order."""
        at = self._above_base(ram_last)
        for item in self.machine.above:
            at = -(-at // item.size) * item.size
            if at + item.size - 1 > ADDRESS_LAST:
                return
            yield Item(ItemKind(item.kind), item.name, AddrRange.from_size(at, item.size))
            at += item.size

    def _above_base(self, ram_last: int) -> int:
        floor = self.machine.pci64.floor if self.machine.pci64 else 0
        return max(-(-(ram_last + 1) // _GIB) * _GIB, floor)

    def _window(self, top: int) -> Iterator[Item]:
        """Place the 64-bit PCI window: where peers can reach it if the policy lets it move."""
        place = self._window_place(top)
        if self.pci64 is None:
            return
        if place is None:
            raise PlanError(
                f"the 64-bit PCI window of {show_size(self.pci64.size)} has no room above RAM, "
                f"which ends at {top:#x}",
                fixes=["a smaller --pci64, or --pci64 0 for none"],
            )
        cause = None
        if self.machine.identity and place not in self.usable.ranges:
            blocked = self.usable.causes_of(place)
            moved = self._window_beyond(place) if self.on_hole == "split" else None
            if moved is not None:
                cause = self._cause_below(moved.start)
                place = moved
            elif blocked:
                self.notes.append(
                    Note(
                        f"the 64-bit PCI window {place} meets {blocked[0].range} "
                        f"({blocked[0].text}): RAM is not affected, but devices cannot reach BARs "
                        "there (peer-to-peer)"
                    )
                )
        yield Item(
            ItemKind.WINDOW,
            "64-bit PCI window",
            place,
            place if self.machine.identity and place in self.usable.ranges else None,
            cause,
        )

    def _window_beyond(self, place: AddrRange) -> AddrRange | None:
        assert self.pci64 is not None
        align = self.pci64.align
        for home in self.usable.ranges:
            start = -(-max(home.start, place.start) // align) * align
            if start + place.size - 1 <= home.last:
                return AddrRange.from_size(start, place.size)
        return None

    def _fixed(self) -> Iterator[Item]:
        windows = {region.range for region in self._msi_ranges()}
        for fixed in self.machine.fixed:
            if fixed.kind == "doorbell" and fixed.range in windows:
                continue  # the host's window at the same place is shown instead
            yield Item(ItemKind(fixed.kind), fixed.name, fixed.range)

    def _msi_ranges(self) -> list[Cause]:
        """The host's interrupt windows: its msi regions, or known gaps of the kernel's list."""
        found: dict[AddrRange, Cause] = {}
        for cause in self.usable.causes:
            said = cause.region is not None and cause.region.kind is RegionKind.MSI
            known = cause.kind is CauseKind.KERNEL_GAP and cause.range in _MSI_WINDOWS
            if said or known:
                found.setdefault(cause.range, cause)
        return list(found.values())

    def _msi(self) -> Iterator[Item]:
        doorbells = {item.range for item in self.machine.fixed if item.kind == "doorbell"}
        for cause in self._msi_ranges():
            shared = cause.range in doorbells
            name = "MSI doorbell" if shared else "MSI window of the host"
            gpa = cause.range if shared else None
            yield Item(ItemKind.MSI, name, gpa, cause.range, cause.text, cause.text)

    def _reserved(self, items: list[Item]) -> Iterator[GuestReserved]:
        """Holes of the host inside what the guest takes for RAM or BAR space."""
        if not self.machine.identity:
            return
        spans = []
        for window in (*self.windows, *self.spill):
            tops = [
                item.place.last
                for item in items
                if item.kind is ItemKind.RAM and item.place.start in window.range
            ]
            if tops:
                spans.append(AddrRange(window.range.start, max(tops)))
        spans += [item.place for item in items if item.kind is ItemKind.WINDOW]
        for span in RangeSet(spans) - self.free:
            for cause in self.usable.causes_of(span):
                shared = cause.range.align_outward(self.usable.granule).intersect(span)
                if shared is not None and cause.kind in HOLES:
                    yield GuestReserved(shared, cause.text)

    def _mismatch(self) -> Iterator[Note]:
        known = self.usable.arch
        if known is not None and known != self.machine.arch:
            yield Note(
                f"machine {self.machine.name} is {self.machine.arch}, but the host is {known}: KVM "
                "cannot run it there"
            )

    def _relaxable(self, pieces: list[Item]) -> Iterator[Note]:
        for region in self.usable.relaxable:
            if any(item.iova and item.iova.overlaps(region.range) for item in pieces):
                yield Note(
                    f"RAM overlaps direct-relaxable {region.range} ({region.source}): allowed once "
                    "the host's driver has let go of the device; strict keeps it out"
                )

    # -- refusals ----------------------------------------------------------------------------------

    def _reasons(self, item: str, span: AddrRange) -> list[Reason]:
        fits = min(self.usable.room_at(span.start), span.size)
        return [Reason(item, span, cause, fits) for cause in self.usable.causes_of(span)]

    def _refusal(self, reasons: list[Reason], why: str) -> PlanError:
        return refusal(self.usable, reasons, why, self._alternatives(), self._most(reasons))

    def _alternatives(self) -> dict[str, list[AddrRange]]:
        """Policies that would work, tried: nothing is proposed on a guess."""
        found: dict[str, list[AddrRange]] = {}
        if self.probing or not self.machine.identity:
            return found
        for policy in get_args(OnHole):
            if policy in (self.on_hole, "refuse"):
                continue
            other = _Planner(
                self.machine, self.ram, self.align, self.pci64, self.usable, policy, probing=True
            )
            try:
                found[policy] = [item.place for item in other.place_ram()]
            except PlanError:
                continue
        return found

    def _most(self, reasons: list[Reason]) -> int:
        """RAM that stays below a single obstacle in the topmost window; else 0."""
        top = self._own_places()[-1][1] if self.machine.identity else None
        if self.on_hole != "refuse" or len(reasons) != 1 or reasons[0].range != top:
            return 0
        return self.ram - reasons[0].range.size + reasons[0].fits if reasons[0].fits else 0


def _windows(machine: Machine, ram: int) -> tuple[RamWindow, ...]:
    """The machine's windows for this much RAM."""
    first = machine.ram[0]
    if first.whole_below is None or ram >= first.whole_below:
        return machine.ram
    whole = AddrRange(first.range.start, first.whole_below - 1)
    return (RamWindow(first.name, whole, None, first.required),)
