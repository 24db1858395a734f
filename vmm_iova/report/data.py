# SPDX-License-Identifier: Apache-2.0
"""JSON for programs: addresses and sizes are hex strings, the root names its schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm_iova.guest.budget import Budget, PageTables
    from vmm_iova.guest.explain import Verdict
    from vmm_iova.guest.layout import Layout
    from vmm_iova.host.usable import Cause, Usable
    from vmm_iova.ranges import AddrRange


def dump(name: str, generator: str, payload: dict[str, Any]) -> str:
    """Return a JSON document: schema, generator, payload; one newline at its end."""
    root = {"schema": {"name": name, "version": 1}, "generator": generator, **payload}
    return json.dumps(root, indent=1) + "\n"


def dump_layout(layout: Layout, cost: Budget, generator: str) -> str:
    """Return a layout and its cost as a JSON document."""
    found = layout.to_json()
    root = {"schema": found.pop("schema"), "generator": generator, **found}
    return json.dumps({**root, "cost": budget_data(cost)}, indent=1) + "\n"


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
        "locked": f"{cost.locked_bytes:#x}",
        "memlock": cost.memlock,
        "page_tables_best": _tables(cost.best),
        "page_tables_worst": _tables(cost.worst),
        "page_sizes_known": cost.page_sizes_known,
    }
