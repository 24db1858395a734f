# SPDX-License-Identifier: Apache-2.0
"""Whether a device can be attached later, for people and as data."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from vmm_iova.host.attach import AttachRefusal, Present, attach_refusals, ranges_after
from vmm_iova.record import record
from vmm_iova.report import data
from vmm_iova.report.answer import Answer, answer_data, show_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange, MappableRanges

_TITLE = {"type1": "a VFIO container (type1)", "iommufd": "an iommufd"}


@record
class Judged:
    """The answer for one way to the kernel."""

    present: Present
    newcomer: Usable
    names: Sequence[str]
    refusals: tuple[AttachRefusal, ...]
    ranges: MappableRanges
    lost: tuple[AddrRange, ...]

    @property
    def ok(self) -> bool:
        """Whether the kernel takes it."""
        return not self.refusals

    def answer(self) -> Answer:
        """Return verdict, actions, reasons and doubts."""
        what, way = ", ".join(self.names), _TITLE[self.present.way]
        sources = tuple(item.text for item in self.newcomer.evidence)
        bound = any(item.bound for item in self.newcomer.evidence)
        if self.ok:
            lost = tuple(f"no longer mappable then: {item}" for item in self.lost)
            verdict = f"{way} takes {what}, with {_count(len(self.present.mapped))}"
            certainty = "likely" if bound else "certain"
            return Answer("YES", verdict, "good", (), lost, (), sources, certainty)
        first, *rest = self.refusals
        answer = errno.errorcode[first.errno]
        hints = tuple(dict.fromkeys(item.hint for item in self.refusals))
        return Answer(
            "NO",
            f"{way} refuses {what} with {answer}: {first.text}",
            "bad",
            hints,
            tuple(item.text for item in rest),
            (),
            sources,
            "certain",
        )

    def shown(self) -> str:
        """Return it as text."""
        return show_answer(self.answer())

    def data(self) -> dict[str, Any]:
        """Return it as data."""
        return {
            "via": self.present.way,
            "ok": self.ok,
            **answer_data(self.answer()),
            "refusals": [
                {
                    "errno": errno.errorcode[item.errno],
                    "text": item.text,
                    "range": None if item.range is None else data.span(item.range),
                }
                for item in self.refusals
            ],
            "ranges": [data.span(item) for item in self.ranges],
            "lost": [data.span(item) for item in self.lost],
        }


def judged(present: Present, newcomer: Usable, names: Sequence[str]) -> Judged:
    """Judge one way to the kernel."""
    after = ranges_after(present, newcomer)
    before = present.ranges
    lost = () if before is None else tuple(before.as_set() - after.as_set())
    refusals = tuple(attach_refusals(present, newcomer))
    return Judged(present, newcomer, names, refusals, after, lost)


def _count(mappings: int) -> str:
    if mappings == 0:
        return "nothing mapped"
    return (
        "the mapping that is there" if mappings == 1 else f"the {mappings} mappings that are there"
    )
