# SPDX-License-Identifier: Apache-2.0
"""Memory maps for the guest, in forms that a VMM can use as they are.

An e820 table, the memory nodes of a device tree, and the list of what the guest's own allocators
(PCI BARs, memory hotplug) are to leave alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from vmm_iova import remedies as say
from vmm_iova.errors import RequestError
from vmm_iova.plain import one_line, whole_number
from vmm_iova.planning.layout import ItemKind, Layout
from vmm_iova.ranges import AddrRange, RangeSet
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

E820_TYPES = {1: "usable", 2: "reserved"}
"""Types of the table, as the kernel logs them (arch/x86/kernel/e820.c, e820_print_type)."""

MapForm = Literal["e820", "dts", "iomem", "exclude"]
FORMATS: tuple[MapForm, ...] = get_args(MapForm)
"""Forms that `write_map` writes."""

_RESERVED = (ItemKind.DEVICE, ItemKind.DOORBELL, ItemKind.FIRMWARE, ItemKind.MSI, ItemKind.RESERVED)


@record
class E820Entry:
    """One line of an e820 table.

    Attributes:
        range: guest addresses; an entry of the wire format has its start and its size.
        type: 1 for RAM, 2 for reserved (ACPI specification, 15: INT 15H, E820H).
    """

    range: AddrRange
    type: int

    @property
    def name(self) -> str:
        """The type in the words of the kernel's log."""
        return E820_TYPES[self.type]


def _ram(layout: Layout) -> RangeSet:
    return RangeSet(item.gpa for item in layout.ram if item.gpa is not None)


def _set(spans: Iterable[AddrRange | None]) -> RangeSet:
    return RangeSet(span for span in spans if span is not None)


def e820(layout: Layout) -> tuple[E820Entry, ...]:
    """Return the e820 table of an x86 guest: ascending, no two entries overlap.

    PCI windows are no entries: the guest takes them from ACPI or the device tree, and would leave
    alone what the table lists. Holes of the host are, because the guest would use them otherwise,
    and what the VMM itself reserves, as QEMU does AMD's hole where the guest's CPU is AMD's.

    Raises:
        RequestError: the machine is no x86.
    """
    if layout.machine.arch != "x86_64":
        raise RequestError(
            f"machine {layout.machine.name} is {layout.machine.arch}: e820 is for x86",
            field="format",
            value="e820",
            hint="ask for dts" if layout.machine.identity else None,
        )
    inside = _set(item.range for item in layout.machine.ram_reserved)
    bars = _set(item.gpa for item in layout.items if item.kind in (ItemKind.BAR, ItemKind.ROOM))
    fixed = _set(item.gpa for item in layout.items if item.kind in _RESERVED)
    holes = RangeSet(item.range for item in layout.guest_reserved) - bars
    ram = _ram(layout) - inside
    reserved = (inside & _ram(layout)) | fixed | holes | RangeSet(layout.vmm_reserved)
    entries = [E820Entry(span, 1) for span in ram - reserved]
    entries += (E820Entry(span, 2) for span in reserved)
    return tuple(sorted(entries, key=lambda entry: entry.range))


def exclude(layout: Layout) -> tuple[tuple[AddrRange, str], ...]:
    """Return what the guest's own allocators leave alone, each with its cause, ascending."""
    return tuple((item.range, item.cause.text) for item in layout.guest_reserved)


def _cells(value: int) -> str:
    return f"{value >> 32:#x} {value & 0xFFFF_FFFF:#x}"


def _reg(span: AddrRange) -> str:
    return f"reg = <{_cells(span.start)} {_cells(span.size)}>;"


def device_tree(layout: Layout) -> str:
    """Return the memory and reserved-memory nodes of a guest as device-tree source.

    Both have two address and two size cells. One memory node for each NUMA node and piece, as Linux
    reads them (drivers/of/fdt.c, early_init_dt_scan_memory; drivers/of/of_numa.c). A hole of the
    host is no memory, and a reserved-memory node with `no-map` besides, so that nothing is
    hotplugged there.

    Raises:
        RequestError: the machine's guest has no device tree.
    """
    machine = layout.machine
    if not machine.identity or machine.arch in ("x86_64", "s390x"):
        raise RequestError(
            f"machine {machine.name} is {machine.arch}: its guest has no device tree",
            field="format",
            value="dts",
            hint="ask for e820" if machine.arch == "x86_64" else None,
        )
    return "\n".join(_tree(layout)) + "\n"


def _tree(layout: Layout) -> Iterator[str]:
    number = {name: index for index, (name, _, _) in enumerate(layout.page_sizes)}
    for item in layout.ram:
        yield f"memory@{item.place.start:x} {{"
        yield '\tdevice_type = "memory";'
        yield f"\t{_reg(item.place)}"
        if item.node is not None:
            stated = whole_number(item.node)
            node = number[item.node] if stated is None else stated
            yield f"\tnuma-node-id = <{node}>;"
        yield "};"
    fixed = {item.range for item in layout.machine.fixed}
    for item in layout.items:
        if item.kind is ItemKind.DOORBELL and item.place not in fixed:
            yield f"msi-controller@{item.place.start:x} {{\t/* {item.name} */"
            yield "\tmsi-controller;"
            yield f"\t{_reg(item.place)}"
            yield "};"
    reserved = list(_reserved_nodes(layout))
    if not reserved:
        return
    yield ""
    yield "reserved-memory {"
    yield "\t#address-cells = <2>;"
    yield "\t#size-cells = <2>;"
    yield "\tranges;"
    for span, causes, name in reserved:
        yield ""
        for cause in causes:
            yield f"\t/* {one_line(cause).replace('*/', '* /')} */"
        yield f"\t{name}@{span.start:x} {{"
        yield f"\t\t{_reg(span)}"
        if name == "host-hole":
            yield "\t\tno-map;"
        yield "\t};"
    yield "};"


