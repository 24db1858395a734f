# SPDX-License-Identifier: Apache-2.0
"""All steps together: RAM, what lies above it, and what stands by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.check import HOLES
from vmm_iova.errors import PlanError
from vmm_iova.host.evidence import MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.facts import Note, RegionKind
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.layout import GuestReserved, Item, ItemKind, Layout
from vmm_iova.planning.windows import Above
from vmm_iova.ranges import AddrRange, RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.request import Wanted
    from vmm_iova.planning.site import OnHole

_MSI_WINDOWS = (MSI_X86, MSI_ARM_SOFTWARE)


class Planner(Above):
    """One planning: wanted, usable ranges and policy in, layout or refusal out."""

    def plan(self) -> Layout:
        """Place everything.

        Raises:
            PlanError: it cannot be.
        """
        most = self.machine.ram_max
        if most is not None and self.ram > most:
            raise self._too_much(most)
        refused: PlanError | None = None
        for pieces in self._ram_choices():
            said = list(self.notes)
            self.policy = self._policy_of(pieces)
            if self.policy == "split" and self.machine.identity and self.machine.split_note:
                self.notes.append(Note(self.machine.split_note))
            try:
                return self.finish(pieces)
            except PlanError as error:
                refused = refused or error
                self.notes = said
        assert refused is not None  # _ram_choices raises when there is none
        raise refused

    def again(self, wanted: Wanted, policy: OnHole) -> Layout:
        """Plan something else on the same host, to know whether it would work."""
        return Planner(wanted, self.host, policy, probing=True).plan()

    def finish(self, pieces: Sequence[Item], kept: Sequence[Item] = ()) -> Layout:
        """Place everything else around RAM.

        Args:
            pieces: the RAM.
            kept: windows, BARs and rooms that have their place already.
        """
        placed = list(kept) if kept else self._others(pieces)
        items = [*pieces, *placed, *self._reserved_items(), *self._fixed(), *self._msi()]
        items.sort(key=lambda item: (item.place, item.kind.value, item.name))
        first = [Note(entry.text) for entry in self.host.unassignable]
        return Layout(
            machine=self.machine,
            ram_bytes=self.ram,
            on_hole=self.on_hole,
            policy=self.policy,
            items=tuple(items),
            guest_reserved=tuple(self._told(items)),
            usable=self.host,
            notes=(
                *first,
                *self._mismatch(),
                *self._relaxable(pieces),
                *self._translated_maps(),
                *self.notes,
                *self.host.notes,
            ),
            page_sizes=tuple((node.name, node.size, node.page_size) for node in self.wanted.nodes),
            viommu=self.wanted.viommu,
            devices=self.wanted.devices,
            widths=self._widths(),
        )

    def _policy_of(self, pieces: Sequence[Item]) -> str:
        if self.on_hole != "split" or not self.machine.identity:
            return self.policy
        own, _ = self._flow(self._own_room)
        same = [item.place for item in pieces] == [piece.span for piece in own]
        return "as is" if same else "split"

    def _reserved_items(self) -> Iterator[Item]:
        for item in self.wanted.reserved:
            yield Item(ItemKind(item.kind), item.name, item.range)

    def _fixed(self) -> Iterator[Item]:
        windows = {region.range for region in self._msi_ranges()}
        for fixed in self.machine.fixed:
            if fixed.kind == "doorbell" and fixed.range in windows:
                continue  # the host's window at the same place is shown instead
            yield Item(ItemKind(fixed.kind), fixed.name, fixed.range)

    def _msi_ranges(self) -> list[Cause]:
        """The host's interrupt windows: its msi regions, or known gaps of the kernel's list."""
        found: dict[AddrRange, Cause] = {}
        for cause in self.host.causes:
            said = cause.region is not None and cause.region.kind is RegionKind.MSI
            known = cause.kind is CauseKind.KERNEL_GAP and cause.range in _MSI_WINDOWS
            if said or known:
                found.setdefault(cause.range, cause)
        return list(found.values())

    def _msi(self) -> Iterator[Item]:
        doorbells = {item.range for item in self.machine.doorbells}
        for cause in self._msi_ranges():
            shared = cause.range in doorbells
            name = "MSI doorbell" if shared else "MSI window of the host"
            gpa = cause.range if shared else None
            yield Item(ItemKind.MSI, name, gpa, cause.range, cause.text, cause.text)

    def _told(self, items: list[Item]) -> Iterator[GuestReserved]:
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
        others = (ItemKind.WINDOW, ItemKind.BAR, ItemKind.ROOM)
        spans += [item.place for item in items if item.kind in others]
        for span in RangeSet(spans) - self.free:
            for cause in self.usable.causes_of(span):
                shared = cause.range.align_outward(self.usable.granule).intersect(span)
                if shared is not None and cause.kind in HOLES:
                    yield GuestReserved(shared, cause.text)

    def _mismatch(self) -> Iterator[Note]:
        known = self.host.arch
        if known is not None and known != self.machine.arch:
            yield Note(
                f"machine {self.machine.name} is {self.machine.arch}, but the host is {known}: KVM "
                "cannot run it there"
            )

    def _translated_maps(self) -> Iterator[Note]:
        if self.wanted.viommu:
            most = self.ram // 4096
            yield Note(
                "while the guest's own IOMMU translates, each map that the guest makes takes an "
                f"entry of dma_entry_limit: {most} in one container if it maps all RAM by 4 KiB; "
                "iommufd has no such limit"
            )

    def _relaxable(self, pieces: Sequence[Item]) -> Iterator[Note]:
        for region in self.usable.relaxable:
            if any(item.iova and item.iova.overlaps(region.range) for item in pieces):
                yield Note(
                    f"RAM overlaps direct-relaxable {region.range} ({region.source}): allowed once "
                    "the host's driver has let go of the device; strict keeps it out"
                )
