# SPDX-License-Identifier: Apache-2.0
"""A layout, with what the guest must be told and its cost: as text and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmm_iova import remedies as say
from vmm_iova.plain import whole_number
from vmm_iova.planning.layout import Item, ItemKind, Layout
from vmm_iova.planning.memory_maps import map_data, viommu_lines
from vmm_iova.ranges import BASE_PAGE, AddrRange
from vmm_iova.report.answer import answer_data
from vmm_iova.report.devices import member_lines, members_data
from vmm_iova.report.start import start_data, start_lines
from vmm_iova.report.text import evidence, line, section, width_lines
from vmm_iova.report.verdicts import layout_answer
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.assigned import Member
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.difference import Difference
    from vmm_iova.planning.page_tables import PageTables
    from vmm_iova.planning.start import Start


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


def dump_layout(
    layout: Layout,
    cost: Budget,
    generator: str,
    compared: Sequence[tuple[str, str, Budget | None]] = (),
    members: Sequence[Member] = (),
    start: Start | None = None,
    vm: dict[str, Any] | None = None,
) -> str:
    """Return a layout, what the guest must be told, and its cost as a JSON document."""
    document = layout.to_json()
    answer = answer_data(layout_answer(layout, cost, start))
    root = {"schema": document.pop("schema"), "generator": generator, **answer, **document}
    root["told"] = map_data(layout)
    root["cost"] = budget_data(cost)
    root["members"] = members_data(members)
    if start is not None:
        root["start"] = start_data(start)
    if compared:
        root["compared"] = [
            {"policy": policy, "align": align, "cost": None if one is None else budget_data(one)}
            for policy, align, one in compared
        ]
    if vm is not None:
        root["vm"] = vm
    return json.dumps(root, indent=1) + "\n"


def _tables_data(tables: PageTables) -> dict[str, Any]:
    return {
        "leaves": {f"{size:#x}": count for size, count in tables.leaves},
        "bytes": f"{tables.table_bytes:#x}",
    }


def budget_data(cost: Budget) -> dict[str, Any]:
    """What mapping takes."""
    return {
        "entries": cost.entries,
        "entry_limit": cost.entry_limit,
        "entry_limit_known": cost.entry_limit_known,
        "bars": {
            "count": cost.bars[0],
            "required": cost.bars[1],
            "size": f"{cost.bar_bytes:#x}",
        },
        "locked": f"{cost.locked_bytes:#x}",
        "memlock": cost.memlock,
        "page_tables_best": _tables_data(cost.best),
        "page_tables_worst": _tables_data(cost.worst),
        "page_sizes_known": cost.page_sizes_known,
        "fits": cost.fits,
        "containers": cost.containers,
        "chunk": None if cost.chunk is None else f"{cost.chunk:#x}",
        "entries_by_chunk": {f"{size:#x}": count for size, count in cost.by_chunk},
        "large_pages": [
            {"page_size": f"{pages.page_size:#x}", "count": pages.count}
            for pages in cost.large_pages
        ],
        "slots": cost.slots,
        "slot_limit": cost.slot_limit,
        "settings": list(cost.settings),
    }
