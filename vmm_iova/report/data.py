# SPDX-License-Identifier: Apache-2.0
"""JSON for programs: addresses and sizes are hex strings, the root names its schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmm_iova.host.registers import least_bits

if TYPE_CHECKING:
    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.host.usable import Cause, Usable
    from vmm_iova.ranges import AddrRange


def dump(name: str, generator: str, payload: dict[str, Any], *, version: int = 1) -> str:
    """Return a JSON document: schema, generator, payload; one newline at its end."""
    root = {"schema": {"name": name, "version": version}, "generator": generator, **payload}
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
