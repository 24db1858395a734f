# SPDX-License-Identifier: Apache-2.0
"""Errors: one sentence, facts as attributes, an exit code each, and they pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import vmm_iova as vi
from vmm_iova import errors
from vmm_iova.errors import EXIT_CODES, IovaError
from vmm_iova.ranges import AddrRange

SPAN = AddrRange(0x1000, 0x1FFF)


def _classes(root: type[IovaError] = IovaError) -> list[type[IovaError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_documented_exit_code(kind: type[IovaError]) -> None:
    assert kind.exit_code in EXIT_CODES


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestError("size 0x0", field="size", value=0, hint="give more"),
        errors.ApertureError("outside", range=SPAN, limit=0xFFF),
        errors.ReservedError("touches", range=SPAN, region=SPAN, cause="msi of group 3"),
        errors.OccupiedError("taken", range=SPAN, owner="ram", owner_range=SPAN),
        errors.NoSpaceError(
            "full", size=1, align=1, largest_free=SPAN, largest_aligned=4, total_free=5
        ),
        errors.NarrowError("in the way", conflicts=[(SPAN, "queue")]),
        errors.PlanError("no", reasons=["a"], fixes=["split", "move"]),
        errors.EvidenceError("unknown", looked_at=["sysfs"], settles=["--aperture"]),
        errors.HostDataError("bad", source="x.txt", line=3, text="junk"),
        errors.HostUnavailableError("gone", source="/sys", errno=2),
        errors.UnknownNameError("who", kind="group", name="9", known=["1", "2"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_survives_pickle_with_its_facts(error: IovaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)


def test_text_of_an_error_labels_detail_and_hint() -> None:
    error = errors.HostDataError("bad line", source="x", hint="take it again")
    assert str(error) == "bad line\nhint: take it again"


def test_request_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="below its start"):
        AddrRange(2, 1)


def test_every_public_error_is_exported() -> None:
    named = {kind.__name__ for kind in _classes() if kind.__module__ == "vmm_iova.errors"}
    assert named <= set(vi.__all__)


def test_readme_table_lists_every_exit_code() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    missing = [code for code, text in EXIT_CODES.items() if f"| {code} | {text} |" not in readme]
    assert missing == []
