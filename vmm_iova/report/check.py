# SPDX-License-Identifier: Apache-2.0
"""Whether a range may be mapped, for people and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.host.usable import Cause, CauseKind, Usable
from vmm_iova.report import data
from vmm_iova.report.answer import Answer, answer_data, labelled, show_answer
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.diagnosis.check import Verdict

_WHY = {
    "conflict": "overlaps {cause}",
    "outside_aperture": "lies beyond what the IOMMU translates",
    "straddle": "crosses a seam: it needs two mappings",
    "granule": "is not whole granules",
}


def answer_of(verdict: Verdict, usable: Usable, name: str | None = None) -> Answer:
    """Return verdict, actions, reasons and sources of a check."""
    title = f"{verdict.range} ({show_size(verdict.range.size)})"
    if name:
        title = f"{name}: {title}"
    sources = tuple(item.text for item in usable.evidence)
    if verdict.ok:
        # Registers bound the width from above: a kernel may translate less.
        bound = any(item.bound for item in usable.evidence)
        return Answer(
            "YES",
            f"{title} may be mapped in one call",
            "good",
            certainty="likely" if bound else "certain",
            reasons=verdict.warnings,
            sources=sources,
        )
    cause = _because(verdict.causes[0]) if verdict.causes else ""
    return Answer(
        "NO",
        f"{title} {_WHY[verdict.kind].format(cause=cause)}",
        "bad",
        certainty="certain",
        actions=verdict.fixes,
        reasons=tuple(_reasons(verdict)),
        sources=sources,
    )


def _reasons(verdict: Verdict) -> Iterator[str]:
    first = 1 if verdict.kind == "conflict" else 0
    yield from (_because(cause) for cause in verdict.causes[first:])
    if verdict.kind == "outside_aperture" and verdict.limit is not None:
        yield (
            f"it needs {verdict.bits_needed} address bits; the last usable address is "
            f"{verdict.limit:#x}"
        )
    if verdict.room and verdict.kind in ("conflict", "outside_aperture"):
        last = verdict.range.start + verdict.room - 1
        yield f"{show_size(verdict.room)} fit at this base, up to {last:#x}"
    yield from verdict.warnings


def _because(cause: Cause) -> str:
    shown = str(cause.range)
    return cause.text if shown in cause.text else f"{shown}: {cause.text}"


def show_verdict(
    verdict: Verdict, usable: Usable, name: str | None = None, *, verbose: bool = False
) -> str:
    """Say whether a range may be mapped, what forbids it, and what would help."""
    history = [] if verdict.ok or not verbose else list(labelled("Since:", [_kernel(verdict)]))
    return show_answer(answer_of(verdict, usable, name), history)


def _kernel(verdict: Verdict) -> str:
    """What kernels do with such a map (kernel file and release: docs/design.md)."""
    kind = verdict.causes[0].kind if verdict.causes else None
    if kind is CauseKind.TOP_PAGE:
        return "Linux before 6.18 takes it, and may lose it when it is unmapped"
    if verdict.kind in ("granule", "straddle"):
        return "every kernel refuses it with EINVAL"
    if kind is CauseKind.APERTURE:
        return "EINVAL since Linux 5.4, or EFAULT where the kernel's list is too wide"
    return "EINVAL since Linux 5.4; older kernels map it and DMA fails later"


def check_data(verdict: Verdict, usable: Usable, name: str | None) -> dict[str, Any]:
    """Return the same as data."""
    return {
        "name": name,
        **answer_data(answer_of(verdict, usable)),
        **data.verdict_data(verdict),
    }
