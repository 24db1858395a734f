# SPDX-License-Identifier: Apache-2.0
"""Lines of public reports: the cause, how sure it is, and the first thing to do, not the letter."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

import vmm_iova as vi
from tests.kit.data import DATA

LINES: list[dict[str, Any]] = tomllib.loads((DATA / "reports/lines.toml").read_text("utf-8"))[
    "line"
]


@pytest.mark.parametrize("case", LINES, ids=lambda case: case["source"].split("/", 3)[-1])
def test_line_of_a_public_report_has_its_cause_and_what_to_do(case: dict[str, Any]) -> None:
    found = vi.explain(case["text"])

    first = found[0].findings[0]
    causes = {item.why.name.lower(): item.certainty for item in found[0].findings}
    assert causes.get(case["cause"]) in case["certainty"], (first.why, first.certainty)
    if case["certainty"] != ["possible"]:
        assert first.why.name.lower() == case["cause"]
        assert any(case["action"] in text for text in found[0].fixes[:3]), found[0].fixes
    assert len(found) == 1


def test_fourteen_of_them_were_right_before() -> None:
    assert sum(case["right_before"] for case in LINES) == 14
    assert len(LINES) == 39


@pytest.mark.parametrize("case", LINES, ids=lambda case: case["source"].split("/", 3)[-1])
def test_cause_that_the_call_cannot_have_is_not_listed(case: dict[str, Any]) -> None:
    (found,) = vi.explain(case["text"])
    orderly = found.failure.program in ("QEMU", "DPDK", "SPDK", "Cloud Hypervisor")
    if orderly and found.failure.op is vi.Op.MAP:
        assert {vi.Why.ORDER, vi.Why.FLAGS}.isdisjoint(item.why for item in found.findings)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "vfio-pci 0000:0b:00.0: BAR 0 [mem 0xe0000000-0xefffffff 64bit pref]: can't reserve",
            "BAR_HELD",
        ),
        (
            "vfio-pci 0000:0b:00.0: BAR 0: can't reserve [mem 0xe0000000-0xefffffff 64bit pref]",
            "BAR_HELD",
        ),
        ("qemu-system-x86_64: vfio_listener_region_add received unaligned region", "ALIGNMENT"),
    ],
)
def test_older_and_newer_words_of_the_same_line(text: str, cause: str) -> None:
    (found,) = vi.explain(text)
    assert found.findings[0].why.name == cause
    assert found.failure.warning
