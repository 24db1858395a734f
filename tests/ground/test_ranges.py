# SPDX-License-Identifier: Apache-2.0
"""Closed ranges and the two collections of them, right at both ends of the 64-bit space."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_iova.errors import RangeOverflowError, RequestError
from vmm_iova.ranges import (
    ADDRESS_LAST,
    AddrRange,
    MappableRanges,
    RangeSet,
    align_down,
    align_up,
    check_granule,
    power_up,
)

TOP = ADDRESS_LAST
SMALL = 255  # a space small enough to write down every address


def _small_ranges() -> st.SearchStrategy[list[AddrRange]]:
    pair = st.tuples(st.integers(0, SMALL), st.integers(0, SMALL))
    one = pair.map(lambda ends: AddrRange(min(ends), max(ends)))
    return st.lists(one, max_size=6)


def _addresses(ranges: RangeSet) -> set[int]:
    return {address for item in ranges for address in range(item.start, item.last + 1)}


class TestAddrRange:
    def test_whole_space_has_size_2_to_64(self) -> None:
        assert AddrRange(0, TOP).size == 1 << 64

    def test_one_byte_at_the_top_is_a_range(self) -> None:
        assert AddrRange.from_size(TOP, 1) == AddrRange(TOP, TOP)

    def test_from_size_of_the_whole_space_is_the_whole_space(self) -> None:
        assert AddrRange.from_size(0, 1 << 64) == AddrRange(0, TOP)

    def test_last_below_start_is_refused(self) -> None:
        with pytest.raises(RequestError, match="0xfff of a range is below its start 0x1000"):
            AddrRange(0x1000, 0xFFF)

    @pytest.mark.parametrize(("start", "last"), [(-1, 0), (0, 1 << 64)])
    def test_address_out_of_64_bits_is_an_overflow(self, start: int, last: int) -> None:
        with pytest.raises(RangeOverflowError, match="outside of 0 to 2\\^64-1"):
            AddrRange(start, last)

    @pytest.mark.parametrize("bad", ["0x1000", 1.0, True, None])
    def test_end_that_is_no_int_is_refused(self, bad: object) -> None:
        with pytest.raises(RequestError, match="must be an int"):
            AddrRange(0, bad)  # type: ignore[arg-type]

    def test_from_size_beyond_the_top_is_an_overflow(self) -> None:
        with pytest.raises(RangeOverflowError, match="0x100 bytes at 0xffffffffffffffff"):
            AddrRange.from_size(TOP, 0x100)

    @pytest.mark.parametrize("size", [0, -1, "1"])
    def test_from_size_of_nothing_is_refused(self, size: object) -> None:
        with pytest.raises(RequestError, match="not a positive number"):
            AddrRange.from_size(0x1000, size)  # type: ignore[arg-type]

    def test_align_inward_of_a_sliver_is_nothing(self) -> None:
        assert AddrRange(0x1001, 0x1FFF).align_inward(0x1000) is None

    def test_align_inward_at_the_top_keeps_the_last_page(self) -> None:
        assert AddrRange(TOP - 0x1800, TOP).align_inward(0x1000) == AddrRange(TOP - 0xFFF, TOP)

    def test_align_outward_of_one_byte_is_its_granule(self) -> None:
        assert AddrRange(0xE8BFF, 0xE8BFF).align_outward(0x1000) == AddrRange(0xE8000, 0xE8FFF)

    def test_range_is_immutable(self) -> None:
        with pytest.raises(AttributeError):
            AddrRange(0, 1).start = 5  # type: ignore[misc]

    def test_range_survives_pickle_and_copy(self) -> None:
        item = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
        assert pickle.loads(pickle.dumps(item)) == copy.deepcopy(item) == item

    def test_text_is_hex_with_both_ends(self) -> None:
        assert str(AddrRange(0xFEE0_0000, 0xFEEF_FFFF)) == "0xfee00000-0xfeefffff"


class TestAlign:
    def test_align_up_beyond_the_top_is_an_overflow(self) -> None:
        with pytest.raises(RangeOverflowError, match="beyond 2\\^64-1"):
            align_up(TOP - 2, 4)

    def test_align_up_at_the_top_fits_exactly(self) -> None:
        assert align_up(TOP - 2, 2) == TOP - 1

    @pytest.mark.parametrize("align", [0, 3, -4, 1 << 64])
    def test_align_that_is_no_power_of_two_is_refused(self, align: int) -> None:
        with pytest.raises(RequestError, match="power of two"):
            align_down(2, align)


class TestRangeSet:
    def test_touching_ranges_become_one(self) -> None:
        assert RangeSet([AddrRange(10, 19), AddrRange(0, 9)]) == RangeSet([AddrRange(0, 19)])

    def test_complement_of_nothing_is_everything(self) -> None:
        assert ~RangeSet() == RangeSet.everything()

    def test_complement_of_everything_is_nothing(self) -> None:
        assert not ~RangeSet.everything()

    def test_complement_of_the_last_byte_stops_below_it(self) -> None:
        assert ~RangeSet([AddrRange(TOP, TOP)]) == RangeSet([AddrRange(0, TOP - 1)])

    def test_complement_of_the_first_byte_starts_above_it(self) -> None:
        assert ~RangeSet([AddrRange(0, 0)]) == RangeSet([AddrRange(1, TOP)])

    def test_complement_within_bounds_is_cut_to_them(self) -> None:
        found = RangeSet([AddrRange(0x10, 0x1F)]).complement(AddrRange(0x18, 0x2F))
        assert found == RangeSet([AddrRange(0x20, 0x2F)])

    def test_size_of_everything_is_2_to_64(self) -> None:
        assert RangeSet.everything().size == 1 << 64

    def test_contains_a_range_across_a_gap_is_false(self) -> None:
        assert AddrRange(5, 25) not in RangeSet([AddrRange(0, 9), AddrRange(20, 29)])

    def test_contains_address_and_range_inside_is_true(self) -> None:
        ranges = RangeSet([AddrRange(0, 9), AddrRange(20, TOP)])
        assert TOP in ranges
        assert AddrRange(20, TOP) in ranges
        assert 15 not in ranges

    def test_overlapping_returns_whole_ranges_of_the_window(self) -> None:
        ranges = RangeSet([AddrRange(0, 9), AddrRange(20, 29), AddrRange(40, 49)])
        assert ranges.overlapping(AddrRange(9, 20)) == (AddrRange(0, 9), AddrRange(20, 29))

    def test_overlapping_nothing_returns_nothing(self) -> None:
        assert RangeSet([AddrRange(0, 9)]).overlapping(AddrRange(10, 19)) == ()

    def test_align_inward_drops_what_has_no_whole_granule(self) -> None:
        ranges = RangeSet([AddrRange(0x800, 0x17FF), AddrRange(0x1000_0000, TOP)])
        assert ranges.align_inward(0x1000) == RangeSet([AddrRange(0x1000_0000, TOP)])

    def test_combining_with_mappable_ranges_is_refused(self) -> None:
        with pytest.raises(TypeError, match="forgets the seams"):
            RangeSet() | MappableRanges()  # type: ignore[operator]

    def test_sets_hash_and_pickle_by_value(self) -> None:
        ranges = RangeSet([AddrRange(3, 5)])
        assert {ranges: 1}[pickle.loads(pickle.dumps(ranges))] == 1

    @given(_small_ranges(), _small_ranges())
    def test_algebra_agrees_with_sets_of_addresses(
        self, left: list[AddrRange], right: list[AddrRange]
    ) -> None:
        a, b = RangeSet(left), RangeSet(right)
        everything = set(range(SMALL + 1))
        assert _addresses(a | b) == _addresses(a) | _addresses(b)
        assert _addresses(a & b) == _addresses(a) & _addresses(b)
        assert _addresses(a - b) == _addresses(a) - _addresses(b)
        assert _addresses(a ^ b) == _addresses(a) ^ _addresses(b)
        assert _addresses(a.complement(AddrRange(0, SMALL))) == everything - _addresses(a)
        assert (a <= b) == (_addresses(a) <= _addresses(b))
        assert (a >= b) == (_addresses(a) >= _addresses(b))
        assert a.isdisjoint(b) == _addresses(a).isdisjoint(_addresses(b))
        assert ~~a == a

    @given(_small_ranges(), st.sampled_from([1, 2, 4, 16, 64]))
    def test_alignment_agrees_with_sets_of_granules(
        self, ranges: list[AddrRange], granule: int
    ) -> None:
        found = RangeSet(ranges)
        own = _addresses(found)
        blocks = [set(range(b, b + granule)) for b in range(0, SMALL + 1, granule)]
        inside = set().union(*(block for block in blocks if block <= own))
        around = set().union(*(block for block in blocks if block & own))
        assert _addresses(found.align_outward(granule)) == around
        # Granules that only neighbouring ranges fill together count: a set has no seams.
        assert _addresses(found.align_inward(granule)) == inside


class TestMappableRanges:
    def test_touching_ranges_stay_two(self) -> None:
        ranges = MappableRanges([AddrRange(0, 9), AddrRange(10, 19)])
        assert len(ranges) == 2
        assert ranges.seams == (10,)

    def test_range_across_a_seam_does_not_fit(self) -> None:
        ranges = MappableRanges([AddrRange(0, 9), AddrRange(10, 19)])
        assert AddrRange(5, 14) not in ranges
        assert AddrRange(5, 14) in ranges.as_set()

    def test_never_equal_to_a_set_of_the_same_addresses(self) -> None:
        assert MappableRanges([AddrRange(0, 9)]) != RangeSet([AddrRange(0, 9)])

    def test_overlapping_ranges_are_refused(self) -> None:
        with pytest.raises(RequestError, match="overlap"):
            MappableRanges([AddrRange(0, 9), AddrRange(9, 19)])

    def test_intersection_keeps_seams_of_both(self) -> None:
        left = MappableRanges([AddrRange(0, 9), AddrRange(10, 39)])
        right = MappableRanges([AddrRange(5, 19), AddrRange(20, 30)])
        found = [(item.start, item.last) for item in left & right]
        assert found == [(5, 9), (10, 19), (20, 30)]

    def test_split_inside_a_range_makes_a_seam(self) -> None:
        assert MappableRanges([AddrRange(0, 9)]).split_at(4).seams == (4,)

    @pytest.mark.parametrize("address", [0, 10, 15])
    def test_split_at_an_edge_or_outside_changes_nothing(self, address: int) -> None:
        ranges = MappableRanges([AddrRange(0, 9)])
        assert ranges.split_at(address) == ranges

    def test_align_inward_does_not_join_across_a_seam(self) -> None:
        ranges = MappableRanges([AddrRange(0, 0x17FF), AddrRange(0x1800, 0x2FFF)])
        found = ranges.align_inward(0x1000)
        assert list(found) == [AddrRange(0, 0xFFF), AddrRange(0x2000, 0x2FFF)]


def test_reprs_of_ranges_and_of_collections_are_hex() -> None:
    low, high = AddrRange(0, 0xFFF), AddrRange(0x1000, TOP)
    assert repr(high) == "AddrRange(0x1000, 0xffffffffffffffff)"
    assert eval(repr(high)) == high
    assert repr(RangeSet([low])) == "RangeSet([0x0-0xfff])"
    assert repr(MappableRanges([low, high])) == (
        "MappableRanges([0x0-0xfff, 0x1000-0xffffffffffffffff])"
    )


def test_last_address_is_rounded_up_to_itself_where_a_byte_is_a_unit() -> None:
    assert align_up(ADDRESS_LAST, 1) == ADDRESS_LAST


# -- limits, exactly -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: AddrRange.from_size(0, 0), "size"),
        (lambda: AddrRange.from_size(0, True), "size"),
        (lambda: AddrRange.from_size(1, 1 << 64), "size"),
        (lambda: AddrRange.from_size(TOP, 2), "size"),
        (lambda: AddrRange.from_size(0, (1 << 64) + 1), "size"),
        (lambda: AddrRange.from_size(-1, 1), "start"),
        (lambda: AddrRange("0", 1), "start"),  # type: ignore[arg-type]
        (lambda: AddrRange(True, 1), "start"),
        (lambda: AddrRange(-1, 1), "start"),
        (lambda: AddrRange(0, 1 << 64), "last"),
        (lambda: AddrRange(1, 0), "last"),
        (lambda: align_up(TOP, 2), "value"),
        (lambda: align_up(0, 3), "align"),
        (lambda: AddrRange(0, 1).align_inward(3), "granule"),
        (lambda: AddrRange(0, 1).align_outward(True), "granule"),
    ],
)
def test_number_beyond_a_limit_is_refused_by_its_name(make: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("size", "power"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (TOP, TOP + 1), (TOP + 1, TOP + 1)]
)
def test_power_of_two_that_holds_a_size_is_the_smallest(size: int, power: int) -> None:
    assert power_up(size) == power


def test_number_at_a_limit_is_taken() -> None:
    assert AddrRange.from_size(0, 1) == AddrRange(0, 0)
    assert AddrRange.from_size(1, TOP) == AddrRange(1, TOP)
    assert align_up(1 << 63, 1 << 63) == align_down(TOP, 1 << 63) == 1 << 63
    assert (align_up(TOP, 1), align_down(TOP, 1), align_up(0, 2)) == (TOP, TOP, 0)
    assert check_granule(1) == 1


Span = tuple[int, int]
BYTES = [(a, b) for a in range(6) for b in range(a, 6)]


@pytest.mark.parametrize("ours", [(0, 0), (0, 2), (1, 3), (2, 2), (3, 5), (5, 5), (0, 5)])
def test_two_ranges_are_what_their_addresses_are(ours: Span) -> None:
    """Each operation, against sets of addresses; all ranges of six bytes on the other side."""
    a, mine = AddrRange(*ours), set(range(ours[0], ours[1] + 1))
    for theirs in BYTES:
        b, other = AddrRange(*theirs), set(range(theirs[0], theirs[1] + 1))
        assert (b in a) == (other <= mine)
        assert a.overlaps(b) == bool(mine & other)
        shared = a.intersect(b)
        assert (_addresses(RangeSet([shared])) if shared else set()) == mine & other
        below, above = {x for x in mine if x < theirs[0]}, {x for x in mine if x > theirs[1]}
        parts = [part for part in (below, above) if part] if mine & other else [mine]
        assert [_addresses(RangeSet([part])) for part in a.subtract(b)] == parts
        for kind in (RangeSet, MappableRanges):
            assert (b in kind([a])) == (other <= mine)
            assert kind([a]).overlapping(b) == ((a,) if mine & other else ())
        assert (RangeSet([b]) <= RangeSet([a])) == (other <= mine)
        assert RangeSet([a]).isdisjoint(RangeSet([b])) == (not mine & other)
        within = RangeSet([a]).complement(within=b)
        assert _addresses(within) == other - mine
    for granule in (1, 2, 4):
        inner, outer = a.align_inward(granule), a.align_outward(granule)
        blocks = [set(range(x, x + granule)) for x in range(0, 8, granule)]
        whole = set().union(*(block for block in blocks if block <= mine))
        assert (_addresses(RangeSet([inner])) if inner else set()) == whole
        touched = set().union(*(block for block in blocks if block & mine))
        assert _addresses(RangeSet([outer])) == touched
    for address in range(-1, 7):
        assert (address in a) == (address in RangeSet([a])) == (address in mine)
        assert (RangeSet([a]).range_at(address) == a) == (address in mine)


@pytest.mark.parametrize("many", [1, 2, 31, 32, 33, 64, 65, 100])
def test_few_against_many_share_what_a_walk_finds(many: int) -> None:
    """Where one side is much the smaller, another way is taken; the answer is the same."""
    large = [AddrRange(10 * n, 10 * n + 5) for n in range(many)]
    for few in ([AddrRange(3, 12)], [AddrRange(5, 5), AddrRange(6, 10 * many)]):
        expected = [
            AddrRange(max(a.start, b.start), min(a.last, b.last))
            for a in few
            for b in large
            if a.overlaps(b)
        ]
        assert list(RangeSet(few) & RangeSet(large)) == expected
        assert list(RangeSet(large) & RangeSet(few)) == expected
        assert list(MappableRanges(large) & MappableRanges(few)) == expected


@pytest.mark.parametrize(
    ("spans", "shown"),
    [
        ([], "[]"),
        ([(0, 0), (2, 2), (4, 4), (6, 6)], "[0x0-0x0, 0x2-0x2, 0x4-0x4, 0x6-0x6]"),
        ([(2 * n, 2 * n) for n in range(5)], "[0x0-0x0, 0x2-0x2, 0x4-0x4, 0x6-0x6, and 1 more]"),
    ],
)
def test_repr_shows_four_and_counts_the_others(spans: list[Span], shown: str) -> None:
    assert repr(RangeSet(AddrRange(*span) for span in spans)) == f"RangeSet({shown})"


@pytest.mark.parametrize(
    ("address", "ranges"),
    [
        (0, [(0, 9), (20, 29)]),
        (1, [(0, 0), (1, 9), (20, 29)]),
        (9, [(0, 8), (9, 9), (20, 29)]),
        (10, [(0, 9), (20, 29)]),
        (20, [(0, 9), (20, 29)]),
        (29, [(0, 9), (20, 28), (29, 29)]),
    ],
)
def test_seam_is_put_before_an_address_inside(address: int, ranges: list[Span]) -> None:
    split = MappableRanges([AddrRange(0, 9), AddrRange(20, 29)]).split_at(address)
    assert [(item.start, item.last) for item in split] == ranges
    assert split.seams == ((address,) if len(ranges) == 3 else ())


def test_ranges_that_touch_are_places_and_those_that_share_a_byte_are_refused() -> None:
    assert len(MappableRanges([AddrRange(0, 9), AddrRange(10, 19)])) == 2
    with pytest.raises(RequestError, match="0x0-0x9 and 0x9-0x13 overlap") as caught:
        MappableRanges([AddrRange(9, 19), AddrRange(0, 9)])
    assert (caught.value.field, caught.value.value) == ("ranges", AddrRange(9, 19))


def test_set_of_ranges_is_whole_at_both_ends_of_the_space() -> None:
    ends = RangeSet([AddrRange(0, 0), AddrRange(TOP, TOP)])
    assert ~ends == RangeSet([AddrRange(1, TOP - 1)])
    assert ends.hull == AddrRange(0, TOP)
    assert (ends.size, RangeSet().size, RangeSet().hull) == (2, 0, None)
    assert ends ^ RangeSet.everything() == ~ends
    assert RangeSet([AddrRange(0, 4), AddrRange(2, 3)]) == RangeSet([AddrRange(0, 4)])
    assert RangeSet([AddrRange(0, 4), AddrRange(6, 7)]).size == 7
