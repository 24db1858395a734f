# SPDX-License-Identifier: Apache-2.0
"""A site by itself: how RAM flows, what ends a place, where the machine has its window."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import RamHidden, StartRefused
from vmm_iova.planning.ram import PlacedRam, check_start
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import Site, site_of
from vmm_iova.planning.windows import _check_hidden
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
    assert _site(vi.Guest("q35", "8G")).spill == ()


def test_required_ram_is_cut_to_what_there_is() -> None:
    site = _site(vi.Guest("q35", "512KiB"))
    assert [str(must) for _, must in site.required()] == ["0x0-0x7ffff"]


class TestEdges:
    def test_place_that_begins_at_the_lowest_address_is_not_pushed(self) -> None:
        assert _site(vi.Guest("q35", "1G")).pushed(0x1_0000_0000, 0x1_0000_0000) is None
        assert _site(vi.Guest("q35", "1G")).pushed(0x2_0000_0000, 0x2_0000_0000) is None

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
        assert not site.window_meets_hole(0x2_7FFF_FFFF)

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

    def test_window_to_the_top_or_at_a_fixed_place_is_none_that_moves_ram(self) -> None:
        low, high = "0x0 - 0xfedfffff\n0xfef00000 - 0x4fffffffff\n", "0xf000000000 - 0xffffffffff\n"
        for machine in ("microvm", "firecracker"):
            guest = vi.Guest(machine, "8G", phys_bits=40)
            site = _site(guest, f"{low}0x6000000000 - 0xdfffffffff\n{high}")
            place = site.window_place(0x2_7FFF_FFFF)
            assert place is not None
            assert site.usable.causes_of(place)
            assert not site.window_meets_hole(0x2_7FFF_FFFF)

    def test_guest_without_a_window_has_none(self) -> None:
        site = _site(vi.Guest("q35", "8G", pci64=0))
        assert site.window_place(0x2_7FFF_FFFF) is None
        assert not site.window_meets_hole(0x2_7FFF_FFFF)


# -- what lies above RAM, at its limits ------------------------------------------------------------

WIDE = "0x0 - 0xffffffffffffff\n"


def _window(**fields: Any) -> Site:
    """A site of own-x86 with other words for its 64-bit window, and 40 guest address bits."""
    machine = vi.load_machine("own-x86")
    assert machine.pci64 is not None
    own = replace(machine, pci64=replace(machine.pci64, **fields))
    return _site(vi.Guest(own, "8G", phys_bits=40), WIDE)


LIMIT = 1 << 40


@pytest.mark.parametrize(
    ("fields", "top", "place"),
    [
        ({}, LIMIT - 32 * GIB - 1, (LIMIT - 32 * GIB, LIMIT - 1)),
        ({}, LIMIT - 32 * GIB, None),
        ({"align": 1 << 20}, LIMIT - 32 * GIB - 2, (LIMIT - 32 * GIB, LIMIT - 1)),
        ({"size": GIB, "last_align": 4 * GIB}, 8 * GIB - 1, (8 * GIB, 12 * GIB - 1)),
        ({"size": GIB, "last_align": 4 * GIB}, LIMIT - GIB - 1, (LIMIT - GIB, LIMIT - 1)),
        ({"size": None}, 8 * GIB - 1, (8 * GIB, LIMIT - 1)),
        ({"size": None, "top_free": GIB}, 8 * GIB - 1, (8 * GIB, LIMIT - GIB - 1)),
        ({"size": None, "step": 3 * GIB}, 8 * GIB - 1, (8 * GIB, 8 * GIB + 1014 * GIB - 1)),
        ({"size": None, "share": 4}, 8 * GIB - 1, (LIMIT * 3 // 4, LIMIT - 1)),
        ({"size": None, "share": 4}, LIMIT - GIB - 1, (LIMIT - GIB, LIMIT - 1)),
        ({"size": None}, LIMIT - 1, None),
        ({"size": None}, LIMIT - 2, None),
        ({"size": None, "align": 4096}, LIMIT - 4097, (LIMIT - 4096, LIMIT - 1)),
        ({"floor": 64 * GIB}, 8 * GIB - 1, (64 * GIB, 96 * GIB - 1)),
        ({"floor": 64 * GIB}, 65 * GIB - 1, (65 * GIB, 97 * GIB - 1)),
    ],
)
def test_window_ends_at_the_last_address_at_most(
    fields: dict[str, Any], top: int, place: tuple[int, int] | None
) -> None:
    found = _window(**fields).window_place(top)
    assert found == (None if place is None else AddrRange(*place))


def test_window_up_to_the_top_has_no_place_where_nothing_states_the_top() -> None:
    site = _window(size=None)
    assert replace(site, wanted=replace(site.wanted, limits=())).window_place(GIB) is None


@pytest.mark.parametrize(
    ("sizes", "stated", "size", "align"),
    [
        (["32G"], None, 32 * GIB, GIB),
        (["32G", "1M"], None, 33 * GIB, 32 * GIB),
        (["64G"], None, 64 * GIB, 64 * GIB),
        (["64G"], "40G", 40 * GIB, GIB),
        ([], None, 32 * GIB, GIB),
    ],
)
def test_window_grows_for_its_bars_unless_its_size_was_stated(
    sizes: list[str], stated: str | None, size: int, align: int
) -> None:
    bars = [vi.Bar(str(n), s) for n, s in enumerate(sizes)] + [vi.Bar("low", "1G", bits=32)]
    site = _site(vi.Guest("own-x86", "4G", bars=bars, pci64=stated), WIDE)
    assert site.pci64 is not None
    assert site.pci64.size == size
    assert site.pci64.align == align


@pytest.mark.parametrize(
    ("sizes", "size"),
    [([], 512), (["256G"], 512), (["512G"], 512), (["512G", "1M"], 1024), (["1T"], 1024)],
)
def test_window_that_is_aligned_to_its_size_grows_by_powers_of_two(
    sizes: list[str], size: int
) -> None:
    bars = [vi.Bar(str(n), s) for n, s in enumerate(sizes)]
    place = _site(vi.Guest("virt", "8G", bars=bars), WIDE).window_place(9 * GIB)
    assert place == AddrRange.from_size(size * GIB, size * GIB)


@pytest.mark.parametrize(
    ("name", "size", "place"),
    [
        ("virt", None, (512 * GIB, LIMIT - 1)),
        ("firecracker", 256 * GIB, (256 * GIB, 512 * GIB - 1)),
    ],
)
def test_window_up_to_the_top_or_at_a_fixed_place_does_not_grow(
    name: str, size: int | None, place: tuple[int, int]
) -> None:
    machine = vi.load_machine(name)
    assert machine.pci64 is not None
    window = replace(machine.pci64, size=size, self_aligned=False)
    own = replace(machine, pci64=window, options=(("pci64", "--window {size}"),))
    for bars in ([], [vi.Bar("b", "1T")]):
        site = _site(vi.Guest(own, "8G", phys_bits=40, bars=bars), WIDE)
        assert site.window_place(9 * GIB) == AddrRange(*place)


@pytest.mark.parametrize(("bits", "left"), [(40, 2), (39, 2), (38, 0)])
def test_what_does_not_fit_above_ram_is_left_out(bits: int, left: int) -> None:
    site = _site(vi.Guest("virt", "8G", phys_bits=bits), WIDE)
    assert len(list(site.above(9 * GIB))) == left


@pytest.mark.parametrize(("bits", "fits"), [(40, True), (39, True), (38, False)])
def test_what_ends_at_the_last_address_fits(bits: int, fits: bool) -> None:
    """Firecracker's window has its fixed place up to 512 GiB; what lies above RAM is made so."""
    window = AddrRange(256 * GIB, 512 * GIB - 1)
    site = _site(vi.Guest("firecracker", "4G", phys_bits=bits), WIDE)
    assert site.window_place(6 * GIB) == (window if fits else None)
    machine = vi.load_machine("virt")
    item = replace(machine.above[0], size=256 * GIB, align=256 * GIB)
    site = _site(vi.Guest(replace(machine, above=(item,)), "8G", phys_bits=bits), WIDE)
    assert [found.place for found in site.above(9 * GIB)] == [window] * fits


