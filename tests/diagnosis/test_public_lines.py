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


def test_so_many_of_each_search_were_right_before() -> None:
    found = {1: (0, 0), 2: (0, 0)}
    for case in LINES:
        right, every = found[case.get("round", 1)]
        found[case.get("round", 1)] = right + case["right_before"], every + 1
    assert found == {1: (14, 39), 2: (13, 28)}


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


@pytest.mark.parametrize(
    ("text", "iova", "size"),
    [
        ("crosvm: failed to map: Invalid argument (os error 22) iova 0x100000000", 1 << 32, None),
        ("failed to map: Bad address (os error 14), iova: 0x4000 size: 0x1000", 0x4000, 0x1000),
    ],
)
def test_errno_in_words_with_keys_behind_it_is_a_map(
    text: str, iova: int, size: int | None
) -> None:
    (found,) = vi.explain(text)
    assert (found.failure.op, found.failure.iova, found.failure.size) == ("map", iova, size)
    assert found.failure.errno in ("EINVAL", "EFAULT")


def test_program_that_cannot_go_on_is_not_told_that_its_guest_runs() -> None:
    text = (
        "qemu: vfio_dma_map(0x1, 0x380000000000, 0x10000000, 0x7) = -22 (Invalid argument)\n"
        "qemu: hardware error: vfio: DMA mapping failed, unable to continue\n"
    )
    (found,) = vi.explain(text)
    assert not any("if the guest runs" in fix for fix in found.fixes)
    assert not found.harmless
