# SPDX-License-Identifier: Apache-2.0
"""One attempt: RAM, what lies above it, and what stands by itself, put together as a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.check import HOLES
from vmm_iova.host.evidence import MSI_ARM_SOFTWARE, MSI_X86
from vmm_iova.host.facts import Note, RegionKind
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.doorbells import place_doorbells
from vmm_iova.planning.firmware_bars import by_firmware
from vmm_iova.planning.layout import GuestReserved, Item, ItemKind, Layout, bits_of
from vmm_iova.planning.misfit import Misfit, ViommuTooWide
from vmm_iova.planning.ram import place_ram
from vmm_iova.planning.reasons import actions_of, reasons_of
from vmm_iova.planning.windows import place_windows
from vmm_iova.ranges import BASE_PAGE, AddrRange, RangeSet
from vmm_iova.record import replace
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.layout import OnHole
    from vmm_iova.planning.ram import PlacedRam
    from vmm_iova.planning.site import Placed, Policy, Site

_MODEL_BITS = 40  # TCG_PHYS_ADDR_BITS, and -cpu MODEL with KVM (QEMU target/i386/cpu.c)
_MSI_WINDOWS = (MSI_X86, MSI_ARM_SOFTWARE)


def attempt(site: Site, policy: Policy) -> Layout:
    """Place everything: the first placement of RAM that leaves a place for all the rest.

    Args:
        site: what is wanted, and where it may go.
        policy: how RAM may be placed.

    Raises:
        Misfit: there is none; what stopped the first placement.
    """
    _check_viommu(site)
    first: Misfit | None = None
    placements = place_ram(site, policy)
    while True:
        try:
            ram = next(placements)
            placed = _with_doorbells(site, ram, place_windows(site, ram, policy))
        except StopIteration:
            break
        except Misfit as misfit:
            first = first or misfit
            continue
        return assemble(site, ram, placed, policy.on_hole.text)
    assert first is not None  # place_ram raises when there is no placement
    raise first


def _check_viommu(site: Site) -> None:
    """QEMU compares the two widths when the device is added (vtd_check_hiod(), QEMU 9.1)."""
    bits, reach = site.wanted.viommu_bits, site.host.ranges.hull
    if bits is None or reach is None or reach.last.bit_length() >= bits:
        return
    edge = site.host.edge_above(reach.last)
    span = AddrRange(reach.last + 1, (1 << bits) - 1)
    raise ViommuTooWide(span, edge, reach.last.bit_length())


def _with_doorbells(site: Site, ram: PlacedRam, placed: Placed) -> Placed:
    if not site.wanted.doorbells:
        return placed
    taken = [*ram.items, *placed.items, *_reserved(site), *_fixed(site, ram), *_msi(site)]
    return replace(placed, items=(*placed.items, *place_doorbells(site, taken)))


def assemble(site: Site, ram: PlacedRam, placed: Placed, on_hole: OnHole) -> Layout:
    """Put what the steps placed together with what stands by itself.

    Args:
        site: what is wanted, and where it may go.
        ram: the RAM.
        placed: windows, BARs and rooms.
        on_hole: the policy that was asked for.
    """
    wanted, host = site.wanted, site.host
    items = [*ram.items, *placed.items, *_reserved(site), *_fixed(site, ram), *_msi(site)]
    reasons = tuple(reasons_of(site, ram))
    items.sort(key=lambda item: (item.place, item.kind.value, item.name))
    return Layout(
        machine=wanted.machine,
        ram_bytes=wanted.ram,
        on_hole=on_hole,
        policy=ram.done,
        items=tuple(items),
        guest_reserved=tuple(_guest_reserved(site, items)),
        usable=host,
        notes=(
            *(Note(entry.text) for entry in host.unassignable),
            *_mismatch(site),
            *_relaxable(site, ram.items),
            *_translated_maps(site),
            *ram.notes,
            *placed.notes,
            *host.notes,
        ),
        page_sizes=tuple((node.name, node.size, node.page_size) for node in wanted.nodes),
        viommu=wanted.viommu,
        devices=wanted.devices,
        widths=site.widths,
        vmm_reserved=site.board(ram.spans).reserved,
        settings=tuple(filter(None, _settings(site, items))),
        reasons=tuple(text for item in reasons for text in (item.text, item.why)),
        otherwise=actions_of(reasons),
    )


def _settings(site: Site, items: Sequence[Item]) -> Iterator[str]:
    """What the VMM has to be told; a CPU model of QEMU has 40 address bits unless it is told."""
    machine, wanted = site.wanted.machine, site.wanted
    # As many as were asked for: firmware goes by them.
    bits = max(bits_of(items, wanted.phys_bits), wanted.phys_bits or _MODEL_BITS)
    if bits > _MODEL_BITS:
        yield machine.option("least_bits", bits=bits) or ""
    if wanted.pci64_stated:
        size = 0 if wanted.pci64 is None else wanted.pci64.size or 0
        text = format_size(size).replace(" ", "").removesuffix("iB")
        name = "pci64" if size else "pci64_none"
        yield machine.option(name, **({"size": text, "mib": size >> 20} if size else {})) or ""
    if wanted.low_ram is not None:
        yield machine.option("low_ram", size=wanted.low_ram) or ""
    if wanted.ovmf_window is not None:
        yield machine.option("ovmf_window", mib=wanted.ovmf_window >> 20) or ""


def _reserved(site: Site) -> Iterator[Item]:
    for item in site.wanted.reserved:
        yield Item(ItemKind(item.kind), item.name, item.range)


def _fixed(site: Site, ram: PlacedRam) -> Iterator[Item]:
    windows = {cause.range for cause in _msi_causes(site)}
    for fixed in by_firmware(site, ram.spans):
        if fixed.kind == "doorbell" and fixed.range in windows:
            continue  # the host's window at the same place is shown instead
        yield Item(ItemKind(fixed.kind), fixed.name, fixed.range)


def _msi_causes(site: Site) -> list[Cause]:
    """The host's interrupt windows: its msi regions, or known gaps of the kernel's list."""
    windows: dict[AddrRange, Cause] = {}
    for cause in site.host.causes:
        listed = cause.region is not None and cause.region.kind is RegionKind.MSI
        known = cause.kind is CauseKind.KERNEL_GAP and cause.range in _MSI_WINDOWS
        if listed or known:
            windows.setdefault(cause.range, cause)
    return list(windows.values())


def _msi(site: Site) -> Iterator[Item]:
    doorbells = {item.range for item in site.wanted.machine.doorbells}
    for cause in _msi_causes(site):
        shared = cause.range in doorbells
        name = "MSI doorbell" if shared else "MSI window of the host"
        gpa = cause.range if shared else None
        yield Item(ItemKind.MSI, name, gpa, cause.range, cause, cause)


def _guest_reserved(site: Site, items: Sequence[Item]) -> Iterator[GuestReserved]:
    """Holes of the host inside what the guest takes for RAM or BAR space."""
    if not site.wanted.machine.identity:
        return
    spans = []
    for window in (*site.windows, *site.spill):
        tops = [
            item.place.last
            for item in items
            if item.kind is ItemKind.RAM and item.place.start in window.range
        ]
        if tops:
            spans.append(AddrRange(window.range.start, max(tops)))
    others = (ItemKind.WINDOW, ItemKind.BAR, ItemKind.ROOM)
    spans += [item.place for item in items if item.kind in others]
    for span in RangeSet(spans) - site.usable.ranges.as_set():
        for cause in site.usable.causes_of(span):
            shared = cause.range.align_outward(site.usable.granule).intersect(span)
            if shared is not None and cause.kind in HOLES:
                yield GuestReserved(shared, cause)


def _mismatch(site: Site) -> Iterator[Note]:
    known, machine = site.host.arch, site.wanted.machine
    if known is not None and known != machine.arch:
        yield Note(
            f"machine {machine.name} is {machine.arch}, but the host is {known}: KVM "
            "cannot run it there"
        )


def _translated_maps(site: Site) -> Iterator[Note]:
    if site.wanted.viommu:
        most = site.wanted.ram // BASE_PAGE
        yield Note(
            "while the guest's own IOMMU translates, each map that the guest makes takes an "
            f"entry of dma_entry_limit: {most} in one container if it maps all RAM by 4 KiB; "
            "iommufd has no such limit"
        )


def _relaxable(site: Site, ram: Sequence[Item]) -> Iterator[Note]:
    for region in site.usable.relaxable:
        if region.kind is RegionKind.FIRMWARE:
            continue  # the judge's own note has said what it is
        if any(item.iova and item.iova.overlaps(region.range) for item in ram):
            yield Note(
                f"RAM overlaps direct-relaxable {region.range} ({region.source}): allowed once "
                "the host's driver has let go of the device; strict keeps it out"
            )
