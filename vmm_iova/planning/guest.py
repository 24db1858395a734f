# SPDX-License-Identifier: Apache-2.0
"""What a VMM wants placed, as a program writes it down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vmm_iova.record import record

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from vmm_iova.host.bars import BarBits
    from vmm_iova.machines.model import Machine
    from vmm_iova.machines.parts import CpuVendor, FixedItem


@record
class Node:
    """RAM of one NUMA node of the guest.

    Attributes:
        size: text or bytes.
        page_size: size of the pages that back it (`"2MiB"`, `"1GiB"`): its pieces are whole pages.
        name: number or name; default its index.
    """

    size: str | int
    page_size: str | int | None = None
    name: str | None = None


@record
class Bar:
    """A BAR, or a window of them, that wants a place of its own.

    Attributes:
        name: whose it is.
        size: text or bytes, at least a page; a single BAR is a power of two.
        bits: 64, or 32 for one that must lie below 4 GiB.
        required: True if other devices must reach it (peer-to-peer); else the guest runs without.
        align: text or bytes, a power of two; default the size rounded up to one.
        emulated: True if the VMM answers for it itself, as for a ROM: no device ever reaches it.
        port: name of the PCIe root port that its device is behind: 64-bit BARs behind one port
            stand together in a window of it. None: behind none.
        sizes: sizes in bytes that the device can give it; None where that is not known.
        sized_by: file of the host that sizes it (PCIe Resizable BAR); empty where none does.
    """

    name: str
    size: str | int
    bits: BarBits = 64
    required: bool = False
    align: str | int | None = None
    emulated: bool = False
    port: str | None = None
    sizes: tuple[int, ...] | None = None
    sized_by: str = ""


def bar_title(name: str) -> str:
    """Return what to call a BAR of this name in a sentence; one of a host's device says it is."""
    return name if " " in name else f"BAR {name}"


@record
class Room:
    """Room above everything else for what is plugged in later, such as memory; devices reach it.

    Attributes:
        name: what for.
        size: text or bytes.
        align: text or bytes, a power of two; default the granule.
    """

    name: str
    size: str | int
    align: str | int | None = None


@record
class Doorbell:
    """Where a guest's interrupt controller takes MSI writes, for a VMM that chooses the place.

    Attributes:
        name: what it is, such as `its`; one of the machine's open doorbells keeps its limits.
        size: text or bytes, a power of two of at least a page.
        align: text or bytes, a power of two; default the size.
    """

    name: str
    size: str | int
    align: str | int | None = None


@record
class Guest:
    """What a VMM wants.

    Attributes:
        machine: model by name, path of a TOML file, or a `Machine`; None for the usual one of the
            host's architecture (`usual_machine`).
        ram: size of all RAM: text (`"1.5TiB"`) or bytes; a multiple of the host's granule. With
            `nodes` it may be left out, and else is their sum.
        pci64: size of the 64-bit PCI window; None for the machine's default, 0 for none.
        align: where a piece of RAM may begin and, at a hole, end: text or bytes, a power of two;
            default the granule. `"auto"` takes of 1 GiB, 2 MiB and the granule the one that gives
            the fewest pieces, then the fewest page-table entries, then the fewest tables.
        nodes: RAM of each NUMA node (`Node`, or its size); in order, none below an earlier one.
        page_size: size of the pages that back all RAM, where the nodes do not say.
        bars: BARs to place, each required or optional for peer-to-peer, in the order of their
            devices on the bus, a root port where the first behind it is: firmware goes by it.
        rooms: room to keep above everything else.
        reserved: areas of guest addresses that nothing may take.
        phys_bits: guest physical address bits that the VMM will give; None: not decided.
        maxmem: RAM and all memory that may be plugged in later: text or bytes; None for no more.
        slots: slots for memory modules; each takes room for its alignment.
        max_ram_below_4g: most RAM below 4 GiB, where the VMM has an option for it.
        cpu: the vendor of the guest's CPU, by which QEMU decides about AMD's hole; None: as the
            host's.
        firmware: what gives out the BARs of a PC, such as `ovmf` or `seabios-1.16.3`; None for the
            machine's usual one, of any version.
        doorbells: MSI doorbells to place, beside those that the machine leaves open.
        ovmf_window: size of OVMF's window for 64-bit BARs, where it is told one
            (opt/ovmf/X-PciMmio64Mb): it then begins right above RAM.
        viommu: True if the guest has an IOMMU of its own: each device then has its own container.
        devices: number of assigned devices, for the budget.
        viommu_bits: address bits of the guest's own Intel IOMMU; the host's must have as many.
            None: as many as fit.
        ports: PCIe root ports in the order of the bus, by the names that BARs give them
            (`Bar.port`). Firmware keeps room behind each for devices that are plugged in later, so
            that those with nothing behind them move BARs, too. None listed: it is not known which
            there are, and those that BARs name are planned.
    """

    machine: str | os.PathLike[str] | Machine | None = None
    ram: str | int | None = None
    pci64: str | int | None = None
    align: str | int | None = None
    nodes: Sequence[Node | str | int] = ()
    page_size: str | int | None = None
    bars: Sequence[Bar] = ()
    rooms: Sequence[Room] = ()
    reserved: Sequence[FixedItem] = ()
    phys_bits: int | None = None
    viommu: bool = False
    devices: int = 1
    maxmem: str | int | None = None
    slots: int = 0
    max_ram_below_4g: str | int | None = None
    cpu: CpuVendor | None = None
    firmware: str | None = None
    ovmf_window: str | int | None = None
    doorbells: Sequence[Doorbell] = ()
    viommu_bits: int | None = None
    ports: Sequence[str] = ()


@record
class Reading:
    """A guest as one release of its VMM has it, where what was asked for leaves that open.

    Attributes:
        text: which release, such as `QEMU 9.2 and later`; empty where there is one reading.
        guest: the guest.
    """

    text: str
    guest: Guest


class Readable(Protocol):
    """What was asked for elsewhere, such as a `Definition`: one guest for each reading."""

    def readings_on(self, arch: str | None) -> Sequence[Reading]:
        """Return every guest that may be meant on a host of this architecture, oldest first."""
