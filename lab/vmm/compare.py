# SPDX-License-Identifier: Apache-2.0
"""A plan and a real start of the same guest: what differs, in words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import vmm_iova as vi
from vmm_iova.planning.layout import ItemKind
from vmm_iova.ranges import AddrRange, RangeSet

from lab.say import LabError
from lab.vmm.matrix import CPUS
from lab.vmm.observe import (
    Observed,
    Qmp,
    ecam_of,
    read_e820,
    regions,
    temporary,
    wait_for_bars,
    window_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lab.vmm.binaries import Qemu
    from lab.vmm.matrix import Config

QEMU_MACHINES = {
    "q35": "q35",
    "i440fx": "pc",
    "q35-7.0": "pc-q35-7.0",
    "i440fx-7.0": "pc-i440fx-7.0",
    "microvm": "microvm,acpi=on,pcie=on",
    "virt": "virt,gic-version=3",
    "virt-lowmem": "virt,highmem=off,gic-version=3",
    "virt-gicv2": "virt,gic-version=2",
    "riscv-virt": "virt",
    "s390x": "s390-ccw-virtio",
}
RAM_NAMES = ("ram-below-4g", "ram-above-4g", "m", "microvm.ram-below-4g")
_SECONDS = {"seabios": 10.0, "ovmf": 60.0}


def guest_of(config: Config, qemu: Qemu) -> vi.Guest:
    """Return the guest as the planner takes it."""
    firmware = None
    if vi.load_machine(config.machine).firmware is not None:
        firmware = "none"
    if config.firmware is not None:
        version = qemu.seabios if config.firmware == "seabios" else qemu.ovmf
        firmware = f"{config.firmware}-{version}"
    return vi.Guest(
        config.machine,
        config.ram,
        config.pci64,
        bars=[vi.Bar(f"bar{index}", size) for index, size in enumerate(config.bars)],
        phys_bits=config.bits if config.pc else _BITS.get(config.machine),
        maxmem=config.ram + config.more if config.more else None,
        slots=config.slots if config.more else 0,
        max_ram_below_4g=config.low_ram,
        cpu=CPUS[config.cpu] if config.pc else None,  # type: ignore[arg-type]
        firmware=firmware,
        ovmf_window=None if config.window is None else config.window << 20,
    )


_BITS = {"virt": 48, "virt-gicv2": 48, "riscv-virt": 56}  # of -cpu max; riscv64's Sv57 and 56 bits


def command_of(config: Config, qemu: Qemu) -> tuple[list[str], Path | None]:
    """Return the command line that starts the guest, and OVMF's copy of its variables."""
    arch = vi.load_machine(config.machine).arch
    machine = f"{QEMU_MACHINES[config.machine]},memory-backend=m"
    size = f"{config.ram >> 20}M"
    if config.more:
        size += f",maxmem={(config.ram + config.more) >> 20}M"
        size += f",slots={config.slots}" if config.slots else ""
    if config.low_ram is not None:
        machine += f",max-ram-below-4g={config.low_ram}"
    words = [*qemu.command(arch), "-nodefaults", "-display", "none"]
    words += ["-object", f"memory-backend-ram,id=m,size={config.ram},reserve=off", "-m", size]
    if arch == "aarch64":
        words += ["-cpu", "max"]
    if config.pc:
        words += ["-cpu", f"{config.cpu},phys-bits={config.bits}"]
    if config.pci64 is not None:
        host = "q35-pcihost" if config.machine.startswith("q35") else "i440FX-pcihost"
        words += ["-global", f"{host}.pci-hole64-size={config.pci64}"]
    for index, bar in enumerate(config.bars):
        words += ["-device", f"pci-testdev,membar={bar},id=bar{index}"]
    if config.window is not None:
        words += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={config.window}"]
    variables = None
    if config.firmware == "ovmf":
        code, empty = qemu.ovmf_files
        variables = temporary(empty)
        drive = "if=pflash,format=raw"
        words += ["-drive", f"{drive},unit=0,readonly=on,file={code}"]
        words += ["-drive", f"{drive},unit=1,file={variables}"]
    elif config.firmware is None:
        words += ["-S"]
    return [*words, "-M", machine], variables


