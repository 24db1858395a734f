# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis says: causes, each with how sure it is, and what can be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.causes import Why

if TYPE_CHECKING:
    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.diagnosis.error_lines import Failure

CERTAIN, LIKELY, POSSIBLE = "certain", "likely", "possible"
"""How sure a cause is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that a failure has or may have.

    Attributes:
        why: the cause.
        certainty: `certain`, `likely` or `possible`.
        text: one clause with the facts.
        since: since when kernels refuse for it.
        source: where in the kernel.
    """

    why: Why
    certainty: str
    text: str
    since: str
    source: str

    def settles(self, failure: Failure) -> bool:
        """Tell whether it is the cause beyond doubt: KVM's limit is not the one of the IOMMU."""
        own = self.why is not Why.CPU_BITS or failure.op == "memslot"
        return self.certainty == CERTAIN and own


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is to say about one failure.

    Attributes:
        failure: the call.
        meaning: what the errno of that call says, and what it does not say.
        findings: causes, the most certain first.
        verdict: whether the range may be mapped by the facts at hand; None where none say so.
        host: host that it was judged on; None without one.
        settles: what would settle it; empty when it is settled.
        fixes: what can be done, in the order in which it is likely to help.
        notes: what else to know.
    """

    failure: Failure
    meaning: str
    findings: tuple[Finding, ...]
    verdict: Verdict | None
    host: str | None
    settles: tuple[str, ...]
    fixes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def settled(self) -> bool:
        """True if a cause is certain."""
        return any(item.settles(self.failure) for item in self.findings)
