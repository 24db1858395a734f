# SPDX-License-Identifier: Apache-2.0
"""What a VMM wants placed, in numbers: checked against its machine and a host.

`resolve` checks a `Guest` against a machine and a host and gives plain numbers, so that the planner
need not ask again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import MisalignedError, RequestError
from vmm_iova.host.evidence import HYPERTRANSPORT
from vmm_iova.host.host import Host
from vmm_iova.machines.catalogue import load_machine, usual_machine
from vmm_iova.machines.firmware import candidates
from vmm_iova.machines.model import Machine, check_disjoint
from vmm_iova.machines.parts import CPU_VENDORS, FixedItem, OpenDoorbell, Pci64Window
from vmm_iova.planning.guest import Node
from vmm_iova.planning.wanted_bars import bars_of, room_of
from vmm_iova.ranges import (
    ADDRESS_LAST,
    BASE_PAGE,
    GIB,
    MIB,
    TIB,
    AddrRange,
    check_granule,
    power_up,
)
from vmm_iova.record import record, replace
from vmm_iova.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.machines.firmware import Firmware
    from vmm_iova.machines.parts import CpuVendor
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.guest import Guest


VIOMMU_BITS = (39, 48, 57)
"""Widths of QEMU's intel-iommu (hw/i386/intel_iommu.c, vtd_decide_config(); 57 is new)."""

_MOST_SLOTS = 256  # ACPI_MAX_RAM_SLOTS (QEMU, include/hw/acpi/acpi.h)


@record
class WantedNode:
    """A node in numbers: `name` is None when the guest has no nodes."""

    name: str | None
    size: int
    align: int
    page_size: int | None


@record
class AddressLimit:
    """How far guest addresses go: bits, and who says so."""

    bits: int
    text: str


@record
class Wanted:
    """A guest in numbers, checked.

    Attributes:
        machine: the model.
        ram: bytes in all.
        nodes: in order.
        pci64: the 64-bit window, or None.
        pci64_stated: True if its size was asked for, so it does not grow.
        bars: in the order of the bus; those behind one root port are one.
        spare_ports: of each root port with nothing behind it, how many of `bars` stand before it;
            None where it is not known which ports there are.
        rooms: in the order given.
        reserved: ascending.
        limits: what bounds guest addresses, the narrowest first.
        viommu: True if the guest has an IOMMU.
        devices: number of assigned devices.
        hotplug: bytes of the area for memory that is plugged in later; 0 for none.
        low_ram: most RAM below 4 GiB, or None for what the machine has by itself.
        cpu: vendor of the guest's CPU.
        firmware: what may give out its BARs: one release, or all that may be meant.
        ovmf_window: bytes that OVMF is told for its window, or None.
        doorbells: those to place, in order.
        maxmem: RAM and what may be plugged in, bytes; 0 where nothing is.
        phys_bits: guest address bits that were asked for, or None.
        firmware_open: True if the firmware was not named, so that any kind may be meant.
        viommu_bits: address bits of the guest's own IOMMU where they count, or None.
    """

    machine: Machine
    ram: int
    nodes: tuple[WantedNode, ...]
    pci64: Pci64Window | None
    pci64_stated: bool
    bars: tuple[WantedBar, ...]
    spare_ports: tuple[int, ...] | None
    rooms: tuple[WantedBar, ...]
    reserved: tuple[FixedItem, ...]
    limits: tuple[AddressLimit, ...]
    viommu: bool
    devices: int
    hotplug: int = 0
    low_ram: int | None = None
    cpu: CpuVendor = "other"
    firmware: tuple[Firmware, ...] = ()
    ovmf_window: int | None = None
    doorbells: tuple[OpenDoorbell, ...] = ()
    maxmem: int = 0
    phys_bits: int | None = None
    firmware_open: bool = False
    viommu_bits: int | None = None

    @property
    def address_last(self) -> int:
        """Highest guest address."""
        return (1 << self.limits[0].bits) - 1 if self.limits else ADDRESS_LAST

    def aligned(self, align: int) -> Wanted:
        """Return the same with this alignment for nodes that are not backed by larger pages."""
        nodes = tuple(replace(node, align=max(align, node.page_size or 1)) for node in self.nodes)
        return replace(self, nodes=nodes)


