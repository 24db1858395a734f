# SPDX-License-Identifier: Apache-2.0
"""What a definition of a VM asks for, whoever's format it was written in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.planning.guest import Guest, Reading
    from vmm_iova.planning.layout import OnHole

Kind = Literal["libvirt", "qemu", "proxmox", "cloud-hypervisor", "firecracker"]
"""Whose format a definition is in."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Formats that are read."""

ChangeForm = Literal["qemu", "libvirt", "proxmox", "cloud-hypervisor"]
"""Forms that a change is written in."""

CHANGE_FORMS: tuple[ChangeForm, ...] = get_args(ChangeForm)

DeviceKind = Literal["pci", "mdev", "other"]
"""What a VM is given: a PCI device, a mediated one, or a VFIO device of another bus."""

LeverName = Literal["caching-mode"]
"""What a definition itself lacks to start."""


@record
class AssignedDevice:
    """A device of the host that the VM is given.

    Attributes:
        name: PCI address, such as `0000:01:00.0`; without function where all of them are meant;
            else a UUID, a path, or what the definition calls it.
        kind: what it is.
        managed: True if the manager of the VM binds it to vfio-pci by itself.
        rom: False if the guest is shown no ROM of it.
    """

    name: str
    kind: DeviceKind = "pci"
    managed: bool = False
    rom: bool = True


@record
class Fault:
    """Why a VM would not start, whatever host it is on.

    Attributes:
        text: what is wrong, a clause.
        fix: what to do, in words.
        lever: which change mends it; None where that is more than a setting.
    """

    text: str
    fix: str
    lever: LeverName | None = None


@record
class Definition:
    """A VM as somebody has written it down. Made by `read_vm`.

    Attributes:
        kind: whose format it is in.
        name: of the VM, or None.
        arch: of the guest, or None where the definition leaves it to the host.
        readings: the guests that may be meant, the oldest release first; one where nothing depends
            on the release.
        devices: what it is given of the host.
        on_hole: what its VMM does where RAM's own place is not free.
        root_ports: True if each device is behind a port of its own, whose window its BARs share.
        ports: each PCIe root port, in the order of the bus, by the devices of the host behind it;
            empty where the definition does not say all of that.
        iommufd: True if its devices go by an iommufd.
        cpu: the value of QEMU's -cpu, where there is one.
        hard_limit: bytes of memory that it may lock, where it says so.
        locked: True if all its memory is locked from the start.
        faults: why it would not start on any host.
        unread: what was not understood, each once.
        text: the definition itself.
        source: what it was called, for messages.

    Synchronization: none required (immutable).
    """

    kind: Kind
    name: str | None
    arch: str | None
    readings: tuple[Reading, ...]
    devices: tuple[AssignedDevice, ...] = ()
    on_hole: OnHole = "auto"
    root_ports: bool = False
    ports: tuple[tuple[str, ...], ...] = ()
    iommufd: bool = False
    cpu: str | None = None
    hard_limit: int | None = None
    locked: bool = False
    faults: tuple[Fault, ...] = ()
    unread: tuple[str, ...] = ()
    text: str = ""
    source: str = ""

    @property
    def guest(self) -> Guest:
        """The guest of the newest release that may be meant."""
        return self.readings[-1].guest

    def readings_on(self, arch: str | None) -> tuple[Reading, ...]:
        """Return every guest that may be meant on a host of this architecture, oldest first.

        Args:
            arch: as `uname -m` prints it, or None; it decides where the definition does not.
        """
        if self.arch is not None or arch != "aarch64":
            return self.readings
        named = (f"{reading.guest.machine}-arm" for reading in self.readings)
        return tuple(
            replace(reading, guest=replace(reading.guest, machine=machine))
            for reading, machine in zip(self.readings, named, strict=True)
        )

    def with_guests(self, readings: Iterable[Reading]) -> Definition:
        """Return the same with other guests; of those that are equal, the newest stays."""
        kept: list[Reading] = []
        for reading in readings:
            if kept and kept[-1].guest == reading.guest:
                kept.pop()
            kept.append(reading)
        if len(kept) == 1:
            kept = [replace(kept[0], text="")]
        return replace(self, readings=tuple(kept))
