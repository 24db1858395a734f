# SPDX-License-Identifier: Apache-2.0
"""Guests of public reports: the answer says why the VMM or its firmware does so, and the knob."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from tests.kit.command import Output, run
from tests.kit.data import DATA

PLANS: list[dict[str, Any]] = tomllib.loads((DATA / "reports/plans.toml").read_text("utf-8"))[
    "plan"
]


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case["options"][:60])
def test_plan_of_a_public_report_says_why_and_what_to_set(
    case: dict[str, Any], capsys: Output
) -> None:
    command = ["plan", "--host", case["host"], *case["options"].split()]
    assert run(*command) == 0
    shown = capsys.readouterr().out.splitlines()
    first = "\n".join(shown[:3])
    assert all(words in first for words in case["first"]), first
    assert run(*command, "-J") == 0
    found = json.loads(capsys.readouterr().out)
    reasons = "\n".join(found["reason"])
    assert all(words in reasons for words in case["why"]), reasons
    assert bool(found["reason"]) == bool(case["why"])


def test_window_that_was_told_is_asked_about_no_more(capsys: Output) -> None:
    bars = [word for index in range(8) for word in ("--bar", f"g{index}=512G,required")]
    command = ["plan", "--host", "intel-dmar-server-oob-pr10", "--ram", "1T", "--phys-bits", "46"]
    told = ("--firmware", "ovmf", "--ovmf-window", "16T")
    assert run(*command, *bars, *told) == 0
    assert "OVMF decides" not in capsys.readouterr().out


@pytest.mark.parametrize("firmware", ["seabios", "none"])
def test_firmware_that_is_another_is_not_ovmf(firmware: str, capsys: Output) -> None:
    command = ["plan", "--host", "intel-dmar-server-oob-pr10", "--ram", "8G", "--bar", "g=16G"]
    assert run(*command, "--firmware", firmware) == 0
    assert "OVMF decides" not in capsys.readouterr().out


def test_window_that_the_cpu_does_not_reach_asks_for_less(capsys: Output) -> None:
    command = ["plan", "--host", "intel-dmar-8thread-laptop", "--ram", "8G", "--phys-bits", "39"]
    status = run(*command, "--bar", "g=128G")
    text = capsys.readouterr().out
    assert status == 0
    assert "OVMF decides" in text
