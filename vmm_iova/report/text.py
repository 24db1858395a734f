# SPDX-License-Identifier: Apache-2.0
"""Text for people, in the manner of /proc/iomem: `start-last : name`, indented where inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.host.facts import PASTED
from vmm_iova.host.registers import info_features, least_bits, unit_features
from vmm_iova.host.usable import CauseKind, Usable
from vmm_iova.plain import whole_number
from vmm_iova.planning.layout import Item, ItemKind, Layout
from vmm_iova.planning.memory_maps import viommu_lines
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, AddrRange
from vmm_iova.report.devices import host_devices, member_lines
from vmm_iova.report.start import start_lines, state_lines
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.facts import Note, ReservedRegion
    from vmm_iova.host.host import Host
    from vmm_iova.host.registers import Width
    from vmm_iova.machines.model import Machine
    from vmm_iova.machines.parts import RamWindow
    from vmm_iova.planning.assigned import Member
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.difference import Difference
    from vmm_iova.planning.page_tables import PageTables
    from vmm_iova.planning.start import Start

_NAME = 26


def line(
    span: AddrRange, name: str, *, indent: int = 0, bytes_: bool = False, more: str = ""
) -> str:
    """One line of a map."""
    size = f"{span.size:#x}" if bytes_ else show_size(span.size)
    text = f"{' ' * indent}{span.start:016x}-{span.last:016x} : {name:<{_NAME - indent}} {size:>10}"
    return f"{text}  {more}".rstrip()


def section(title: str, entries: Iterable[str]) -> Iterator[str]:
    """A titled list, or nothing when there is nothing in it."""
    listed = list(entries)
    if listed:
        yield ""
        yield title
        yield from (f"  {entry}" for entry in listed)


def show_host(host: Host, usable: Usable | None, why_not: str | None, *, bytes_: bool) -> str:
    """Show the facts of a host and, where they settle it, what is usable."""
    lines = []
    if usable is not None:
        lines += [f"warning: {entry.text}" for entry in usable.unassignable]
    system = " ".join(filter(None, (host.arch, host.release and f"Linux {host.release}")))
    lines.append(f"host    {host.name}" + (f" ({system})" if system else ""))
    lines.append(f"origin  {host.origin}")
    lines += section("iommu", (_unit(host, index) for index in range(len(host.units))))
    lines += section("iommu, as the kernel says (IOMMU_GET_HW_INFO)", _infos(host))
    lines += section("groups", _groups(host))
    lines += section("devices", host_devices(host))
    if usable is None:
        lines += section("regions", _regions(host, bytes_))
        lines += section("usable: not known", filter(None, [why_not]))
        notes: Sequence[Note] = host.notes
    else:
        lines += ["", "map", *usable_map(usable, bytes_=bytes_)]
        lines += section("evidence", evidence(usable))
        notes = usable.notes
        lines += section("address widths", width_lines(usable.widths))
    lines += section("limits", _limits(host))
    lines += section("at the moment", state_lines(host.state))
    lines += section("notes", (note.text for note in notes))
    return "\n".join(lines) + "\n"


def _unit(host: Host, index: int) -> str:
    unit = host.units[index]
    registers = [
        f"cap {unit.cap:x}" if unit.cap is not None else "",
        f"ecap {unit.ecap:x}" if unit.ecap is not None else "",
        f"features {unit.features}" if unit.features else "",
    ]
    features = unit_features(unit, host.release)
    able = f": {', '.join(features)}" if features else ""
    return " ".join(filter(None, (unit.name, *registers))) + able


def _infos(host: Host) -> Iterator[str]:
    """What iommufd says; devices whose IOMMU is the same say it once."""
    same: dict[str, list[str]] = {}
    for info in host.iommu_info:
        features = info_features(info)
        able = f": {', '.join(features)}" if features else ""
        registers = " ".join(f"{name} {value:x}" for name, value in info.registers)
        told = registers or "its driver tells no registers"
        same.setdefault(f"{told}{able}", []).append(info.device)
    for text, devices in same.items():
        more = f" and {len(devices) - 3} more" if len(devices) > 3 else ""
        yield f"{', '.join(devices[:3])}{more} {text}"


def _groups(host: Host) -> Iterator[str]:
    devices = {device.name: device for device in host.devices}
    for group in host.groups:
        if group.id == PASTED:
            continue
        members = []
        for name in group.devices:
            device = devices.get(name)
            of = [item for item in (device.driver, device.iommu) if item] if device else []
            members.append(f"{name} ({', '.join(of)})" if of else name)
        state = group.damaged or group.unreadable
        kind = f" {group.type}" if group.type else ""
        yield f"{group.id}{kind}: {', '.join(members) or 'no members named'}" + (
            f" [{state}]" if state else ""
        )


def _regions(host: Host, bytes_: bool) -> Iterator[str]:
    listed = [region for group in host.groups for region in group.regions or ()]
    same: dict[tuple[AddrRange, str], list[ReservedRegion]] = {}
    for region in sorted([*listed, *host.log_regions], key=lambda item: item.range):
        same.setdefault((region.range, region.word), []).append(region)
    for (span, word), regions in same.items():
        groups = [item.group for item in regions if item.group and item.group != PASTED]
        of = f"groups {', '.join(groups[:8])}{', ...' if len(groups) > 8 else ''}; "
        more = f"{of if groups else ''}{regions[0].source}"
        yield line(span, word, bytes_=bytes_, more=more)


def _limits(host: Host) -> Iterator[str]:
    if host.limits.dma_entries is not None:
        yield f"map calls in one container: {host.limits.dma_entries}"
    if host.limits.memlock is not None:
        limit = "unlimited" if host.limits.memlock < 0 else show_size(host.limits.memlock)
        yield f"locked memory (RLIMIT_MEMLOCK): {limit}"


def usable_map(usable: Usable, *, bytes_: bool) -> Iterator[str]:
    """The whole space as lines: usable ranges, and the cause of everything between."""
    last = -1
    for span in usable.ranges:
        yield from _between(usable, last + 1, span.start - 1, bytes_)
        yield line(span, "usable", bytes_=bytes_)
        for region in sorted(usable.relaxable, key=lambda item: item.range):
            shared = region.range.intersect(span)
            if shared is not None:
                more = f"usable, with a warning; {region.source}"
                yield line(shared, region.word, indent=2, bytes_=bytes_, more=more)
        last = span.last
    yield from _between(usable, last + 1, ADDRESS_LAST, bytes_)


def _between(usable: Usable, start: int, last: int, bytes_: bool) -> Iterator[str]:
    if start > last:
        return
    for cause in usable.causes_of(AddrRange(start, last)):
        shared = cause.range.align_outward(usable.granule).intersect(AddrRange(start, last))
        if shared is not None:
            name = cause.region.word if cause.region else _SHORT.get(cause.kind, "not usable")
            yield line(shared, name, bytes_=bytes_, more=cause.text)


_SHORT = {
    CauseKind.APERTURE: "outside of the aperture",
    CauseKind.KERNEL_GAP: "not in the kernel's list",
    CauseKind.TOP_PAGE: "last page",
    CauseKind.GRANULE: "less than a granule",
}


def evidence(usable: Usable) -> Iterator[str]:
    """What the answer rests on."""
    lines = [f"{' (an upper bound)' * item.bound}: {item.text}" for item in usable.evidence]
    for index, text in enumerate(dict.fromkeys(lines)):  # groups that agree say it once
        yield f"{'aperture' if index == 0 else 'and'}{text}"
    yield f"granule: {show_size(usable.granule)}, {usable.granule_text}"


def width_lines(widths: Sequence[Width]) -> Iterator[str]:
    """Every address width, side by side, the limiting ones marked."""
    least = least_bits(widths)
    for width in widths:
        mark = "  <- limits" if width.counts and width.bits == least else ""
        aside = "" if width.counts else ", says nothing about what may be mapped"
        yield f"{width.bits:>2} bits  {width.what} ({width.source}{aside}){mark}"


def machine_row(machine: Machine) -> dict[str, str]:
    """A machine model as a row of a table; the first seven columns are the usual ones."""
    gap = machine.gap32
    return {
        "NAME": machine.name,
        "ARCH": machine.arch,
        "RAM-FROM": f"{machine.ram[0].range.start:#x}",
        "GAP32": "none"
        if gap is None
        else f"{gap.start:#x}+{show_size(gap.size)}".replace(" ", ""),
        "PCI64": _window_of(machine),
        "LIMITS": _limits_of(machine),
        "TITLE": machine.title,
        "ALIASES": ",".join(machine.aliases),
        "SOURCE": machine.source,
    }


def _window_of(machine: Machine) -> str:
    window = machine.pci64
    if window is None:
        return "none"
    if window.start is not None:
        return f"{show_size(window.size or 0)} at {window.start:#x}"
    if window.size is not None:
        return f"{show_size(window.size)} above RAM"
    return f"topmost 1/{window.share}" if window.share else "all above RAM"


def _limits_of(machine: Machine) -> str:
    limits = [f"{machine.phys_bits} bits" if machine.phys_bits else ""]
    limits.append(f"{show_size(machine.ram_max)} RAM" if machine.ram_max else "")
    return ", ".join(filter(None, limits)) or "none"


def show_machine(machine: Machine, *, bytes_: bool) -> str:
    """Show a machine model: where RAM may and must go, and what else has its place."""
    lines = [
        f"machine  {machine.name}: {machine.title}, {machine.arch}",
        f"source   {machine.source}",
        f"limits   {_limits_of(machine)}; 64-bit PCI window: {_window_of(machine)}",
        f"IOVA     {'equals the guest address' if machine.identity else 'is chosen'}",
        "",
    ]
    entries = [(item.range, f"RAM {item.name}", _window_note(item)) for item in machine.ram]
    entries += ((item.range, item.name, item.kind) for item in machine.fixed)
    entries += ((item.range, item.name, "told to the guest") for item in machine.ram_reserved)
    open_: list[AddrRange] = []
    for place, name, more in sorted(entries, key=lambda e: (e[0].start, -e[0].last)):
        while open_ and place.start > open_[-1].last:
            open_.pop()
        lines.append(line(place, name, indent=2 * len(open_), bytes_=bytes_, more=more))
        open_.append(place)
    options = (f"{name}: {template}" for name, template in machine.options)
    return "\n".join([*lines, *section("options of the VMM", options)]) + "\n"


def _window_note(window: RamWindow) -> str:
    clauses = [
        f"the first {show_size(window.required)} must be RAM" if window.required else "",
        f"all RAM below {window.whole_below:#x} is here" if window.whole_below else "",
        f"may move to {window.move_to:#x} as a whole" if window.move_to else "",
        "may begin elsewhere" if window.movable and not window.move_to else "",
    ]
    return ", ".join(filter(None, clauses))


def show_layout(
    layout: Layout,
    cost: Budget,
    *,
    bytes_: bool,
    compared: Sequence[tuple[str, str, Budget | None]] = (),
    members: Sequence[Member] = (),
    start: Start | None = None,
) -> str:
    """Show where everything went, what cut it, what the guest must be told and what it costs."""
    machine = layout.machine
    lines = [f"warning: {entry.text}" for entry in layout.usable.unassignable]
    lines += [
        f"guest   {machine.title}, {show_size(layout.ram_bytes)} RAM",
        f"host    {layout.usable.host}" + _of_groups(layout.usable),
        f"policy  on hole: {layout.on_hole}; done: {_done(layout)}; "
        f"{layout.address_bits} address bits",
        "",
    ]
    lines += _map(layout, bytes_)
    lines += section("devices", member_lines(members))
    lines += section("will it start", () if start is None else start_lines(start))
    lines += section("cuts", _cuts(layout))
    lines += section(
        "tell the guest that these are reserved",
        (
            line(item.range, "reserved", bytes_=bytes_, more=item.cause.text)
            for item in layout.guest_reserved
        ),
    )
    lines += section("the guest's own IOMMU", viommu_lines(layout))
    lines += section("changed against the saved layout", layout.changes)
    lines += section("cost", _cost(cost))
    lines += section("set", cost.settings)
    lines += section("cost by policy and page size", _compared(compared))
    lines += section("address widths", width_lines(layout.widths))
    lines += section("evidence", evidence(layout.usable))
    warned = {entry.text for entry in layout.usable.unassignable}
    lines += section("notes", (note.text for note in layout.notes if note.text not in warned))
    return "\n".join(lines) + "\n"


def _compared(compared: Sequence[tuple[str, str, Budget | None]]) -> Iterator[str]:
    for policy, align, cost in compared:
        if cost is None:
            yield f"{policy:<7} {align:<8} refused"
            continue
        yield (
            f"{policy:<7} {align:<8} {cost.slots} pieces, {cost.entries} map calls, "
            f"{show_size(cost.best.table_bytes)} of tables{'' if cost.fits else ' -- TOO MANY'}"
        )


def _of_groups(usable: Usable) -> str:
    named = [group for group in usable.groups if whole_number(group) is not None]
    return f", groups {', '.join(named)}" if named else ""


def _done(layout: Layout) -> str:
    pieces = len(layout.ram)
    count = "1 piece" if pieces == 1 else f"{pieces} pieces"
    kept = "kept as saved, " if layout.kept else ""
    return f"{kept}{layout.policy}, {count} of RAM"


def _map(layout: Layout, bytes_: bool) -> Iterator[str]:
    holes = dict.fromkeys(entry.range for entry in layout.host_holes)
    entries: list[tuple[AddrRange, Item | None]] = [(item.place, item) for item in layout.items]
    entries += [(span, None) for span in holes if not _shown(layout, span)]
    entries.sort(key=lambda pair: (pair[0].start, -pair[0].last))
    open_: list[AddrRange] = []
    for span, item in entries:
        while open_ and span.start > open_[-1].last:
            open_.pop()
        indent = 2 * len(open_)
        open_.append(span)
        name = "reserved by the host" if item is None else _name(item)
        yield line(span, name, indent=indent, bytes_=bytes_, more=_aside(item))


def _shown(layout: Layout, span: AddrRange) -> bool:
    return any(item.kind is ItemKind.MSI and item.place == span for item in layout.items)


def _name(item: Item) -> str:
    return (
        f"RAM {item.name}"
        if item.kind is ItemKind.RAM and item.name != "ram"
        else ("RAM" if item.kind is ItemKind.RAM else item.name)
    )


def _aside(item: Item | None) -> str:
    if item is None:
        return "the guest must be told"
    if item.gpa is None:
        return "IOVA, not a guest address"
    if item.kind is ItemKind.BAR and item.iova is None:
        return "peers do not reach it"
    clauses = [f"node {item.node}"] if item.node is not None else []
    if item.iova is not None and item.iova != item.gpa:
        clauses.append(f"IOVA {item.iova.start:016x}-{item.iova.last:016x}")
    return ", ".join(clauses)


def _cuts(layout: Layout) -> Iterator[str]:
    for item in layout.items:
        if item.kind not in (ItemKind.RAM, ItemKind.WINDOW):
            continue
        span = item.iova or item.place
        if item.start_cause:
            yield f"{_name(item)} begins at {span.start:#x}: {item.start_cause}"
        if item.last_cause:
            yield f"{_name(item)} ends at {span.last:#x}: {item.last_cause}"


def _cost(cost: Budget) -> Iterator[str]:
    known = "" if cost.entry_limit_known else " (the kernel's default; the host states none)"
    over = " -- TOO MANY for type1" if cost.entries > cost.entry_limit else ""
    each = f", each {show_size(cost.chunk)} at most" if cost.chunk else ""
    yield f"map calls      {cost.entries} of {cost.entry_limit}{known}{each}{over}"
    if cost.bars[0]:
        must = f", {cost.bars[1]} of them required" if cost.bars[1] else ""
        yield f"mapped BARs    {cost.bars[0]}{must}, {show_size(cost.bar_bytes)}, not locked"
    times = f" ({cost.containers} containers)" if cost.containers > 1 else ""
    yield f"locked memory  {show_size(cost.locked_bytes)}{times}, {_memlock(cost)}"
    known = "" if cost.page_sizes_known else ", if host and hardware have such pages"
    yield f"page tables    {_tables(cost.best, cost.containers)}{known}"
    if cost.worst.table_bytes != cost.best.table_bytes:
        large = any(count for size, count in cost.worst.leaves if size > BASE_PAGE)
        yield f"               {_tables(cost.worst, cost.containers)}{known if large else ''}"


def _memlock(cost: Budget) -> str:
    if cost.memlock is None:
        return f"so RLIMIT_MEMLOCK >= {cost.locked_bytes:#x} or CAP_IPC_LOCK"
    if cost.memlock < 0:
        return "and RLIMIT_MEMLOCK is unlimited"
    if cost.memlock >= cost.locked_bytes:
        return f"within RLIMIT_MEMLOCK of {show_size(cost.memlock)}"
    return f"MORE than RLIMIT_MEMLOCK of {show_size(cost.memlock)}: " + say.LOCK_NUMBER.format(
        kib=-(-cost.locked_bytes // 1024), size=cost.locked_bytes
    )


def _tables(tables: PageTables, containers: int) -> str:
    leaves = ", ".join(f"{count} x {show_size(size)}" for size, count in tables.leaves if count)
    each = f" in each of {containers} containers" if containers > 1 else ""
    return f"{show_size(tables.table_bytes * containers)} for {leaves}{each}"


def show_difference(difference: Difference, left: str, right: str) -> str:
    """Show what differs between two hosts or two layouts, beside what the answer has said."""
    if difference.same:
        return ""
    lines = [f"- {left}", f"+ {right}"]
    for title, ours, theirs in difference.sections:
        lines += section(title, (*(f"- {entry}" for entry in ours), *(f"+ {e}" for e in theirs)))
    return "\n".join(lines) + "\n"
