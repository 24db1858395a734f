# SPDX-License-Identifier: Apache-2.0
"""A plan and a real start of the same guest: what differs, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import vmm_iova as vi
from vmm_iova.planning.layout import ItemKind
from vmm_iova.ranges import AddrRange, RangeSet

from lab.say import LabError
from lab.vmm.guests import bars_of, command_of, guest_of, has_fw_cfg
from lab.vmm.observe import Observed, Qmp, astray, ecam_of, regions, wait_for_bars, window_of
from lab.vmm.parts import of_parts
from lab.vmm.tables import Tree, device_tree, e820, fw_cfg, srat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.machines.model import Machine

    from lab.vmm.binaries import Qemu
    from lab.vmm.matrix import Config

RAM_NAMES = ("ram-below-4g", "ram-above-4g", "m0", "m1", "microvm.ram-below-4g")
_TREES = ("virt", "virt-lowmem", "virt-gicv2", "riscv-virt")
_SECONDS = {"seabios": 20.0, "ovmf": 120.0}
_LEGACY = AddrRange(0xA_0000, 0xF_FFFF)
"""What ACPI never calls memory of a node (QEMU hw/i386/acpi-build.c, HOLE_640K_START)."""


def start(config: Config, qemu: Qemu) -> Observed:
    """Start the guest and look at it."""
    command, files = command_of(config, qemu)
    qmp = None
    try:
        qmp = Qmp(command)
        if not qmp.alive:
            return Observed(refused=qmp.complaint())
        spans = regions(qmp.hmp("info mtree")[0])
        machine = config.machine.removesuffix("-7.0")
        tables = fw_cfg(qmp) if has_fw_cfg(config) else {}
        tree = device_tree(qmp) if config.machine in _TREES else None
        nodes = tree.memory() if tree else None
        if config.nodes and tables:
            nodes = srat(tables["etc/acpi/tables"])
        if machine in ("q35", "i440fx"):
            path, end = f"/machine/{machine}", "pci-hole-end"
            last = qmp.ask("qom-get", path=path, property=end) - 1
            spans.append(("pci-hole", AddrRange(last, last)))
        observed = Observed(
            ram=tuple(sorted(span for name, span in spans if name in RAM_NAMES)),
            device_memory=next((s for name, s in spans if name == "device-memory"), None),
            window=window_of(qmp, machine, spans),
            e820=e820(tables["etc/e820"]) if tables else None,
            nodes=nodes,
            tree=tree,
            regions=tuple(spans),
        )
        if config.firmware is None:
            return observed
        names = {bar.device for bar in bars_of(config)}
        try:
            bars = wait_for_bars(qmp, names, _SECONDS[config.firmware])
        except LabError:
            return observed  # it gave out none
        ecam = ecam_of(regions(qmp.hmp("info mtree")[0]))
        return replace(observed, bars=bars, ecam=ecam, astray=astray(qmp) & names)
    finally:
        if qmp is not None:
            qmp.close()
        for file in files:
            file.unlink()


def differences(
    config: Config, qemu: Qemu, observed: Observed, model: Machine | None = None
) -> list[str]:
    """Return what the plan has otherwise than the real thing.

    Args:
        config: the guest.
        qemu: which QEMU was started.
        observed: what it had.
        model: the machine, where it is not the bundled one.
    """
    usable = vi.Host("open").usable(aperture=64, granule=4096)
    try:
        layout = vi.plan(guest_of(config, qemu, model), usable)
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
    return list(_differences(config, layout, observed))


def _differences(config: Config, layout: vi.Layout, observed: Observed) -> Iterator[str]:
    if _ram(layout) != RangeSet(observed.ram):
        yield f"RAM {_ram(layout)}, QEMU has {RangeSet(observed.ram)}"
    area = next((item.gpa for item in layout.items if item.kind is ItemKind.ROOM), None)
    if area != observed.device_memory:
        yield f"plugged memory {area}, QEMU has {observed.device_memory}"
    windows = [item for item in layout.items if item.kind is ItemKind.WINDOW]
    window = next((item.gpa for item in windows if item.name.startswith("64")), None)
    if not any(bar.bits == 64 for bar in bars_of(config)) and window != observed.window:
        yield f"64-bit window {window}, QEMU has {observed.window}"
    if observed.e820 is not None:
        yield from _e820(layout, observed.e820)
    if observed.nodes is not None:
        yield from _nodes(layout, observed.nodes)
    if observed.tree is not None:
        yield from _tree(layout, observed.tree)
    if config.firmware is None:
        yield from of_parts(config, layout, observed)
        return
    for bar in bars_of(config):
        place = next(item.gpa for item in layout.items if item.name == bar.device)
        real = observed.bars.get((bar.device, bar.number))
        if place != real:
            yield f"BAR {bar.device} {place}, QEMU has {real}"
    if observed.bars:
        ecam = next(
            (item.gpa for item in layout.items if item.name == "PCIe configuration space"), None
        )
        if ecam != observed.ecam:
            yield f"configuration space {ecam}, QEMU has {observed.ecam}"


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


def _nodes(layout: vi.Layout, real: dict[int, list[AddrRange]]) -> Iterator[str]:
    """Compare the memory of each NUMA node; all is node 0 where there are none."""
    ours: dict[int, list[AddrRange]] = {}
    for item in layout.ram:
        if item.gpa is not None:
            ours.setdefault(int(item.node or 0), []).append(item.gpa)
    x86 = layout.machine.arch == "x86_64"
    legacy = RangeSet([_LEGACY] if x86 else [])
    for node in sorted(ours.keys() | real.keys()):
        mine, theirs = (RangeSet(spans.get(node, ())) - legacy for spans in (ours, real))
        if mine != theirs:
            yield f"node {node} {mine}, QEMU has {theirs}"


def _tree(layout: vi.Layout, tree: Tree) -> Iterator[str]:
    """Compare windows, configuration space and doorbells with the device tree."""
    windows = {
        2: [item.gpa for item in layout.items if item.name == "32-bit PCI window"],
        3: [item.gpa for item in layout.items if item.name == "64-bit PCI window"],
    }
    for kind, places in windows.items():
        real = tree.windows().get(kind)
        if places != ([real] if real else []):
            yield f"window of kind {kind} {places}, the device tree has {real}"
    names = [item for item in layout.items if "configuration" in item.name and item.gpa]
    for ecam in tree.ecam():
        if not any(ecam in item.gpa for item in names if item.gpa):
            yield f"configuration space {[str(i.gpa) for i in names]}, the device tree has {ecam}"
    bells = [item.gpa for item in layout.items if item.kind is ItemKind.DOORBELL]
    for bell in tree.doorbells():
        if bell not in bells:
            yield f"doorbells {bells}, the device tree has {bell}"


def _broken(config: Config, observed: Observed) -> bool:
    """Tell whether a guest that started is no guest: a BAR without a place, or RAM that is lost."""
    if config.machine == "microvm":
        quarter = AddrRange((1 << config.bits) // 4 * 3, (1 << config.bits) - 1)
        return any(span.overlaps(quarter) for span in observed.ram)
    if config.firmware is None:
        return False
    top = 1 << config.bits
    for bar in bars_of(config):
        place = observed.bars.get((bar.device, bar.number))
        if place is None or place.last >= top or place.size != bar.size:
            return True
        if any(place.overlaps(span) for span in observed.ram):
            return True
    return bool(observed.astray)
