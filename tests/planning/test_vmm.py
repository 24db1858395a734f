# SPDX-License-Identifier: Apache-2.0
"""What QEMU and its firmware do: numbers of real ones; `python -m lab.vmm` reads them anew."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.machines.firmware import BarNeed, Board, Firmware, candidates, place
from vmm_iova.planning.layout import ItemKind
from vmm_iova.planning.start import RowState, Start, StartRow
from vmm_iova.planning.wanted_bars import bars_of
from vmm_iova.ranges import GIB, MIB, TIB, AddrRange
from vmm_iova.report.verdicts import layout_answer
from vmm_iova.units import parse_size

OPEN = vi.Host("open").usable(aperture=64, granule=4096)
GPU = [vi.Bar("gpu", "16G")]


def _place(layout: vi.Layout, name: str) -> AddrRange | None:
    return next((item.gpa for item in layout.items if item.name == name), None)


def _q35(ram: str | int, **of: Any) -> vi.Guest:
    return vi.Guest("q35", ram, **of)


class TestMove:
    @pytest.mark.parametrize(
        ("machine", "cpu", "start"),
        [("q35", "amd", TIB), ("q35", "intel", 4 * GIB), ("q35-7.0", "amd", 4 * GIB)],
    )
    def test_ram_moves_by_the_guests_cpu_and_the_machine_type(
        self, machine: str, cpu: Any, start: int
    ) -> None:
        layout = vi.plan(vi.Guest(machine, "1000G", cpu=cpu, phys_bits=48), OPEN)
        assert layout.ram[1].place.start == start

    def test_cpu_that_is_not_named_is_the_hosts(self) -> None:
        amd = vi.load_host("amd-epyc-1tb").usable()
        assert vi.plan(_q35("1000G"), amd).policy == "move"
        assert vi.plan(_q35("1000G"), OPEN).policy == "as is"

    def test_host_with_the_hole_and_a_guest_that_does_not_move_needs_another_vmm(self) -> None:
        amd = vi.load_host("amd-epyc-1tb").usable()
        layout = vi.plan(_q35("1.5TiB", cpu="intel"), amd)
        assert not layout.starts
        assert any("needs a VMM that can" in note.text for note in layout.notes)
        assert vi.plan(vi.Guest("own-x86", "1.5TiB"), amd).starts

    def test_hotplugged_memory_counts_for_the_move(self) -> None:
        # -m 480G,slots=16,maxmem=1000G -cpu EPYC,phys-bits=48
        guest = _q35("480G", maxmem="1000G", slots=16, cpu="amd", phys_bits=48)
        layout = vi.plan(guest, OPEN)
        assert str(layout.ram[1].place) == "0x10000000000-0x1777fffffff"
        area = _place(layout, "memory plugged in later")
        assert area == AddrRange.from_size(0x177_8000_0000, 536 * GIB)
        assert (
            "because of maxmem, QEMU moves all RAM above 4 GiB to 0x10000000000"
            in layout.reasons[0]
        )
        assert layout.otherwise[0].startswith("maxmem=")


class TestStart:
    def test_window_beyond_the_guests_addresses_is_refused_as_qemu_does(self) -> None:
        with pytest.raises(vi.PlanError, match=r"does not start.*0x8e7fffffff") as caught:
            vi.plan(_q35("536G", phys_bits=39), OPEN)
        assert caught.value.fixes[0].startswith("--phys-bits 40")

    def test_window_that_is_left_out_is_a_fix_where_it_is_enough(self) -> None:
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(_q35("500G", phys_bits=39), OPEN)
        assert any("--pci64 0 (QEMU: -global q35-pcihost" in fix for fix in caught.value.fixes)
        assert vi.plan(_q35("500G", phys_bits=39, pci64=0), OPEN).starts

    def test_maxmem_that_reaches_beyond_the_guests_addresses_is_refused(self) -> None:
        # Address space limit 0x1ffffffffff < 0x201bfffffff phys-bits too low (41)
        amd = vi.load_host("amd-epyc-1tb").usable()
        guest = _q35("480G", maxmem="1000G", slots=1, phys_bits=41)
        with pytest.raises(vi.PlanError, match="reaches 0x201bfffffff"):
            vi.plan(guest, amd)
        with pytest.raises(vi.PlanError, match="reaches 0x837fffffff"):
            vi.plan(_q35("16G", maxmem="476G", slots=16, phys_bits=39, cpu="intel"), OPEN)

    def test_ram_under_microvms_window_is_refused(self) -> None:
        with pytest.raises(vi.PlanError, match="loses RAM 0x6000000000-0x643fffffff"):
            vi.plan(vi.Guest("microvm", "400G", phys_bits=39), OPEN)

    def test_stated_window_ends_at_a_whole_gib(self) -> None:
        layout = vi.plan(_q35("4G", pci64="3073MiB", phys_bits=40), OPEN)
        assert _place(layout, "64-bit PCI window") == AddrRange(0x1_8000_0000, 0x2_7FFF_FFFF)

    @pytest.mark.parametrize(("cap", "last"), [("1G", GIB - 1), ("3G", 2 * GIB - 1)])
    def test_max_ram_below_4g_caps_what_q35_has(self, cap: str, last: int) -> None:
        layout = vi.plan(_q35("8G", max_ram_below_4g=cap), OPEN)
        assert layout.ram[0].place.last == last


class TestHotplug:
    def test_area_over_the_hosts_msi_window_is_refused(self) -> None:
        # hisilicon d05: plugging a DIMM there is EINVAL.
        host = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        guest = vi.Guest("virt", "1G", maxmem="4G", slots=2)
        with pytest.raises(vi.PlanError, match="0xc6010000"):
            vi.plan(guest, host)

    def test_area_of_s390_is_at_the_next_gib(self) -> None:
        usable = parse_text("0x1000 - 0xfffffffffff\n", "list", "iova_ranges")[0].usable()
        layout = vi.plan(vi.Guest("s390x", "4G", maxmem="8G", slots=2), usable)
        assert _place(layout, "memory plugged in later") == AddrRange(1 << 32, 0x1_FFFF_FFFF)

    @pytest.mark.parametrize(
        ("of", "text"),
        [
            ({"slots": 2}, "slots say nothing"),
            ({"maxmem": "2G", "slots": 300}, "not a number from 0 to 256"),
            ({"maxmem": "1G"}, "less than the RAM"),
        ],
    )
    def test_request_that_makes_no_sense_is_refused(self, of: Any, text: str) -> None:
        with pytest.raises(vi.RequestError, match=text):
            vi.plan(_q35("2G", **of), OPEN)

    def test_machine_without_it_refuses(self) -> None:
        with pytest.raises(vi.RequestError, match="no memory that is plugged in later"):
            vi.plan(vi.Guest("microvm", "2G", maxmem="4G"), OPEN)


class TestFirmware:
    """q35, 4 GiB, a BAR of 16 GiB."""

    @pytest.mark.parametrize(
        ("bits", "cpu", "places"),
        [
            (39, "intel", [0x4_0000_0000, 0x70_0000_0000, 0x70_0000_0000, 0x70_0000_0000]),
            (40, "amd", [0x4_0000_0000, 0xC0_0000_0000, 0xC0_0000_0000, 0xC0_0000_0000]),
            (42, "amd", [0x4_0000_0000, 0x380_0000_0000, 0x380_0000_0000, 0x380_0000_0000]),
            (46, "intel", [0x4_0000_0000, 0x3800_0000_0000, 0xE00_0000_0000, 0x3800_0000_0000]),
            (48, "amd", [0x4_0000_0000, 0x3800_0000_0000, 0xE00_0000_0000, 0x3800_0000_0000]),
        ],
    )
    def test_bar_is_where_each_release_puts_it(
        self, bits: int, cpu: Any, places: list[int]
    ) -> None:
        names = ("seabios-1.16.2", "seabios-1.16.3", "seabios-1.17.0", "ovmf-2025.02")
        for name, start in zip(names, places, strict=True):
            guest = _q35("4G", bars=GPU, phys_bits=bits, cpu=cpu, firmware=name)
            found = _place(vi.plan(guest, OPEN), "gpu")
            assert found == AddrRange.from_size(start, 16 * GIB), name

    def test_ovmf_of_2026_does_not_believe_39_bits(self) -> None:
        guest = _q35("4G", bars=GPU, phys_bits=39, cpu="intel", firmware="ovmf-2026.08")
        assert _place(vi.plan(guest, OPEN), "gpu") == AddrRange.from_size(32 * GIB, 16 * GIB)

    def test_switch_brings_ovmf_back_above_ram(self) -> None:
        guest = _q35("4G", bars=GPU, phys_bits=46, cpu="intel", firmware="ovmf", ovmf_window="32G")
        layout = vi.plan(guest, OPEN)
        assert _place(layout, "gpu") == AddrRange.from_size(32 * GIB, 16 * GIB)
        assert any("X-PciMmio64Mb,string=32768" in text for text in layout.settings)

    def test_release_that_is_not_named_is_every_one_that_differs(self) -> None:
        layout = vi.plan(_q35("4G", bars=GPU, phys_bits=46), OPEN)
        (note,) = [note.text for note in layout.notes if "--firmware names" in note.text]
        assert "SeaBIOS 1.16.2 at 0x400000000, SeaBIOS 1.16.3 at 0x380000000000" in note

    def test_required_bar_that_one_release_puts_out_of_reach_is_refused_with_levers(self) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        bars = [vi.Bar("gpu", "16G", required=True)]
        with pytest.raises(vi.PlanError, match=r"puts BAR gpu .* where peers do not") as caught:
            vi.plan(_q35("4G", bars=bars, phys_bits=46, firmware="ovmf"), laptop)
        fixes = " ".join(caught.value.fixes)
        assert "--ovmf-window 32768MiB (QEMU: -fw_cfg name=opt/ovmf/X-PciMmio64Mb" in fixes
        assert "--phys-bits 39" in fixes
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(_q35("4G", bars=bars, phys_bits=46), laptop)
        assert any(fix.startswith("--firmware seabios-1.16.2") for fix in caught.value.fixes)

    def test_fault_of_seabios_that_puts_a_bar_into_ram_is_named(self) -> None:
        guest = _q35("900G", bars=GPU, phys_bits=40, cpu="amd", firmware="seabios-1.16.3")
        with pytest.raises(vi.PlanError, match=r"SeaBIOS 1.16.3 puts BAR gpu .*0xc400000000.*RAM"):
            vi.plan(guest, OPEN)

    def test_ovmf_has_32_bit_bars_and_ecam_elsewhere(self) -> None:
        bars = [vi.Bar("fb", "512M", bits=32)]
        layout = vi.plan(_q35("4G", bars=bars, firmware="ovmf"), OPEN)
        assert _place(layout, "fb") == AddrRange.from_size(0x8000_0000, 512 * MIB)
        assert _place(layout, "PCIe configuration space") == AddrRange(0xE000_0000, 0xEFFF_FFFF)
        seabios = vi.plan(_q35("4G", bars=bars, firmware="seabios"), OPEN)
        assert _place(seabios, "fb") == AddrRange.from_size(0xC000_0000, 512 * MIB)

    def test_seabios_has_32_bit_bars_below_those_of_the_machines_own_devices(self) -> None:
        # -M q35 -nodefaults -m 512M -device edu (three times): the SATA controller has the top MiB
        bars = [vi.Bar(name, "1M", bits=32) for name in ("e0", "e1", "e2")]
        layout = vi.plan(_q35("512M", bars=bars, firmware="seabios-1.16.2"), OPEN)
        starts = [_place(layout, bar.name) for bar in bars]
        assert [f"{span.start:#x}" for span in starts if span] == [
            "0xfe800000",
            "0xfe900000",
            "0xfea00000",
        ]

    @pytest.mark.parametrize("firmware", ["seabios-1.16.2", "ovmf-2025.02"])
    def test_32_bit_bars_larger_than_the_room_below_4_gib_have_no_place(
        self, firmware: str
    ) -> None:
        bars = [vi.Bar(name, "1G", bits=32) for name in ("one", "two")]
        with pytest.raises(vi.PlanError, match="BAR one"):
            vi.plan(_q35("4G", bars=bars, firmware=firmware), OPEN)

    def test_required_32_bit_bar_over_an_rmrr_is_refused_where_ovmf_puts_it(self) -> None:
        host = vi.load_host("intel-dmar-thinkpad-t450s").usable(strict=True)
        bars = [vi.Bar("fb", "512M", bits=32, required=True)]
        with pytest.raises(vi.PlanError, match=r"OVMF 2025\.02 puts BAR fb"):
            vi.plan(_q35("4G", bars=bars, firmware="ovmf"), host)

    def test_ovmf_of_2022_has_the_old_configuration_space_and_heeds_no_switch(
        self,
    ) -> None:
        guest = _q35("2G", bars=GPU, phys_bits=40, cpu="amd", firmware="ovmf-2022.11")
        layout = vi.plan(replace(guest, ovmf_window="32G"), OPEN)
        assert _place(layout, "PCIe configuration space") == AddrRange(0xB000_0000, 0xBFFF_FFFF)
        # and it does not look at what e820 reserves: AMD's hole is in its window
        assert _place(layout, "gpu") == AddrRange.from_size(0xE0_0000_0000, 16 * GIB)

    def test_switch_that_only_newer_releases_heed_is_a_fix_that_says_so(self) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        bars = [vi.Bar("gpu", "16G", required=True)]
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(_q35("4G", bars=bars, phys_bits=46, firmware="ovmf"), laptop)
        assert any(fix.endswith(", from OVMF 2025.02 on") for fix in caught.value.fixes)

    def test_bar_larger_than_ovmfs_window_has_no_place(self) -> None:
        bars = [vi.Bar("gpu", "64G")]
        guest = _q35("4G", bars=bars, phys_bits=40, cpu="intel", firmware="ovmf-2025.02")
        with pytest.raises(vi.PlanError):
            vi.plan(guest, OPEN)

    def test_amds_entry_is_in_the_e820_table_as_qemu_has_it(self) -> None:
        hole = AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)
        for cpu, bits, there in (("amd", 40, True), ("amd", 39, False), ("intel", 46, False)):
            layout = vi.plan(_q35("4G", cpu=cpu, phys_bits=bits), OPEN)  # type: ignore[arg-type]
            assert (hole in [entry.range for entry in vi.e820(layout)]) is there

    @pytest.mark.parametrize("name", ["bios", "ovmf-x", "none-1.0", "seabios-1"])
    def test_name_that_is_no_firmware_is_refused(self, name: str) -> None:
        with pytest.raises(vi.RequestError, match="firmware"):
            candidates(name, vi.load_machine("q35"))

    def test_machine_that_does_not_depend_on_firmware_takes_none(self) -> None:
        assert candidates(None, vi.load_machine("virt")) == ()
        with pytest.raises(vi.RequestError, match="does not depend on firmware"):
            candidates("ovmf", vi.load_machine("virt"))

    def test_bars_are_packed_largest_first_from_the_bottom(self) -> None:
        board = Board(True, 2 * GIB, 102 * GIB, 0, 39, "intel")
        needs = [BarNeed(16 * GIB, 16 * GIB), BarNeed(64 * GIB, 64 * GIB)]
        spans = place(Firmware("seabios", (1, 17, 0)), board, needs)
        assert spans is not None
        assert [span.start for (span,) in spans] == [0x70_0000_0000, 0x60_0000_0000]


class TestPorts:
    """8 GiB on q35, BARs behind PCIe root ports: places as real firmware gave them out."""

    TWO = (
        vi.Bar("a", "256M", port="p0"),
        vi.Bar("b", "256M", port="p0"),
        vi.Bar("c", "8G", port="p0"),
        vi.Bar("lone", "16G"),
    )

    @pytest.mark.parametrize(
        ("firmware", "bits", "starts"),
        [
            ("seabios-1.16.2", 46, (0xA_0000_0000, 0xA_1000_0000, 0x8_0000_0000, 0x4_0000_0000)),
            (
                "seabios-1.16.3",  # each port takes 1/2048 of the addresses
                46,
                (0x3802_0000_0000, 0x3802_1000_0000, 0x3800_0000_0000, 0x3808_0000_0000),
            ),
            (
                "seabios-1.17.0",
                40,
                (0xC6_0000_0000, 0xC6_1000_0000, 0xC4_0000_0000, 0xC0_0000_0000),
            ),
            ("ovmf-2025.02", 40, (0xC6_1000_0000, 0xC6_0000_0000, 0xC4_0000_0000, 0xC0_0000_0000)),
            ("ovmf-2022.11", 40, (0xE6_1000_0000, 0xE6_0000_0000, 0xE4_0000_0000, 0xE0_0000_0000)),
        ],
    )
    def test_bars_behind_a_port_stand_together_where_firmware_has_them(
        self, firmware: str, bits: int, starts: tuple[int, ...]
    ) -> None:
        guest = _q35("8G", bars=self.TWO, phys_bits=bits, cpu="amd", firmware=firmware)
        layout = vi.plan(guest, OPEN)
        places = [_place(layout, name) for name in ("a", "b", "c", "lone")]
        assert [place.start for place in places if place] == list(starts)

    @pytest.mark.parametrize(
        ("bars", "ports", "starts"),
        [  # MiB; starts from 0x380000000000, in the order on the bus: ports, then BARs
            ("65536", ["65536"], [0, 65536]),
            ("65536 65536", ["65536 8192"], [0, 65536, 131072, 196608]),
            ("65536", ["65536", "65536 64"], [0, 65536, 131072, 196608]),
            (
                "8192 65536",
                ["65536 64", "65536 65536 8192"],
                [196608, 262144, 65536, 0, 131072, 393216, 327680],
            ),
            (
                "65536",
                ["8192 65536", "65536 16384", "65536 64"],
                [196608, 131072, 0, 65536, 262144, 327680, 393216],
            ),
        ],
    )
    @pytest.mark.parametrize("release", ["ovmf-2022.11", "ovmf-2025.02"])
    def test_equal_alignments_follow_the_bus_and_what_is_behind_the_last_multiple(
        self, release: str, bars: str, ports: list[str], starts: list[int]
    ) -> None:
        every = [
            vi.Bar(f"p{port}.{at}", f"{size}M", port=f"p{port}")
            for port, sizes in enumerate(ports)
            for at, size in enumerate(sizes.split())
        ]
        every += [vi.Bar(f"b{at}", f"{size}M") for at, size in enumerate(bars.split())]
        layout = vi.plan(_q35("8G", bars=every, phys_bits=44, cpu="amd", firmware=release), OPEN)
        places = [_place(layout, bar.name) for bar in every]
        assert [(place.start - (56 << 38)) >> 20 for place in places if place] == starts

    @pytest.mark.parametrize(
        ("release", "before", "behind", "place"),
        [  # steps of 32 GiB, a 256th of OVMF's window and a 2048th of all addresses, from 0x3800...
            ("seabios-1.16.2", 3, 2, None),  # keeps no room behind ports
            ("seabios-1.16.3", 0, 0, 0),
            ("seabios-1.16.3", 3, 0, 0),
            ("seabios-1.16.3", 0, 3, 3),
            ("seabios-1.16.3", 2, 2, 2),
            ("seabios-1.16.3", 0, 10, 10),
            ("ovmf-2022.11", 3, 0, 3),
            ("ovmf-2022.11", 0, 3, 0),
            ("ovmf-2025.02", 2, 2, 2),
            ("ovmf-2025.02", 10, 0, 10),
            ("ovmf-2025.02", 0, 10, 0),
        ],
    )
    def test_ports_with_nothing_behind_them_move_a_bar_as_firmware_has_it(
        self, release: str, before: int, behind: int, place: int | None
    ) -> None:
        # each started: QEMU 7.2 and 10.0, a BAR of 16 GiB, 46 bits
        ports = [*(f"b{n}" for n in range(before)), "own", *(f"a{n}" for n in range(behind))]
        guest = _q35(
            "8G",
            bars=[vi.Bar("gpu", "16G", port="own")],
            ports=ports,
            phys_bits=46,
            cpu="amd",
            firmware=release,
        )
        found = _place(vi.plan(guest, OPEN), "gpu")
        start = 16 * GIB if place is None else (56 << 40) + place * 32 * GIB
        assert found == AddrRange.from_size(start, 16 * GIB)

    @pytest.mark.parametrize(("release", "said"), [("seabios-1.16.3", 1), ("seabios-1.16.2", 0)])
    def test_ports_that_nobody_told_of_are_a_note_where_they_would_move_a_bar(
        self, release: str, said: int
    ) -> None:
        bars = [vi.Bar("gpu", "16G", port="own")]
        guest = _q35("8G", bars=bars, phys_bits=46, cpu="amd", firmware=release)
        notes = [note for note in vi.plan(guest, OPEN).notes if "further PCIe root" in note.text]
        assert len(notes) == said
        told = vi.plan(replace(guest, ports=["own"]), OPEN)
        assert not any("further PCIe root" in note.text for note in told.notes)

    @pytest.mark.parametrize(
        ("release", "count", "said"),
        [
            ("ovmf-2022.11", 9, 0),
            ("ovmf-2022.11", 10, 1),
            ("ovmf", 10, 1),
            ("ovmf-2023.02", 10, 0),
            ("ovmf-2025.02", 10, 0),
        ],
    )
    def test_release_without_io_addresses_for_all_ports_is_named(
        self, release: str, count: int, said: int
    ) -> None:
        guest = _q35(
            "8G",
            bars=[vi.Bar("gpu", "16G", port="p3")],
            ports=[f"p{n}" for n in range(count)],
            phys_bits=46,
            cpu="amd",
            firmware=release,
        )
        notes = [note.text for note in vi.plan(guest, OPEN).notes]
        assert sum("OVMF 2022.11 has I/O addresses for 9" in note for note in notes) == said

    def test_ports_listed_stand_together_where_the_first_of_them_does(self) -> None:
        bars = [
            vi.Bar("first", "32G"),
            vi.Bar("x", "16G", port="x"),
            vi.Bar("between", "32G"),
            vi.Bar("y", "16G", port="y"),
            vi.Bar("unlisted", "16G", port="z"),
        ]
        wanted, spare = bars_of(bars, vi.load_machine("q35"), ["s0", "y", "s1", "x", "s2"])
        names = [bar.behind[0].name if bar.behind else bar.name for bar in wanted]
        assert names == ["first", "y", "x", "between", "unlisted"]
        assert spare == (1, 2, 3)
        alone, last = bars_of(bars[:1], vi.load_machine("q35"), ["s0", "s1"])
        assert (len(alone), last) == (1, (1, 1))

    @pytest.mark.parametrize(
        ("machine", "ports", "said"),
        [
            ("q35", ("a", "b", "a"), "port 'a' is listed twice"),
            ("i440fx", ("a",), "i440fx has no PCIe root port"),
        ],
    )
    def test_ports_that_make_no_sense_are_refused(
        self, machine: str, ports: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(vi.RequestError, match=said) as caught:
            vi.plan(vi.Guest(machine, "4G", ports=ports), OPEN)
        assert caught.value.field == "ports"

    def test_further_ports_that_are_stated_count_instead_of_those_that_are_likely(self) -> None:
        ports = [f"p{n}" for n in range(8)]
        bars = [vi.Bar(f"gpu{n}", "512G", port=port) for n, port in enumerate(ports)]
        guest = _q35("64G", bars=bars, phys_bits=46, cpu="intel")
        said = vi.plan(guest, OPEN).reasons
        assert any("each further port 32 GiB" in text for text in said), said
        assert not vi.plan(replace(guest, ports=ports), OPEN).reasons

    def test_gpus_take_a_stride_of_their_largest_bar_each(self) -> None:
        bars = [
            vi.Bar(f"{name}{port}", size, port=f"p{port}")
            for port in range(8)
            for name, size in (("large", "512G"), ("small", "32M"))
        ]
        guest = _q35("64G", bars=bars, phys_bits=46, cpu="intel", firmware="ovmf-2025.02")
        with pytest.raises(vi.PlanError):  # 8 TiB in all, more than OVMF's window has besides
            vi.plan(replace(guest, phys_bits=45), OPEN)
        layout = vi.plan(guest, OPEN)
        places = [_place(layout, f"large{port}") for port in range(8)]
        starts = [place.start for place in places if place]
        assert [after - before for before, after in pairwise(starts)] == [TIB] * 7

    def test_fault_of_seabios_that_misaligns_a_large_bar_is_refused_by_name(self) -> None:
        bars = [
            *(vi.Bar(f"x{i}", "512M", port="p0") for i in range(1)),
            vi.Bar("large", "8G", port="p1"),
            vi.Bar("odd", "512M", port="p1"),
            vi.Bar("next", "8G", port="p2"),
            vi.Bar("more", "512M", port="p2"),
        ]
        guest = _q35("8G", bars=bars, phys_bits=40, cpu="amd", firmware="seabios-1.16.3")
        with pytest.raises(vi.PlanError, match=r"SeaBIOS 1\.16\.3 puts BAR .* no multiple of"):
            vi.plan(guest, OPEN)
        assert vi.plan(replace(guest, firmware="seabios-1.17.0"), OPEN).starts

    def test_bars_of_other_vmms_stand_together_at_the_ports_alignment(self) -> None:
        guest = vi.Guest("own-x86", "8G", bars=self.TWO)
        layout = vi.plan(guest, OPEN)
        starts = {name: _place(layout, name) for name in ("a", "b", "c")}
        assert all(starts.values())
        base = starts["c"].start if starts["c"] else 0
        assert base % (8 * GIB) == 0
        assert starts["a"] == AddrRange.from_size(base + 8 * GIB, 256 * MIB)

    def test_machine_without_root_ports_refuses_one(self) -> None:
        with pytest.raises(vi.RequestError, match="no PCIe root port"):
            vi.plan(vi.Guest("i440fx", "4G", bars=self.TWO), OPEN)

    def test_required_bar_behind_a_port_is_named_and_may_be_optional(self) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        bars = [vi.Bar("gpu", "16G", required=True, port="p0"), vi.Bar("audio", "64M", port="p0")]
        with pytest.raises(vi.PlanError, match="puts BAR gpu") as caught:
            vi.plan(_q35("4G", bars=bars, phys_bits=46, firmware="ovmf-2025.02"), laptop)
        assert any("mark it optional" in fix for fix in caught.value.fixes)

    def test_layout_with_ports_stays_on_the_next_start(self) -> None:
        guest = _q35("8G", bars=self.TWO, phys_bits=46, cpu="amd", firmware="ovmf-2025.02")
        layout = vi.plan(guest, OPEN)
        again = vi.plan(guest, OPEN, keep=layout)
        assert not again.changes
        assert again.items == layout.items

    def test_low_bars_of_seabios_stand_one_above_the_other(self) -> None:
        bars = [vi.Bar("fb", "256M", bits=32), vi.Bar("other", "128M", bits=32)]
        layout = vi.plan(_q35("8G", bars=bars, phys_bits=46, firmware="seabios-1.16.3"), OPEN)
        assert _place(layout, "fb") == AddrRange.from_size(0xE000_0000, 256 * MIB)
        assert _place(layout, "other") == AddrRange.from_size(0xF000_0000, 128 * MIB)

    def test_three_bars_in_more_than_an_eighth_take_whole_eighths(self) -> None:
        bars = [vi.Bar(f"b{i}", "64G") for i in range(3)]
        guest = _q35("8G", bars=bars, phys_bits=39, cpu="intel", firmware="seabios-1.17.0")
        place = _place(vi.plan(guest, OPEN), "b0")
        assert place == AddrRange.from_size(0x50_0000_0000, 64 * GIB)


def test_bars_of_a_vmm_of_ones_own_are_where_it_says() -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G", bars=GPU), OPEN)
    (window,) = [i for i in layout.items if i.kind is ItemKind.WINDOW and i.name.startswith("64")]
    place_ = _place(layout, "gpu")
    assert place_ is not None
    assert place_ in window.place


class TestAnswer:
    """The first lines of a plan: whether the VMM starts such a guest, and what to set."""

    def test_guest_that_the_vmm_moves_says_where_and_what_to_set(self) -> None:
        layout = vi.plan(_q35("1.5TiB"), vi.load_host("amd-epyc-1tb").usable())
        answer = layout_answer(layout, vi.budget(layout))
        assert answer.word == "FITS"
        assert "moved to 0x10000000000 by its VMM" in answer.verdict
        assert answer.actions[0] == "QEMU: -cpu host, or -cpu MODEL,phys-bits=42"

    @pytest.mark.parametrize(
        ("rows", "word"),
        [(["not known"], "FITS, BUT"), (["ok"], "STARTS, BUT"), (["ok", "not ok"], "STARTS, BUT")],
    )
    def test_what_a_person_does_not_expect_of_a_guest_that_fits_is_in_the_first_two_lines(
        self, rows: list[RowState], word: str
    ) -> None:
        layout = vi.plan(_q35("64G", maxmem="1.5TiB", cpu="amd", phys_bits=48), OPEN)
        start = Start(tuple(StartRow("memory", state, "a fact", fatal=False) for state in rows))
        answer = layout_answer(layout, vi.budget(layout), start)
        assert answer.word == word
        said = answer.verdict if "not ok" not in rows else "; ".join(answer.reasons)
        assert "QEMU moves all RAM above 4 GiB" in said
        assert "Code 43" in said
        assert str(answer.actions[0]).startswith("maxmem=978G")

    def test_guest_that_takes_another_vmm_says_so_first(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        layout = vi.plan(_q35("1.5TiB", cpu="intel"), usable)
        answer = layout_answer(layout, vi.budget(layout))
        assert answer.word == "NOT AS IT IS"
        assert "--machine own-x86" in answer.actions[0]

    @pytest.mark.parametrize("machine", ["q35", "i440fx", "virt"])
    @pytest.mark.parametrize("host", ["amd-epyc-1tb", "arm-hisilicon-d05-group3"])
    def test_every_answer_is_one_of_three(self, machine: str, host: str) -> None:
        usable = vi.load_host(host).usable(aperture=48)
        layout = vi.plan(vi.Guest(machine, "16G"), usable)
        word = layout_answer(layout, vi.budget(layout)).word
        assert word == ("FITS" if layout.starts else "NOT AS IT IS")


class TestFalseYes:
    """What earlier planners said yes to, or advised, and real QEMU and its firmware did not do."""

    def test_option_that_would_move_all_ram_is_not_printed(self) -> None:
        # with pci-hole64-size=250G QEMU moves RAM to 1 TiB, and OVMF has the BAR elsewhere
        host = vi.load_host("amd-epyc-1tb").usable()
        bars = [vi.Bar("gpu", "128G", required=True)]
        guest = _q35("900G", bars=bars, firmware="ovmf-2025.02", phys_bits=46)
        layout = vi.plan(guest, host)
        assert layout.ram[1].place.start == 4 * GIB
        said = " ".join([*layout.settings, *(note.text for note in layout.notes)])
        assert "pci-hole64-size" not in said
        assert _place(layout, "gpu") == AddrRange.from_size(0x3800_0000_0000, 128 * GIB)

    @pytest.mark.parametrize("machine", ["q35", "i440fx", "virt", "microvm"])
    @pytest.mark.parametrize("ram", ["300G", "600G", "1.5TiB"])
    def test_advice_for_qemu_never_asks_for_split_ram(self, machine: str, ram: str) -> None:
        fixes: list[str] = []
        for name in ("intel-dmar-i7-2600", "amd-epyc-1tb"):
            try:
                vi.plan(vi.Guest(machine, ram, cpu="intel"), vi.load_host(name).usable())
            except vi.PlanError as error:
                fixes += error.fixes
        assert not any("split" in fix for fix in fixes)

    def test_maxmem_of_64_gib_guest_on_amd_moves_all_its_ram_and_says_what_would_not(self) -> None:
        guest = _q35("64G", maxmem="1.5TiB", cpu="amd", phys_bits=48)
        layout = vi.plan(guest, OPEN)
        assert layout.ram[1].place.start == TIB
        assert (
            "because of maxmem, QEMU moves all RAM above 4 GiB to 0x10000000000"
            in layout.reasons[0]
        )
        (said,) = [text for text in layout.otherwise if "RAM stays where it is" in text]
        most = parse_size(said.partition("maxmem=")[2].partition(" or less")[0], "most")
        for maxmem, start in ((most, 4 * GIB), (most + GIB, TIB)):
            other = vi.plan(replace(guest, maxmem=maxmem), OPEN)
            assert other.ram[1].place.start == start

    def test_maxmem_on_amd_that_moves_nothing_says_how_much_more_would(self) -> None:
        guest = _q35("64G", maxmem="256G", cpu="amd", phys_bits=48)
        layout = vi.plan(guest, OPEN)
        assert layout.ram[1].place.start == 4 * GIB
        (note,) = [note.text for note in layout.notes if "RAM stays where it is" in note.text]
        most = parse_size(note.partition(") is ")[2].partition(" or less")[0], "most")
        for more, start in ((most, 4 * GIB), (most + GIB, TIB)):
            other = vi.plan(replace(guest, maxmem=64 * GIB + more), OPEN)
            assert other.ram[1].place.start == start

    def test_window_behind_hotplugged_memory_is_where_qemu_has_it(self) -> None:
        layout = vi.plan(_q35("480G", maxmem="1000G", slots=1, cpu="amd", phys_bits=48), OPEN)
        assert layout.ram[1].place.last == 0x177_7FFF_FFFF
        window = _place(layout, "64-bit PCI window")
        assert window is not None
        assert window.start == 0x1F9_C000_0000

    def test_virtio_mem_without_slots_takes_what_it_may_have_and_no_more(self) -> None:
        layout = vi.plan(_q35("8G", maxmem="16G"), OPEN)
        area = _place(layout, "memory plugged in later")
        assert area == AddrRange.from_size(10 * GIB, 8 * GIB)

    @pytest.mark.parametrize("cap", ["3584M", "4G"])
    def test_max_ram_below_4g_above_qemus_own_limit_changes_nothing(self, cap: str) -> None:
        plain = vi.plan(_q35("8G"), OPEN)
        assert vi.plan(_q35("8G", max_ram_below_4g=cap), OPEN).ram == plain.ram

    def test_bar_that_lands_beyond_the_host_is_said_with_the_switches_that_help(self) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        layout = vi.plan(_q35("4G", bars=GPU, phys_bits=46, firmware="ovmf"), laptop)
        notes = [note.text for note in layout.notes if "to have BAR gpu below 2^39" in note.text]
        assert any("host-phys-bits-limit=39" in note for note in notes)
        assert any("X-PciMmio64Mb,string=32768" in note for note in notes)
        assert any(note.endswith(", from OVMF 2025.02 on") for note in notes)

    def test_switch_that_would_not_help_is_not_said(self) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        bars = [vi.Bar("gpu", "256G"), vi.Bar("other", "256G")]
        layout = vi.plan(_q35("4G", bars=bars, phys_bits=46, firmware="ovmf-2025.02"), laptop)
        assert not any("to have BAR" in note.text for note in layout.notes)

    @pytest.mark.parametrize(
        ("machine", "word"),
        [
            ("q35,cxl=on", "cxl"),
            ("q35,sgx-epc.0.memdev=mem1", "enclave"),
            ("q35,nvdimm=on", "modules"),
            ("q35,confidential-guest-support=sev0", "fewer address bits"),
        ],
    )
    def test_what_moves_memory_and_is_not_planned_is_refused_by_name(
        self, machine: str, word: str
    ) -> None:
        with pytest.raises(vi.RequestError, match="is not planned") as caught:
            vi.plan(vi.Guest(machine, "4G"), OPEN)
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("size", "bits", "beyond"),
    [("4G", 33, False), ("4G", 34, False), ("8G", 33, True), ("8G", 34, False)],
)
def test_bar_of_firmware_ends_at_the_guests_last_address_at_most(
    size: str, bits: int, beyond: bool
) -> None:
    """SeaBIOS has it at the first multiple of its size from 4 GiB on."""
    bars = [vi.Bar("b", size, required=True)]
    guest = vi.Guest("q35", "2G", pci64=0, bars=bars, firmware="seabios-1.16.3", phys_bits=bits)
    usable = vi.Host("h", arch="x86_64").usable(aperture=40)
    if beyond:
        with pytest.raises(vi.PlanError, match=f"beyond guest physical address bits: {bits}"):
            vi.plan(guest, usable)
        return
    (bar,) = [item for item in vi.plan(guest, usable).items if item.name == "b"]
    assert bar.place.start == bar.place.size == vi.parse_size(size)
