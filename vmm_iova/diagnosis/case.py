# SPDX-License-Identifier: Apache-2.0
"""One failure while it is looked at: what was found, what was ruled out, what is to be noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.causes import rules_for
from vmm_iova.diagnosis.findings import Finding
from vmm_iova.diagnosis.why import FACTS, Api, Certainty, Op, Why
from vmm_iova.host.facts import Platform

if TYPE_CHECKING:
    from vmm_iova.diagnosis.causes import Rule
    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.diagnosis.clues import Clues
    from vmm_iova.diagnosis.failure import Failure
    from vmm_iova.host.usable import Usable

ORDERLY = (
    "QEMU",
    "Cloud Hypervisor",
    "Firecracker",
    "crosvm",
    "kvmtool",
    "OpenVMM",
    "DPDK",
    "SPDK",
)
"""Programs that set the IOMMU type before the first map, and their flags as the kernel wants."""

_PEER_ONLY = (Why.BAR, Why.PEER)


class Case:
    """A failure, what the report states beside it, and what may be mapped on the host.

    Attributes:
        failure: the call.
        clues: what the report states.
        usable: where the host allows mappings, or None.
        holes: where only its holes are known, or None.
        platform: the machine, by the report and, where that does not tell, by the host's facts.
        rules: what the errno of the call can mean, in the kernel's order.
        found: causes so far.
        ruled_out: causes that the facts exclude.
        notes: what else to know.
        verdict: what `check` says of the range.
        bits: address bits of the IOMMU or CPU, known or likely.
    """

    def __init__(
        self,
        failure: Failure,
        clues: Clues,
        usable: Usable | None,
        holes: Usable | None,
        platform: Platform,
    ) -> None:
        self.failure, self.clues, self.usable = failure, clues, usable
        self.holes = None if usable else holes
        self.platform = Platform(clues.vendor, clues.cpu.guest if clues.cpu else None) | platform
        self.rules = tuple(
            rule
            for rule in rules_for(failure.op, failure.api, failure.errno)
            if self._possible(rule)
        )
        self.found: dict[Why, Finding] = {}
        self.ruled_out: set[Why] = set()
        self.notes: list[str] = []
        self.verdict: Verdict | None = None
        self.bits: int | None = clues.width

    def _possible(self, rule: Rule) -> bool:
        """Leave out what this program cannot have done."""
        call = self.failure
        orderly = call.program in ORDERLY and call.op in (Op.MAP, Op.UNMAP, Op.SET_IOMMU)
        if orderly and rule.why in (Why.ORDER, Why.FLAGS) and call.sign is not rule.why:
            return False
        if rule.why is Why.LIVE_MAPS and call.program == "DPDK" and call.op is Op.ATTACH:
            return False  # it adds its groups before it maps anything
        if rule.why in _PEER_ONLY and call.part == "ram":
            return False
        return not (call.op is Op.MAP and call.api is Api.TYPE1 and rule.why is Why.BAR)

    @property
    def named(self) -> Usable | None:
        """The holes, if the host names any."""
        return self.holes if self.holes is not None and self.holes.regions else None

    def add(self, why: Why, certainty: Certainty, text: str) -> None:
        """Add a cause, or make it more certain."""
        old = self.found.get(why)
        if old is None or certainty.rank < old.certainty.rank:
            # A fault is the hardware's, whatever the kernel would have refused.
            fact = FACTS[Why.UNMAPPED_DMA if self.failure.op is Op.FAULT else why]
            self.found[why] = Finding(why, certainty, text, fact.since, fact.source)

    def can(self, why: Why) -> bool:
        """Tell whether the errno of the call can mean it."""
        return any(rule.why is why for rule in self.rules)