def machine_of(guest: Guest, arch: str | None) -> Machine:
    """Return the machine of a guest on a host of some architecture.

    Raises:
        UnknownNameError: there is no such model.
        HostDataError: its file is malformed.
        HostUnavailableError: its file is missing.
    """
    named = guest.machine
    if named is None:
        named = usual_machine(arch)
    return named if isinstance(named, Machine) else load_machine(named)


def resolve(guest: Guest, usable: Usable) -> Wanted:
    """Check a guest and turn it into numbers.

    Raises:
        RequestError: a size, alignment or number makes no sense.
        MisalignedError: RAM is no multiple of the granule, or of the pages that back it.
        UnknownNameError: no such machine model.
    """
    machine = machine_of(guest, usable.arch)
    align = usable.granule
    if guest.align is not None and guest.align != "auto":
        align = max(check_granule(parse_size(guest.align, "align"), "align"), align)
    nodes = tuple(_nodes(guest, usable, align))
    reserved = tuple(sorted(guest.reserved, key=lambda item: item.range))
    check_disjoint([(item.name, item.range) for item in (*reserved, *machine.fixed)], "reserved")
    bars, spare_ports = bars_of(guest.bars, machine, guest.ports)
    if not machine.identity and (bars or guest.rooms or reserved):
        raise RequestError(
            f"machine {machine.name}: devices do not see guest addresses there, so no BAR, room or "
            "reserved area has a place",
            field="bars",
            value=guest.bars,
        )
    if type(guest.devices) is not int or guest.devices < 1:
        raise RequestError(
            f"devices {guest.devices!r} is not a number from 1",
            field="devices",
            value=guest.devices,
        )
    ram = sum(node.size for node in nodes)
    if guest.cpu is not None and guest.cpu not in CPU_VENDORS:
        raise RequestError(
            f"cpu {guest.cpu!r} is none of {', '.join(CPU_VENDORS)}", field="cpu", value=guest.cpu
        )
    firmware = candidates(guest.firmware, machine)
    return Wanted(
        machine,
        ram,
        nodes,
        _pci64(guest, machine, usable.granule),
        guest.pci64 is not None,
        bars,
        spare_ports if guest.ports else None,
        tuple(room_of(room, usable) for room in guest.rooms),
        reserved,
        tuple(sorted(_limits(guest, machine, usable), key=lambda limit: limit.bits)),
        guest.viommu,
        guest.devices,
        _hotplug(guest, machine, ram),
        _low_ram(guest, machine),
        guest.cpu or _cpu_of(usable),
        firmware,
        _ovmf_window(guest, firmware),
        tuple(_doorbells(guest, machine)),
        0 if guest.maxmem is None else parse_size(guest.maxmem, "maxmem"),
        guest.phys_bits,
        guest.firmware is None,
        _viommu_bits(guest),
    )


def _viommu_bits(guest: Guest) -> int | None:
    bits = guest.viommu_bits
    if bits is not None and bits not in VIOMMU_BITS:
        raise RequestError(
            f"viommu_bits {bits!r} is none of {', '.join(map(str, VIOMMU_BITS))}, the widths that "
            "QEMU's intel-iommu takes",
            field="viommu_bits",
            value=bits,
        )
    return bits


def _doorbells(guest: Guest, machine: Machine) -> Iterable[OpenDoorbell]:
    """Those that the machine leaves open, as the guest wants them, and the guest's own."""
    asked = {bell.name: bell for bell in guest.doorbells}
    if len(asked) < len(guest.doorbells) or asked.keys() & {item.name for item in machine.fixed}:
        raise RequestError(
            "two doorbells have one name, or one has its fixed place on the machine",
            field="doorbells",
            value=tuple(asked),
        )
    if asked and not machine.identity:
        raise RequestError(
            f"machine {machine.name}: interrupts go to no address, so no doorbell has a place",
            field="doorbells",
            value=tuple(asked),
        )
    everywhere = AddrRange(0, ADDRESS_LAST)
    limits = {bell.name: bell.range for bell in machine.open_doorbells}
    yield from (own for own in machine.open_doorbells if own.name not in asked)
    for name, bell in asked.items():
        size = check_granule(parse_size(bell.size, f"size of doorbell {name}"), "size")
        align = size
        if bell.align is not None:
            align = check_granule(parse_size(bell.align, f"align of doorbell {name}"), "align")
        if min(size, align) < BASE_PAGE:
            raise RequestError(
                f"doorbell {name}: size {size:#x} and alignment {align:#x} are not whole pages",
                field="doorbells",
                value=size,
            )
        yield OpenDoorbell(name, size, align, limits.get(name, everywhere))


