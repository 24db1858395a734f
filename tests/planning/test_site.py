# SPDX-License-Identifier: Apache-2.0
"""A site by itself: how RAM flows, what ends a place, where the machine has its window."""

from __future__ import annotations

import dataclasses

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import Site, site_of
from vmm_iova.ranges import AddrRange, MappableRanges

GIB = 1 << 30
HOLE = "0x0 - 0xfedfffff\n0xfef00000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n"


def _site(guest: vi.Guest, ranges: str = HOLE) -> Site:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    return site_of(resolve(guest, usable), usable)


def test_site_is_frozen() -> None:
    site = _site(vi.Guest("q35", "1G"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.windows = ()  # type: ignore[misc]


def test_ram_flows_around_a_hole_and_nothing_is_left() -> None:
    pieces, over = _site(vi.Guest("q35", "8G")).around_holes()
    assert [str(piece.span) for piece in pieces] == [
        "0x0-0x7fffffff",
        "0x100000000-0x17fffffff",
        "0x200000000-0x2ffffffff",
    ]
    assert [piece.left for piece in pieces] == [6 * GIB, 4 * GIB, 0]
    assert over == 0


def test_ram_as_the_machine_has_it_does_not_look_at_the_host() -> None:
    pieces, over = _site(vi.Guest("q35", "8G")).as_machine()
    assert [str(piece.span) for piece in pieces] == ["0x0-0x7fffffff", "0x100000000-0x27fffffff"]
    assert over == 0


def test_ram_beyond_all_room_is_left_over() -> None:
    pieces, over = _site(vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n").around_holes()
    assert [str(piece.span) for piece in pieces] == ["0x0-0x7fffffff"]
    assert over == 6 * GIB


def test_flow_takes_room_from_the_ranges_that_are_handed_in() -> None:
    site = _site(vi.Guest("q35", "2G"))
    some = MappableRanges([AddrRange(0x2_0000_0000, 0x3_FFFF_FFFF)])
    pieces, over = site.flow(lambda window, align: site.room(window, align, some), spilling=True)
    assert [str(piece.span) for piece in pieces] == ["0x200000000-0x27fffffff"]
    assert over == 0
    assert site.usable.ranges != some


def test_small_guest_is_whole_below_the_gap_and_may_spill_over_it() -> None:
    site = _site(vi.Guest("q35", "2.5G"))
    assert [window.name for window in site.windows] == ["low"]
    assert [window.name for window in site.spill] == ["high"]


def test_required_ram_is_cut_to_what_there_is() -> None:
    site = _site(vi.Guest("q35", "512KiB"))
    assert [str(must) for _, must in site.required()] == ["0x0-0x7ffff"]


class TestEdges:
    def test_place_that_begins_at_the_lowest_address_is_not_pushed(self) -> None:
        assert _site(vi.Guest("q35", "1G")).pushed(0x1_0000_0000, 0x1_0000_0000) is None

    def test_place_behind_a_hole_is_pushed_by_it(self) -> None:
        cause = _site(vi.Guest("q35", "1G")).pushed(0x2_0000_0000, 0x1_9000_0000)
        assert cause is not None
        assert cause.kind is CauseKind.KERNEL_GAP
        assert cause.range == AddrRange(0x1_8000_0000, 0x1_FFFF_FFFF)

    def test_place_where_only_alignment_differs_has_no_cause(self) -> None:
        assert _site(vi.Guest("q35", "1G")).pushed(0x1_4000_0000, 0x1_3000_0000) is None

    def test_address_zero_is_not_chosen_where_iovas_are_allocated(self) -> None:
        usable = parse_text("0x0 - 0xffffffff\n", "list", "iova_ranges")[0].usable()
        site = site_of(resolve(vi.Guest("s390x", "1G"), usable), usable)
        cause = site.cause_below(0x1000)
        assert cause is not None
        assert cause.kind is CauseKind.ZERO

    def test_address_that_is_not_usable_has_no_edge(self) -> None:
        site = _site(vi.Guest("q35", "1G"))
        assert site.cause_below(0x1_9000_0000) is None
        assert site.cause_above(0x1_9000_0000) is None

    def test_area_kept_free_is_a_cause_of_the_site_and_not_of_the_host(self) -> None:
        kept = vi.FixedItem("x", "reserved", AddrRange(0x10_0000, 0x1F_FFFF))
        site = _site(vi.Guest("q35", "1G", reserved=[kept]))
        assert AddrRange(0x10_0000, 0x1F_FFFF) in site.host.ranges
        assert [c.kind for c in site.usable.causes_of(kept.range)] == [CauseKind.GUEST]


class TestWindow:
    def test_window_is_at_the_next_gib_above_ram(self) -> None:
        site = _site(vi.Guest("q35", "8G"))
        assert site.window_place(0x2_8FFF_FFFF) == AddrRange.from_size(0x2_C000_0000, 32 * GIB)

    def test_window_behind_what_the_machine_has_above_ram(self) -> None:
        site = _site(vi.Guest("virt", "8G"))
        names = [item.name for item in site.above(0x2_3FFF_FFFF)]
        assert names == ["GIC redistributors 2", "high PCIe configuration space"]
        assert site.floor(0x2_3FFF_FFFF) == 0x40_2000_0000
        assert site.window_place(0x2_3FFF_FFFF) == AddrRange.from_size(0x80_0000_0000, 512 * GIB)

    def test_window_beyond_the_guests_addresses_has_no_place(self) -> None:
        site = _site(vi.Guest("q35", "8G", phys_bits=34))
        assert site.window_place(0x2_7FFF_FFFF) is None

    def test_window_grows_for_its_bars(self) -> None:
        site = _site(vi.Guest("own-x86", "4G", bars=[vi.Bar("gpu", "64G")]))
        place = site.window_place(0x1_7FFF_FFFF)
        assert place == AddrRange.from_size(64 * GIB, 64 * GIB)

    @pytest.mark.parametrize(
        ("ram_last", "meets"), [(0xF5_3FFF_FFFF, True), (0xF4_FFFF_FFFF, False)]
    )
    def test_window_meets_amds_hole_from_some_size_on(self, ram_last: int, meets: bool) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        site = site_of(resolve(vi.Guest("q35", "8G"), usable), usable)
        assert site.window_meets_hole(ram_last) is meets

    def test_guest_without_a_window_has_none(self) -> None:
        site = _site(vi.Guest("q35", "8G", pci64=0))
        assert site.window_place(0x2_7FFF_FFFF) is None
        assert not site.window_meets_hole(0x2_7FFF_FFFF)