@pytest.mark.parametrize(
    ("hides", "share", "pci64", "last", "hidden"),
    [
        (True, 4, True, LIMIT * 3 // 4 - 1, False),
        (True, 4, True, LIMIT * 3 // 4, True),
        (False, 4, True, LIMIT * 3 // 4, False),
        (True, None, True, LIMIT * 3 // 4, False),
        (True, 4, False, LIMIT * 3 // 4, False),
    ],
)
def test_ram_is_hidden_from_the_first_byte_of_the_window_on(
    hides: bool, share: int | None, pci64: bool, last: int, hidden: bool
) -> None:
    site = _window(size=None, share=share, hides_ram=hides)
    site = site if pci64 else replace(site, pci64=None)
    span = AddrRange(0, last)
    ram = PlacedRam((Item(ItemKind.RAM, "low", span, span),))
    if not hidden:
        _check_hidden(site, ram)
        return
    with pytest.raises(RamHidden) as caught:
        _check_hidden(site, ram)
    assert (caught.value.span, caught.value.fits) == (AddrRange(last, last), LIMIT * 3 // 4)
    _check_hidden(replace(site, wanted=replace(site.wanted, limits=())), ram)


@pytest.mark.parametrize(
    ("reach", "refused"), [(LIMIT - 32 * GIB - 1, False), (LIMIT - 32 * GIB, True)]
)
def test_vmm_does_not_start_from_the_first_byte_beyond_on(reach: int, refused: bool) -> None:
    site = _site(vi.Guest("q35", "8G", phys_bits=40), WIDE)
    if not refused:
        check_start(site, reach)
        return
    with pytest.raises(StartRefused) as caught:
        check_start(site, reach)
    assert caught.value.span == AddrRange(reach, LIMIT + GIB - 1)
    check_start(replace(site, wanted=replace(site.wanted, limits=())), reach)
    check_start(_site(vi.Guest("own-x86", "8G", phys_bits=40), WIDE), reach)


BEYOND = "0x0 - 0x2bfffffff\n0x340000000 - 0xffffffffff\n"


@pytest.mark.parametrize(
    ("ranges", "size", "start"),
    [
        # RAM ends at 10 GiB; a hole from 11 to 13 GiB. A window of 1 GiB fits right below it.
        (BEYOND, "1G", 10),
        (BEYOND, "2G", 13),
        ("0x0 - 0x2bfffffff\n0x340001000 - 0xffffffffff\n", "2G", 14),
        ("0x0 - 0x2bfffffff\n0x340000000 - 0x3bfffffff\n0x400000000 - 0xffffffffff\n", "2G", 13),
        ("0x0 - 0x2bfffffff\n0x340000000 - 0x3bfffeffff\n0x400000000 - 0xffffffffff\n", "2G", 13),
        ("0x0 - 0x2bfffffff\n0x340000000 - 0x3bffeffff\n0x400000000 - 0xffffffffff\n", "2G", 16),
    ],
)
def test_window_goes_to_the_first_range_that_holds_it(ranges: str, size: str, start: int) -> None:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    layout = vi.plan(vi.Guest("own-x86", "8G", pci64=size), usable, "split")
    (window,) = [item for item in layout.items if item.name == "64-bit PCI window"]
    assert window.place.start == start * GIB
    assert window.iova == window.place


@pytest.mark.parametrize(
    ("guest", "spare"),
    [
        # QEMU moves RAM from 1012 GiB on; above RAM is its window of 32 GiB, at a whole GiB.
        (vi.Guest("q35", "976G", cpu="amd"), 2 * GIB),
        (vi.Guest("q35", "977G", cpu="amd", maxmem="2T"), GIB),
        (vi.Guest("q35", "978G", cpu="amd"), 0),
        (vi.Guest("q35", "979G", cpu="amd"), -GIB),
        (vi.Guest("q35", (8 << 30) + 5, cpu="amd", pci64=0), 1001 * GIB),
        (vi.Guest("q35", "977G", cpu="intel"), 0),
        (vi.Guest("own-x86", "977G", cpu="amd"), 0),
    ],
)
def test_area_for_plugged_memory_may_be_as_large_as_leaves_ram_where_it_is(
    guest: vi.Guest, spare: int
) -> None:
    usable = vi.Host("h").usable(aperture=48, granule=1)
    site = site_of(resolve(guest, usable), usable)
    assert site.spare() == spare


@pytest.mark.parametrize(("bits", "cpu", "first"), [(63, 64, 63), (63, 63, 63), (64, 64, None)])
def test_addresses_beyond_the_guests_are_one_cause_where_there_are_any(
    bits: int, cpu: int, first: int | None
) -> None:
    usable = vi.Host("h", cpu_bits=cpu).usable(aperture=64, granule=4096)
    site = site_of(resolve(vi.Guest("own-x86", "8G", phys_bits=bits), usable), usable)
    beyond = [cause.range for cause in site.usable.causes if cause.kind is CauseKind.GUEST_WIDTH]
    assert beyond == ([] if first is None else [AddrRange(1 << first, (1 << 64) - 1)])
