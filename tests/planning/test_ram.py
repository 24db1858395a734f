# SPDX-License-Identifier: Apache-2.0
"""The step that places RAM, by itself: each policy, and the misfit when there is no place."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.machines.parts import RamWindow
from vmm_iova.planning.misfit import Misfit, RamBlocked, RamLeft, RamTooMuch, RamTooWide
from vmm_iova.planning.ram import PlacedRam, place_ram
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import HolePolicy, Policy, Preference, Site, site_of
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet

GIB = 1 << 30
HOLE = "0x0 - 0xfedfffff\n0xfef00000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n"
AUTO, SPLIT, MOVE, REFUSE = map(Policy, HolePolicy)


def _site(guest: vi.Guest, ranges: str = HOLE) -> Site:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    return site_of(resolve(guest, usable), usable)


def _amd(ram: str) -> Site:
    usable = vi.load_host("amd-epyc-1tb").usable()
    return site_of(resolve(vi.Guest("q35", ram), usable), usable)


def _first(site: Site, policy: Policy) -> PlacedRam:
    return next(place_ram(site, policy))


def _misfit(site: Site, policy: Policy) -> Misfit:
    with pytest.raises(Misfit) as caught:
        list(place_ram(site, policy))
    return caught.value


class TestSplit:
    def test_pieces_keep_the_cause_that_cut_them(self) -> None:
        placed = _first(_site(vi.Guest("q35", "8G")), SPLIT)
        assert placed.done == "split"
        below, above = placed.items[1], placed.items[2]
        assert below.last_cause == above.start_cause
        assert below.last_cause is not None
        assert below.last_cause.kind is CauseKind.KERNEL_GAP
        assert str(below.last_cause.range) == "0x180000000-0x1ffffffff"

    def test_placement_that_is_the_machines_own_is_no_split(self) -> None:
        placed = _first(_site(vi.Guest("q35", "4G")), SPLIT)
        assert (placed.done, placed.notes) == ("as is", ())
        assert all(item.start_cause is item.last_cause is None for item in placed.items)

    def test_split_that_the_vmm_does_not_do_itself_is_noted(self) -> None:
        (note,) = _first(_site(vi.Guest("q35", "8G")), SPLIT).notes
        assert "needs a VMM that can" in note.text

    def test_hole_where_the_machine_needs_ram_is_a_misfit(self) -> None:
        misfit = _misfit(_site(vi.Guest("q35", "1G"), "0x80000 - 0xffffffff\n"), SPLIT)
        assert isinstance(misfit, RamBlocked)
        assert misfit.rule == "the machine needs RAM there"
        assert str(misfit.span) == "0x0-0xfffff"

    def test_alignment_that_leaves_needed_ram_out_is_a_misfit(self) -> None:
        site = _site(
            vi.Guest("q35", "2G", align="1GiB"), "0x0 - 0x1fffff\n0x40000000 - 0xffffffff\n"
        )
        misfit = _misfit(site, SPLIT)
        assert isinstance(misfit, RamBlocked)
        assert misfit.rule == "aligned to 1 GiB"
        assert (misfit.span, misfit.fits) == (AddrRange(0, 0xF_FFFF), 0x20_0000)
        assert [cause.range for cause in misfit.causes] == [AddrRange(0x20_0000, 0x3FFF_FFFF)]

    def test_ram_that_is_left_over_says_how_much_has_a_place(self) -> None:
        misfit = _misfit(_site(vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n"), SPLIT)
        assert isinstance(misfit, RamLeft)
        assert misfit.fits == 2 * GIB

    def test_more_than_the_machine_takes_is_a_misfit(self) -> None:
        machine = vi.load_machine("s390x")
        assert machine.ram_max is None
        small = vi.Machine("small", "small", "x86_64", machine.ram, ram_max=GIB)
        for ram in ("2G", GIB + 0x10000):
            misfit = _misfit(_site(vi.Guest(small, ram)), SPLIT)
            assert isinstance(misfit, RamTooMuch)
            assert misfit.fits == GIB
        assert sum(span.size for span in _first(_site(vi.Guest(small, "1G")), SPLIT).spans) == GIB


class TestFewest:
    def test_fewest_pieces_come_first_and_the_lowest_last(self) -> None:
        site = _site(vi.Guest("q35", "4.5G"))
        choices = list(place_ram(site, Policy(HolePolicy.SPLIT, Preference.FEWEST)))
        assert [len(choice.items) for choice in choices] == [2, 3]
        assert str(choices[0].items[1].place) == "0x200000000-0x29fffffff"

    def test_pieces_are_fewest_where_ram_spills_out_of_its_window(self) -> None:
        ranges = (
            "0x0-0xfffff\n0x200000-0x3fffffff\n0x40001000-0x7fffffff\n0x100000000-0x1ffffffff\n"
        )
        site = _site(vi.Guest("q35", "1.5G"), ranges.replace("-", " - "))
        placed = _first(site, Policy(HolePolicy.SPLIT, Preference.FEWEST))
        assert [str(item.place) for item in placed.items] == [
            "0x0-0xfffff",
            "0x100000000-0x15fefffff",
        ]

    @pytest.mark.parametrize(("can", "pieces"), [(("split",), 1), ((), 2)])
    def test_vmm_that_can_split_takes_the_fewest_pieces_by_itself(
        self, can: tuple[str, ...], pieces: int
    ) -> None:
        windows = (
            RamWindow("low", AddrRange(0, GIB - 1)),
            RamWindow("high", AddrRange(4 * GIB, ADDRESS_LAST)),
        )
        machine = vi.Machine("any", "any", "x86_64", windows, can=can)  # type: ignore[arg-type]
        site = _site(vi.Guest(machine, "2G"), "0x0 - 0xffffffffff\n")
        placed = _first(site, Policy(HolePolicy.AUTO, Preference.FEWEST))
        assert len(placed.items) == pieces

    def test_of_many_choices_eight_are_tried_and_the_lowest(self) -> None:
        anywhere = RamWindow("ram", AddrRange(0, ADDRESS_LAST))
        machine = vi.Machine("any", "any", "x86_64", (anywhere,))
        ranges = (f"{2 * n * GIB:#x} - {(2 * n + 1) * GIB - 1:#x}\n" for n in range(14))
        site = _site(vi.Guest(machine, "1G"), "".join(ranges))
        found = list(place_ram(site, Policy(HolePolicy.SPLIT, Preference.FEWEST)))
        assert [choice.spans[0].start // GIB for choice in found] == [*range(0, 16, 2), 0]

    def test_choosing_leaves_the_site_as_it_was(self) -> None:
        site = _site(vi.Guest("q35", "4.5G"))
        before = site.usable.ranges
        list(place_ram(site, Policy(HolePolicy.SPLIT, Preference.FEWEST)))
        assert site.usable.ranges == before
        assert _first(site, SPLIT) == _first(_site(vi.Guest("q35", "4.5G")), SPLIT)


class TestWhole:
    def test_move_takes_all_ram_of_the_window_along(self) -> None:
        placed = _first(_amd("1.5TiB"), MOVE)
        assert placed.done == "move"
        assert [str(item.place) for item in placed.items] == [
            "0x0-0x7fffffff",
            "0x10000000000-0x27f7fffffff",
        ]

    def test_move_happens_for_the_window_behind_ram_alone(self) -> None:
        assert _first(_amd("978G"), MOVE).done == "as is"
        assert _first(_amd("979G"), MOVE).done == "move"

    def test_ram_that_cannot_be_moved_stays_where_only_the_window_behind_it_meets_a_hole(
        self,
    ) -> None:
        """A model of one's own, without QEMU's rule; a window over a hole costs peers alone."""
        own = vi.load_machine("own-x86")
        high = replace(own.ram[1], move_to=1 << 40, movable=True)
        guest = vi.Guest(replace(own, ram=(own.ram[0], high)), "6G")
        ranges = "0x0 - 0xbfffffff\n0x100000000 - 0x23fffffff\n0x300000000 - 0x{:x}\n"
        assert _first(_site(guest, ranges.format((1 << 40) - 1)), MOVE).done == "as is"
        assert _first(_site(guest, ranges.format((1 << 41) - 1)), MOVE).done == "move"

    def test_refuse_names_every_part_in_the_way(self) -> None:
        ranges = "0x0 - 0x3fffffff\n0x50000000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n"
        misfit = _misfit(_site(vi.Guest("q35", "8G"), ranges), REFUSE)
        assert isinstance(misfit, RamBlocked)
        assert [part.item for part in misfit.parts] == ["low RAM", "high RAM"]
        assert misfit.rule == "on-hole refuse"

    def test_seam_cuts_ram_into_mappings_and_says_so(self) -> None:
        ranges = "0x0 - 0x17fffffff\n0x180000000 - 0xffffffffff\n"
        placed = _first(_site(vi.Guest("q35", "8G"), ranges), REFUSE)
        assert [str(item.place) for item in placed.items][1:] == [
            "0x100000000-0x17fffffff",
            "0x180000000-0x27fffffff",
        ]
        assert "one call for each piece" in placed.notes[0].text


class TestTranslated:
    def test_iovas_avoid_address_zero_and_guest_addresses_are_whole(self) -> None:
        placed = _first(_site(vi.Guest("s390x", "1G"), "0x0 - 0xffffffff\n"), SPLIT)
        (item,) = placed.items
        assert (str(item.gpa), str(item.iova)) == ("0x0-0x3fffffff", "0x40000000-0x7fffffff")

    def test_ram_in_no_one_piece_is_spread_or_refused(self) -> None:
        ranges = "0x1000 - 0x40000fff\n0x80000000 - 0xbfffffff\n"
        site = _site(vi.Guest("s390x", "1.5G"), ranges)
        placed = _first(site, SPLIT)
        assert placed.done == "split"
        assert len(placed.items) == 2
        misfit = _misfit(site, REFUSE)
        assert isinstance(misfit, RamBlocked)
        assert misfit.item == "ram in one piece"

    def test_nodes_are_cut_where_they_end_above_an_address_that_is_not_0(self) -> None:
        machine = vi.load_machine("s390x")
        window = replace(machine.ram[0], range=AddrRange(GIB, ADDRESS_LAST))
        guest = vi.Guest(replace(machine, ram=(window,)), nodes=["1G", "0.5G"])
        site = _site(guest, "0x10000 - 0x3000ffff\n0x80000000 - 0xbfffffff\n")
        placed = _first(site, SPLIT)
        assert [(item.node, str(item.gpa), str(item.iova)) for item in placed.items] == [
            ("0", "0x40000000-0x6fffffff", "0x10000-0x3000ffff"),
            ("0", "0x70000000-0x7fffffff", "0x80000000-0x8fffffff"),
            ("1", "0x80000000-0x9fffffff", "0x90000000-0xafffffff"),
        ]
        edges = [(item.start_cause is None, item.last_cause is None) for item in placed.items]
        assert edges == [(False, False), (False, True), (True, True)]

    def test_ram_is_spread_from_the_first_byte_above_address_zero(self) -> None:
        free = RangeSet([AddrRange(0, 4), AddrRange(10, 14)])
        usable = vi.Host("h").usable(aperture=free, granule=1)
        guest = vi.Guest("s390x", nodes=[7, 1])
        items = _first(site_of(resolve(guest, usable), usable), SPLIT).items
        assert [(i.node, str(i.gpa), str(i.iova)) for i in items] == [
            ("0", "0x0-0x3", "0x1-0x4"),
            ("0", "0x4-0x6", "0xa-0xc"),
            ("1", "0x7-0x7", "0xd-0xd"),
        ]

    def test_ram_beyond_the_guests_addresses_is_a_misfit(self) -> None:
        misfit = _misfit(_site(vi.Guest("s390x", "8G", phys_bits=32)), SPLIT)
        assert isinstance(misfit, RamTooWide)
        assert misfit.fits == 4 * GIB


def test_window_that_qemu_moves_without_ram_behind_it_ends_at_the_last_address() -> None:
    """All RAM is below 4 GiB; a window of 1 TiB would reach AMD's hole, and begins above it."""
    guest = vi.Guest("q35", "2G", cpu="amd", pci64="1T", phys_bits=41)
    site = _site(guest, "0x0 - 0xffffffffffff\n")
    placed = _first(site, AUTO)
    assert (placed.done, placed.base, placed.last) == ("move", 1 << 40, (1 << 40) - 1)
    assert site.window_place(placed.last) == AddrRange(1 << 40, (1 << 41) - 1)


def test_ram_does_not_move_to_where_it_would_end_beyond_the_space() -> None:
    own = vi.load_machine("own-x86")
    guest = vi.Guest(replace(own, ram=(own.ram[0], replace(own.ram[1], movable=True))), "12G")
    top = (1 << 64) - 8 * GIB  # room for 8 GiB, and 10 are to be moved
    ranges = f"0x0 - 0xbfffffff\n{top:#x} - {ADDRESS_LAST - 4096:#x}\n"
    misfit = _misfit(_site(guest, ranges), MOVE)
    assert isinstance(misfit, RamBlocked)
    assert misfit.item == "high RAM"
