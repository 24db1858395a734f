# SPDX-License-Identifier: Apache-2.0
"""JSON for programs: addresses and sizes are hex strings, the root names its schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmm_iova.host.registers import least_bits
from vmm_iova.planning.memory_maps import map_data
from vmm_iova.report.answer import answer_data
from vmm_iova.report.devices import members_data
from vmm_iova.report.start import start_data
from vmm_iova.report.verdicts import layout_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.host.usable import Cause, Usable
    from vmm_iova.machines.model import Machine
    from vmm_iova.planning.assigned import Member
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.layout import Layout
    from vmm_iova.planning.page_tables import PageTables
    from vmm_iova.planning.start import Start
    from vmm_iova.ranges import AddrRange


def dump(name: str, generator: str, payload: dict[str, Any], *, version: int = 1) -> str:
    """Return a JSON document: schema, generator, payload; one newline at its end."""
    root = {"schema": {"name": name, "version": version}, "generator": generator, **payload}
    return json.dumps(root, indent=1) + "\n"


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


def span(item: AddrRange) -> dict[str, str]:
    """A range as `{start, last}`."""
    return {"start": f"{item.start:#x}", "last": f"{item.last:#x}"}


def usable_data(usable: Usable) -> dict[str, Any]:
    """What `Host.usable` says."""
    return {
        "host": usable.host,
        "groups": list(usable.groups),
        "granule": f"{usable.granule:#x}",
        "granule_source": usable.granule_text,
        "ranges": [
            {
                **span(edge.range),
                "start_cause": edge.start_cause.text,
                "last_cause": edge.last_cause.text,
            }
            for edge in usable.edges
        ],
        "evidence": [{"kind": item.kind.value, "text": item.text} for item in usable.evidence],
        "unassignable": [item.text for item in usable.unassignable],
        "widths": [
            {
                "what": item.what,
                "bits": item.bits,
                "source": item.source,
                "counts": item.counts,
                "limits": item.counts and item.bits == least_bits(usable.widths),
            }
            for item in usable.widths
        ],
        "relaxable": [
            {**span(item.range), "source": str(item.source)} for item in usable.relaxable
        ],
        "notes": [note.text for note in usable.notes],
    }


def _cause(cause: Cause) -> dict[str, Any]:
    region = cause.region
    return {
        "kind": cause.kind.value,
        **span(cause.range),
        "text": cause.text,
        "type": region.word if region else None,
        "group": region.group if region else None,
        "source": str(region.source) if region else None,
    }


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """What `check` says of one range."""
    return {
        **span(verdict.range),
        "ok": verdict.ok,
        "kind": verdict.kind,
        "causes": [_cause(cause) for cause in verdict.causes],
        "room": f"{verdict.room:#x}",
        "limit": None if verdict.limit is None else f"{verdict.limit:#x}",
        "bits_needed": verdict.bits_needed,
        "pieces": [span(piece) for piece in verdict.pieces],
        "next_fit": None if verdict.next_fit is None else f"{verdict.next_fit:#x}",
        "warnings": list(verdict.warnings),
        "fixes": list(verdict.fixes),
    }


def _tables(tables: PageTables) -> dict[str, Any]:
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
        "page_tables_best": _tables(cost.best),
        "page_tables_worst": _tables(cost.worst),
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


def machine_data(machine: Machine) -> dict[str, Any]:
    """A machine model."""
    window = machine.pci64
    return {
        "name": machine.name,
        "title": machine.title,
        "arch": machine.arch,
        "aliases": list(machine.aliases),
        "source": machine.source,
        "identity": machine.identity,
        "phys_bits": machine.phys_bits,
        "ram_max": _hex(machine.ram_max),
        "gap32": None if machine.gap32 is None else span(machine.gap32),
        "ram": [
            {
                "name": item.name,
                **span(item.range),
                "whole_below": _hex(item.whole_below),
                "required": f"{item.required:#x}",
                "move_to": _hex(item.move_to),
                "movable": item.movable,
            }
            for item in machine.ram
        ],
        "fixed": [
            {"name": item.name, "kind": item.kind, **span(item.range)} for item in machine.fixed
        ],
        "ram_reserved": [{"name": item.name, **span(item.range)} for item in machine.ram_reserved],
        "pci64": None
        if window is None
        else {
            "size": _hex(window.size),
            "align": f"{window.align:#x}",
            "floor": f"{window.floor:#x}",
            "start": _hex(window.start),
            "share": window.share,
            "downward": window.downward,
        },
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
