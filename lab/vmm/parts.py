"""What a machine file gives a fixed place, and what of QEMU's memory that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.ranges import BASE_PAGE, AddrRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import vmm_iova as vi

    from lab.vmm.matrix import Config
    from lab.vmm.observe import Observed

Ends = tuple[str, str]
"""Regions from whose start to whose end a part reaches; `<X`: up to where X begins; empty: open."""

_APIC = {"I/O APIC and HPET": ("ioapic", "hpet"), "MSI doorbell": ("apic-msi", "apic-msi")}
_PC = {
    **_APIC,
    "32-bit PCI window": ("", "pci-hole"),
    "firmware flash": ("system.flash0", "pc.bios|system.flash0"),
}
_VIRT = {
    "firmware flash": ("virt.flash0", "virt.flash1"),
    "interrupt controller": ("gicv3_dist|gic_dist", "<gicv2m"),
    "GICv2m doorbell": ("gicv2m", "gicv2m"),
    "GICv3 ITS doorbell": ("gicv3_its", "gicv3_its"),
    "redistributors": ("gicv3_redist_region[0]", ""),
    "platform devices": ("pl011", "<pcie-mmio"),
    "32-bit PCI window": ("pcie-mmio", "pcie-mmio"),
    "PCI ports and configuration space": ("gpex_ioport_window", "<ram"),
    "GIC redistributors 2": ("gicv3_redist_region[1]", ""),
    "high PCIe configuration space": ("pcie-ecam", "pcie-ecam"),
}
PARTS: dict[str, dict[str, Ends]] = {
    "q35": _PC,
    "i440fx": _PC,
    "q35-7.0": _PC,
    "i440fx-7.0": _PC,
    "microvm": {
        "32-bit PCI window": ("pcie-mmio32", "pcie-mmio32"),
        "PCIe configuration space": ("pcie-ecam", "pcie-ecam"),
        "USB, ACPI events, virtio-mmio": ("xhci", "virtio-mmio"),
        "I/O APICs": ("ioapic", "ioapic"),
        "MSI doorbell": ("apic-msi", "apic-msi"),
        "firmware": ("", "pc.bios"),
    },
    "virt": _VIRT,
    "virt-gicv2": _VIRT,
    "virt-lowmem": _VIRT,
    "riscv-virt": {
        "debug, ROM, test and clock": ("", "goldfish_rtc"),
        "timers, PCI ports, IOMMU, platform bus": ("riscv.aclint.swi", "platform"),
        "interrupt controllers": ("riscv.sifive.plic|riscv.aplic", ""),
        "serial port, virtio-mmio, fw_cfg": ("serial", "fwcfg.dma"),
        "firmware flash": ("virt.flash0", "virt.flash1"),
        "IMSIC doorbells (machine level)": ("riscv.imsic", ""),
        "IMSIC doorbells (supervisor level)": ("", ""),
        "PCIe configuration space": ("pcie-ecam", "pcie-ecam"),
        "32-bit PCI window": ("pcie-mmio", "pcie-mmio"),
    },
    "s390x": {},
}
_NOT_PARTS = (
    *("system", "pci", "isa-bios", "pc.rom", "smram", "pam-", "device-memory"),
    *("ram-", "mach-virt.ram", "riscv_virt_board.ram", "s390.ram"),
)
"""Regions that hold others, are RAM, or lie over RAM (`ram_reserved`)."""
_FULL = 123
"""CPUs whose redistributors fill the lower region (QEMU, virt_redist_capacity())."""


def of_parts(config: Config, layout: vi.Layout, observed: Observed) -> Iterator[str]:
    """Say which part is elsewhere in QEMU's memory, or has no part of the machine over it."""
    spans: dict[str, list[AddrRange]] = {}
    for name, span in observed.regions:
        spans.setdefault(name, []).append(span)
    spans["ram"] = list(observed.ram)
    items = {item.name: item.gpa for item in layout.items if item.gpa is not None}
    for name, (first, last) in PARTS[config.machine].items():
        place = items.get(name)
        if place is None:
            continue
        begins, ends = _start(spans, first), _last(spans, last)
        if name == "redistributors" and config.cpus >= _FULL:
            ends = _last(spans, "gicv3_redist_region[0]")
        if begins is not None and begins != place.start:
            yield f"{name} begins at {place.start:#x}, QEMU has {begins:#x}"
        if ends is not None and ends != place.last:
            yield f"{name} ends at {place.last:#x}, QEMU has {ends:#x}"
    yield from _without_part(items.values(), observed)


def _without_part(places: Sequence[AddrRange], observed: Observed) -> Iterator[str]:
    """Say which region of QEMU's memory lies where the model has nothing."""
    for name, span in observed.regions:
        inside = any(span.start >= place.start and span.last <= place.last for place in places)
        ram = any(span in whole for whole in (*observed.ram, observed.device_memory) if whole)
        if not (inside or ram or name.startswith(_NOT_PARTS)):
            yield f"QEMU has {name} at {span}, where the machine file has nothing"


def _found(spans: dict[str, list[AddrRange]], names: str) -> list[AddrRange]:
    return [span for name in names.split("|") if name for span in spans.get(name, ())]


def _start(spans: dict[str, list[AddrRange]], names: str) -> int | None:
    return min((span.start for span in _found(spans, names)), default=None)


def _last(spans: dict[str, list[AddrRange]], names: str) -> int | None:
    if names.startswith("<"):
        start = _start(spans, names[1:])
        return None if start is None else start - 1
    last = max((span.last for span in _found(spans, names)), default=None)
    # A part is whole pages, a device need not be.
    return None if last is None else last // BASE_PAGE * BASE_PAGE + BASE_PAGE - 1
