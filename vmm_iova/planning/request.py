# SPDX-License-Identifier: Apache-2.0
"""What a VMM wants placed: RAM with its nodes, BARs, room for later, and areas to keep free.

`Guest` is what a program writes down; `resolve` checks it against a machine and a host and gives
plain numbers, so that the planner need not ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vmm_iova.errors import MisalignedError, RequestError
from vmm_iova.machines.catalogue import load_machine, usual_machine
from vmm_iova.machines.model import FixedItem, Machine, Pci64Window, check_disjoint
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, AddrRange, check_granule
from vmm_iova.units import format_size, parse_size

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.usable import Usable


BarBits = Literal[32, 64]
"""Address bits of a BAR."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Bar:
    """A BAR, or a window of them, that wants a place of its own.

    Attributes:
        name: whose it is.
        size: text or bytes, at least a page; a single BAR is a power of two.
        bits: 64, or 32 for one that must lie below 4 GiB.
        required: True if other devices must reach it (peer-to-peer); else the guest runs without.
        align: text or bytes, a power of two; default the size rounded up to one.
    """

    name: str
    size: str | int
    bits: BarBits = 64
    required: bool = False
    align: str | int | None = None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
        bars: BARs to place, each required or optional for peer-to-peer.
        rooms: room to keep above everything else.
        reserved: areas of guest addresses that nothing may take.
        phys_bits: guest physical address bits that the VMM will give; None: not decided.
        viommu: True if the guest has an IOMMU of its own: each device then has its own container.
        devices: number of assigned devices, for the budget.
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


@dataclass(frozen=True, slots=True)
class WantedNode:
    """A node in numbers: `name` is None when the guest has no nodes."""

    name: str | None
    size: int
    align: int
    page_size: int | None


@dataclass(frozen=True, slots=True)
class WantedBar:
    """A BAR or a room in numbers."""

    name: str
    size: int
    align: int
    bits: Literal[32, 64]
    required: bool


@dataclass(frozen=True, slots=True)
class AddressLimit:
    """How far guest addresses go: bits, and who says so."""

    bits: int
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A guest in numbers, checked.

    Attributes:
        machine: the model.
        ram: bytes in all.
        nodes: in order.
        pci64: the 64-bit window, or None.
        pci64_stated: True if its size was asked for, so it does not grow.
        bars: in the order given.
        rooms: in the order given.
        reserved: ascending.
        limits: what bounds guest addresses, the narrowest first.
        viommu: True if the guest has an IOMMU.
        devices: number of assigned devices.
    """

    machine: Machine
    ram: int
    nodes: tuple[WantedNode, ...]
    pci64: Pci64Window | None
    pci64_stated: bool
    bars: tuple[WantedBar, ...]
    rooms: tuple[WantedBar, ...]
    reserved: tuple[FixedItem, ...]
    limits: tuple[AddressLimit, ...]
    viommu: bool
    devices: int

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
    bars = tuple(_bar(bar) for bar in guest.bars)
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
    return Wanted(
        machine,
        sum(node.size for node in nodes),
        nodes,
        _pci64(guest, machine, usable.granule),
        guest.pci64 is not None,
        bars,
        tuple(_room(room, usable) for room in guest.rooms),
        reserved,
        tuple(sorted(_limits(guest, machine, usable), key=lambda limit: limit.bits)),
        guest.viommu,
        guest.devices,
    )


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


def _bar(bar: Bar) -> WantedBar:
    size = parse_size(bar.size, f"size of BAR {bar.name}")
    if bar.bits not in (32, 64):
        raise RequestError(
            f"BAR {bar.name}: bits {bar.bits!r} is neither 32 nor 64", field="bits", value=bar.bits
        )
    align = 1 << (size - 1).bit_length()
    if bar.align is not None:
        align = check_granule(parse_size(bar.align, f"align of BAR {bar.name}"), "align")
    if align < BASE_PAGE or size % BASE_PAGE:  # it is mapped by whole pages
        raise RequestError(
            f"BAR {bar.name}: size {size:#x} and alignment {align:#x} are not whole pages of "
            "4 KiB, so it cannot be mapped",
            field="align" if size % BASE_PAGE == 0 else "size",
            value=align,
            hint="leave out BARs that no other device needs to reach",
        )
    return WantedBar(bar.name, size, align, bar.bits, bar.required)


def _room(room: Room, usable: Usable) -> WantedBar:
    size = parse_size(room.size, f"size of room {room.name}")
    align = usable.granule
    if room.align is not None:
        align = max(align, check_granule(parse_size(room.align, "align"), "align"))
    return WantedBar(room.name, -(-size // usable.granule) * usable.granule, align, 64, True)


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
    if size < default.least or (default.self_aligned and size & (size - 1)):
        raise RequestError(
            f"pci64 {format_size(size)}: {machine.title} takes powers of two from "
            f"{format_size(default.least)}",
            field="pci64",
            value=guest.pci64,
        )
    align = size if default.self_aligned else default.align
    return replace(default, size=size, align=align, share=None)


def bare_usable(machine: Machine) -> Usable:
    """Return usable ranges of no host at all, to see a machine by itself.

    All guest addresses that the machine may have are usable: 48 bits where it states no limit.
    """
    from vmm_iova.host.host import Host

    bits = machine.phys_bits or 48
    return Host("no host", origin="a machine by itself").usable(aperture=bits, granule=BASE_PAGE)
