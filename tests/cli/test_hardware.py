# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of its IOMMUs (IOMMU_GET_HW_INFO), as `show` prints it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit.command import Output, run
from vmm_iova import IommuInfo
from vmm_iova.host.load import load_host
from vmm_iova.host.snapshot import dump_snapshot

VTD = IommuInfo("0000:00:10.0", "intel", (("cap", 0xD2008C222F0286), ("ecap", 0x290004F00F4A)))


@pytest.fixture
def host(tmp_path: Path) -> str:
    infos = (VTD, replace(VTD, device="0000:00:11.0"), IommuInfo("0000:00:12.0", "none"))
    path = tmp_path / "host.json"
    path.write_text(dump_snapshot(replace(load_host("lab-vtd-48"), iommu_info=infos), "test"))
    return str(path)


def test_devices_behind_one_unit_say_it_once_and_in_words(host: str, capsys: Output) -> None:
    assert run("show", "--host", host) == 0
    text = capsys.readouterr().out
    assert "  0000:00:10.0, 0000:00:11.0 cap d2008c222f0286 ecap 290004f00f4a: caching mode" in text
    assert "nested translation" in text
    assert "dirty tracking" in text
    assert "  0000:00:12.0 its driver tells no registers" in text


def test_json_has_registers_and_words_by_device(host: str, capsys: Output) -> None:
    assert run("show", "--host", host, "-J") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["host"]["iommu_info"][0]["registers"]["ecap"] == "0x290004f00f4a"
    assert "dirty tracking (second stage)" in found["hardware"]["0000:00:10.0"]
    assert found["hardware"]["0000:00:12.0"] == []
