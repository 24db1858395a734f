# SPDX-License-Identifier: Apache-2.0
"""BARs as facts: from sysfs, and from listings of lspci."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from tests.kit.hosts import MSI_LINE
from vmm_iova.errors import HostDataError
from vmm_iova.host.bars import BarKind, DeviceBar, parse_resource, resizable_sizes
from vmm_iova.host.load import load_facts
from vmm_iova.host.sysfs import read_sysfs
from vmm_iova.host.text import parse_text

if TYPE_CHECKING:
    from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NONE = f"0x{0:016x} 0x{0:016x} 0x{0:016x}\n"


def line(start: int, size: int, flags: int) -> str:
    """A line of `resource` in the exact format of the kernel."""
    return f"0x{start:016x} 0x{start + size - 1:016x} 0x{flags:016x}\n"


# A graphics card with 32-bit registers, a window of 64 bits and I/O ports (flags as Linux 6.12).
GPU = (
    line(0xF6000000, 16 * MIB, 0x40200)
    + line(0x6000000000, 32 * GIB, 0x14220C)
    + NONE
    + line(0x6800000000, 32 * MIB, 0x14220C)
    + NONE
    + line(0xE000, 128, 0x40101)
    + line(0xF7000000, 512 * KIB, 0x46200)
)


def parse(text: str) -> tuple[DeviceBar, ...]:
    return parse_resource(text, "resource")


def test_bars_of_a_graphics_card_are_read_and_ports_and_gaps_are_none() -> None:
    assert parse(GPU) == (
        DeviceBar(0, 16 * MIB, 32),
        DeviceBar(1, 32 * GIB, 64, prefetchable=True),
        DeviceBar(3, 32 * MIB, 64, prefetchable=True),
        DeviceBar(0, 512 * KIB, 32, kind=BarKind.ROM),
    )
    assert [bar.title for bar in parse(GPU)] == ["BAR 0", "BAR 1", "BAR 3", "ROM"]


def test_lines_behind_the_rom_are_of_virtual_functions_where_the_kernel_knows_them() -> None:
    # A network card of 64 virtual functions, each with 16 KiB (drivers/pci/iov.c, sriov_init).
    virtual = line(0x38200000, 64 * 16 * KIB, 0x14220C)
    text = line(0x38000000, MIB, 0x14220C) + NONE * 6 + virtual + NONE * 5
    assert parse(text)[1:] == (DeviceBar(0, MIB, 64, prefetchable=True, kind=BarKind.VF),)
    assert parse(text)[1].title == "VF BAR 0"


def test_windows_of_a_bridge_are_no_bars_with_and_without_sriov() -> None:
    window = line(0xF6000000, 16 * MIB, 0x200)
    without = line(0xFE000000, 4 * KIB, 0x40200) + NONE * 6 + NONE + window * 2 + NONE
    with_vfs = line(0xFE000000, 4 * KIB, 0x40200) + NONE * 6 + NONE * 6 + NONE + window * 2 + NONE
    assert parse(without) == parse(with_vfs) == (DeviceBar(0, 4 * KIB, 32),)


def test_bar_without_an_address_says_so() -> None:
    (bar,) = parse(line(0, 256 * MIB, 0x14220C | 0x20000000) + NONE * 6)
    assert not bar.assigned
    assert bar.size == 256 * MIB


@pytest.mark.parametrize(
    "text",
    [
        "",
        NONE * 6,  # cut off before the ROM
        NONE * 18,
        NONE * 6 + "0x0 0x0",
        NONE * 6 + "\x1b[2J",
        NONE * 6 + "-0x1 0x0 0x0\n",
        NONE * 6 + "0x10000000000000000 0x0 0x0\n",
        NONE * 6 + f"0x{0x2000:016x} 0x{0x1000:016x} 0x{0x200:016x}\n",  # backwards
        NONE * 6 + f"0x{0:016x} 0x{(1 << 64) - 1:016x} 0x{0x200:016x}\n",  # all there is
        "0x1 0x2 0x200 " * 9000,
        (NONE * 7).replace("0x", "0X"),
        (NONE * 7).replace(" ", "\t"),
    ],
    ids=[
        "empty", "cut", "too-many", "two-numbers", "escape", "sign", "65-bits", "backwards",
        "everything", "long", "capitals", "tabs",
    ],
)  # fmt: skip
def test_resource_file_of_another_form_is_one_sentence_that_names_it(text: str) -> None:
    with pytest.raises(HostDataError, match=r"^resource") as caught:
        parse(text)
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


@given(
    st.text(max_size=200) | st.lists(st.sampled_from([NONE, GPU, "0x1 0x0 0x200\n"])).map("".join)
)
def test_any_resource_file_gives_bars_or_one_sentence(text: str) -> None:
    try:
        bars = parse(text)
    except HostDataError:
        return
    assert all(bar.size and 0 < bar.size <= 1 << 63 for bar in bars)
    assert len(bars) <= 13


def test_bitmap_of_resizable_sizes_counts_from_a_mebibyte() -> None:
    # Documentation/ABI/testing/sysfs-bus-pci, resource<N>_resize
    assert resizable_sizes(0x1C0) == (64 * MIB, 128 * MIB, 256 * MIB)
    assert resizable_sizes(0) == ()
    assert max(resizable_sizes((1 << 64) - 1)) == 1 << 63


# -- sysfs -----------------------------------------------------------------------------------------


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A tree with one group that has two devices; the first one's folder is returned."""
    top = tmp_path / "copy"
    group = top / "sys/kernel/iommu_groups/1"
    (group / "devices").mkdir(parents=True)
    (group / "reserved_regions").write_text(MSI_LINE)
    for name in ("0000:01:00.0", "0000:01:00.1"):
        (group / "devices" / name).symlink_to(f"../../../../devices/{name}")
        (top / "sys/bus/pci/devices" / name).mkdir(parents=True)
    return top


