# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis says: the verdict, how sure it is, what to do, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import shown
from vmm_iova.diagnosis.why import Certainty, Op, Why
from vmm_iova.record import record

if TYPE_CHECKING:
    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.diagnosis.failure import Failure
    from vmm_iova.diagnosis.filled_remedies import Advice


@record
class Finding:
    """One cause that a failure has or may have.

    Attributes:
        why: the cause.
        certainty: how sure it is.
        text: one clause with the facts.
        since: since when kernels refuse for it.
        source: where in the kernel.
    """

    why: Why
    certainty: Certainty
    text: str
    since: str
    source: str

    def settles(self, failure: Failure) -> bool:
        """Tell whether it is the cause beyond doubt: KVM's limit is not the one of the IOMMU."""
        own = self.why is not Why.CPU_BITS or failure.op is Op.MEMSLOT
        return self.certainty is Certainty.CERTAIN and own


@record
class Diagnosis:
    """What is to say about one failure.

    Attributes:
        failure: the call.
        headline: the verdict in one sentence, with the numbers that matter.
        certainty: how sure the verdict is.
        harmless: True if nothing has failed for good: a warning.
        meaning: what the errno of that call says, and what it does not say.
        findings: causes, the most certain first.
        verdict: whether the range may be mapped by the facts at hand; None where none say so.
        host: host that it was judged on; None without one.
        settles: what would settle it; empty when it is settled.
        actions: what can be done, in the order in which it is likely to help.
        notes: what else to know.
    """

    failure: Failure
    headline: str
    certainty: Certainty
    harmless: bool
    meaning: str
    findings: tuple[Finding, ...]
    verdict: Verdict | None
    host: str | None
    settles: tuple[str, ...]
    actions: tuple[Advice, ...]
    notes: tuple[str, ...]

    @property
    def settled(self) -> bool:
        """True if a cause is certain."""
        return any(item.settles(self.failure) for item in self.findings)

    @property
    def fixes(self) -> tuple[str, ...]:
        """The actions, a line each."""
        return tuple(map(str, self.actions))

    def text(self, *, verbose: bool = False) -> str:
        """Return what `vmm-iova explain` prints: what is wrong, what to do, and why.

        Args:
            verbose: with the history of the kernel's check, and the causes that are less likely.
        """
        return shown.text_of(self, verbose=verbose)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return shown.html_of(self)