def _ovmf_window(guest: Guest, firmware: Sequence[Firmware]) -> int | None:
    if guest.ovmf_window is None:
        return None
    size = parse_size(guest.ovmf_window, "ovmf_window")
    if size % MIB or size > 16 * TIB:  # MemDetect.c, PlatformGetFirstNonAddress()
        raise RequestError(
            f"ovmf_window {format_size(size)} is not whole MiB up to 16 TiB",
            field="ovmf_window",
            value=guest.ovmf_window,
        )
    if not any(item.kind == "ovmf" for item in firmware):
        raise RequestError(
            "ovmf_window is a switch of OVMF: --firmware ovmf",
            field="ovmf_window",
            value=guest.ovmf_window,
        )
    return size


def _cpu_of(usable: Usable) -> CpuVendor:
    """The vendor of the host's CPU: AMD's hosts have the HyperTransport hole, Intel's have not."""
    amd = any(cause.range == HYPERTRANSPORT for cause in usable.causes)
    return "amd" if amd else "intel"


def _hotplug(guest: Guest, machine: Machine, ram: int) -> int:
    """Bytes of the area for memory that is plugged in later, as its VMM counts them."""
    if type(guest.slots) is not int or not 0 <= guest.slots <= _MOST_SLOTS:
        raise RequestError(
            f"slots {guest.slots!r} is not a number from 0 to {_MOST_SLOTS}",
            field="slots",
            value=guest.slots,
        )
    if guest.maxmem is None:
        if guest.slots:
            raise RequestError(
                "slots say nothing without maxmem, the RAM and all that may be plugged in",
                field="slots",
                value=guest.slots,
            )
        return 0
    if machine.hotplug is None:
        raise RequestError(
            f"machine {machine.name} has no memory that is plugged in later",
            field="maxmem",
            value=guest.maxmem,
        )
    more = parse_size(guest.maxmem, "maxmem") - ram
    if more < 0 or more % BASE_PAGE:
        raise RequestError(
            f"maxmem {guest.maxmem} is less than the RAM, or no whole pages more",
            field="maxmem",
            value=guest.maxmem,
        )
    if not more:
        return 0
    area = machine.hotplug
    size = more + guest.slots * area.slot
    return -(-size // area.size_align) * area.size_align


def _low_ram(guest: Guest, machine: Machine) -> int | None:
    if guest.max_ram_below_4g is None:
        return None
    size = parse_size(guest.max_ram_below_4g, "max_ram_below_4g")
    if machine.ram[0].cap is None:
        raise RequestError(
            f"machine {machine.name}: its VMM has no option for less RAM below 4 GiB",
            field="max_ram_below_4g",
            value=guest.max_ram_below_4g,
        )
    if not MIB <= size <= 4 * GIB or size % BASE_PAGE:
        raise RequestError(
            f"max_ram_below_4g {format_size(size)} is not whole pages from 1 MiB to 4 GiB",
            field="max_ram_below_4g",
            value=guest.max_ram_below_4g,
        )
    return size


def _nodes(guest: Guest, usable: Usable, align: int) -> Iterable[WantedNode]:
    default = _page_size(guest.page_size)
    if not guest.nodes:
        if guest.ram is None:
            raise RequestError(
                "the size of the RAM (--ram, or nodes) is missing", field="ram", value=None
            )
        ram = parse_size(guest.ram, "ram")
        yield _node(None, ram, default, usable, align, "ram")
        return
    total = 0
    names = set()
    for index, given in enumerate(guest.nodes):
        node = given if isinstance(given, Node) else Node(given)
        name = str(index) if node.name is None else node.name
        if name in names:
            raise RequestError(f"two nodes are named {name!r}", field="nodes", value=name)
        names.add(name)
        size = parse_size(node.size, f"size of node {name}")
        total += size
        pages = default if node.page_size is None else _page_size(node.page_size)
        yield _node(name, size, pages, usable, align, f"node {name}")
    if guest.ram is not None and parse_size(guest.ram, "ram") != total:
        raise RequestError(
            f"ram {format_size(parse_size(guest.ram, 'ram'))} is not the sum of its nodes, "
            f"{format_size(total)}",
            field="ram",
            value=guest.ram,
            hint="leave ram out, or give the sum",
        )


def _node(
    name: str | None, size: int, pages: int | None, usable: Usable, align: int, field: str
) -> WantedNode:
    unit, why = usable.granule, f"granule {usable.granule:#x} ({usable.granule_text})"
    if pages is not None and pages > unit:
        unit, why = pages, f"page size {pages:#x} that backs it"
    if size % unit:
        raise MisalignedError(
            f"{field} {size:#x} is not a multiple of the {why}",
            field=field,
            value=size,
            align=unit,
            hint=f"{size // unit * unit:#x} or {(size // unit + 1) * unit:#x} are",
        )
    return WantedNode(name, size, max(align, unit), pages)


def _page_size(value: str | int | None) -> int | None:
    return None if value is None else check_granule(parse_size(value, "page_size"), "page_size")


def _limits(guest: Guest, machine: Machine, usable: Usable) -> Iterable[AddressLimit]:
    if guest.phys_bits is not None:
        if type(guest.phys_bits) is not int or not 32 <= guest.phys_bits <= 64:
            raise RequestError(
                f"phys_bits {guest.phys_bits!r} is not a number from 32 to 64",
                field="phys_bits",
                value=guest.phys_bits,
            )
        text = f"guest physical address bits: {guest.phys_bits}, as asked for"
        yield AddressLimit(guest.phys_bits, text)
    if machine.phys_bits is not None:
        text = f"guest physical address bits: {machine.phys_bits} at most on {machine.title}"
        yield AddressLimit(machine.phys_bits, text)
    if usable.cpu_bits is not None:
        text = f"physical address bits of the host's CPU: {usable.cpu_bits}"
        yield AddressLimit(usable.cpu_bits, text)


def _pci64(guest: Guest, machine: Machine, granule: int) -> Pci64Window | None:
    default = machine.pci64
    if guest.pci64 is None:
        return default
    if guest.pci64 in (0, "0"):
        return None
    size = parse_size(guest.pci64, "pci64")
    if size % granule:
        raise MisalignedError(
            f"pci64 {size:#x} is not a multiple of the granule {granule:#x}",
            field="pci64",
            value=size,
            align=granule,
        )
    if default is None:
        raise RequestError(
            f"machine {machine.name} has no 64-bit PCI window", field="pci64", value=guest.pci64
        )
    if default.start is not None and default.size is not None and size > default.size:
        raise RequestError(
            f"the 64-bit PCI window of machine {machine.name} has its fixed place at "
            f"{AddrRange.from_size(default.start, default.size)}",
            field="pci64",
            value=guest.pci64,
        )
    if not machine.pci64_sized and size != default.size:
        raise RequestError(
            f"machine {machine.name}: its VMM has no option for the size of the 64-bit PCI window",
            field="pci64",
            value=guest.pci64,
            hint="leave --pci64 out, or give 0 for none",
        )
    if size < default.least or (default.self_aligned and size != power_up(size)):
        raise RequestError(
            f"pci64 {format_size(size)}: {machine.title} takes powers of two from "
            f"{format_size(default.least)}",
            field="pci64",
            value=guest.pci64,
        )
    align = size if default.self_aligned else default.align
    return replace(default, size=size, align=align, share=None)


NO_HOST = "no host"
"""Name of the host that is none."""


def bare_usable(machine: Machine, phys_bits: int | None = None) -> Usable:
    """Return usable ranges of no host at all, to see a machine by itself.

    All guest addresses that it may have are usable: those of `phys_bits`, else those that the
    machine states, else 48 bits.
    """
    bits = phys_bits or machine.phys_bits or 48
    return Host(NO_HOST, origin="a machine by itself").usable(aperture=bits, granule=BASE_PAGE)