def start(config: Config, qemu: Qemu, *, e820: bool) -> Observed:
    """Start the guest and look at it."""
    command, variables = command_of(config, qemu)
    qmp = None
    try:
        qmp = Qmp(command)
        if not qmp.alive:
            return Observed(refused=qmp.complaint())
        spans = regions(qmp.hmp("info mtree")[0])
        observed = Observed(
            ram=tuple(sorted(span for name, span in spans if name in RAM_NAMES)),
            device_memory=next((s for name, s in spans if name == "device-memory"), None),
            window=window_of(qmp, config.machine.removesuffix("-7.0"), spans),
            e820=read_e820(qmp) if e820 else None,
        )
        if config.firmware is None:
            return observed
        names = {f"bar{index}" for index in range(len(config.bars))}
        try:
            bars = wait_for_bars(qmp, names, _SECONDS[config.firmware])
        except LabError:
            return observed  # it gave out none
        return replace(observed, bars=bars, ecam=ecam_of(regions(qmp.hmp("info mtree")[0])))
    finally:
        if qmp is not None:
            qmp.close()
        if variables is not None:
            variables.unlink()


def differences(config: Config, qemu: Qemu, observed: Observed) -> list[str]:
    """Return what the plan has otherwise than the real thing."""
    usable = vi.Host("open").usable(aperture=64, granule=4096)
    try:
        layout = vi.plan(guest_of(config, qemu), usable)
        why = "it needs a VMM that can split" if layout.policy == "split" else None
    except (vi.PlanError, vi.RequestError) as error:
        why = error.message
    if why is not None:
        if observed.refused is not None or _broken(config, observed):
            return []
        return [f"the plan is refused ({why}), and QEMU starts: {observed.ram}"]
    if observed.refused is not None:
        last = observed.refused.splitlines()[-1] if observed.refused else "nothing"
        return [f"QEMU refuses ({last}), and the plan has {_ram(layout)}"]
    found = []
    if _ram(layout) != RangeSet(observed.ram):
        found.append(f"RAM {_ram(layout)}, QEMU has {RangeSet(observed.ram)}")
    area = next((item.gpa for item in layout.items if item.kind is ItemKind.ROOM), None)
    if area != observed.device_memory:
        found.append(f"plugged memory {area}, QEMU has {observed.device_memory}")
    window = next(
        (i.gpa for i in layout.items if i.kind is ItemKind.WINDOW and i.name.startswith("64")), None
    )
    if not config.bars and window != observed.window:
        found.append(f"64-bit window {window}, QEMU has {observed.window}")
    if observed.e820 is not None:
        found += _e820(layout, observed.e820)
    for index in range(len(config.bars)):
        place = next(item.gpa for item in layout.items if item.name == f"bar{index}")
        real = observed.bars.get((f"bar{index}", 2))
        if place != real:
            found.append(f"BAR {index} {place}, QEMU has {real}")
    if config.firmware and observed.bars:
        ecam = next(
            (item.gpa for item in layout.items if item.name == "PCIe configuration space"), None
        )
        if ecam != observed.ecam:
            found.append(f"configuration space {ecam}, QEMU has {observed.ecam}")
    return found


def _ram(layout: vi.Layout) -> RangeSet:
    return RangeSet(item.gpa for item in layout.ram if item.gpa is not None)


def _e820(layout: vi.Layout, real: tuple[tuple[AddrRange, int], ...]) -> list[str]:
    """Compare what QEMU itself says: RAM, and what it reserves above 4 GiB."""
    found = []
    for kind, name in ((1, "usable"), (2, "reserved")):
        theirs = RangeSet(s for s, k in real if k == kind and (kind == 1 or s.start >> 32))
        ours = RangeSet(e.range for e in vi.e820(layout) if e.type == kind and e.range.start >> 32)
        if kind == 1:
            ours, theirs = _ram(layout), theirs
        if ours != theirs:
            found.append(f"e820 {name} {ours}, QEMU has {theirs}")
    return found


def _broken(config: Config, observed: Observed) -> bool:
    """Tell whether a guest that started is no guest: a BAR without a place, or RAM that is lost."""
    if config.machine == "microvm":
        quarter = AddrRange((1 << config.bits) // 4 * 3, (1 << config.bits) - 1)
        return any(span.overlaps(quarter) for span in observed.ram)
    if config.firmware is None:
        return False
    places = [observed.bars.get((f"bar{index}", 2)) for index in range(len(config.bars))]
    top = 1 << config.bits
    return any(
        place is None or place.last >= top or any(place.overlaps(span) for span in observed.ram)
        for place in places
    )


def number(text: str) -> int:
    """Return the address limit that QEMU's refusal names."""
    match = re.search(r"limit (0x[0-9a-f]+) < (0x[0-9a-f]+)", text)
    return int(match[2], 16) if match else 0