def device(top: Path) -> Path:
    return top / "sys/bus/pci/devices/0000:01:00.0"


def test_bars_of_a_tree_are_facts_of_its_devices(top: Path) -> None:
    (device(top) / "resource").write_text(GPU)
    (device(top) / "resource1_resize").write_text("000000000000ffc0\n")
    first, second = read_sysfs(top).devices
    assert first.bars is not None
    assert [bar.size for bar in first.bars] == [16 * MIB, 32 * GIB, 32 * MIB, 512 * KIB]
    assert first.bars[1].sizes == tuple(MIB << bit for bit in range(6, 16))
    assert first.bars[0].sizes == ()
    assert second.bars is None  # no such file


def test_damaged_resource_file_is_noted_and_its_device_is_kept(top: Path) -> None:
    (device(top) / "resource").write_text(GPU[:100])
    host = read_sysfs(top)
    assert host.devices[0].bars is None
    assert any("/resource has 2 lines" in note.text for note in host.notes)


@pytest.mark.parametrize("text", ["", "x\n", "1c0\n2\n", "0x" + "f" * 17, "-1\n"])
def test_damaged_list_of_sizes_leaves_a_bar_of_one_size(top: Path, text: str) -> None:
    (device(top) / "resource").write_text(GPU)
    (device(top) / "resource1_resize").write_text(text)
    bars = read_sysfs(top).devices[0].bars
    assert bars is not None
    assert bars[1].sizes == ()
    assert bars[1].size == 32 * GIB


def test_resource_file_that_has_no_bytes_of_text_is_noted(top: Path) -> None:
    (device(top) / "resource").write_bytes(bytes(range(128, 256)) * 20)
    host = read_sysfs(top)
    assert host.devices[0].bars is None
    assert any("/resource" in note.text for note in host.notes)


# -- lspci -----------------------------------------------------------------------------------------

# Rewritten from https://github.com/xCuri0/ReBarUEFI/issues/384, with sizes of its Resizable BAR.
VERBOSE = """\
07:00.0 VGA compatible controller: Intel Corporation Battlemage G21 [Intel Graphics]
\tControl: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- DisINTx-
\tIOMMU group: 21
\tRegion 0: Memory at 380800000000 (64-bit, prefetchable) [size=16M]
\tRegion 2: Memory at 380000000000 (64-bit, prefetchable) [size=32G]
\tExpansion ROM at ef200000 [disabled] [size=2M]
\tCapabilities: [40] Vendor Specific Information: Len=0c <?>
\tCapabilities: [420 v1] Physical Resizable BAR
\t\tBAR 2: current size: 32GB, supported: 256MB 512MB 1GB 2GB 4GB 8GB 16GB 32GB
\tCapabilities: [400 v1] Latency Tolerance Reporting
\tKernel driver in use: xe
"""

