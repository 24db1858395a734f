# SPDX-License-Identifier: Apache-2.0
"""Devices of a host on the command line: shown, and planned for with their BARs and groups."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import vmm_iova as vi
from tests.kit.command import Output, error_of, run
from tests.planning.test_assigned import AUDIO, GPU, NIC, PORT, box
from tests.planning.test_start import GOOD, ready, with_device
from vmm_iova.host.snapshot import dump_snapshot
from vmm_iova.host.state import DeviceNode


@pytest.fixture
def host(tmp_path: Path) -> str:
    """A snapshot of a host with a graphics card and a network card."""
    path = tmp_path / "box.json"
    path.write_text(dump_snapshot(box(audio_driver=None), "test"))
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


def test_plan_says_what_comes_along_and_who_has_it(capsys: Output, tmp_path: Path) -> None:
    assert run("plan", "--host", on(box(), tmp_path), "--ram", "4G", "-s", GPU) == 1
    text = capsys.readouterr().out
    assert f"  {GPU}  group 1, bound to vfio-pci: BAR 0 16 MiB" in text
    assert f"  {AUDIO}  group 1, comes along, bound to snd_hda_intel\n" in text
    assert f"  {PORT}  group 1, comes along, a bridge, which keeps its driver\n" in text


def test_json_has_the_members_of_the_groups(capsys: Output, tmp_path: Path) -> None:
    assert run("plan", "--host", on(box(), tmp_path), "--ram", "4G", "-s", GPU, "-J") == 1
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
    text = capsys.readouterr().out
    assert "0000:01:00.0 BAR 1 " in text
    assert "0000:01:00.0 BAR 3 " in text


def _start(text: str, name: str) -> int:
    (line,) = (line for line in text.splitlines() if f" : {name} " in line)
    return int(line.split("-")[0], 16)


def test_spare_ports_stand_behind_the_others(host: str, capsys: Output) -> None:
    # SeaBIOS 1.16.3 comes to the last port first, and keeps a 2048th of the addresses behind each.
    given = ("plan", "--host", host, "--ram", "4G", "--bar", "own=16G,port=p", "--phys-bits", "46")
    given += ("--firmware", "seabios-1.16.3", "--aperture", "48")
    assert run(*given) == 0
    text = capsys.readouterr().out
    assert "further PCIe root ports move these BARs" in text
    assert run(*given, "--spare-ports", "5") == 0
    told = capsys.readouterr().out
    assert "further PCIe root ports" not in told
    assert _start(told, "own") - _start(text, "own") == 5 << 35
    assert run(*given, "--spare-ports", "0") == 0
    none = capsys.readouterr().out
    assert "further PCIe root ports" not in none
    assert _start(none, "own") == _start(text, "own")


@pytest.mark.parametrize("number", ["-1", "241"])
def test_spare_ports_beyond_the_slots_of_a_bus_are_refused(
    number: str, host: str, capsys: Output
) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "--spare-ports", number) == 2
    assert f"--spare-ports {number} is not a number from 0 to 240" in capsys.readouterr().err


def test_ports_of_a_definition_move_its_bars(host: str, capsys: Output, tmp_path: Path) -> None:
    # OVMF goes by the bus, and keeps a 256th of its window behind each port.
    words = "qemu-system-x86_64 -M q35 -m 4G -cpu host,host-phys-bits-limit=46"
    ports = [f"-device pcie-root-port,id=p{n},addr={n + 2}" for n in range(6)]
    found = []
    for behind in (0, 3, 5):
        vm = tmp_path / f"{behind}.txt"
        given = f"-device vfio-pci,host=01:00.0,bus=p{behind}"
        vm.write_text(" ".join([words, *ports, given]))
        firmware = ("--firmware", "ovmf-2025.02", "--aperture", "48")
        assert run("plan", "--host", host, "--vm", str(vm), *firmware) in (0, 1)
        text = capsys.readouterr().out
        assert "further PCIe root ports" not in text
        found.append(_start(text, f"{GPU} BAR 1"))
    assert [start - found[0] for start in found] == [0, 3 << 35, 5 << 35]


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
    assert "not a number from 1" in capsys.readouterr().out


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
    host = on(replace(box(audio_driver=None), arch="s390x"), tmp_path)
    assert run("plan", "--host", host, "--ram", "4G", "-s", GPU, "--machine", "s390x") == 0
    assert "BAR 1 32 GiB" in capsys.readouterr().out.partition("devices")[2]


# -- will it start ---------------------------------------------------------------------------------


def on(host: vi.Host, tmp_path: Path) -> str:
    path = tmp_path / "host.json"
    path.write_text(dump_snapshot(host, "test"))
    return str(path)


def test_verdict_is_that_the_guest_starts_and_works(capsys: Output, tmp_path: Path) -> None:
    assert run("plan", "--host", on(ready(), tmp_path), "--ram", "4G", "-s", NIC) == 0
    text = capsys.readouterr().out
    assert text.startswith("STARTS AND WORKS: 4 GiB of RAM in q35, where its VMM puts it")
    assert "  ok      driver         bound to vfio-pci\n" in text
    assert "not known" not in text


def test_verdict_is_that_it_does_not_start_and_what_to_do(capsys: Output, tmp_path: Path) -> None:
    host = ready(state=replace(GOOD, remaps_interrupts=False))
    host = with_device(host, NIC, driver="mlx5_core")
    assert run("plan", "--host", on(host, tmp_path), "--ram", "4G", "-s", NIC) == 1
    text = capsys.readouterr().out
    assert text.startswith(f"DOES NOT START: {NIC} is bound to mlx5_core; its addresses would do: ")
    assert f"\nDo:     bind {NIC} to vfio-pci: echo vfio-pci > " in text
    assert "\nWhy:    nothing remaps interrupts" in text
    assert "  not ok  interrupts" in text


def test_verdict_is_that_it_starts_with_something_missed(capsys: Output, tmp_path: Path) -> None:
    host = ready(state=replace(GOOD, remaps_interrupts=False, unsafe_interrupts=True))
    assert run("plan", "--host", on(host, tmp_path), "--ram", "4G", "-s", NIC) == 0
    assert capsys.readouterr().out.startswith("STARTS, BUT: nothing remaps interrupts")


def test_verdict_over_unknown_rows_is_that_it_fits(host: str, capsys: Output) -> None:
    assert run("plan", "--host", host, "--ram", "4G", "-s", NIC) == 0
    text = capsys.readouterr().out
    assert text.startswith("FITS: ")
    known = "whether it starts is known on the host itself, or from a capture there"
    assert f"\nSure?   {known} (vmm-iova capture -o host.json)\n" in text
    assert "  not known: nodes, interrupts, memory, locked memory\n" in text


def test_single_row_that_is_not_known_is_named_with_what_settles_it(
    capsys: Output, tmp_path: Path
) -> None:
    host = ready(limits=vi.Limits(65535, 1 << 20), state=replace(GOOD, may_lock=None))
    assert run("plan", "--host", on(host, tmp_path), "--ram", "4G", "-s", NIC) == 0
    text = capsys.readouterr().out
    assert "\nSure?   whether it starts is not known: locked memory\n" in text
    assert "/proc/PID/limits" in text


def test_json_has_verdict_and_rows(capsys: Output, tmp_path: Path) -> None:
    assert run("plan", "--host", on(ready(), tmp_path), "--ram", "4G", "-s", NIC, "-J") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["start"]["verdict"] == "starts and works"
    assert found["certainty"] == "certain"
    assert {item["what"] for item in found["start"]["rows"]} >= {"driver", "memory", "nodes"}
    assert set(found["start"]["rows"][0]) == {"what", "state", "text", "do", "fatal"}


def test_way_to_open_devices_counts_for_nodes_and_map_calls(capsys: Output, tmp_path: Path) -> None:
    host = on(ready(limits=vi.Limits(1, -1)), tmp_path)
    command = ("plan", "--host", host, "--ram", "4G", "-s", NIC)
    assert run(*command) == 1
    assert "not ok  map calls      4 of 1" in capsys.readouterr().out
    assert run(*command, "--via", "iommufd") == 1
    text = capsys.readouterr().out
    assert "  ok      map calls      4; iommufd has no limit" in text
    assert "not ok  nodes          /dev/iommu is not there" in text


def test_listing_of_lspci_beside_an_old_snapshot_gives_its_bars(
    host: str, capsys: Output, tmp_path: Path
) -> None:
    listing = tmp_path / "lspci.txt"
    listing.write_text(
        "01:00.0 VGA compatible controller: A Card\n\tControl: I/O- Mem+ BusMaster+\n"
        "\tIOMMU group: 1\n"
        "\tRegion 1: Memory at 38a800000000 (64-bit, prefetchable) [size=32G]\n"
    )
    facts = ("--facts", str(listing))
    assert run("plan", "--host", old(host), *facts, "--ram", "4G", "-s", GPU) == 0
    assert "0000:01:00.0 BAR 1 " in capsys.readouterr().out


def test_show_prints_what_the_host_has_at_the_moment(capsys: Output, tmp_path: Path) -> None:
    nodes = (DeviceNode("/dev/vfio/2", False), DeviceNode("/dev/vfio/vfio", True))
    host = ready(state=replace(GOOD, nodes=nodes, may_lock=True, unsafe_interrupts=True))
    assert run("show", "--host", on(host, tmp_path)) == 0
    text = capsys.readouterr().out.partition("at the moment\n")[2]
    assert "  memory: 64 GiB, 32 GiB available\n" in text
    assert "  huge pages of 1 GiB: 16, 16 free\n" in text
    assert "  nodes: /dev/vfio/2 (no access), /dev/vfio/vfio\n" in text
    assert "  interrupts: remapped, and VFIO goes without (allow_unsafe_interrupts)\n" in text
    assert "CAP_IPC_LOCK" in text


def test_show_of_an_old_snapshot_has_no_moment(host: str, capsys: Output) -> None:
    assert run("show", "--host", old(host)) == 0
    assert "at the moment" not in capsys.readouterr().out
