# SPDX-License-Identifier: Apache-2.0
"""Why a call failed, for people and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.report import data
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.diagnosis.findings import Diagnosis

_OPS = {
    "map": "map",
    "unmap": "unmap",
    "set-iommu": "setting up the container",
    "attach": "attach",
    "bind": "bind to iommufd",
    "open": "opening the device",
    "fault": "DMA",
    "memslot": "KVM memory slot",
    "start": "starting",
    "setup": "setting up the device",
}


def show_diagnosis(diagnosis: Diagnosis) -> str:
    """Say what a failure means, why it happened, since when, what fits and what helps."""
    return "\n".join(_lines(diagnosis)) + "\n"


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield _title(diagnosis)
    yield f"  means: {diagnosis.meaning}"
    for item in diagnosis.findings:
        yield f"  {_CERTAINTY[item.certainty]} {item.why.value}; {item.text}"
    sure = [item for item in diagnosis.findings if item.certainty != "possible"]
    for since in dict.fromkeys(item.since for item in sure):
        yield f"  kernel: {since}"
    yield from _fits(diagnosis)
    yield from (f"  note: {text}" for text in diagnosis.notes)
    yield from (f"  settles it: {text}" for text in diagnosis.settles)
    yield from (f"  fix: {text}" for text in diagnosis.fixes)


_CERTAINTY = {"certain": "because:", "likely": "likely:", "possible": "possible:"}


def _title(diagnosis: Diagnosis) -> str:
    call = diagnosis.failure
    if call.range is not None:
        where = f" of {call.range} ({show_size(call.range.size)})"
    elif call.iova is not None and call.op != "start":
        where = f" at {call.iova:#x}"
    else:
        where = ""
    who = "".join(f"{name}: " for name in (call.name, call.program) if name)
    on = f" on {diagnosis.host}" if diagnosis.host else ""
    what = "found no mapping" if call.op == "fault" else f"failed{_with(call.errno)}"
    return f"{who}{_OPS[call.op]}{where} {what}{on}"


def _with(errno: str | None) -> str:
    return f" with {errno}" if errno else ""


def _fits(diagnosis: Diagnosis) -> Iterator[str]:
    verdict = diagnosis.verdict
    if verdict is None or verdict.ok or diagnosis.failure.op == "fault":
        return
    if verdict.limit is not None and verdict.kind == "outside_aperture":
        yield f"  limit: the last usable address is {verdict.limit:#x}"
    if verdict.room:
        last = verdict.range.start + verdict.room - 1
        yield f"  fits: {show_size(verdict.room)} at this base, up to {last:#x}"
    elif verdict.kind != "granule" and verdict.causes[0].range.start <= verdict.range.start:
        yield "  fits: nothing at this base"


def diagnosis_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the same as data."""
    call = diagnosis.failure
    return {
        "op": call.op,
        "api": call.api,
        "errno": call.errno,
        "iova": _hex(call.iova),
        "size": _hex(call.size),
        "hva": _hex(call.hva),
        "name": call.name,
        "program": call.program,
        "part": call.part,
        "line": call.line,
        "host": diagnosis.host,
        "settled": diagnosis.settled,
        "meaning": diagnosis.meaning,
        "causes": [
            {
                "cause": item.why.name.lower(),
                "certainty": item.certainty,
                "text": item.text,
                "since": item.since,
                "source": item.source,
            }
            for item in diagnosis.findings
        ],
        "verdict": None if diagnosis.verdict is None else data.verdict_data(diagnosis.verdict),
        "settles": list(diagnosis.settles),
        "fixes": list(diagnosis.fixes),
        "notes": list(diagnosis.notes),
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
