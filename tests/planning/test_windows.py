# SPDX-License-Identifier: Apache-2.0
"""The step that places windows, BARs and rooms, by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.planning.bars import rest_above
from vmm_iova.planning.firmware_bars import _below
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import BarMisfit, Misfit, RoomMisfit, TopUnknown, WindowMisfit
from vmm_iova.planning.ram import PlacedRam
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import HolePolicy, Placed, Policy, Site, site_of
from vmm_iova.planning.windows import place_windows
from vmm_iova.ranges import AddrRange, RangeSet

GIB = 1 << 30
OPEN = "0x0 - 0xfedfffff\n0xfef00000 - 0xffffffffff\n"
HOLE = "0x0 - 0xfedfffff\n0xfef00000 - 0x3bfffffff\n0x480000000 - 0xffffffffff\n"
AUTO, SPLIT, MOVE, REFUSE = map(Policy, HolePolicy)
LAST = 0x2_7FFF_FFFF  # of 8 GiB on q35


def _site(guest: vi.Guest, ranges: str = OPEN) -> Site:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    return site_of(resolve(guest, usable), usable)


def _ram(last: int = LAST) -> PlacedRam:
    low, high = AddrRange(0, 0x7FFF_FFFF), AddrRange(0x1_0000_0000, last)
    return PlacedRam(tuple(Item(ItemKind.RAM, "ram", span, span) for span in (low, high)))


def _places(placed: Placed, kind: ItemKind) -> list[str]:
    return [str(item.place) for item in placed.items if item.kind is kind]


def _misfit(site: Site, policy: Policy = SPLIT, last: int = LAST) -> Misfit:
    with pytest.raises(Misfit) as caught:
        place_windows(site, _ram(last), policy)
    return caught.value


def test_window_lies_above_ram() -> None:
    placed = place_windows(_site(vi.Guest("own-x86", "8G")), _ram(), SPLIT)
    assert _places(placed, ItemKind.WINDOW) == ["0x280000000-0xa7fffffff"]
    assert placed.notes == ()


def test_same_question_twice_gives_the_same_answer() -> None:
    site = _site(
        vi.Guest("own-x86", "8G", bars=[vi.Bar("gpu", "64G")], rooms=[vi.Room("later", "1G")])
    )
    assert place_windows(site, _ram(), SPLIT) == place_windows(site, _ram(), SPLIT)


def test_optional_bar_over_a_hole_is_placed_and_noted() -> None:
    site = _site(vi.Guest("own-x86", "8G", bars=[vi.Bar("gpu", "4G")]), HOLE)
    placed = place_windows(site, _ram(), REFUSE)
    (bar,) = (item for item in placed.items if item.kind is ItemKind.BAR)
    assert bar.iova == bar.gpa  # there is room where it is reached


def test_window_over_a_hole_is_noted_and_has_no_iova() -> None:
    placed = place_windows(_site(vi.Guest("own-x86", "8G"), HOLE), _ram(), REFUSE)
    (window,) = (item for item in placed.items if item.kind is ItemKind.WINDOW)
    assert window.iova is None
    assert [note.text.split(" (")[0] for note in placed.notes] == [
        "the 64-bit PCI window 0x280000000-0xa7fffffff meets 0x3c0000000-0x47fffffff"
    ]


def test_bar_that_must_be_reached_and_is_not_is_a_misfit() -> None:
    ranges = "0x0 - 0xfedfffff\n0xfef00000 - 0x27fffffff\n"
    misfit = _misfit(
        _site(vi.Guest("own-x86", "8G", bars=[vi.Bar("gpu", "4G", required=True)]), ranges)
    )
    assert isinstance(misfit, BarMisfit)
    assert (misfit.bar.name, misfit.bits) == ("gpu", 64)


def test_32_bit_bar_that_the_gap_is_too_small_for_is_a_misfit() -> None:
    misfit = _misfit(_site(vi.Guest("own-x86", "8G", bars=[vi.Bar("gpu", "4G", bits=32)])))
    assert isinstance(misfit, BarMisfit)
    assert misfit.bits == 32


def test_machine_without_a_64_bit_window_gives_out_all_bars_below_4_gib() -> None:
    placed = place_windows(
        _site(vi.Guest("own-x86", "8G", pci64=0, bars=[vi.Bar("gpu", "64M")])), _ram(), SPLIT
    )
    assert _places(placed, ItemKind.BAR) == ["0xc0000000-0xc3ffffff"]


def test_bar_of_a_window_up_to_an_unknown_top_is_a_misfit() -> None:
    guest = vi.Guest("microvm", "8G", bars=[vi.Bar("gpu", "1G")])
    misfit = _misfit(_site(guest))
    assert isinstance(misfit, TopUnknown)
    assert misfit.item == "BAR gpu"


def test_window_that_no_address_is_left_for_is_a_misfit() -> None:
    misfit = _misfit(_site(vi.Guest("own-x86", "8G")), last=(1 << 64) - GIB - 1)
    assert isinstance(misfit, WindowMisfit)


def test_window_beyond_the_guests_addresses_is_left_out_and_noted() -> None:
    placed = place_windows(_site(vi.Guest("own-x86", "8G", phys_bits=34)), _ram(), SPLIT)
    assert _places(placed, ItemKind.WINDOW) == []
    assert "left out: guest physical address bits: 34" in placed.notes[0].text


def test_room_goes_above_everything_and_knows_what_pushed_it() -> None:
    ranges = "0x0 - 0xfedfffff\n0xfef00000 - 0xabfffffff\n0xb00000000 - 0xffffffffff\n"
    site = _site(vi.Guest("own-x86", "8G", rooms=[vi.Room("dimms", "2G")]), ranges)
    (room,) = (
        item for item in place_windows(site, _ram(), SPLIT).items if item.kind is ItemKind.ROOM
    )
    assert room.place == AddrRange.from_size(0xB_0000_0000, 2 * GIB)
    assert room.start_cause is not None
    assert room.start_cause.kind is CauseKind.KERNEL_GAP


def test_room_that_does_not_fit_says_what_would() -> None:
    misfit = _misfit(_site(vi.Guest("own-x86", "8G", rooms=[vi.Room("dimms", "2TiB")])))
    assert isinstance(misfit, RoomMisfit)
    assert misfit.fits == (1 << 40) - 0xA_8000_0000
    assert misfit.above == 0xA_8000_0000


def test_rooms_begin_at_the_first_byte_above_and_leave_none_out() -> None:
    usable = vi.Host("h").usable(aperture=40, granule=1)
    rooms = [vi.Room("a", 1), vi.Room("b", 3, 2), vi.Room("c", 1), vi.Room("d", 1, 4)]
    layout = vi.plan(vi.Guest("own-x86", 5, pci64=0, rooms=rooms), usable)
    found = {item.name: item.place for item in layout.items if item.kind is ItemKind.ROOM}
    assert found == {
        "a": AddrRange(5, 5),
        "b": AddrRange(6, 8),
        "c": AddrRange(9, 9),
        "d": AddrRange(12, 12),
    }


def test_room_behind_a_hole_of_a_byte_was_pushed_by_it() -> None:
    for hole in (range(5, 6), range(5, 5)):
        free = RangeSet([AddrRange(0, 4), AddrRange(hole.stop, 99)])
        usable = vi.Host("h").usable(aperture=free, granule=1)
        guest = vi.Guest("own-x86", 5, pci64=0, rooms=[vi.Room("a", 1)])
        (room,) = [i for i in vi.plan(guest, usable, "split").items if i.kind is ItemKind.ROOM]
        assert room.place.start == hole.stop
        assert (room.start_cause is not None) is bool(hole)


def test_what_is_above_an_address_begins_at_the_next_one() -> None:
    spans = [AddrRange(0, 4), AddrRange(5, 5), AddrRange(6, 9)]
    for last, left in ((-1, spans), (3, [AddrRange(4, 4), *spans[1:]]), (4, spans[1:])):
        assert rest_above(spans, last) == left
    assert rest_above(spans, 6) == [AddrRange(7, 9)]
    assert rest_above(spans, 9) == []


def test_window_up_to_the_top_is_left_out_where_ram_ends_there() -> None:
    machine = vi.load_machine("microvm")
    assert machine.pci64 is not None
    machine = replace(machine, pci64=replace(machine.pci64, share=None, hides_ram=False))
    site = _site(vi.Guest(machine, "8G", phys_bits=34))
    placed = place_windows(site, _ram((1 << 34) - 1), SPLIT)
    assert _places(placed, ItemKind.WINDOW) == []
    assert "left out: guest physical address bits: 34" in placed.notes[0].text


def test_bar_that_no_place_reaches_stays_in_the_first_that_has_room_for_it() -> None:
    """RAM ends at 8 GiB, behind it are holes; from 13 GiB on no multiple of 4 GiB is in range."""
    ranges = "0x0 - 0xbfffffff\n0x100000000 - 0x23fffffff\n0x340000000 - 0x43fffffff\n"
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    guest = vi.Guest("own-x86", "6G", pci64="4G", bars=[vi.Bar("b", "4G")])
    items = {item.name: item for item in vi.plan(guest, usable, "split").items}
    assert items["64-bit PCI window"].place == AddrRange(8 * GIB, 12 * GIB - 1)
    assert (items["b"].place, items["b"].iova) == (AddrRange(8 * GIB, 12 * GIB - 1), None)


def test_window_of_firmware_begins_at_its_lowest_bar_from_4_gib_on() -> None:
    bars = [vi.Bar(name, "4G") for name in "ab"]
    guest = vi.Guest("q35", "2G", bars=bars, firmware="seabios-1.16.3", phys_bits=40)
    items = {item.name: item.place for item in vi.plan(guest, _site(guest).host).items}
    assert items["a"] == AddrRange.from_size(4 * GIB, 4 * GIB)
    assert items["b"] == AddrRange.from_size(8 * GIB, 4 * GIB)
    assert items["64-bit PCI window"] == AddrRange.from_size(4 * GIB, 32 * GIB)


@pytest.mark.parametrize(("bars", "pushed"), [([], True), ([vi.Bar("b", "1G")], False)])
def test_window_of_firmware_was_pushed_only_where_ram_ends_at_a_hole(
    bars: list[vi.Bar], pushed: bool
) -> None:
    """RAM ends at 8.5 GiB, where a hole begins that ends before the next GiB."""
    ranges = "0x0 - 0xfedfffff\n0xfef00000 - 0x21fffffff\n0x228000000 - 0xffffffffff\n"
    guest = vi.Guest("q35", "6.5G", bars=bars, firmware="ovmf", phys_bits=40)
    layout = vi.plan(guest, _site(guest, ranges).host)
    (window,) = [item for item in layout.items if item.name == "64-bit PCI window"]
    assert (window.start_cause is not None) is pushed


@pytest.mark.parametrize(("more", "said"), [(0, False), (1, True)])
def test_bar_that_ends_where_the_host_does_is_reached(more: int, said: bool) -> None:
    guest = vi.Guest("q35", "2G", bars=[vi.Bar("b", "1G")], firmware="ovmf", phys_bits=46)
    site = _site(guest)
    last = site.host.ranges[-1].last + more
    (bar,) = site.wanted.bars
    notes = list(_below(site, _ram().spans, [bar], {"b": AddrRange(last - GIB, last)}))
    assert bool(notes) is said


@pytest.mark.parametrize(("firmware", "said"), [("ovmf", True), (None, False)])
def test_window_of_ovmf_is_no_switch_of_seabios(firmware: str | None, said: bool) -> None:
    """One release of SeaBIOS has the BAR where it is reached, the newest has not."""
    usable = vi.load_host("intel-dmar-edk2-minipc").usable(aperture=39)
    bars = [vi.Bar("gpu", "128G")]
    guest = vi.Guest("q35", "30G", bars=bars, firmware=firmware, phys_bits=48)
    notes = [note.text for note in vi.plan(guest, usable).notes]
    assert any(text.startswith("to have BAR gpu below 2^39") for text in notes)
    assert any("X-PciMmio64Mb" in text for text in notes) is said


@pytest.mark.parametrize(("told", "window"), [(True, (64, 72)), (False, (9, 72))])
def test_window_is_as_wide_as_it_takes_to_reach_a_bar_beyond_a_hole(
    told: bool, window: tuple[int, int]
) -> None:
    """A VMM that is told where its window begins has it there; another has it right above RAM."""
    machine = vi.load_machine("own-x86")
    if not told:
        machine = replace(machine, options=(("pci64", "--window-size {size}"),))
    ranges = "0x0 - 0xbfffffff\n0x100000000 - 0x21fffffff\n0x1000000000 - 0x167fffffff\n"
    guest = vi.Guest(machine, "6.5G", bars=[vi.Bar("b", "8G", required=True)])
    layout = vi.plan(guest, _site(guest, ranges).host, "split")
    items = {item.name: item for item in layout.items}
    assert items["b"].place == items["b"].iova == AddrRange.from_size(64 * GIB, 8 * GIB)
    place = items["64-bit PCI window"].place
    assert (place.start, place.last + 1) == (window[0] * GIB, window[1] * GIB)


def test_window_at_a_fixed_place_stays_there_though_the_vmm_could_be_told() -> None:
    machine = vi.load_machine("firecracker")
    options = (*machine.options, ("pci64_start", "--window {start}"))
    ranges = "0x0 - 0xbfffffff\n0x100000000 - 0x4fffffffff\n0x8000000000 - 0xffffffffff\n"
    guest = vi.Guest(replace(machine, options=options), "4G", phys_bits=40)
    items = {item.name: item for item in vi.plan(guest, _site(guest, ranges).host, "split").items}
    window = items["64-bit PCI window"]
    assert (window.place, window.iova) == (AddrRange(256 * GIB, 512 * GIB - 1), None)