def _reserved_nodes(layout: Layout) -> Iterator[tuple[AddrRange, list[str], str]]:
    """Yield span, causes and name of each node, ascending; none overlaps another.

    Linux warns of nodes that overlap, and no two may have one name (drivers/of/of_reserved_mem.c,
    __rmem_check_for_overlap).
    """
    holes = [(item.range, item.cause.text) for item in layout.host_holes]
    kept = [entry for entry in exclude(layout) if entry not in holes]
    kept += (
        (item.place, item.name)
        for item in layout.items
        if item.kind is ItemKind.RESERVED and item.gpa is not None
    )
    firmware = [(item.range, item.name) for item in layout.machine.ram_reserved]
    taken, nodes = RangeSet(), list[tuple[AddrRange, list[str], str]]()
    for entries, name in ((holes, "host-hole"), (kept, "reserved"), (firmware, "firmware")):
        for span in RangeSet(span for span, _ in entries) - taken:
            causes = [cause for place, cause in entries if place.overlaps(span)]
            nodes.append((span, list(dict.fromkeys(causes)), name))
        taken = taken | RangeSet(span for span, _ in entries)
    yield from sorted(nodes, key=lambda node: node[0])


def iomem(layout: Layout) -> str:
    """Return the map as `/proc/iomem` of the guest would print it: no holes, no IOVAs."""
    names = {ItemKind.RAM: "System RAM"}
    lines = [
        (item.gpa, names.get(item.kind, item.name)) for item in layout.items if item.gpa is not None
    ]
    lines += dict.fromkeys((item.range, "Reserved") for item in layout.host_holes)
    digits = max([8, *(len(f"{span.last:x}") for span, _ in lines)])
    text, open_ = [], list[AddrRange]()
    for span, name in sorted(lines, key=lambda line: (line[0].start, -line[0].last)):
        while open_ and span.start > open_[-1].last:
            open_.pop()
        text.append(
            f"{'  ' * len(open_)}{span.start:0{digits}x}-{span.last:0{digits}x} : {one_line(name)}"
        )
        open_.append(span)
    return "\n".join(text) + "\n"


def write_map(layout: Layout, form: MapForm) -> str:
    """Write the memory map of a guest, or what it has to leave alone.

    Args:
        layout: the layout.
        form: `e820` (as the kernel logs it), `dts`, `iomem`, or `exclude` (`START-LAST CAUSE`).

    Raises:
        RequestError: no such form, or the machine's guest does not read it.
    """
    if form == "e820":
        return "".join(
            f"BIOS-e820: [mem {e.range.start:#018x}-{e.range.last:#018x}] {e.name}\n"
            for e in e820(layout)
        )
    if form == "dts":
        return device_tree(layout)
    if form == "iomem":
        return iomem(layout)
    if form == "exclude":
        return "".join(f"{span} {one_line(cause)}\n" for span, cause in exclude(layout))
    raise RequestError(
        f"format {form!r} is none of {', '.join(FORMATS)}", field="format", value=form
    )


def map_data(layout: Layout) -> dict[str, Any]:
    """Return all forms that this guest reads, as plain data with hex strings."""
    x86 = layout.machine.arch == "x86_64"
    tree = layout.machine.identity and not x86 and layout.machine.arch != "s390x"
    return {
        "e820": [
            {
                "start": f"{entry.range.start:#x}",
                "size": f"{entry.range.size:#x}",
                "type": entry.type,
                "name": entry.name,
            }
            for entry in e820(layout)
        ]
        if x86
        else None,
        "device_tree": device_tree(layout) if tree else None,
        "exclude": [
            {"start": f"{span.start:#x}", "last": f"{span.last:#x}", "cause": cause}
            for span, cause in exclude(layout)
        ],
        "viommu": _viommu(layout) if layout.viommu else None,
    }


def viommu_lines(layout: Layout) -> Iterator[str]:
    """Say what the guest's own IOMMU must announce; nothing where the guest has none."""
    limits = _viommu(layout) if layout.viommu else None
    if limits is None or limits["input_range"] is None:
        return
    bits, span = limits["address_bits"], limits["input_range"]
    widths = [width for width in _VTD_WIDTHS if width <= bits]
    option = f" ({say.GUEST_IOMMU_OPTION.format(bits=widths[-1])})" if widths else ""
    if layout.machine.arch != "x86_64":
        option = ""
    yield f"at most {bits} address bits, {span['start']}-{span['last']}{option}"
    for hole in limits["reserved"]:
        yield f"must not hand out {hole['start']}-{hole['last']}"


_VTD_WIDTHS = (39, 48)  # those of QEMU's intel-iommu (VTD_HOST_AW_39BIT and _48BIT)


def _viommu(layout: Layout) -> dict[str, Any]:
    """What the guest's own IOMMU must announce: how wide it may be, and what it must not hand out.

    The host maps the addresses that the guest chooses, so they obey the host's ranges
    (virtio-iommu: input_range and RESV_MEM properties; VT-d: aw-bits).
    """
    usable = layout.usable
    hull = usable.ranges.hull
    holes = [] if hull is None else list(usable.ranges.as_set().complement(hull))
    return {
        "address_bits": 0 if hull is None else (hull.last + 1).bit_length() - 1,
        "input_range": None
        if hull is None
        else {"start": f"{hull.start:#x}", "last": f"{hull.last:#x}"},
        "reserved": [{"start": f"{span.start:#x}", "last": f"{span.last:#x}"} for span in holes],
        "page_sizes": None if usable.page_sizes is None else f"{usable.page_sizes:#x}",
    }
