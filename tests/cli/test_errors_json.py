# SPDX-License-Identifier: Apache-2.0
"""`-J` is JSON whatever the answer is: refusals, unknown widths, wrong options, defects."""

from __future__ import annotations

import json

import pytest

from tests.kit.command import Output, run
from vmm_iova.cli import show

PLAN = ("plan", "--host", "intel-dmar-i7-2600", "--machine", "q35")


def document(output: Output) -> dict[str, object]:
    out, err = output.readouterr()
    root: dict[str, object] = json.loads(out)
    assert err == ""
    assert root["schema"] == {"name": "vmm-iova-error", "version": 1}
    return root


def test_refusal_has_the_answer_its_fixes_and_every_reason(capsys: Output) -> None:
    status = run(*PLAN, "--ram", "600G", "-J")

    root = document(capsys)
    assert status == root["exit_status"] == 3
    assert str(root["verdict"]).startswith("600 GiB of RAM does not fit")
    assert root["certainty"] == "refused"
    assert root["fixes"] == root["action"]
    assert root["reasons"] == [
        {
            "item": "ram",
            "range": {"start": "0x7fffffffff", "last": "0xffffffffffffffff"},
            "cause": "IOMMU dmar0 translates 39 bits, up to 0x7fffffffff "
            "(cap c9008020660262, intel-dmar-i7-2600:5)",
            "fits": "0x7f80000000",
        }
    ]


def test_width_that_is_not_known_says_what_would_settle_it(capsys: Output) -> None:
    assert run("plan", "--host", "s390x-32g", "--ram", "1G", "--json") == 9

    assert document(capsys)["certainty"] == "unknown"


@pytest.mark.parametrize(
    ("words", "status", "kind"),
    [
        (("plna", "-J"), 2, "RequestError"),
        ((*PLAN, "--ram", "lots", "-bJ"), 2, "RequestError"),
        ((*PLAN, "--on-hole", "jump", "--json"), 2, "RequestError"),
        (("show", "--host", "no-such-host", "-J"), 4, "UnknownNameError"),
    ],
)
def test_error_has_its_status_its_kind_and_a_hint(
    words: tuple[str, ...], status: int, kind: str, capsys: Output
) -> None:
    assert run(*words) == status

    root = document(capsys)
    assert (root["exit_status"], root["error"]) == (status, kind)
    assert root["message"]
    assert root["hint"]


def test_defect_is_json_too(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(show, "host_of", fail)

    assert run("show", "--host", "amd-epyc-1tb", "-J") == 70
    assert "a defect of vmm-iova" in str(document(capsys)["hint"])
