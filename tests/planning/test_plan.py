# SPDX-License-Identifier: Apache-2.0
"""Plans on real hosts, read by eye once and kept; and what must hold for all plans."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.allocator import allocator_class
from vmm_iova.host.facts import Group, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.text import parse_text
from vmm_iova.machines.model import Machine
from vmm_iova.machines.parts import RamWindow
from vmm_iova.planning.guest import Reading
from vmm_iova.planning.plan import can_be
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet
from vmm_iova.record import record

GIB = 1 << 30
TIB = 1 << 40
HT = AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)


def _ram(layout: vi.Layout) -> list[str]:
    return [str(item.gpa) for item in layout.ram]


def _item(layout: vi.Layout, name: str) -> vi.Item:
    return next(item for item in layout.items if item.name == name)


@pytest.fixture
def amd() -> vi.Usable:
    return vi.load_host("amd-epyc-1tb").usable()


class TestAmd:
    def test_split_of_1_5_tib_flows_around_the_hole(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest(machine="own-x86", ram="1.5TiB"), amd)

        assert _ram(layout) == [
            "0x0-0x7fffffff",
            "0x100000000-0xfcffffffff",
            "0x10000000000-0x1837fffffff",
        ]
        assert "HyperTransport" in str(layout.ram[1].last_cause)
        assert "HyperTransport" in str(layout.ram[2].start_cause)
        assert [item.range for item in layout.guest_reserved] == [HT]
        assert layout.policy == "split"

    def test_move_of_1_5_tib_takes_all_high_ram_to_1_tib(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest(machine="q35", ram="1.5TiB"), amd, on_hole="move")

        assert _ram(layout) == ["0x0-0x7fffffff", "0x10000000000-0x27f7fffffff"]
        assert [item.range for item in layout.guest_reserved] == [HT]
        assert layout.policy == "move"

    def test_refuse_of_1_5_tib_names_the_hole_and_offers_what_works(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest(machine="own-x86", ram="1.5TiB"), amd, on_hole="refuse")

        error = caught.value
        assert "0xfd00000000-0xffffffffff" in error.message
        assert "HyperTransport" in error.message
        assert [fix.split(" puts")[0] for fix in error.fixes[:2]] == [
            "--on-hole split",
            "--on-hole move",
        ]
        assert error.fixes[2] == "--ram 1010GiB stays below it"

    @pytest.mark.parametrize(("gib", "moved"), [(978, False), (979, True)])
    def test_move_happens_when_the_pci_window_reaches_the_hole(
        self, amd: vi.Usable, gib: int, moved: bool
    ) -> None:
        # QEMU compares the last address of the 32 GiB window behind RAM with 0xfd00000000.
        layout = vi.plan(vi.Guest("q35", gib * GIB), amd, on_hole="move")
        assert (layout.ram[1].place.start == TIB) == moved

    def test_split_of_979_gib_says_that_the_window_meets_the_hole(self, amd: vi.Usable) -> None:
        # QEMU has no option for where the window begins: it is where it is.
        layout = vi.plan(vi.Guest("q35", 979 * GIB, cpu="intel"), amd)
        window = _item(layout, "64-bit PCI window")
        assert len(layout.ram) == 2
        assert (window.place, window.iova) == (AddrRange.from_size(981 * GIB, 32 * GIB), None)
        assert any("meets 0xfd00000000" in note.text for note in layout.notes)

    def test_window_that_can_be_placed_goes_beyond_the_hole(self, amd: vi.Usable) -> None:
        q35 = vi.load_machine("q35-7.0")
        options = (*q35.options, ("pci64_start", "mine: --window {start}"))
        own = replace(q35, can=("split",), options=options, firmware=None)
        layout = vi.plan(vi.Guest(own, 979 * GIB), amd)
        window = _item(layout, "64-bit PCI window")
        assert window.place == AddrRange.from_size(TIB, 32 * GIB)
        assert "HyperTransport" in str(window.start_cause)
        assert any("mine: --window 0x10000000000" in note.text for note in layout.notes)

    def test_bar_that_only_its_alignment_moves_is_not_said_to_meet_something(
        self,
    ) -> None:
        laptop = vi.load_host("intel-dmar-i7-2600").usable()
        # The window of 17 GiB for both BARs has no room below 2^35, so they are packed.
        bars = [vi.Bar("gpu", "16G", required=True), vi.Bar("nic", "1G", required=True)]
        for machine in ("own-x86",):
            layout = vi.plan(vi.Guest(machine, "1G", bars=bars, phys_bits=35), laptop)
            assert _item(layout, "64-bit PCI window").start_cause is None

    def test_small_guest_lies_wholly_below_the_gap(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("q35", 0xB000_0000 - 0x1000), amd)
        assert _ram(layout) == ["0x0-0xafffefff"]

    def test_guest_of_2_75_gib_is_cut_at_2_gib(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("q35", 0xB000_0000), amd)
        assert _ram(layout) == ["0x0-0x7fffffff", "0x100000000-0x12fffffff"]

    def test_doorbell_is_an_item_with_the_region_that_says_so(self, amd: vi.Usable) -> None:
        item = _item(vi.plan(vi.Guest("q35", "4G"), amd), "MSI doorbell")
        assert item.kind is vi.ItemKind.MSI
        assert item.iova == AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
        assert "amd-epyc-1tb:" in str(item.start_cause)


class TestArm:
    def test_d05_ram_is_cut_around_the_hardware_msi_page(self) -> None:
        usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "16G"), usable)

        assert _ram(layout) == ["0x40000000-0xc600ffff", "0xc6020000-0x44000ffff"]
        assert [str(item.range) for item in layout.guest_reserved] == ["0xc6010000-0xc601ffff"]
        windows = [str(i.iova) for i in layout.items if i.kind is vi.ItemKind.MSI]
        assert windows == ["0x8000000-0x80fffff", "0xc6010000-0xc601ffff"]

    def test_d05_move_takes_ram_above_the_page_and_says_qemu_cannot(self) -> None:
        usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "16G"), usable, on_hole="move")
        assert _ram(layout) == ["0x100000000-0x4ffffffff"]
        assert "base fixed at 1 GiB" in layout.notes[0].text

    def test_d05_doorbell_of_the_guest_stands_beside_the_window_of_the_host(self) -> None:
        usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "16G"), usable)
        doorbell = _item(layout, "GICv3 ITS doorbell")
        assert (doorbell.kind, doorbell.iova) == (vi.ItemKind.DOORBELL, None)

    def test_d05_ram_in_2_mib_pieces_leaves_whole_large_pages(self) -> None:
        usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "16G", align="2MiB"), usable)
        assert _ram(layout) == ["0x40000000-0xc5ffffff", "0xc6200000-0x4401fffff"]

    def test_nxp_relaxable_region_is_used_with_a_warning(self) -> None:
        usable = vi.load_host("arm-nxp-lx2160a-fslmc-group0").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "64G"), usable)
        assert _ram(layout) == ["0x40000000-0x103fffffff"]
        assert "0x80c000000-0x81bffffff" in layout.notes[0].text

    def test_nxp_strict_cuts_ram_around_the_relaxable_region(self) -> None:
        usable = vi.load_host("arm-nxp-lx2160a-fslmc-group0").usable(aperture=48, strict=True)
        layout = vi.plan(vi.Guest("virt", "64G"), usable)
        assert _ram(layout) == ["0x40000000-0x80bffffff", "0x81c000000-0x104fffffff"]

    def test_megaraid_direct_region_is_the_first_thing_said(self) -> None:
        usable = vi.load_host("arm-hisilicon-rmr-megaraid-group0").usable(aperture=48)
        layout = vi.plan(vi.Guest("virt", "4G"), usable)
        assert "cannot be given to a guest" in layout.notes[0].text
        assert _ram(layout) == ["0x40000000-0xe63fffff", "0xe6500000-0x1400fffff"]


class TestIntel:
    def test_laptop_ram_lies_over_the_rmrrs_of_the_log(self) -> None:
        usable = vi.load_host("intel-dmar-8thread-laptop").usable()
        assert _ram(vi.plan(vi.Guest("q35", "16G"), usable)) == [
            "0x0-0x7fffffff",
            "0x100000000-0x47fffffff",
        ]

    def test_laptop_ram_avoids_the_rmrrs_of_the_log_when_strict(self) -> None:
        usable = vi.load_host("intel-dmar-8thread-laptop").usable(strict=True)
        assert _ram(vi.plan(vi.Guest("q35", "16G"), usable)) == [
            "0x0-0x68a3efff",
            "0x68a5f000-0x6affffff",
            "0x6f800000-0x7fffffff",
            "0x100000000-0x48481ffff",
        ]

    def test_39_bits_bound_the_guest_and_the_refusal_says_what_fits(self) -> None:
        usable = vi.load_host("intel-dmar-8thread-laptop").usable()
        with pytest.raises(
            vi.PlanError, match="IOMMU dmar0 translates 39 bits, up to 0x7fffffffff"
        ) as caught:
            vi.plan(vi.Guest("own-x86", "600G"), usable)
        fits = caught.value.fixes[0].removeprefix("--ram ").removesuffix(" fits")
        assert vi.plan(vi.Guest("own-x86", fits), usable).ram

    def test_sunrise_point_first_mib_is_refused_after_the_direct_region(self) -> None:
        usable = vi.load_host("intel-sunrise-point-lp-group9").usable(aperture=39)
        with pytest.raises(vi.PlanError) as caught:
            vi.plan(vi.Guest("own-x86", "4G"), usable)
        assert caught.value.message.startswith("the devices of the pasted text cannot be given")
        assert "first 1 MiB of low RAM" in caught.value.message
        assert "firmware" in caught.value.fixes[0]


class TestS390:
    def test_iovas_come_from_inside_the_dma_window(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        layout = vi.plan(vi.Guest("s390x", "16G"), usable)
        (piece,) = layout.ram
        assert piece.gpa == AddrRange(0, 16 * GIB - 1)
        assert piece.iova == AddrRange.from_size(1 << 32, 16 * GIB)
        assert layout.guest_reserved == ()

    def test_more_than_the_window_is_refused_with_the_region(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        with pytest.raises(vi.PlanError, match="0x900000000-0x3ffffffffff") as caught:
            vi.plan(vi.Guest("s390x", "40G"), usable)
        assert caught.value.fixes[0] == "--ram 32GiB fits"

    def test_split_spreads_ram_over_two_spans(self) -> None:
        usable = _host([AddrRange(3 * GIB, 4 * GIB - 1)]).usable(aperture=33, granule=4096)
        layout = vi.plan(vi.Guest("s390x", "6G"), usable)
        assert [str(item.iova) for item in layout.ram] == [
            "0x1000-0xbfffffff",
            "0x100000000-0x1c0000fff",
        ]
        assert [str(item.gpa) for item in layout.ram] == [
            "0x0-0xbfffefff",
            "0xbffff000-0x17fffffff",
        ]

    @pytest.mark.parametrize("on_hole", ["refuse", "move"])
    def test_one_piece_or_nothing_says_the_largest(self, on_hole: vi.guest.plan.OnHole) -> None:
        usable = _host([AddrRange(3 * GIB, 4 * GIB - 1)]).usable(aperture=33, granule=4096)
        with pytest.raises(vi.PlanError, match="ram in one piece") as caught:
            vi.plan(vi.Guest("s390x", "6G"), usable, on_hole)
        assert caught.value.reasons[0].fits == 4 * GIB


class TestRequests:
    @pytest.mark.parametrize("name", vi.machine_names())
    def test_every_machine_is_planned_on_an_open_host(self, name: str) -> None:
        usable = _host([]).usable(aperture=48, granule=4096)
        ram = min(8 * GIB, vi.load_machine(name).ram_max or 8 * GIB)
        assert sum(item.place.size for item in vi.plan(vi.Guest(name, ram), usable).ram) == ram

    def test_unknown_policy_is_refused(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.RequestError, match="none of auto, split, move, refuse"):
            vi.plan(vi.Guest("q35", "4G"), amd, on_hole="jump")  # type: ignore[arg-type]

    def test_ram_of_half_a_page_is_refused_with_the_neighbours(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.errors.MisalignedError, match="granule 0x1000") as caught:
            vi.plan(vi.Guest("q35", "0x100800"), amd)
        assert caught.value.hint == "0x100000 or 0x101000 are"

    def test_align_that_is_no_power_of_two_is_refused(self, amd: vi.Usable) -> None:
        with pytest.raises(vi.RequestError, match="align 0x300000"):
            vi.plan(vi.Guest("q35", "4G", align="3M"), amd)

    def test_no_pci64_leaves_the_window_out(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("q35", "4G", pci64=0), amd)
        assert all(item.name != "64-bit PCI window" for item in layout.items)

    def test_pci64_on_a_machine_without_one_is_refused(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        with pytest.raises(vi.RequestError, match="no 64-bit PCI window"):
            vi.plan(vi.Guest("s390x", "1G", pci64="32G"), usable)

    def test_window_beyond_the_aperture_is_placed_but_not_mapped(self) -> None:
        usable = vi.load_host("intel-dmar-i7-2600").usable()
        layout = vi.plan(vi.Guest("q35", "490G"), usable)
        window = _item(layout, "64-bit PCI window")
        assert window.iova is None
        assert any("peer-to-peer" in note.text for note in layout.notes)

    def test_seam_cuts_ram_into_two_mappings_even_when_nothing_is_refused(self) -> None:
        text = "0x0 - 0xfedfffff\n0xfef00000 - 0x1ffffffff\n0x200000000 - 0x7fffffffff\n"
        host = parse_text(text, "list", "iova_ranges")[0]
        layout = vi.plan(vi.Guest("q35", "8G"), host.usable(), on_hole="refuse")
        assert _ram(layout) == [
            "0x0-0x7fffffff",
            "0x100000000-0x1ffffffff",
            "0x200000000-0x27fffffff",
        ]


class TestResult:
    @pytest.mark.parametrize("on_hole", ["split", "move"])
    def test_same_input_gives_the_same_bytes(self, on_hole: vi.guest.plan.OnHole) -> None:
        texts = {
            json.dumps(
                vi.plan(
                    vi.Guest("own-x86", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable(), on_hole
                ).to_json()
            )
            for _ in range(3)
        }
        assert len(texts) == 1

    def test_layout_pickles(self, amd: vi.Usable) -> None:
        layout = vi.plan(vi.Guest("own-x86", "1.5TiB"), amd)
        assert pickle.loads(pickle.dumps(layout)) == layout

    def test_json_has_addresses_as_hex_strings(self, amd: vi.Usable) -> None:
        found = vi.plan(vi.Guest("own-x86", "1.5TiB"), amd).to_json()
        assert found["ram"] == "0x18000000000"
        assert found["guest_reserved"][0]["start"] == "0xfd00000000"

    def test_address_bits_count_the_topmost_item(self, amd: vi.Usable) -> None:
        assert vi.plan(vi.Guest("q35", "1.5TiB"), amd, "move").address_bits == 42


def _host(holes: list[AddrRange]) -> Host:
    regions = tuple(
        ReservedRegion(hole, RegionKind.RESERVED, "reserved", Source("made", n), "5")
        for n, hole in enumerate(holes)
    )
    return Host("made", groups=(Group("5", regions=regions),))


_PAGE = 4096
_PAGES = 64


def _page_ranges(most: int) -> st.SearchStrategy[list[AddrRange]]:
    pair = st.tuples(st.integers(0, _PAGES - 1), st.integers(1, 12))
    one = pair.map(lambda p: AddrRange.from_size(p[0] * _PAGE, p[1] * _PAGE))
    return st.lists(one, max_size=most)


def _model_room(usable: set[int], windows: list[AddrRange], align: int) -> int:
    """Pages of whole aligned blocks that are usable, window by window: slow and obvious."""
    blocks = 0
    for window in windows:
        for start in range(0, (_PAGES + 16) * _PAGE, align):
            block = AddrRange.from_size(start, align)
            if block in window and all(p in usable for p in range(block.start, block.last, _PAGE)):
                blocks += 1
    return blocks * (align // _PAGE)


@given(
    holes=_page_ranges(6),
    split_at=st.integers(8, 40),
    pages=st.integers(1, 80),
    align=st.sampled_from([1, 2, 4]),
)
def test_split_uses_all_room_there_is_and_nothing_else(
    holes: list[AddrRange], split_at: int, pages: int, align: int
) -> None:
    windows = [
        AddrRange(0, split_at * _PAGE - 1),
        AddrRange((split_at + 4) * _PAGE, (_PAGES + 16) * _PAGE - 1),
    ]
    machine = Machine("m", "m", "x", tuple(RamWindow(f"w{n}", w) for n, w in enumerate(windows)))
    usable = _host(holes).usable(aperture=RangeSet([AddrRange(0, 72 * _PAGE - 1)]), granule=_PAGE)
    free = {p for span in usable.ranges for p in range(span.start, span.last, _PAGE)}
    room = _model_room(free, windows, align * _PAGE)
    guest = vi.Guest(machine, pages * _PAGE, align=align * _PAGE)

    if pages > room:
        with pytest.raises(vi.PlanError, match="does not fit"):
            vi.plan(guest, usable)
        return
    layout = vi.plan(guest, usable)

    spans = [item.place for item in layout.ram]
    assert sum(span.size for span in spans) == pages * _PAGE
    assert spans == sorted(spans)
    assert all(below.last < above.start for below, above in pairwise(spans))
    assert all(span in usable.ranges for span in spans)
    assert all(span.start % (align * _PAGE) == 0 for span in spans)
    assert all(any(span in window for window in windows) for span in spans)
    cut = RangeSet(item.range for item in layout.guest_reserved)
    assert cut.isdisjoint(RangeSet(spans))


@given(holes=_page_ranges(4), pages=st.integers(1, 40))
def test_move_and_refuse_agree_with_a_search_of_every_place(
    holes: list[AddrRange], pages: int
) -> None:
    window = RamWindow("ram", AddrRange(0, ADDRESS_LAST), movable=True)
    machine = Machine("m", "m", "x", (window,))
    usable = _host(holes).usable(aperture=RangeSet([AddrRange(0, 72 * _PAGE - 1)]), granule=_PAGE)
    guest = vi.Guest(machine, pages * _PAGE)
    own = AddrRange.from_size(0, pages * _PAGE)

    if own in usable.ranges:
        assert [item.place for item in vi.plan(guest, usable, "refuse").ram] == [own]
    else:
        with pytest.raises(vi.PlanError):
            vi.plan(guest, usable, "refuse")


@pytest.mark.slow
@pytest.mark.parametrize("host", vi.bundled_hosts())
def test_every_bundled_host_gives_the_same_plans_on_both_engines(
    host: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each engine is held to the pure one, so the two are held to each other.
    held_to = _plans(host, "pure", monkeypatch)
    assert _plans(host, engine, monkeypatch) == held_to
    assert len(held_to) == len(vi.machine_names())


def _plans(host: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("vmm_iova.allocator.IovaAllocator", allocator_class(engine))
    several = host in ("intel-dmar-collected-client-39bit", "intel-dmar-collected-server-46bit")
    usable = vi.load_host(f"{host}#1" if several else host).usable(aperture=42)
    found = []
    for machine in vi.machine_names():
        try:
            found.append(json.dumps(vi.plan(vi.Guest(machine, "2G"), usable).to_json()))
        except vi.PlanError as error:
            found.append(str(error))
    return found


def test_high_devices_of_virt_stay_at_256_gib_without_a_64_bit_window() -> None:
    # hw/arm/virt.c, virt_set_memmap(): the high regions begin at 256 GiB or above RAM, whatever
    # highmem-mmio says.
    usable = vi.load_host("arm-nxp-lx2160a-fslmc-group0").usable(aperture=48)
    layout = vi.plan(vi.Guest("virt", "64G", pci64=0), usable)
    assert _item(layout, "GIC redistributors 2").place.start == 256 * GIB
    assert _item(layout, "high PCIe configuration space").place.start == 256 * GIB + (256 << 20)


def test_text_has_sizes_in_bytes_only_where_it_is_asked_for(amd: vi.Usable) -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), amd)
    for made in (layout, amd):
        assert made.text() == made.text(verbose=False)
        assert made.text() != made.text(verbose=True)


# -- of several guests that may be meant -----------------------------------------------------------


@record
class Asked:
    """What was asked for: guests that may be meant, the newest last."""

    sizes: tuple[str, ...]

    def readings_on(self, arch: str | None) -> list[Reading]:
        assert arch == "x86_64"
        return [Reading(f"v{n}", vi.Guest("own-x86", s)) for n, s in enumerate(self.sizes)]


@pytest.mark.parametrize(
    ("sizes", "ram", "message"),
    [
        (("1G",), 1, None),
        (("1G", "2G", "3G"), 3, None),
        (("9TiB",), 0, "9 TiB of RAM does not fit"),
        (("9TiB", "8TiB"), 0, "8 TiB of RAM does not fit"),
        (("9TiB", "1G"), 0, r"with v0: 9 TiB .*; it fits with v1\n"),
        (("1G", "9TiB", "2G"), 0, r"with v1: 9 TiB .*; it fits with v0, or v2\n"),
        (
            ("1G", "9TiB", "2G", "3G"),
            0,
            r"with v1: 9 TiB .*; it fits with each of the 3 others that may be meant\n",
        ),
    ],
)
def test_every_guest_that_may_be_meant_has_to_fit_and_the_newest_is_laid_out(
    sizes: tuple[str, ...], ram: int, message: str | None
) -> None:
    usable = vi.Host("h", arch="x86_64").usable(aperture=40)
    if message is None:
        assert vi.plan(Asked(sizes), usable).ram_bytes == ram << 30
        return
    with pytest.raises(vi.PlanError, match=message) as caught:
        vi.plan(Asked(sizes), usable)
    assert caught.value.reasons
    assert caught.value.fixes


@pytest.mark.parametrize(
    ("guest", "can"),
    [
        (vi.Guest("own-x86", "1G"), True),
        (vi.Guest("own-x86", "9TiB"), False),
        (vi.Guest("own-x86", 4095), False),  # no whole pages: it makes no sense
    ],
)
def test_guest_can_be_where_a_plan_has_a_place_for_it(guest: vi.Guest, can: bool) -> None:
    assert can_be(guest, vi.Host("h", arch="x86_64").usable(aperture=40)) is can
