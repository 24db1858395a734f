# SPDX-License-Identifier: Apache-2.0
"""Devices of a host that a guest is given: the BARs that come with them, and the rest of a group.

BARs as QEMU shows them (hw/vfio/pci.c): each memory BAR as large as the host has it now; the ROM as
a BAR of 32 bits that QEMU answers for itself, so that no device reaches it; the SR-IOV capability
not at all, so virtual functions of a device take no place with it. Cloud Hypervisor does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vmm_iova.host.bars import BarKind
from vmm_iova.host.facts import Device, Note
from vmm_iova.planning.guest import Bar
from vmm_iova.ranges import BASE_PAGE, power_up
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from vmm_iova.host.bars import DeviceBar
    from vmm_iova.host.facts import Facts

Holder = Literal["bridge", "free", "vfio", "held", "not known"]
"""Who has a device: a `bridge` may keep its driver; else no driver (`free`), one of `vfio`, one of
the host (`held`), or nothing says."""


def device_bars(
    host: Facts,
    names: Iterable[str],
    *,
    root_ports: bool | Mapping[str, str] = False,
    without_rom: Collection[str] = (),
) -> tuple[Bar, ...]:
    """Return the BARs that a VMM places for devices of a host, for `Guest.bars`.

    A device whose BARs the facts do not state gives none; `unplaced` says so.

    Args:
        host: its facts.
        names: of devices, as in `Facts.device`; each counts once.
        root_ports: True for each device behind a root port of its own, as libvirt has it on q35
            and virt: what is prefetchable and has 64 bits shares a window, the rest lies below
            4 GiB. A mapping names the port of each device that is behind one.
        without_rom: names of devices that are given without their ROM (QEMU's `rombar=0`).

    Raises:
        UnknownNameError: the host has no such device.

    Complexity: O(devices x BARs).
    Synchronization: none required.
    """
    bare = {host.device(name).name for name in without_rom}
    found: list[Bar] = []
    for device in _chosen(host, names):
        if isinstance(root_ports, bool):
            port = f"the port of {device.name}" if root_ports else None
        else:
            port = root_ports.get(device.name)
        found += (
            _bar(device, bar, bar.size, port)
            for bar in device.bars or ()
            if bar.size is not None
            and bar.kind is not BarKind.VF
            and not (bar.kind is BarKind.ROM and device.name in bare)
        )
    return tuple(found)


def unplaced(host: Facts, names: Iterable[str]) -> tuple[Note, ...]:
    """Say of which devices the BARs, or their sizes, are not known.

    Raises:
        UnknownNameError: the host has no such device.
    """
    devices = _chosen(host, names)
    unknown = [device.name for device in devices if device.bars is None]
    notes = [f"the BARs of {', '.join(unknown)} are not known, so that they have no place (--bar)"]
    for device in devices:
        for bar in device.bars or ():
            if bar.size is None and bar.kind is not BarKind.VF:
                text = f"the size of {bar.title} of {device.name} is not known: it has no place"
                notes.append(f"{text} (--bar)")
    return tuple(map(Note, notes if unknown else notes[1:]))


def _chosen(host: Facts, names: Iterable[str]) -> tuple[Device, ...]:
    devices = {device.name: device for device in map(host.device, names)}
    return tuple(devices.values())


def _bar(device: Device, bar: DeviceBar, size: int, port: str | None) -> Bar:
    """A BAR as its VMM shows it.

    Behind a port what is not prefetchable lies below 4 GiB: only the other window of a bridge has
    64 bits (PCI-to-PCI bridge specification 1.2, 3.2.5).
    """
    rom = bar.kind is BarKind.ROM
    wide = bar.bits == 64 and not rom and (port is None or bar.prefetchable)
    file = f"/sys/bus/pci/devices/{device.name}/resource{bar.index}_resize" if bar.sizes else ""
    return Bar(
        f"{device.name} {bar.title}",
        max(power_up(size), BASE_PAGE),  # firmware gives each a page of its own
        64 if wide else 32,
        emulated=rom,
        port=port if wide else None,
        sizes=bar.sizes or (size,),
        sized_by=file,
    )


@record
class Member:
    """A device of a group that goes to a guest.

    Attributes:
        device: it.
        holder: who has it now.
        asked: True if it was asked for; else it comes along.
    """

    device: Device
    holder: Holder
    asked: bool


def members(host: Facts, names: Iterable[str]) -> tuple[Member, ...]:
    """Return the whole groups of devices that a guest is given: those, and what comes along.

    Args:
        host: its facts.
        names: of devices, as in `Facts.device`.

    Returns:
        First the devices that were asked for, then the others of their groups.

    Raises:
        UnknownNameError: the host has no such device.

    Complexity: O(devices of the host).
    Synchronization: none required.
    """
    asked = _chosen(host, names)
    known = {device.name: device for device in host.devices}
    others: dict[str, Device] = {}
    for device in asked:
        for group in host.groups:
            if group.id == device.group:
                for name in group.devices:
                    others[name] = known.get(name) or Device(name, group=group.id)
    taken = {device.name: device for device in asked}
    return tuple(
        Member(device, holder_of(host, device) if name in known else "not known", name in taken)
        for name, device in (taken | others).items()
    )


def holder_of(host: Facts, device: Device) -> Holder:
    """Tell who has a device.

    Source: drivers/vfio/vfio_main.c, vfio_dev_viable (to Linux 5.19); drivers/iommu/iommu.c,
    iommu_device_use_default_domain, and driver_managed_dma of pcieport, pci-stub and the drivers
    of VFIO (since 6.0).
    """
    if device.bridge:
        return "bridge"
    if device.driver is None:
        return "free" if host.sysfs else "not known"
    return "vfio" if "vfio" in device.driver or device.driver == "pci-stub" else "held"
