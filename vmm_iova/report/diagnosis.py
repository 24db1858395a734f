# SPDX-License-Identifier: Apache-2.0
"""Why a call failed, for people and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.diagnosis.why import Certainty, Op, Part
from vmm_iova.report import data
from vmm_iova.report.answer import Answer, answer_data, labelled, show_answer
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.diagnosis.findings import Diagnosis, Finding


def answer_of(diagnosis: Diagnosis) -> Answer:
    """Return verdict, actions, reasons and sources of a diagnosis."""
    word = _word(diagnosis)
    tone = "good" if diagnosis.harmless else "bad" if diagnosis.settled else "unsure"
    name = diagnosis.failure.name
    verdict = f"{name}: {diagnosis.headline}" if name else diagnosis.headline
    sure = [item for item in diagnosis.findings if item.certainty is not Certainty.POSSIBLE]
    others = [] if len(sure) == 0 else _others(diagnosis, sure)
    return Answer(
        word=word,
        verdict=verdict,
        tone=tone,  # type: ignore[arg-type]
        actions=diagnosis.actions[:1],
        more=diagnosis.actions[1:],
        reasons=tuple(_reasons(diagnosis, sure or list(diagnosis.findings))),
        doubts=(*diagnosis.settles, *others),
        sources=tuple(dict.fromkeys(_sources(diagnosis, sure))),
    )


def _word(diagnosis: Diagnosis) -> str:
    """How sure it is; of what stops no guest, whether anything at all is lost."""
    if not diagnosis.harmless:
        return diagnosis.certainty.upper()
    # A BAR that is not mapped is missed where devices talk to each other.
    peer = diagnosis.failure.op is Op.MAP and diagnosis.failure.part is Part.BAR
    return "HARMLESS EXCEPT FOR PEER-TO-PEER" if peer else "HARMLESS"


def _reasons(diagnosis: Diagnosis, findings: list[Finding]) -> Iterator[str]:
    call = diagnosis.failure
    single = len(findings) == 1
    for item in findings:
        yield item.text if single else f"{item.why.value}: {item.text}"
    if call.times > 1:
        yield f"the report tells it {call.times} times"
    yield from _fits(diagnosis)
    yield from diagnosis.notes


def _fits(diagnosis: Diagnosis) -> Iterator[str]:
    verdict = diagnosis.verdict
    if verdict is None or verdict.ok or diagnosis.failure.op == "fault":
        return
    if verdict.limit is not None and verdict.kind == "outside_aperture":
        yield f"the last usable address is {verdict.limit:#x}"
    if verdict.room:
        last = verdict.range.start + verdict.room - 1
        yield f"{show_size(verdict.room)} fit at this base, up to {last:#x}"


def _others(diagnosis: Diagnosis, sure: list[Finding]) -> list[str]:
    """Causes that are less likely are counted; -v lists them."""
    count = len(diagnosis.findings) - len(sure)
    if diagnosis.settled or not count:
        return []
    what = "another cause is" if count == 1 else f"{count} other causes are"
    return [f"{what} possible (-v lists {'it' if count == 1 else 'them'})"]


def _sources(diagnosis: Diagnosis, sure: list[Finding]) -> Iterator[str]:
    if diagnosis.host:
        yield f"the facts of {diagnosis.host}"
    elif sure:
        yield sure[0].source


def show_diagnosis(diagnosis: Diagnosis, *, verbose: bool = False) -> str:
    """Say what is wrong, what to do, and why."""
    return show_answer(answer_of(diagnosis), _more(diagnosis) if verbose else ())


def _more(diagnosis: Diagnosis) -> Iterator[str]:
    """History, and the causes that are less likely."""
    call = diagnosis.failure
    yield from labelled("Line:", [f"{call.line}: {call.text[:300]}"] if call.text else [])
    yield from labelled("Errno:", [diagnosis.meaning])
    rare = [item for item in diagnosis.findings if item.certainty is Certainty.POSSIBLE]
    yield from labelled("Also:", (f"possible: {item.why.value}: {item.text}" for item in rare))
    since = dict.fromkeys(item.since for item in diagnosis.findings)
    yield from labelled("Since:", since)
    yield from labelled("Kernel:", dict.fromkeys(item.source for item in diagnosis.findings))


def diagnosis_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the same as data."""
    call = diagnosis.failure
    said = answer_data(answer_of(diagnosis))
    return {
        **said,
        "certainty": str(diagnosis.certainty),
        "harmless": diagnosis.harmless,
        "settled": diagnosis.settled,
        "settles": list(diagnosis.settles),
        "op": str(call.op),
        "api": None if call.api is None else str(call.api),
        "errno": call.errno,
        "iova": _hex(call.iova),
        "size": _hex(call.size),
        "hva": _hex(call.hva),
        "name": call.name,
        "program": call.program,
        "part": None if call.part is None else str(call.part),
        "device": call.device,
        "line": call.line,
        "host": diagnosis.host,
        "meaning": diagnosis.meaning,
        "causes": [
            {
                "cause": item.why.name.lower(),
                "certainty": str(item.certainty),
                "text": item.text,
                "since": item.since,
                "source": item.source,
            }
            for item in diagnosis.findings
        ],
        "range": None if diagnosis.verdict is None else data.verdict_data(diagnosis.verdict),
        "notes": list(diagnosis.notes),
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
