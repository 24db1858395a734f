# SPDX-License-Identifier: Apache-2.0
"""Every address width that the facts of a host state, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.evidence import Evidence, EvidenceKind, units_of
from vmm_iova.host.registers import Width, amd_width, vtd_first_stage, vtd_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.host.facts import Group, Host, IommuUnit

_MASKS = 8  # device masks that are listed; a list of hundreds hides what limits


def host_widths(
    host: Host, groups: Sequence[Group], evidence: Sequence[Evidence]
) -> tuple[Width, ...]:
    """List the widths of the IOMMUs, the kernel, the CPU and the devices of a selection.

    Units with the same registers are one entry, which says how many there are.
    """
    found = [*_units(host, groups)]
    for item in evidence:
        hull = item.ranges.hull
        if hull is None or item.kind is EvidenceKind.REGISTERS:
            continue
        what = {
            EvidenceKind.KERNEL_LIST: "aperture of the kernel",
            EvidenceKind.ZPCI: "zPCI DMA window",
        }.get(item.kind, "aperture as stated")
        found.append(Width(what, hull.last.bit_length(), str(item.source)))
    found += (
        Width("IOMMU as the kernel printed it", item.bits, str(item.source)) for item in host.widths
    )
    if host.cpu_bits is not None:
        found.append(Width("CPU, physical", host.cpu_bits, host.cpu_source))
    members = {name for group in groups for name in group.devices}
    masks = [item for item in host.devices if item.name in members and item.dma_mask_bits]
    for device in sorted(masks, key=lambda item: item.dma_mask_bits or 0)[:_MASKS]:
        what = f"DMA mask of the host's driver, {device.name}"
        found.append(Width(what, device.dma_mask_bits or 0, "dma_mask_bits in sysfs", False))
    return tuple(dict.fromkeys(found))


def _units(host: Host, groups: Sequence[Group]) -> Iterator[Width]:
    chosen: dict[str, IommuUnit] = {}
    for group in groups or (None,):
        chosen.update((unit.name, unit) for unit in units_of(host, group))
    alike: dict[tuple[int | None, int | None, str | None, str], list[IommuUnit]] = {}
    for unit in chosen.values():
        key = (unit.cap, unit.ecap, unit.features, unit.vendor)
        alike.setdefault(key, []).append(unit)
    for (cap, ecap, features, vendor), units in alike.items():
        of = units[0].name + (f" and {len(units) - 1} alike" if len(units) > 1 else "")
        source = str(units[0].source)
        if cap is not None and vendor == "intel":
            width = vtd_width(cap)
            yield Width(f"MGAW of {of}", width.mgaw_bits, source)
            if width.table_bits:
                yield Width(f"deepest page table of {of}", width.table_bits[-1], source)
            first = None if ecap is None else vtd_first_stage(cap, ecap)
            if first is not None and width.usable_bits:
                yield Width(f"first-stage tables of {of}, lower half", first, source)
        elif features is not None and vendor == "amd":
            bits = amd_width(features, host.release).bits
            if bits:
                yield Width(f"host page tables of {of}", bits, source)
