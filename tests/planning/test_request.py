# SPDX-License-Identifier: Apache-2.0
"""What a guest may ask for beside RAM: nodes, BARs, rooms, areas to keep free, address bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vmm_iova as vi
from vmm_iova.host.facts import Group, IommuUnit, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.text import parse_text
from vmm_iova.machines.parts import RamWindow
from vmm_iova.ranges import ADDRESS_LAST, AddrRange

GIB, TIB = 1 << 30, 1 << 40


@pytest.fixture
def amd() -> vi.Usable:
    return vi.load_host("amd-epyc-1tb").usable()


@pytest.fixture
def laptop() -> vi.Usable:
    return vi.load_host("intel-dmar-8thread-laptop").usable()


def _item(layout: vi.Layout, name: str) -> vi.Item:
    return next(item for item in layout.items if item.name == name)


def _ram(layout: vi.Layout) -> list[tuple[str | None, str]]:
    return [(item.node, str(item.gpa)) for item in layout.ram]


def _splitting(name: str) -> vi.Machine:
    """The machine, as if its VMM could cut RAM around holes."""
    return replace(vi.load_machine(name), can=("split",))


class TestNodes:
    def test_nodes_follow_each_other_around_the_hole(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("own-x86", nodes=["600G", "600G"]), amd)
        assert _ram(layout) == [
            ("0", "0x0-0x7fffffff"),
            ("0", "0x100000000-0x967fffffff"),
            ("1", "0x9680000000-0xfcffffffff"),
            ("1", "0x10000000000-0x12f7fffffff"),
        ]
        assert layout.ram[1].last_cause is None  # the node is full, nothing cut it
        assert "HyperTransport" in str(layout.ram[2].last_cause)

    def test_node_of_large_pages_leaves_no_part_of_one(self) -> None:
        usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        nodes = [vi.Node("1G", "1GiB"), vi.Node("3G", "2MiB", "big")]
        layout = vi.plan(vi.Guest("virt", nodes=nodes), usable)
        assert _ram(layout) == [
            ("0", "0x40000000-0x7fffffff"),
            ("big", "0x80000000-0xc5ffffff"),
            ("big", "0xc6200000-0x1401fffff"),
        ]

    def test_large_pages_are_counted_with_their_setting(self, amd: vi.Usable) -> None:
        nodes = [vi.Node("64G", "1GiB"), vi.Node("1G", "2MiB"), vi.Node("1G")]
        cost = vi.budget(vi.plan(vi.Guest("own-x86", nodes=nodes), amd))
        assert [(p.page_size, p.count) for p in cost.large_pages] == [(GIB, 64), (2 << 20, 512)]
        assert "hugepagesz=1G hugepages=64" in cost.settings[0]
        assert "hugepages-2048kB/nr_hugepages" in cost.settings[1]

    def test_nodes_of_a_translated_machine_are_cut_inside_one_mapping_each(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        layout = vi.plan(vi.Guest("s390x", nodes=["4G", "8G"]), usable)
        assert _ram(layout) == [("0", "0x0-0xffffffff"), ("1", "0x100000000-0x2ffffffff")]

    @pytest.mark.parametrize(
        ("guest", "said"),
        [
            ({"nodes": ["1G", "1G"], "ram": "4G"}, "not the sum of its nodes, 2 GiB"),
            ({"nodes": [vi.Node("1G", name="a"), vi.Node("1G", name="a")]}, "two nodes are named"),
            ({"nodes": [vi.Node("3G", "2MiB"), vi.Node("1G", "3M")]}, "page_size 0x300000"),
            ({"nodes": ["0"]}, "size of node 0 0 is out of the range"),
            ({}, r"size of the RAM \(--ram, or nodes\) is missing"),
            ({"ram": "1G", "phys_bits": 70}, "phys_bits 70 is not a number from 32 to 64"),
            ({"ram": "1G", "devices": 0}, "devices 0 is not a number from 1"),
            ({"ram": "1G", "bars": [vi.Bar("b", "1M", bits=16)]}, "bits 16 is neither 32 nor 64"),
            ({"ram": "1G", "bars": [vi.Bar("b", "512")]}, "not whole pages of 4 KiB"),
        ],
    )
    def test_nonsense_is_refused_in_words(
        self, amd: vi.Usable, guest: dict[str, object], said: str
    ) -> None:
        with pytest.raises(vi.RequestError, match=said):
            vi.plan(vi.Guest("own-x86", **guest), amd)  # type: ignore[arg-type]

    def test_ram_that_is_no_whole_number_of_its_pages_is_refused(self, amd: vi.Usable) -> None:
        with pytest.raises(
            vi.errors.MisalignedError, match="page size 0x40000000 that backs it"
        ) as caught:
            vi.plan(vi.Guest("own-x86", "2.5G", page_size="1GiB"), amd)
        assert caught.value.hint == "0x80000000 or 0xc0000000 are"
        with pytest.raises(vi.errors.MisalignedError, match=r"granule 0x1000 \(base page"):
            vi.plan(vi.Guest("own-x86", 4097, page_size="4KiB"), amd)  # the host itself asks so

    def test_alignment_that_keeps_ram_from_its_first_mib_is_refused_with_one_that_works(
        self,
    ) -> None:
        text = "0x0 - 0x1fffffff\n0x40000000 - 0xfedfffff\n0xfef00000 - 0x7fffffffff\n"
        usable = parse_text(text, "list", "iova_ranges")[0].usable()
        with pytest.raises(vi.PlanError, match=r"first 1 MiB of RAM .*aligned to 1 GiB") as caught:
            vi.plan(vi.Guest("own-x86", "8G", align="1GiB"), usable)
        assert caught.value.fixes[0] == "--align 2MiB has room"
        assert vi.plan(vi.Guest("own-x86", "8G", align="2MiB"), usable).ram


class TestBars:
    def test_window_grows_for_a_bar_of_128_gib_and_says_how(self, amd: vi.Usable) -> None:
        bars = [vi.Bar("gpu", "128G", required=True), vi.Bar("nic", "32M")]
        layout = vi.plan(vi.Guest("own-x86", "64G", bars=bars), amd)
        assert _item(layout, "gpu").iova == AddrRange.from_size(128 * GIB, 128 * GIB)
        window = _item(layout, "64-bit PCI window").place
        assert window == AddrRange.from_size(128 * GIB, 129 * GIB)
        assert any("its 64-bit PCI window: 129G" in note.text for note in layout.notes)

    def test_bars_that_meet_the_hole_go_beyond_it(self, amd: vi.Usable) -> None:
        bars = [vi.Bar("gpu", "32G", required=True)]
        layout = vi.plan(vi.Guest("own-x86", "1000G", bars=bars), amd)
        assert _item(layout, "gpu").place.start == TIB
        assert _item(layout, "64-bit PCI window").place.start == TIB

    def test_required_bar_wider_than_the_iommu_is_refused_with_all_widths(
        self, laptop: vi.Usable
    ) -> None:
        guest = vi.Guest("own-x86", "16G", bars=[vi.Bar("gpu", "512G", required=True)])
        with pytest.raises(vi.PlanError, match="fits nowhere above RAM") as caught:
            vi.plan(guest, laptop)
        assert "MGAW of dmar0 39 (limits)" in (caught.value.detail or "")
        assert caught.value.fixes[0] == "a device behind an IOMMU of 40 address bits"
        assert caught.value.fixes[1].startswith("mark it optional")

    def test_bar_wider_than_host_and_guest_gets_no_hint_that_would_not_help(
        self, laptop: vi.Usable
    ) -> None:
        bars = [vi.Bar("gpu", "2T", required=True)]
        with pytest.raises(vi.PlanError, match="guest physical address bits: 40") as caught:
            vi.plan(vi.Guest("own-x86", "16G", bars=bars, phys_bits=40), laptop)
        # With 42 bits the IOMMU of 39 is in the way, and with 40 no window holds it, peers or not.
        # Nor has it room with less RAM: 512 GiB are all there is.
        assert caught.value.fixes == ("a BAR of 256 GiB has room (resizable BAR on the device)",)

    def test_optional_bar_wider_than_the_iommu_is_placed_and_noted(self, laptop: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("own-x86", "16G", bars=[vi.Bar("gpu", "512G")]), laptop)
        assert _item(layout, "gpu").iova is None
        assert any("peer-to-peer" in note.text for note in layout.notes)

    def test_vmm_that_gives_out_bars_from_the_top_is_told_where_they_are_reached(
        self, laptop: vi.Usable
    ) -> None:
        # cloud-hypervisor#8191: with 46 guest bits its BARs lie beyond an IOMMU of 39.
        guest = vi.Guest("cloud-hypervisor", "16G", bars=[vi.Bar("gpu", "16G", required=True)])
        layout = vi.plan(guest, laptop)
        assert _item(layout, "gpu").place == AddrRange(0x7C_0000_0000, 0x7F_FFFF_FFFF)
        assert any("--cpus max_phys_bits=39 keeps them below" in note.text for note in layout.notes)

    def test_desktop_with_more_bits_in_the_cpu_than_in_the_iommu_is_warned_of_its_firmware(
        self,
    ) -> None:
        # reddit VFIO 1qc0or2: 46 bits of the CPU, 39 of the IOMMU, BARs of OVMF at 0x382800000000.
        unit = IommuUnit("dmar1", cap=(38 << 16) | (0b110 << 8), source=Source("dmar1"))
        desktop = Host("i7-13700K", arch="x86_64", units=(unit,), cpu_bits=46).usable()
        gpu = [vi.Bar("gpu", "16G")]
        layout = vi.plan(vi.Guest("q35", "16G", bars=gpu, firmware="ovmf"), desktop)
        assert _item(layout, "gpu").place.start == 0x3800_0000_0000
        assert _item(layout, "gpu").iova is None
        bits, switch = [note.text for note in layout.notes if "below 2^39" in note.text]
        assert "host-phys-bits-limit=39" in bits
        assert "X-PciMmio64Mb" in switch
        guest = vi.Guest("q35", "16G", bars=gpu, firmware="ovmf", phys_bits=39)
        assert _item(vi.plan(guest, desktop), "gpu").iova is not None

    def test_required_bar_in_a_fixed_window_obeys_the_host(self, laptop: vi.Usable) -> None:
        guest = vi.Guest("firecracker", "4G", bars=[vi.Bar("gpu", "64G", required=True)])
        place = _item(vi.plan(guest, laptop), "gpu").place
        assert place == AddrRange.from_size(256 * GIB, 64 * GIB)

    def test_32_bit_bar_goes_around_a_hole_in_the_low_window(self, laptop: vi.Usable) -> None:
        bars = [vi.Bar("old", "256M", bits=32, required=True)]
        assert _item(vi.plan(vi.Guest("kvmtool", "4G", bars=bars), laptop), "old").iova

    def test_64_bit_bar_of_a_machine_without_a_window_goes_low_or_is_refused(
        self, amd: vi.Usable
    ) -> None:
        small = vi.plan(vi.Guest("kvmtool", "4G", bars=[vi.Bar("nic", "32M")]), amd)
        assert _item(small, "nic").place.last < 4 * GIB
        with pytest.raises(vi.PlanError, match=r"no place in the 32-bit PCI window"):
            vi.plan(vi.Guest("kvmtool", "4G", bars=[vi.Bar("gpu", "16G")]), amd)

    def test_window_without_a_known_top_asks_for_the_address_bits(self, amd: vi.Usable) -> None:
        guest = vi.Guest("microvm", "4G", bars=[vi.Bar("nic", "32M")])
        with pytest.raises(vi.PlanError, match="which nothing states") as caught:
            vi.plan(guest, amd)
        assert "phys-bits=N" in caught.value.fixes[0]
        layout = vi.plan(vi.Guest("microvm", "4G", bars=guest.bars, phys_bits=40), amd)
        assert _item(layout, "nic").place.start == 3 << 38  # the topmost quarter

    @pytest.mark.parametrize("on_hole", ["split", "move", "refuse"])
    @pytest.mark.parametrize("size", ["0", "32G"])
    def test_stated_window_too_small_for_a_bar_is_refused_and_grows_unstated(
        self, amd: vi.Usable, size: str, on_hole: vi.guest.plan.OnHole
    ) -> None:
        bars = [vi.Bar("gpu", "64G")]
        with pytest.raises(vi.PlanError, match=r"no place in the \d\d-bit PCI window") as caught:
            vi.plan(vi.Guest("own-x86", "4G", pci64=size, bars=bars), amd, on_hole)
        assert caught.value.fixes[0] == "without --pci64 the window grows for the BARs"
        assert vi.plan(vi.Guest("own-x86", "4G", bars=bars), amd, on_hole).ram

    def test_stated_window_with_no_multiple_of_the_bar_is_refused_with_its_place(
        self, laptop: vi.Usable
    ) -> None:
        guest = vi.Guest("own-x86", "8G", pci64="16G", bars=[vi.Bar("gpu", "16G")])
        with pytest.raises(vi.PlanError, match=r"window: 0x280000000-0x67fffffff \(16 GiB\)"):
            vi.plan(guest, laptop)

    def test_bar_of_a_fixed_window_is_not_told_that_less_ram_would_help(
        self, amd: vi.Usable
    ) -> None:
        with pytest.raises(vi.PlanError, match="BAR g") as caught:
            vi.plan(vi.Guest("firecracker", "64G", bars=[vi.Bar("g", "300G")]), amd)
        assert caught.value.fixes == ("a BAR of 256 GiB has room (resizable BAR on the device)",)
        low = [vi.Bar("a", "512M", bits=32), vi.Bar("b", "512M", bits=32)]
        with pytest.raises(vi.PlanError, match="32-bit PCI window") as caught:
            vi.plan(vi.Guest("own-x86", "64G", bars=low), amd)
        assert caught.value.fixes == ("a BAR of 256 MiB has room (resizable BAR on the device)",)

    def test_bar_that_less_ram_leaves_room_for_is_told_how_much(self, laptop: vi.Usable) -> None:
        gpu = [vi.Bar("gpu", "256G", required=True)]
        with pytest.raises(vi.PlanError, match="BAR gpu") as caught:
            vi.plan(vi.Guest("own-x86", "300G", bars=gpu), laptop)
        assert "--ram 254GiB leaves room" in caught.value.fixes
        assert vi.plan(vi.Guest("own-x86", "254G", bars=gpu), laptop).ram

    def test_fixed_window_cannot_be_made_larger(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.RequestError, match="has its fixed place"):
            vi.plan(vi.Guest("firecracker", "4G", pci64="512G"), amd)

    def test_bars_on_a_machine_that_translates_are_refused(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        with pytest.raises(vi.RequestError, match="do not see guest addresses"):
            vi.plan(vi.Guest("s390x", "1G", bars=[vi.Bar("b", "1M")]), usable)


def test_refused_machine_of_another_kind_is_said_to_be_one() -> None:
    host = Host("zpci", arch="s390x", page_size=4096)
    usable = host.usable(aperture="0x10000000000-0x101ffffffff")
    with pytest.raises(vi.PlanError, match="own-x86 is x86_64 and the host is s390x") as caught:
        vi.plan(vi.Guest("own-x86", "4G"), usable)
    assert caught.value.fixes[0] == "a machine for s390x: vmm-iova machines lists them"


class TestRoomAndReserve:
    def test_room_lies_above_everything(self, amd: vi.Usable) -> None:
        layout = vi.plan(
            vi.Guest("own-x86", "64G", rooms=[vi.Room("hotplug", "1TiB", "1GiB")]), amd
        )
        room = _item(layout, "hotplug")
        assert room.place == AddrRange.from_size(TIB, TIB)  # beyond the hole, which is in its way
        assert "HyperTransport" in str(room.start_cause)

    def test_room_that_does_not_fit_is_refused(self, laptop: vi.Usable) -> None:
        with pytest.raises(vi.PlanError, match="room hotplug of 1 TiB does not fit above"):
            vi.plan(vi.Guest("own-x86", "64G", rooms=[vi.Room("hotplug", "1TiB")]), laptop)

    def test_room_that_does_not_fit_is_told_what_would(self, laptop: vi.Usable) -> None:
        with pytest.raises(vi.PlanError, match="does not fit above") as caught:
            vi.plan(vi.Guest("own-x86", "400G", rooms=[vi.Room("hotplug", "164G")]), laptop)
        room, ram = caught.value.fixes
        assert room.startswith("--room hotplug=")
        assert ram == "--ram 314GiB leaves room"
        size = room.removeprefix("--room hotplug=").removesuffix(" fits")
        assert vi.plan(vi.Guest("own-x86", "400G", rooms=[vi.Room("hotplug", size)]), laptop).items
        assert vi.plan(
            vi.Guest("own-x86", "314G", rooms=[vi.Room("hotplug", "164G")]), laptop
        ).items

    def test_area_kept_where_ram_must_be_is_to_go_elsewhere(self, amd: vi.Usable) -> None:
        kept = [vi.FixedItem("fb", "reserved", AddrRange(0, 0xFF_FFFF))]
        with pytest.raises(vi.PlanError, match="kept for fb") as caught:
            vi.plan(vi.Guest("own-x86", "8G", reserved=kept), amd)
        assert caught.value.fixes == ("another place for what is to be kept free (--reserve)",)

    def test_reserved_area_cuts_ram_and_is_told(self, amd: vi.Usable) -> None:
        area = vi.FixedItem("framebuffer", "reserved", AddrRange(0x4000_0000, 0x40FF_FFFF))
        layout = vi.plan(vi.Guest("own-x86", "4G", reserved=[area]), amd)
        assert str(layout.ram[0].gpa) == "0x0-0x3fffffff"
        assert "kept for framebuffer" in str(layout.ram[0].last_cause)
        assert layout.guest_reserved[0].range == area.range

    def test_reserved_area_over_a_device_names_both(self, amd: vi.Usable) -> None:
        area = vi.FixedItem("mine", "reserved", AddrRange(0xFEC0_0000, 0xFEC0_0FFF))
        with pytest.raises(vi.RequestError, match=r"'mine' .* and 'I/O APIC and HPET'"):
            vi.plan(vi.Guest("own-x86", "4G", reserved=[area]), amd)


class TestWidth:
    def test_guest_bits_bound_ram_and_the_fix_is_an_option(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.PlanError, match="guest physical address bits: 36") as caught:
            vi.plan(vi.Guest("own-x86", "64G", phys_bits=36), amd)
        assert caught.value.fixes[0].startswith("--phys-bits 37 (its CPUID: 37 physical")
        assert "guest, physical 36 (limits)" in (caught.value.detail or "")

    def test_guest_bits_are_not_blamed_on_the_device(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.PlanError, match="guest physical address bits: 36") as caught:
            vi.plan(vi.Guest("own-x86", "100G", phys_bits=36), amd)
        assert not any("IOMMU" in fix for fix in caught.value.fixes)

    def test_more_guest_bits_are_found_for_a_window_up_to_their_top(
        self, laptop: vi.Usable
    ) -> None:
        gpu = [vi.Bar("gpu", "128G", required=True)]
        guest = vi.Guest(_splitting("cloud-hypervisor"), "200G", bars=gpu, phys_bits=36)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(guest, laptop)
        assert caught.value.fixes[0].startswith("--phys-bits 39 ")

    def test_second_obstacle_is_named_where_less_ram_is_not_enough(self, amd: vi.Usable) -> None:
        guest = vi.Guest("kvmtool", "200G", bars=[vi.Bar("gpu", "16G")], phys_bits=36)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(guest, amd)
        (fix,) = caught.value.fixes
        assert fix.startswith("less RAM is not enough: with --ram 64768MiB, BAR gpu (16 GiB")

    def test_guest_bits_of_the_machine_cannot_be_raised(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        with pytest.raises(vi.PlanError, match="46 at most on crosvm") as caught:
            vi.plan(vi.Guest(_splitting("crosvm"), "70TiB"), usable)
        assert "another machine" in caught.value.fixes[0]

    def test_bits_of_the_cpu_bound_a_guest_too(self, amd: vi.Usable) -> None:
        text = "0x0 - 0xfedfffff\n0xfef00000 - 0xffffffffffff\n"
        facts = text + "address sizes\t: 39 bits physical, 48 bits virtual\n"
        usable = parse_text(facts, "desktop", "iova_ranges")[0].usable()
        assert usable.cpu_bits == 39
        with pytest.raises(vi.PlanError, match="host's CPU: 39") as caught:
            vi.plan(vi.Guest("own-x86", "600G"), usable)
        assert caught.value.fixes[0] == "a host whose CPU has 40 physical address bits"

    def test_widths_stand_side_by_side_with_the_limiting_one_marked(
        self, laptop: vi.Usable
    ) -> None:
        layout = vi.plan(vi.Guest("own-x86", "4G", phys_bits=46), laptop)
        found = {width.what: width.bits for width in layout.widths}
        assert found["MGAW of dmar0"] == 39
        assert found["deepest page table of dmar0"] == 48
        assert found["guest, physical"] == 46

    def test_mask_of_the_hosts_driver_does_not_count(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        device = tmp_path / "sys/kernel/iommu_groups/1/devices/0000:01:00.0"
        device.mkdir(parents=True)
        (tmp_path / "sys/kernel/iommu_groups/1/reserved_regions").write_text("")
        pci = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
        pci.mkdir(parents=True)
        (pci / "dma_mask_bits").write_text("32\n")
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(
            "processor : 0\naddress sizes\t: 46 bits physical, 48 bits virtual\n"
        )
        usable = vi.load_host(tmp_path).usable(aperture=48, granule=4096)
        counted = [(width.bits, width.counts) for width in usable.widths]
        assert counted == [(48, True), (46, True), (32, False)]


class TestPreferAndAlign:
    def test_fewest_skips_the_fragments_of_low_ram(self) -> None:
        laptop = vi.load_host("intel-dmar-8thread-laptop").usable(strict=True)
        layout = vi.plan(vi.Guest("own-x86", "16G"), laptop, prefer="fewest")
        assert len(layout.ram) == 2
        assert layout.policy == "split"

    def test_auto_alignment_takes_the_one_that_costs_least(self) -> None:
        laptop = vi.load_host("intel-dmar-8thread-laptop").usable(strict=True)
        layout = vi.plan(vi.Guest("own-x86", "16G", align="auto"), laptop)
        assert [str(item.place) for item in layout.ram] == [
            "0x0-0x3fffffff",
            "0x100000000-0x4bfffffff",
        ]
        by_hand = [
            vi.plan(vi.Guest("own-x86", "16G", align=align), laptop)
            for align in (None, "2MiB", "1GiB")
        ]
        assert len(layout.ram) == min(len(one.ram) for one in by_hand)

    def test_auto_alignment_takes_the_cheaper_of_two(self) -> None:
        """By whole GiB it would be two pieces; pages of 2 MiB leave one."""
        anywhere = (RamWindow("ram", vi.AddrRange(0, ADDRESS_LAST)),)
        machine = vi.Machine("any", "any", "x86_64", anywhere)
        usable = parse_text("0x0 - 0x9fffffff\n0xc0000000 - 0x1ffffffff\n", "l", "iova_ranges")[0]
        guest = vi.Guest(machine, "2.5G", align="auto", page_size="2MiB")
        (piece,) = vi.plan(guest, usable.usable()).ram
        assert piece.place == vi.AddrRange(0, 0x9FFF_FFFF)

    def test_auto_alignment_that_no_choice_satisfies_is_refused(self, laptop: vi.Usable) -> None:
        with pytest.raises(vi.PlanError, match="does not fit"):
            vi.plan(vi.Guest("own-x86", "1TiB", align="auto"), laptop)


def _two_groups() -> Host:
    """Group 23 has a hole of 4 GiB at 128 GiB, group 1 none."""
    where = AddrRange(0x20_0000_0000, 0x20_FFFF_FFFF)
    hole = ReservedRegion(where, RegionKind.RESERVED, "reserved", Source("made", 1), "23")
    return Host("made", groups=(Group("1", regions=()), Group("23", regions=(hole,))))


class TestAlsoFit:
    TEXT = (
        "group 4:\n0x00000000fee00000 0x00000000feefffff msi\n"
        "group 23:\n0x0000000200000000 0x00000002ffffffff reserved\n"
        "0x00000000fee00000 0x00000000feefffff msi\n"
    )

    def test_later_group_is_left_out_of_the_option_that_named_it(self) -> None:
        host = _two_groups()
        own = host.usable(groups=[1], aperture=39, granule=4096)
        later = host.usable(groups=[23], aperture=39, granule=4096)
        assert own.joined(later).later == ("23",)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest("own-x86", "200G"), own, "refuse", also_fit=[later])
        assert "leave out group 23 of --also-fit" in caught.value.fixes
        both = host.usable(groups=[1, 23], aperture=39, granule=4096)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest("own-x86", "200G"), both, "refuse")
        assert "leave out group 23 with --groups" in caught.value.fixes

    def test_hole_that_is_less_than_what_is_missing_is_not_to_be_left_out(self) -> None:
        host = _two_groups()
        usable = host.usable(aperture=39, granule=4096)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest("own-x86", "600G"), usable)
        assert not any("group 23" in fix or "fewer holes" in fix for fix in caught.value.fixes)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest("own-x86", "508G"), usable)
        assert "leave out group 23 with --groups" in caught.value.fixes

    def test_layout_leaves_out_what_a_later_group_reserves(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        for group in ("4", "23"):
            where = tmp_path / f"sys/kernel/iommu_groups/{group}"
            (where / "devices" / f"0000:0{group[-1]}:00.0").mkdir(parents=True)
            lines = "0x00000000fee00000 0x00000000feefffff msi\n"
            if group == "23":
                lines += "0x0000000200000000 0x00000002ffffffff reserved\n"
            (where / "reserved_regions").write_text(lines)
        host = vi.load_host(tmp_path)
        now = host.usable(groups=[4], aperture=39)
        later = host.usable(groups=[23], aperture=39)
        alone = vi.plan(vi.Guest("own-x86", "16G"), now)
        both = vi.plan(vi.Guest("own-x86", "16G"), now, also_fit=[later])

        assert len(alone.ram) == 2
        assert [str(item.place) for item in both.ram] == [
            "0x0-0x7fffffff",
            "0x100000000-0x1ffffffff",
            "0x300000000-0x57fffffff",
        ]
        assert "group 23" in str(both.ram[1].last_cause)
        assert "to also fit 23" in str(both.ram[1].last_cause)
        assert both.usable.groups == ("4", "23")
