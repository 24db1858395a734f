# SPDX-License-Identifier: Apache-2.0
"""What listings of other programs in a pasted text say of a host: groups, devices, CPU, windows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vmm_iova.host.bars import BarKind, DeviceBar
from vmm_iova.host.facts import Device, Note, Platform
from vmm_iova.patterns import regex
from vmm_iova.readers.cpu import read_cpu
from vmm_iova.readers.iommu_groups import read_iommu_groups
from vmm_iova.readers.kernel_log import read_kernel_log
from vmm_iova.readers.lspci import read_lspci
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.readers.cpu import Cpu
    from vmm_iova.readers.lspci import PciDevice

_LINE = regex(
    r"Adding to iommu group \d|Adding device \S{1,64} to group \d|root bus resource|"
    r"pci_bus \S{1,12}: resource \d|"
    r"iommu_groups/\d{1,9}/devices/|iommu_group -> |IOMMU [Gg]roup:? \d|"
    r"^\s*(?:Region \d:|Kernel driver in use:|Kernel modules:|Subsystem:|Control:|Status:|Latency|"
    r"Capabilities:|Flags:|Physical Slot:|NUMA node:|Interrupt:|Expansion ROM|Memory at |"
    r"I/O ports at )|"
    r"^(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7] [A-Z3]|"
    r"^(?:Group:? {1,9}\d{1,9}:?)?\s{0,9}\[[0-9a-f]{4}:[0-9a-f]{4}\]\s{1,9}(?:\[R\]\s{1,9})?"
    r"[0-9a-f:]{5,12}\.[0-7]\s|"
    r"^(?:Architecture|CPU op-mode|Address sizes|Vendor ID|Model name|CPU\(s\)|Hypervisor vendor|"
    r"Virtualization)\b.{0,20}:|^(?:vendor_id|model name|address sizes|flags)\s*:|"
    r"[Ss]etting identity map for device|RMRR region: base_addr"
)


def is_listed(line: str) -> bool:
    """Tell whether a line is one of a listing that `read_dumps` reads, or of what surrounds it."""
    return _LINE.search(line[:400]) is not None


@record
class Dumps:
    """The facts of the listings of a text.

    Attributes:
        groups: devices of each group.
        devices: with group and driver, where a listing says so.
        arch: of the CPU, or None.
        cpu_bits: its physical address bits, or None.
        platform: what a listing of its CPU says of the machine.
        notes: what was seen and does not count.
    """

    groups: dict[str, tuple[str, ...]]
    devices: tuple[Device, ...]
    arch: str | None
    cpu_bits: int | None
    platform: Platform
    notes: tuple[Note, ...]

    def __bool__(self) -> bool:
        return bool(self.groups or self.devices or self.arch or self.cpu_bits or self.notes)


def cpu_platform(cpu: Cpu | None) -> Platform:
    """Return what a listing of the CPU says of the machine around it."""
    if cpu is None:
        return Platform()
    return Platform(cpu.vendor, cpu.guest)


def read_dumps(lines: Sequence[str], name: str) -> Dumps:
    """Read what the listings say.

    Args:
        lines: the text.
        name: of the text, for the notes.

    Complexity: O(size).
    """
    pci, log, cpu = read_lspci(lines), read_kernel_log(lines), read_cpu(lines)
    group_of = {item.name: item.group for item in pci if item.group is not None}
    group_of.update(log.groups)
    group_of.update(read_iommu_groups(lines))
    drivers = {item.name: item.driver for item in pci}
    classes = {item.name: item.pci_class for item in pci}
    bars_of = {item.name: _bars(item) for item in pci}
    names = sorted({*group_of, *drivers})
    groups: dict[str, list[str]] = {}
    for device, group in group_of.items():
        groups.setdefault(group, []).append(device)
    notes = []
    if log.windows:
        shown = ", ".join(f"{span} of {bus}" for bus, span in log.windows[-3:])
        text = f"{name}: windows of root buses ({shown}) are physical addresses: no limit on IOVAs"
        notes.append(Note(text, False))
    bars = sum(len(item.regions) for item in pci) + len(log.bars)
    if bars:
        text = f"{name}: {bars} BARs are host addresses: where a guest has them is the guest's"
        notes.append(Note(text, False))
    return Dumps(
        groups={group: tuple(sorted(members)) for group, members in groups.items()},
        devices=tuple(
            Device(
                device,
                group=group_of.get(device),
                driver=drivers.get(device),
                pci_class=int(code, 16) << 8 if (code := classes.get(device)) else None,
                bars=bars_of.get(device),
            )
            for device in names
        ),
        arch=cpu.arch if cpu else None,
        cpu_bits=cpu.physical_bits if cpu else None,
        platform=cpu_platform(cpu),
        notes=tuple(notes),
    )


def _bars(device: PciDevice) -> tuple[DeviceBar, ...] | None:
    """BARs of a device; None where the listing would not have had them."""
    if not (device.verbose or device.regions):
        return None
    bars, places = [], Counter[BarKind]()
    for region in device.regions:
        kind = BarKind(region.kind)
        if kind is BarKind.ROM and region.size is None:
            continue  # the kernel has no room for it, so that nobody sees it
        index = places[kind] if region.index is None else region.index
        places[kind] += 1
        bars.append(
            DeviceBar(
                index,
                region.size,
                64 if region.wide else 32,
                region.prefetchable,
                kind,
                region.start is not None or kind is BarKind.VF,
                region.sizes,
            )
        )
    return tuple(bars)
