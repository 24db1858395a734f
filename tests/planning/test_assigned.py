# SPDX-License-Identifier: Apache-2.0
"""Devices that a guest is given: the BARs that come with them, and the rest of their groups."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vmm_iova as vi
from tests.kit.hosts import LAST_48, group, intel, kernel_list, msi
from vmm_iova.errors import RequestError, UnknownNameError
from vmm_iova.host.bars import BarKind, DeviceBar
from vmm_iova.planning.assigned import device_bars, holder_of, members, unplaced

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GPU, AUDIO, PORT, NIC = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0", "0000:02:00.0"
GPU_BARS = (
    DeviceBar(0, 16 * MIB, 32),
    DeviceBar(1, 32 * GIB, 64, prefetchable=True),
    DeviceBar(3, 32 * MIB, 64, prefetchable=True),
    DeviceBar(0, 512 * KIB, 32, kind=BarKind.ROM),
)
NIC_BARS = (
    DeviceBar(0, MIB, 64),
    DeviceBar(2, 256, 32),
    DeviceBar(0, 8 * MIB, 64, prefetchable=True, kind=BarKind.VF),
)


def box(*, audio_driver: str | None = "snd_hda_intel", sysfs: bool = True) -> vi.Host:
    """A host with a graphics card in a group with its audio and the port above, and a NIC."""
    return intel(
        group("1", msi(), devices=(PORT, GPU, AUDIO)),
        group("2", msi("2"), devices=(NIC,)),
        devices=(
            vi.Device(PORT, "1", driver="pcieport", pci_class=0x060400, bars=()),
            vi.Device(GPU, "1", driver="vfio-pci", pci_class=0x030000, bars=GPU_BARS),
            vi.Device(AUDIO, "1", driver=audio_driver, pci_class=0x040300),
            vi.Device(NIC, "2", driver="vfio-pci", pci_class=0x020000, bars=NIC_BARS),
        ),
        kernel_ranges=(kernel_list((0, 0xFEDFFFFF), (0xFEF00000, LAST_48), groups=("1", "2")),),
        sysfs=sysfs,
    )


def test_bars_of_a_device_are_those_that_qemu_shows() -> None:
    assert device_bars(box(), [GPU]) == (
        vi.Bar(f"{GPU} BAR 0", 16 * MIB, 32, sizes=(16 * MIB,)),
        vi.Bar(f"{GPU} BAR 1", 32 * GIB, 64, sizes=(32 * GIB,)),
        vi.Bar(f"{GPU} BAR 3", 32 * MIB, 64, sizes=(32 * MIB,)),
        vi.Bar(f"{GPU} ROM", 512 * KIB, 32, emulated=True, sizes=(512 * KIB,)),
    )


def test_bars_of_virtual_functions_take_no_place_and_small_ones_take_a_page() -> None:
    assert device_bars(box(), [NIC]) == (
        vi.Bar(f"{NIC} BAR 0", MIB, 64, sizes=(MIB,)),
        vi.Bar(f"{NIC} BAR 2", 4 * KIB, 32, sizes=(256,)),
    )


def test_device_that_is_named_twice_counts_once() -> None:
    assert device_bars(box(), [GPU, "01:00.0"]) == device_bars(box(), [GPU])


def test_device_without_its_rom_shows_none() -> None:
    bars = device_bars(box(), [GPU, NIC], without_rom=["01:00.0"])
    assert not any(bar.emulated for bar in bars)
    assert len(bars) == 5


def test_device_behind_a_root_port_shares_a_window_and_the_rest_lies_below_4_gib() -> None:
    bars = {bar.name: bar for bar in device_bars(box(), [GPU, NIC], root_ports=True)}
    ports = {name: bar.port for name, bar in bars.items() if bar.port}
    assert ports == dict.fromkeys((f"{GPU} BAR 1", f"{GPU} BAR 3"), f"the port of {GPU}")
    assert bars[f"{NIC} BAR 0"].bits == 32  # 64 bits, but not prefetchable: a bridge has no window
    assert bars[f"{GPU} ROM"].emulated


def test_bars_behind_a_port_stand_together_where_the_largest_aligns() -> None:
    host = box()
    guest = vi.Guest("q35", "4G", bars=device_bars(host, [GPU], root_ports=True))
    layout = vi.plan(guest, host.usable())
    large, small = (
        next(item.place for item in layout.items if item.name == f"{GPU} BAR {index}")
        for index in (1, 3)
    )
    assert large.start % (32 * GIB) == 0
    assert small.start == large.last + 1


def test_device_that_is_not_there_is_refused() -> None:
    for call in (device_bars, members, unplaced):
        with pytest.raises(UnknownNameError, match="no device 0000:09"):
            call(box(), ["0000:09:00.0"])  # type: ignore[operator]


def test_bars_that_are_not_known_have_no_place_and_are_said() -> None:
    assert device_bars(box(), [AUDIO]) == ()
    (note,) = unplaced(box(), [AUDIO, GPU])
    assert note.text == f"the BARs of {AUDIO} are not known, so that they have no place (--bar)"
    assert unplaced(box(), [GPU, NIC]) == ()


def test_size_that_is_not_known_is_said() -> None:
    device = vi.Device(NIC, "2", bars=(DeviceBar(0, None, 64), DeviceBar(0, None, kind=BarKind.VF)))
    host = intel(group("2", msi("2"), devices=(NIC,)), devices=(device,))
    assert device_bars(host, [NIC]) == ()
    (note,) = unplaced(host, [NIC])
    assert f"the size of BAR 0 of {NIC} is not known" in note.text


def test_plan_places_the_bars_and_no_device_reaches_the_rom() -> None:
    host = box()
    guest = vi.Guest("q35", "4G", bars=device_bars(host, [GPU]))
    layout = vi.plan(guest, host.usable(devices=[GPU]))
    placed = {item.name: item for item in layout.items if item.kind is vi.ItemKind.BAR}
    assert placed[f"{GPU} BAR 1"].iova is not None
    assert placed[f"{GPU} BAR 1"].place.start % (32 * GIB) == 0
    rom = placed[f"{GPU} ROM"]
    assert rom.iova is None
    assert rom.place.last < 1 << 32
    assert not [note.text for note in layout.notes if "ROM" in note.text]
    assert vi.budget(layout).entries == len(layout.ram) + 3  # what is emulated is not mapped


@pytest.mark.parametrize("machine", ["q35", "i440fx", "own-x86"])
def test_plan_with_emulated_bars_leaves_them_unmapped_on_every_machine(machine: str) -> None:
    host = box()
    bars = [vi.Bar("rom", "1M", bits=32, emulated=True), vi.Bar("high", "1G", emulated=True)]
    layout = vi.plan(vi.Guest(machine, "4G", bars=bars), host.usable())
    found = [item.iova for item in layout.items if item.kind is vi.ItemKind.BAR]
    assert found == [None, None]


def test_emulated_bar_that_must_be_reached_is_a_contradiction() -> None:
    bar = vi.Bar("rom", "1M", required=True, emulated=True)
    with pytest.raises(RequestError, match="emulated"):
        vi.plan(vi.Guest("q35", "4G", bars=[bar]), box().usable())


def test_size_that_the_device_can_have_is_the_remedy_for_a_bar_without_room() -> None:
    sizes = tuple(MIB << bit for bit in (8, 13, 15))  # 256 MiB, 8 GiB and 32 GiB
    host = box()
    bars = (DeviceBar(1, 32 * GIB, 64, prefetchable=True, sizes=sizes),)
    devices = (replace(item, bars=bars) if item.name == GPU else item for item in host.devices)
    host = replace(host, devices=tuple(devices))
    small = vi.Guest("own-x86", "4G", bars=device_bars(host, [GPU]), phys_bits=35, pci64="16G")
    with pytest.raises(vi.PlanError, match="BAR 1") as caught:
        vi.plan(small, host.usable())
    file = f"/sys/bus/pci/devices/{GPU}/resource1_resize"
    assert any(
        fix.startswith("a BAR of 8 GiB has room") and f"echo 13 > {file}" in fix
        for fix in caught.value.fixes
    ), caught.value.fixes


def test_bar_of_one_size_has_no_such_remedy() -> None:
    host = box()
    small = vi.Guest("own-x86", "4G", bars=device_bars(host, [GPU]), phys_bits=35, pci64="16G")
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(small, host.usable())
    assert not any("resizable" in fix or "_resize" in fix for fix in caught.value.fixes)


# -- whole groups ----------------------------------------------------------------------------------


def test_group_comes_whole_with_who_has_each_member() -> None:
    found = {item.device.name: (item.holder, item.asked) for item in members(box(), [GPU])}
    assert found == {
        GPU: ("vfio", True),
        PORT: ("bridge", False),
        AUDIO: ("held", False),
    }


def test_group_of_its_own_brings_nobody_along() -> None:
    assert [item.device.name for item in members(box(), [NIC])] == [NIC]
    assert members(box(), []) == ()


def test_whole_group_that_is_asked_for_stands_once() -> None:
    found = members(box(), [AUDIO, GPU])
    assert [(item.device.name, item.asked) for item in found] == [
        (AUDIO, True),
        (GPU, True),
        (PORT, False),
    ]


@pytest.mark.parametrize(
    ("driver", "pci_class", "sysfs", "holder"),
    [
        ("vfio-pci", 0x030000, True, "vfio"),
        ("mlx5_vfio_pci", 0x020000, True, "vfio"),
        ("nvgrace-gpu-vfio-pci", 0x030200, True, "vfio"),
        ("pci-stub", 0x040300, True, "vfio"),
        ("nvidia", 0x030000, True, "held"),
        (None, 0x030000, True, "free"),
        (None, 0x030000, False, "not known"),  # a text need not name the driver
        ("pcieport", 0x060400, True, "bridge"),
        (None, 0x060400, False, "bridge"),
        ("isa", 0x060100, True, "held"),  # a bridge to ISA is a device like others
    ],
)
def test_holder_goes_by_driver_and_class(
    driver: str | None, pci_class: int, sysfs: bool, holder: str
) -> None:
    host = intel(sysfs=sysfs)
    assert holder_of(host, vi.Device("x", "1", driver=driver, pci_class=pci_class)) == holder
