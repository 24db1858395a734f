# SPDX-License-Identifier: Apache-2.0
"""A definition, as it was understood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.units import parse_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.definition import Definition
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.guest import Guest

_TITLES = {
    "libvirt": "libvirt domain",
    "qemu": "QEMU command line",
    "proxmox": "Proxmox configuration",
    "cloud-hypervisor": "Cloud Hypervisor configuration",
    "firecracker": "Firecracker configuration",
}


_OTHERS = ("s390x", "virt", "virt-gicv2", "virt-lowmem", "riscv-virt", "firecracker")
"""Machines on which nobody states them."""


def show_definition(definition: Definition, asked: Guest, usable: Usable) -> str:
    """Return how a definition was read: its guest, its devices, and what was not understood.

    Args:
        definition: as it stands.
        asked: the guest that was planned.
        usable: of the host.
    """
    lines = ["", "definition", *(f"  {line}" for line in _lines(definition))]
    if asked.bars and asked.phys_bits is None and usable.cpu_bits is None:
        lines.append(
            "  not known: the address bits of the host's CPU, which the guest has and by which its "
            "firmware places BARs; /proc/cpuinfo of the host says them (--facts), or --phys-bits"
        )
    return "\n".join(lines) + "\n"


def definition_data(definition: Definition, change: str) -> dict[str, Any]:
    """Return the same for programs.

    Args:
        definition: as it stands.
        change: what must differ, as text; empty where nothing does.
    """
    return {
        "kind": definition.kind,
        "name": definition.name,
        "arch": definition.arch,
        "devices": [
            {"name": item.name, "kind": item.kind, "managed": item.managed}
            for item in definition.devices
        ],
        "readings": [item.text for item in definition.readings],
        "faults": [item.text for item in definition.faults],
        "unread": list(definition.unread),
        "change": change,
    }


def _lines(definition: Definition) -> Iterator[str]:
    name = f" {definition.name}" if definition.name else ""
    yield f"{_TITLES[definition.kind]}{name}: {', '.join(_parts(definition.guest))}"
    if definition.devices:
        yield f"devices: {', '.join(item.name for item in definition.devices)}"
    if len(definition.readings) > 1:
        texts = "; ".join(item.text for item in definition.readings)
        yield f"it says no release, so each of these counts: {texts}"
    if definition.unread:
        yield f"not understood: {'; '.join(definition.unread)}"


def _parts(guest: Guest) -> Iterator[str]:
    yield str(guest.machine)
    if guest.ram is not None:
        yield f"{show_size(parse_size(guest.ram))} RAM"
    if guest.nodes:
        yield f"{len(guest.nodes)} NUMA nodes"
    if guest.maxmem is not None:
        yield f"up to {show_size(parse_size(guest.maxmem))} ({guest.slots} slots)"
    if guest.page_size is not None:
        yield f"pages of {show_size(parse_size(guest.page_size))}"
    if guest.firmware is not None:
        yield guest.firmware.upper()
    if guest.ovmf_window is not None:
        yield f"OVMF's window {show_size(parse_size(guest.ovmf_window))}"
    if guest.phys_bits is not None:
        yield f"{guest.phys_bits} address bits"
    elif guest.machine not in _OTHERS:
        yield "the host's address bits"
    if guest.viommu:
        bits = f" of {guest.viommu_bits} bits" if guest.viommu_bits else ""
        yield f"an IOMMU of its own{bits}"
