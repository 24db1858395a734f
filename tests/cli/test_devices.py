# SPDX-License-Identifier: Apache-2.0
"""Devices of a host on the command line: shown, and planned for with their BARs and groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.command import Output, error_of, run
from tests.planning.test_assigned import AUDIO, GPU, PORT, box
from vmm_iova.host.snapshot import dump_snapshot


@pytest.fixture
def host(tmp_path: Path) -> str:
    """A snapshot of a host with a graphics card and a network card."""
    path = tmp_path / "box.json"
    path.write_text(dump_snapshot(box(), "test"))
    return str(path)


def old(host: str) -> str:
    """The same snapshot as version 1 had it."""
    data = json.loads(Path(host).read_text())
    data["schema"]["version"] = 1
    Path(host).write_text(json.dumps(data))
    return host


def test_show_prints_devices_with_their_bars(host: str, capsys: Output) -> None:
    assert run("show", "--host", host) == 0
    assert (
        "  0000:01:00.0  BAR 0 16 MiB (32-bit), BAR 1 32 GiB (prefetchable), "
        "BAR 3 32 MiB (prefetchable), ROM 512 KiB\n"
        "  0000:02:00.0  BAR 0 1 MiB, BAR 2 256 B (32-bit), VF BAR 0 8 MiB (prefetchable)\n"
    ) in capsys.readouterr().out


def test_plan_places_bars_of_devices_without_being_told(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "-s", "01:00.0,02:00.0") == 0
    text = capsys.readouterr().out
    assert "0000:01:00.0 BAR 1           32 GiB" in text
    assert "0000:02:00.0 BAR 0" in text
    assert "0000:01:00.0 ROM            512 KiB  peers do not reach it" in text
    assert "VF BAR" not in text.partition("devices")[0]


def test_plan_without_devices_places_none(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G") == 0
    text = capsys.readouterr().out
    assert " BAR " not in text
    assert "\ndevices\n" not in text


def test_plan_says_what_comes_along_and_who_has_it(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "-s", GPU) == 0
    text = capsys.readouterr().out
    assert f"  {GPU}  group 1, bound to vfio-pci: BAR 0 16 MiB" in text
    assert f"  {AUDIO}  group 1, comes along, bound to snd_hda_intel\n" in text
    assert f"  {PORT}  group 1, comes along, a bridge, which keeps its driver\n" in text


def test_json_has_the_members_of_the_groups(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "-s", GPU, "-J") == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["name"]: (item["holder"], item["asked"]) for item in found["members"]} == {
        GPU: ("vfio", True),
        AUDIO: ("held", False),
        PORT: ("bridge", False),
    }
    bars = [item for item in found["items"] if item["kind"] == "bar"]
    assert len(bars) == 4


def test_devices_behind_root_ports_have_windows(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "-s", GPU, "--root-ports") == 0
    assert "0000:01:00.0 window            64 GiB" in capsys.readouterr().out


def test_bar_option_stands_beside_those_of_devices(host: str, capsys: Output) -> None:
    status = run("plan", "--host", host, "--ram", "4G", "-s", GPU, "--bar", "later=64G")
    assert status == 0
    text = capsys.readouterr().out
    assert "later                        64 GiB" in text
    assert "0000:01:00.0 BAR 1           32 GiB" in text


def test_number_of_devices_is_that_of_the_option_unless_it_is_stated(
    host: str, capsys: Output
) -> None:
    both = ("plan", "--host", host, "--ram", "4G", "-s", "01:00.0,02:00.0", "--viommu", "-J")
    assert run(*both) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["containers"] == 2
    assert run(*both, "--assigned", "5") == 0
    assert json.loads(capsys.readouterr().out)["cost"]["containers"] == 5
    assert run(*both, "--assigned", "0") == 2
    assert "not a number from 1" in error_of(capsys)


def test_old_snapshot_places_no_bars_and_says_so(host: str, capsys: Output) -> None:
    assert run("plan", "--host", old(host), "--ram", "4G", "-s", GPU) == 0
    text = capsys.readouterr().out
    assert "BAR 1" not in text
    assert f"the BARs of {GPU} are not known" in text


def test_device_without_a_place_for_its_bars_is_refused(host: str, capsys: Output) -> None:
    bits = ("--phys-bits", "36", "--machine", "own-x86")
    assert run("plan", "--host", host, "--ram", "30G", "-s", GPU, *bits) == 3
    assert error_of(capsys).startswith(f"{GPU} BAR 1 (32 GiB, at a multiple of 0x800000000)")


def test_s390_devices_have_no_bars_in_the_guest(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    path.write_text(dump_snapshot(box(), "test"))
    text = json.loads(path.read_text())
    text["arch"] = "s390x"
    path.write_text(json.dumps(text))
    status = run("plan", "--host", str(path), "--ram", "4G", "-s", GPU, "--machine", "s390x")
    assert status == 0
    assert "BAR 1 32 GiB" in capsys.readouterr().out.partition("devices")[2]
