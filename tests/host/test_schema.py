# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema that ships for other programs says what the reader of snapshots says."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest

import vmm_iova as vi
from vmm_iova.host.snapshot import dump_snapshot, load_snapshot

SCHEMA = json.loads((resources.files("vmm_iova.host") / "snapshot.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SEVERAL = ("intel-dmar-collected-client-39bit", "intel-dmar-collected-server-46bit")


def _snapshot(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dump_snapshot(vi.load_host(name), "test"))
    return found


def test_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "name", [f"{name}#1" if name in SEVERAL else name for name in vi.bundled_hosts()]
)
def test_snapshot_of_a_bundled_host_obeys_the_schema(name: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(_snapshot(name))] == []


@pytest.mark.parametrize(
    "key",
    sorted(set(SCHEMA["required"]) - {"schema", "limits"}),
)
def test_list_that_the_schema_requires_is_required_by_the_reader(key: str) -> None:
    snapshot = _snapshot("amd-epyc-1tb")
    del snapshot[key]
    assert not VALIDATOR.is_valid(snapshot)
    with pytest.raises(vi.errors.HostDataError, match=f"{key} is missing"):
        load_snapshot(json.dumps(snapshot), "cut.json")


def test_number_instead_of_a_hex_string_is_refused_by_both() -> None:
    snapshot = _snapshot("amd-epyc-1tb")
    snapshot["groups"][0]["reserved_regions"][0]["start"] = 0xFEE0_0000
    assert not VALIDATOR.is_valid(snapshot)
    with pytest.raises(vi.errors.HostDataError, match="start should be text"):
        load_snapshot(json.dumps(snapshot), "number.json")
