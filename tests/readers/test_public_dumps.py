# SPDX-License-Identifier: Apache-2.0
"""Dumps of public reports: what each says of its host, and what it does not say."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest

import vmm_iova as vi
from tests.kit.data import DATA
from vmm_iova.errors import EvidenceError, HostDataError
from vmm_iova.readers.iomem import read_iomem
from vmm_iova.readers.lspci import read_lspci

if TYPE_CHECKING:
    from pathlib import Path

DUMPS: list[dict[str, Any]] = tomllib.loads((DATA / "reports/dumps.toml").read_text("utf-8"))[
    "dump"
]
READ = [dump for dump in DUMPS if "refused" not in dump]


def name_of(dump: dict[str, Any]) -> str:
    return str(dump["source"].split("/", 3)[-1])


def load(dump: dict[str, Any], folder: Path) -> vi.Host:
    path = folder / "dump"
    path.write_text(dump["text"], encoding="utf-8")
    return vi.load_host(path)


@pytest.mark.parametrize("dump", READ, ids=name_of)
def test_dump_of_a_public_report_is_read(dump: dict[str, Any], tmp_path: Path) -> None:
    host = load(dump, tmp_path)
    assert {group.id: list(group.devices) for group in host.groups} == dump["groups"]
    assert not [note.text for note in host.notes if "not understood" in note.text]
    drivers = {device.name: device.driver for device in host.devices}
    assert dump.get("drivers", {}).items() <= drivers.items()
    if "note" in dump:
        assert any(dump["note"] in note.text for note in host.notes)
    if "features" in dump:
        assert {unit.features for unit in host.units} == {f"0x{dump['features']}"}


@pytest.mark.parametrize("dump", READ, ids=name_of)
def test_dump_limits_iovas_only_by_registers_of_an_iommu(
    dump: dict[str, Any], tmp_path: Path
) -> None:
    host = load(dump, tmp_path)
    if "bits" in dump:
        assert host.usable().ranges[-1].last == (1 << dump["bits"]) - 1
    elif "features" not in dump:
        with pytest.raises(EvidenceError, match="states an aperture"):
            host.usable()


@pytest.mark.parametrize("dump", [dump for dump in DUMPS if "refused" in dump], ids=name_of)
def test_dump_that_says_nothing_of_iovas_is_refused(dump: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HostDataError, match=dump["refused"]):
        load(dump, tmp_path)
    assert read_iomem(dump["text"].splitlines())


def test_bars_have_their_index_size_and_kind() -> None:
    (device,) = read_lspci(DUMPS[0]["text"].splitlines())
    shown = [(bar.index, bar.start, bar.size, bar.wide) for bar in device.regions]
    assert shown == [
        (0, 0xAF000000, 16 << 20, False),
        (1, 0x38A800000000, 32 << 30, True),
        (3, 0x38B810000000, 32 << 20, True),
    ]
    assert [bar.prefetchable for bar in device.regions] == [False, True, True]


def test_three_of_twelve_were_right_before() -> None:
    assert len(DUMPS) == 12
    assert sum(dump["right_before"] for dump in DUMPS) == 3