# Rewritten from https://github.com/TobleMiner/HPE-FlexibleLOM-adapter/issues/4.
SRIOV = """\
04:00.0 Ethernet controller: Broadcom Inc. NetXtreme II BCM57810
\tControl: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- DisINTx+
\tRegion 0: Memory at f7000000 (64-bit, prefetchable) [size=8M]
\tCapabilities: [1c0 v1] Single Root I/O Virtualization (SR-IOV)
\t\tInitial VFs: 16, Total VFs: 16, Number of VFs: 0, Function Dependency Link: 00
\t\tRegion 0: Memory at 00000000f7a80000 (64-bit, prefetchable)
\t\tRegion 4: Memory at 00000000f60c0000 (64-bit, prefetchable)
\t\tVF Migration: offset: 00000000, BIR: 0
\tCapabilities: [220 v1] Physical Resizable BAR
\t\tBAR 0: current size: 8MB, supported: 8MB
\tKernel driver in use: bnx2x
"""


def listed(text: str) -> vi.Device:
    (found,) = parse_text(text, "lspci.txt")[0].devices
    return found


def test_bars_rom_and_sizes_of_a_listing_are_facts() -> None:
    found = listed(VERBOSE)
    assert found.driver == "xe"
    assert found.bars == (
        DeviceBar(0, 16 * MIB, 64, prefetchable=True),
        DeviceBar(
            2, 32 * GIB, 64, prefetchable=True, sizes=tuple(MIB << bit for bit in range(8, 16))
        ),
        DeviceBar(0, 2 * MIB, 32, kind=BarKind.ROM),
    )


def test_regions_under_sriov_are_of_the_virtual_functions_and_have_no_size() -> None:
    assert listed(SRIOV).bars == (
        DeviceBar(0, 8 * MIB, 64, prefetchable=True, sizes=(8 * MIB,)),
        DeviceBar(0, None, 64, prefetchable=True, kind=BarKind.VF),
        DeviceBar(4, None, 64, prefetchable=True, kind=BarKind.VF),
    )


@pytest.mark.parametrize(
    ("shown", "assigned", "size"),
    [
        ("Region 0: [virtual] Memory at dfb00000 (32-bit, non-prefetchable) [size=1M]", True, MIB),
        ("Region 0: Memory at <unassigned> (64-bit, prefetchable) [disabled]", False, None),
        ("Region 0: Memory at <ignored> (32-bit, non-prefetchable) [size=1M]", False, MIB),
        ("Memory at f4121000 (32-bit, non-prefetchable) [size=1M]", True, MIB),
    ],
)
def test_ways_to_print_a_bar_are_told_apart(shown: str, assigned: bool, size: int | None) -> None:
    found = listed(f"04:00.0 Ethernet controller: Some Card\n\tFlags: fast devsel\n\t{shown}\n")
    assert found.bars is not None
    assert [(bar.assigned, bar.size) for bar in found.bars] == [(assigned, size)]


def test_bars_without_numbers_have_those_of_their_places() -> None:
    found = listed(
        "01:00.0 VGA compatible controller: A Card\n\tFlags: bus master, fast devsel\n"
        "\tMemory at a0000000 (32-bit, non-prefetchable) [size=16M]\n"
        "\tMemory at 90000000 (64-bit, prefetchable) [size=256M]\n"
        "\tI/O ports at 3000 [size=128]\n"
        "\tExpansion ROM at <ignored> [disabled]\n"
    )
    assert found.bars is not None
    assert [(bar.index, bar.size) for bar in found.bars] == [(0, 16 * MIB), (1, 256 * MIB)]


def test_listing_that_prints_no_bars_states_none() -> None:
    short = "01:00.0 VGA compatible controller [0300]: A Card [10de:2204]\n"
    assert listed(short).bars is None
    assert listed(f"{short}\tFlags: bus master, fast devsel\n").bars == ()


def test_listing_beside_a_snapshot_adds_bars_to_its_devices(top: Path, tmp_path: Path) -> None:
    (device(top).parent / "0000:01:00.0/driver").symlink_to("../../drivers/vfio-pci")
    file = tmp_path / "lspci.txt"
    file.write_text(VERBOSE.replace("07:00.0", "01:00.0").replace("group: 21", "group: 1"))
    host = read_sysfs(top).with_facts(load_facts(str(file)))
    found = host.device("01:00.0")
    assert found.driver == "vfio-pci"  # what sysfs says counts
    assert found.bars is not None
    assert len(found.bars) == 3
    assert host.group("1").devices == ("0000:01:00.0", "0000:01:00.1")
    assert host.group("1").regions
