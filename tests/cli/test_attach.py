# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova check --attach`: one more device, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.command import Output, run
from vmm_iova.host.load import load_host
from vmm_iova.host.snapshot import dump_snapshot

HOST = ("--host", "lab-vtd-39", "-s", "0000:00:10.0")
NEXT = ("--attach", "0000:00:11.0")


@pytest.fixture
def layout(tmp_path: Path, capsys: Output) -> str:
    """A guest whose RAM ends above 2^39."""
    path = tmp_path / "guest.json"
    assert run("plan", "--host", "lab-vtd-48", "--ram", "1T", "-o", str(path)) == 0
    capsys.readouterr()
    return str(path)


def test_device_that_fits_is_taken_by_both_ways(capsys: Output) -> None:
    assert run("check", *HOST, *NEXT, "--range", "0x1000+4K") == 0
    text = capsys.readouterr().out
    assert "YES: a VFIO container (type1) takes 0000:00:11.0" in text
    assert "YES: an iommufd takes 0000:00:11.0" in text


@pytest.mark.parametrize(("via", "number"), [("type1", "EINVAL"), ("iommufd", "EADDRINUSE")])
def test_ram_of_a_layout_that_the_device_cannot_reach_is_named(
    layout: str, via: str, number: str, capsys: Output
) -> None:
    assert run("check", *HOST, *NEXT, "--layout", layout, "--via", via) == 3
    text = capsys.readouterr().out
    assert f"with {number}: RAM high 0x100000000-0x1007fffffff overlaps 0x8000000000" in text
    assert "Do:     attach every device before anything is mapped" in text


def test_json_has_the_same_with_its_errno_and_ranges(layout: str, capsys: Output) -> None:
    assert run("check", *HOST, *NEXT, "--layout", layout, "-J") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["schema"]["name"] == "vmm-iova-attach"
    assert [item["via"] for item in found["verdicts"]] == ["type1", "iommufd"]
    first = found["verdicts"][0]
    assert (first["ok"], first["refusals"][0]["errno"]) == (False, "EINVAL")
    assert first["refusals"][0]["range"]["last"] == "0x1007fffffff"
    assert first["ranges"][-1]["last"] == "0x7fffffffff"


def test_group_of_host_drivers_is_refused_without_any_mapping(
    tmp_path: Path, capsys: Output
) -> None:
    snapshot = json.loads(dump_snapshot(load_host("lab-vtd-39"), "test"))
    snapshot["devices"][-1]["driver"] = "i801_smbus"
    snapshot["state"] = {"remaps_interrupts": False, "unsafe_iommufd": True}
    path = tmp_path / "host.json"
    path.write_text(json.dumps(snapshot))
    name, group = (snapshot["devices"][-1][key] for key in ("name", "group"))
    assert run("check", "--host", str(path), "--attach", name) == 3
    text = capsys.readouterr().out
    assert f"refuses {name} with EINVAL: group {group} is not viable: {name} has driver" in text
    assert f"refuses {name} with EPERM: group {group} is not viable" in text
    assert "vfio_iommu_type1.allow_unsafe_interrupts is not Y" in text
    assert "iommufd.allow_unsafe_interrupts" not in text


@pytest.mark.parametrize("option", [("--layout", "x.json"), ("--via", "type1")])
def test_option_of_one_more_device_is_refused_without_one(
    option: tuple[str, str], capsys: Output
) -> None:
    assert run("check", *HOST, "--range", "0x1000+4K", *option) == 2
    assert "name it with --attach BDF" in capsys.readouterr().err


def test_file_that_is_no_layout_is_refused_in_one_sentence(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert run("check", *HOST, *NEXT, "--layout", str(path)) == 5
    assert "x.json is no layout" in capsys.readouterr().err


def test_list_of_failed_maps_is_refused_beside_a_device(tmp_path: Path, capsys: Output) -> None:
    assert run("check", *HOST, *NEXT, "--maps", str(tmp_path / "maps.txt")) == 2
    assert "name what is mapped with --range" in capsys.readouterr().err


def test_granule_that_is_stated_is_what_mappings_have_to_be_aligned_to(capsys: Output) -> None:
    span = ("--range", "0x1000+4K", "--via", "iommufd")
    assert run("check", *HOST, *NEXT, *span) == 0
    assert run("check", *HOST, *NEXT, *span, "--granule", "64K") == 3
    assert "is not aligned to 0x10000" in capsys.readouterr().out
