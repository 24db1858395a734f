# SPDX-License-Identifier: Apache-2.0
"""Definitions found in public: each is read, planned on a host that fits it, and answered right."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.definitions.change import change_between, mended
from vmm_iova.definitions.write import write_change

DATA = Path(__file__).parents[1] / "data/definitions"
KNOWN: list[dict[str, Any]] = tomllib.loads((DATA / "sources.toml").read_text())["definition"]


def read(entry: dict[str, Any]) -> vi.Definition:
    return vi.read_vm((DATA / entry["file"]).read_text(), source=entry["file"])


def usable(entry: dict[str, Any]) -> vi.Usable:
    return vi.load_host(entry["host"]).usable(aperture=entry.get("aperture"))


def test_there_are_enough_of_each_format_and_every_file_is_listed() -> None:
    kinds = Counter(entry["file"].partition("-")[0] for entry in KNOWN)
    assert kinds["libvirt"] >= 8
    assert kinds["proxmox"] >= 5
    assert kinds["qemu"] >= 5
    assert sum(kinds.values()) >= 20
    files = {path.name for path in DATA.iterdir()} - {"sources.toml"}
    assert files == {entry["file"] for entry in KNOWN}


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry["file"])
def test_public_definition_is_understood(entry: dict[str, Any]) -> None:
    found = read(entry)
    guest = found.guest
    assert found.kind == entry["file"].partition("-")[0]
    assert [item.name for item in found.devices] == entry["devices"]
    assert list(found.unread) == entry.get("unread", [])
    assert found.faults == ()
    assert guest.machine == entry.get("machine", "q35")
    assert guest.firmware == entry.get("firmware")
    assert guest.phys_bits == entry.get("phys_bits")
    assert guest.cpu == entry.get("cpu")
    assert guest.page_size == entry.get("page_size")
    assert len(found.readings) == entry.get("readings", 1)


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry["file"])
def test_public_definition_is_planned_as_it_was_worked_out_by_hand(entry: dict[str, Any]) -> None:
    found, where = read(entry), usable(entry)
    if "refused" in entry:
        with pytest.raises(vi.PlanError, match=entry["refused"]):
            vi.plan(found, where)
        changed = mended(found, where, "auto")
        assert changed is not None
        assert write_change(found, change_between(found, changed.guest)) == entry["change"]
        return
    layout = vi.plan(found, where)
    assert layout.starts
    assert [str(item.iova) for item in layout.ram] == entry["ram"]
    bars = [str(item.place) for item in layout.items if item.kind is vi.ItemKind.BAR]
    assert bars == entry.get("bars", [])
    cost = vi.budget(layout)
    assert cost.locked_bytes == entry.get("locked", layout.ram_bytes)
    change = change_between(found, found.guest, cost.locked_bytes)
    assert write_change(found, change) == ""
