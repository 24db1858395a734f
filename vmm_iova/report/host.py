# SPDX-License-Identifier: Apache-2.0
"""A host as text: what it says, and what may be mapped on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.facts import PASTED
from vmm_iova.host.registers import info_features, unit_features
from vmm_iova.report.devices import host_devices
from vmm_iova.report.start import state_lines
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.host.facts import Note, ReservedRegion
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange

from vmm_iova.report.text import evidence, line, section, usable_map, width_lines


def show_host(host: Host, usable: Usable | None, why_not: str | None, *, bytes_: bool) -> str:
    """Show the facts of a host and, where they settle it, what is usable."""
    lines = []
    if usable is not None:
        lines += [f"warning: {entry.text}" for entry in usable.unassignable]
    system = " ".join(filter(None, (host.arch, host.release and f"Linux {host.release}")))
    lines.append(f"host    {host.name}" + (f" ({system})" if system else ""))
    lines.append(f"origin  {host.origin}")
    lines += section("iommu", (_unit(host, index) for index in range(len(host.units))))
    lines += section("iommu, as the kernel says (IOMMU_GET_HW_INFO)", _infos(host))
    lines += section("groups", _groups(host))
    lines += section("devices", host_devices(host))
    if usable is None:
        lines += section("regions", _regions(host, bytes_))
        lines += section("usable: not known", filter(None, [why_not]))
        notes: Sequence[Note] = host.notes
    else:
        lines += ["", "map", *usable_map(usable, bytes_=bytes_)]
        lines += section("evidence", evidence(usable))
        notes = usable.notes
        lines += section("address widths", width_lines(usable.widths))
    lines += section("limits", _limits(host))
    lines += section("at the moment", state_lines(host.state))
    lines += section("notes", (note.text for note in notes))
    return "\n".join(lines) + "\n"


def _unit(host: Host, index: int) -> str:
    unit = host.units[index]
    registers = [
        f"cap {unit.cap:x}" if unit.cap is not None else "",
        f"ecap {unit.ecap:x}" if unit.ecap is not None else "",
        f"features {unit.features}" if unit.features else "",
    ]
    features = unit_features(unit, host.release)
    able = f": {', '.join(features)}" if features else ""
    return " ".join(filter(None, (unit.name, *registers))) + able


def _infos(host: Host) -> Iterator[str]:
    """What iommufd says; devices whose IOMMU is the same say it once."""
    same: dict[str, list[str]] = {}
    for info in host.iommu_info:
        features = info_features(info)
        able = f": {', '.join(features)}" if features else ""
        registers = " ".join(f"{name} {value:x}" for name, value in info.registers)
        told = registers or "its driver tells no registers"
        same.setdefault(f"{told}{able}", []).append(info.device)
    for text, devices in same.items():
        more = f" and {len(devices) - 3} more" if len(devices) > 3 else ""
        yield f"{', '.join(devices[:3])}{more} {text}"


def _groups(host: Host) -> Iterator[str]:
    devices = {device.name: device for device in host.devices}
    for group in host.groups:
        if group.id == PASTED:
            continue
        members = []
        for name in group.devices:
            device = devices.get(name)
            of = [item for item in (device.driver, device.iommu) if item] if device else []
            members.append(f"{name} ({', '.join(of)})" if of else name)
        state = group.damaged or group.unreadable
        kind = f" {group.type}" if group.type else ""
        yield f"{group.id}{kind}: {', '.join(members) or 'no members named'}" + (
            f" [{state}]" if state else ""
        )


def _regions(host: Host, bytes_: bool) -> Iterator[str]:
    listed = [region for group in host.groups for region in group.regions or ()]
    same: dict[tuple[AddrRange, str], list[ReservedRegion]] = {}
    for region in sorted([*listed, *host.log_regions], key=lambda item: item.range):
        same.setdefault((region.range, region.word), []).append(region)
    for (span, word), regions in same.items():
        groups = [item.group for item in regions if item.group and item.group != PASTED]
        of = f"groups {', '.join(groups[:8])}{', ...' if len(groups) > 8 else ''}; "
        more = f"{of if groups else ''}{regions[0].source}"
        yield line(span, word, bytes_=bytes_, more=more)


def _limits(host: Host) -> Iterator[str]:
    if host.limits.dma_entries is not None:
        yield f"map calls in one container: {host.limits.dma_entries}"
    if host.limits.memlock is not None:
        limit = "unlimited" if host.limits.memlock < 0 else show_size(host.limits.memlock)
        yield f"locked memory (RLIMIT_MEMLOCK): {limit}"
