# SPDX-License-Identifier: Apache-2.0
"""The public contract of the allocator, on each engine."""

import copy
import inspect
import pickle
import pydoc
import threading
from array import array
from dataclasses import dataclass
from random import Random

import pytest

from vmm_iova import allocator as module
from vmm_iova.allocator import Allocation, allocator_class
from vmm_iova.allocator import pure as _pure
from vmm_iova.errors import (
    ApertureError,
    MisalignedError,
    NarrowError,
    NoSpaceError,
    NotAllocatedError,
    OccupiedError,
    RangeOverflowError,
    RequestError,
    ReservedError,
    SizeMismatchError,
    StraddleError,
)
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

PAGE = 0x1000
TOP = (1 << 64) - 1
LOW = RangeSet([AddrRange(0x1_0000, 0x1_FFFF)])  # sixteen pages
EVERYTHING = RangeSet.everything()


@pytest.fixture
def low(make):
    """An allocator of sixteen pages at 0x10000."""
    return make(LOW, granule=PAGE)


def spans(allocator, within=None):
    return [(span.start, span.last) for span in allocator.free_spans(within)]


class TestConstruction:
    def test_plain_ranges_without_granule_raise_request_error(self, make):
        with pytest.raises(RequestError, match="do not tell their granule") as caught:
            make(LOW)
        assert caught.value.field == "granule"

    @pytest.mark.parametrize("granule", [0, 3, -PAGE, 1 << 64, True, 4096.0, "4K"])
    def test_granule_not_a_power_of_two_raises_request_error(self, make, granule):
        with pytest.raises(RequestError):
            make(LOW, granule=granule)

    @pytest.mark.parametrize("usable", [None, [AddrRange(0, PAGE)], 7, AddrRange(0, 1)])
    def test_usable_of_another_type_raises_request_error(self, make, usable):
        with pytest.raises(RequestError):
            make(usable, granule=PAGE)

    def test_ranges_are_cut_inward_to_the_granule(self, make):
        allocator = make(RangeSet([AddrRange(0x1_0001, 0x3_FFFE)]), granule=0x1_0000)

        assert spans(allocator) == [(0x2_0000, 0x2_FFFF)]

    def test_no_usable_range_at_all_refuses_everything(self, make):
        allocator = make(RangeSet(), granule=1)

        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(1)
        assert (
            caught.value.largest_free,
            caught.value.largest_aligned,
            caught.value.total_free,
        ) == (None, 0, 0)
        with pytest.raises(ApertureError):
            allocator.allocate_at(0, 1)
        allocator._check()

    def test_usable_and_ranges_are_what_was_given_and_what_is_used(self, make):
        usable = RangeSet([AddrRange(0x1_0001, 0x3_FFFE)])
        allocator = make(usable, granule=0x1_0000)

        assert usable is allocator.usable
        assert MappableRanges([AddrRange(0x2_0000, 0x2_FFFF)]) == allocator.ranges
        assert allocator.granule == 0x1_0000


class Forgetful:
    """To be mixed in: a constructor that does not call the one above it."""

    def __init__(self):
        self.mine = True


CHANGES = {
    "allocate": lambda a: a.allocate(PAGE),
    "allocate with all options": lambda a: a.allocate(PAGE, PAGE, "best", AddrRange(0, TOP), "tag"),
    "allocate_at": lambda a: a.allocate_at(0, 1, "tag"),
    "release": lambda a: a.release(0, 1),
    "allocate_many": lambda a: a.allocate_many(array("Q", [PAGE])),
    "allocate_many of nothing": lambda a: a.allocate_many(array("Q")),
    "release_many": lambda a: a.release_many(array("Q", [0])),
    "narrow": lambda a: a.narrow(RangeSet()),
    "widen": lambda a: a.widen(LOW),
    "transaction": lambda a: a.transaction().__enter__(),
}


class TestSetUp:
    """An allocator that was not set up, or is set up again. The compiled one used to crash."""

    @pytest.fixture
    def bare(self, make):
        """One whose constructor never ran."""
        return type("Mine", (Forgetful, make), {})()

    @pytest.mark.parametrize("act", CHANGES.values(), ids=CHANGES)
    def test_change_without_the_constructor_raises_request_error(self, bare, act):
        with pytest.raises(RequestError, match="never set up") as caught:
            act(bare)
        assert "super().__init__" in caught.value.hint
        bare._check()

    def test_looking_without_the_constructor_shows_an_allocator_of_nothing(self, bare):
        assert (len(bare), bare.allocated_bytes, bare.free_bytes) == (0, 0, 0)
        assert list(bare) == list(bare.free_spans()) == list(bare.ranges) == []
        assert 0 not in bare
        assert bare.allocation_at(TOP) is None
        assert [list(part) for part in bare.lookup_many(array("Q", [0]))] == [[1], [0]]
        assert "0 allocations" in repr(bare)

    def test_constructor_that_raised_can_be_called_again(self, make):
        allocator = make.__new__(make)
        for wrong in ({"granule": 3}, {"granule": PAGE, "size_cache": Truthless()}):
            with pytest.raises((RequestError, ZeroDivisionError)):
                allocator.__init__(LOW, **wrong)
            with pytest.raises(RequestError, match="never set up"):
                allocator.allocate(PAGE)

        allocator.__init__(LOW, granule=PAGE)
        assert allocator.allocate(PAGE) == 0x1_0000

    def test_second_constructor_raises_request_error_and_changes_nothing(self, low):
        for _ in range(3):
            low.allocate(PAGE, tag="kept")
        before = list(low)

        for _ in range(2):
            with pytest.raises(RequestError, match="set up already"):
                low.__init__(RangeSet([AddrRange(0, 0xFFFF)]), granule=1, size_cache=True)
        assert before == list(low)
        assert (low.granule, low.usable) == (PAGE, LOW)
        low.release_many(array("Q", [item.range.start for item in before]))
        low._check()

    def test_derived_class_that_calls_the_constructor_works(self, make):
        class Mine(make):
            def __init__(self, pages):
                super().__init__(RangeSet([AddrRange(0, pages * PAGE - 1)]), granule=PAGE)

        assert Mine(4).allocate(PAGE) == PAGE

    @pytest.mark.parametrize("name", ["granule", "allow_zero", "ranges", "usable"])
    def test_what_it_was_made_with_cannot_be_set(self, low, name):
        with pytest.raises(AttributeError):
            setattr(low, name, 1)


class Truthless:
    def __bool__(self):
        raise ZeroDivisionError


class TestPolicies:
    def test_first_takes_the_lowest_span_that_fits(self, low):
        low.allocate_at(0x1_1000, PAGE)

        assert low.allocate(2 * PAGE) == 0x1_2000
        assert low.allocate(PAGE) == 0x1_0000

    def test_last_takes_the_highest_place(self, low):
        assert low.allocate(2 * PAGE, policy="last") == 0x1_E000

    def test_best_takes_the_smallest_span_the_lowest_among_equals(self, low):
        for page in (0x1_2000, 0x1_4000, 0x1_6000):  # spans of two, one, one and nine pages
            low.allocate_at(page, PAGE)

        assert low.allocate(PAGE, policy="best") == 0x1_3000
        assert low.allocate(PAGE, policy="best") == 0x1_5000
        assert low.allocate(PAGE, policy="best") == 0x1_0000

    def test_best_skips_a_small_span_without_an_aligned_place(self, low):
        low.allocate_at(0x1_0000, PAGE)
        low.allocate_at(0x1_3000, PAGE)  # leaves two pages at 0x11000, not aligned to two

        assert low.allocate(2 * PAGE, align=2 * PAGE, policy="best") == 0x1_4000

    def test_best_measures_spans_cut_to_the_window(self, low):
        low.allocate_at(0x1_4000, PAGE)  # four pages below, eleven above
        window = AddrRange(0x1_0000, 0x1_6FFF)  # cuts the upper span to two pages

        assert low.allocate(PAGE, policy="best", within=window) == 0x1_5000

    def test_unknown_policy_raises_request_error(self, low):
        for policy in ("lowest", "", None, 0, b"first"):
            with pytest.raises(RequestError) as caught:
                low.allocate(PAGE, policy=policy)
            assert caught.value.field == "policy"

    def test_policy_that_is_not_the_interned_text_works(self, low):
        assert low.allocate(PAGE, policy="".join(["la", "st"])) == 0x1_F000


class TestAlignment:
    def test_alignment_below_the_granule_is_raised_to_it(self, low):
        assert low.allocate(PAGE, align=1) == 0x1_0000

    def test_last_with_alignment_takes_the_highest_aligned_place(self, low):
        assert low.allocate(PAGE, align=0x8000, policy="last") == 0x1_8000

    @pytest.mark.parametrize("align", [0, 3, -1, 0xC8, 1 << 64, True, 1.0, "4K"])
    def test_alignment_not_a_power_of_two_raises_request_error(self, low, align):
        with pytest.raises(RequestError) as caught:
            low.allocate(PAGE, align=align)
        assert caught.value.field == "align"

    def test_alignment_of_half_the_space_finds_the_one_place(self, make):
        allocator = make(EVERYTHING, granule=PAGE)

        assert allocator.allocate(PAGE, align=1 << 63) == 1 << 63
        with pytest.raises(NoSpaceError):
            allocator.allocate(PAGE, align=1 << 63)

    def test_allocate_at_with_alignment_demands_it(self, low):
        with pytest.raises(MisalignedError) as caught:
            low.allocate_at(0x1_1000, PAGE, align=0x2000)
        assert (caught.value.value, caught.value.align) == (0x1_1000, 0x2000)
        assert low.allocate_at(0x1_2000, PAGE, align=0x2000) == 0x1_2000


class TestSizes:
    @pytest.mark.parametrize("size", [0, -PAGE, (1 << 64) + PAGE, True, 4096.0, "4096", None])
    def test_size_that_makes_no_sense_raises_request_error(self, low, size):
        for act in (low.allocate, lambda size: low.allocate_at(0x1_0000, size)):
            with pytest.raises(RequestError) as caught:
                act(size)
            assert caught.value.field == "size"
            assert type(caught.value) is RequestError

    @pytest.mark.parametrize("size", [1, PAGE - 1, PAGE + 1, 0x1800])
    def test_size_not_a_multiple_of_the_granule_is_refused_not_rounded(self, low, size):
        with pytest.raises(MisalignedError, match="not rounded") as caught:
            low.allocate(size)
        assert ("size", size, PAGE) == (
            caught.value.field,
            caught.value.value,
            caught.value.align,
        )
        assert len(low) == 0

    def test_size_that_acts_as_an_index_is_taken(self, low):
        class Pages:
            def __index__(self):
                return PAGE

        assert low.allocate(Pages()) == 0x1_0000

    def test_granule_of_one_byte_packs_bytes(self, make):
        allocator = make(RangeSet([AddrRange(0x1001, 0x1003)]), granule=1)

        assert [allocator.allocate(1) for _ in range(3)] == [0x1001, 0x1002, 0x1003]


class TestZero:
    def test_zero_is_not_chosen_by_itself(self, make):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=PAGE)

        assert allocator.allocate(PAGE) == PAGE
        assert allocator.allocate(PAGE, align=0x8000) == 0x8000
        assert spans(allocator) == [(0, 0xFFF), (0x2000, 0x7FFF), (0x9000, 0xFFFF)]
        assert allocator.free_bytes == 0xE000

    def test_zero_is_given_where_it_is_asked_for(self, make):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=PAGE)

        assert allocator.allocate_at(0, 2 * PAGE, "firmware") == 0
        assert allocator.allocation_at(0x1FFF).tag == "firmware"
        allocator.release(0)
        assert spans(allocator) == [(0, 0xFFFF)]
        with pytest.raises(NotAllocatedError):
            allocator.release(0)
        assert allocator.allocate(0xF000) == PAGE
        assert allocator.allocate_at(0, PAGE) == 0
        allocator._check()

    def test_zero_is_chosen_when_allowed(self, make):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=PAGE, allow_zero=True)

        assert allocator.allocate(0x1_0000) == 0

    def test_all_space_but_zero_taken_refuses_without_zero(self, make):
        allocator = make(RangeSet([AddrRange(0, 0x1FFF)]), granule=PAGE)
        allocator.allocate(PAGE)

        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(PAGE)
        assert AddrRange(0, 0xFFF) == caught.value.largest_free
        assert caught.value.largest_aligned == 0


class TestWholeSpace:
    @pytest.mark.parametrize("granule", [2, PAGE, 0x1_0000])
    def test_one_allocation_of_everything(self, make, granule):
        allocator = make(EVERYTHING, granule=granule, allow_zero=True)

        assert allocator.allocate(1 << 64, align=1 << 63, tag="all") == 0

        assert [Allocation(AddrRange(0, TOP), "all")] == list(allocator)
        assert (
            len(allocator),
            allocator.allocated_bytes,
            allocator.free_bytes,
        ) == (1, 1 << 64, 0)
        assert spans(allocator) == []
        assert allocator.allocation_at(TOP).tag == "all"
        with pytest.raises(NoSpaceError):
            allocator.allocate(granule)
        with pytest.raises(OccupiedError):
            allocator.allocate_at(TOP + 1 - granule, granule)
        with pytest.raises(NotAllocatedError):
            allocator.release(1 << 63)
        with pytest.raises(SizeMismatchError):
            allocator.release(0, 1 << 63)
        with pytest.raises(NarrowError):
            allocator.narrow(LOW)
        allocator._check()
        allocator.release(0, 1 << 64)
        assert spans(allocator) == [(0, TOP)]
        assert TOP + 1 - granule == allocator.allocate(granule, policy="last")
        allocator._check()

    @pytest.mark.parametrize(
        "act",
        [
            lambda a: a.allocate(1 << 64),
            lambda a: a.allocate(1 << 64, policy="last"),
            lambda a: a.allocate(1 << 64, policy="best", tag="all"),
            lambda a: a.allocate(1 << 64, within=AddrRange(0, TOP)),
            lambda a: a.allocate_at(0, 1 << 64),
        ],
        ids=["first", "last", "best", "within", "at"],
    )
    @pytest.mark.parametrize("allow_zero", [False, True])
    def test_everything_in_one_at_a_granule_of_one_byte_is_refused(self, make, act, allow_zero):
        # The compiled engine counts granules in 64 bits. It used to have a second state for this
        # one request, and crashed when memory ran out on the way there.
        allocator = make(EVERYTHING, granule=1, allow_zero=allow_zero)

        with pytest.raises(RequestError, match="one allocation where the granule") as caught:
            act(allocator)
        assert (caught.value.field, caught.value.value) == ("size", 1 << 64)
        assert "two pieces" in caught.value.hint
        assert (len(allocator), allocator.free_bytes) == (0, 1 << 64)
        assert allocator.allocate(1 << 63) == (0 if allow_zero else 1)
        with pytest.raises(SizeMismatchError):
            allocator.release(0 if allow_zero else 1, 1 << 64)
        allocator._check()

    @pytest.mark.parametrize("granule", [2, PAGE])
    def test_everything_is_refused_when_zero_may_not_be_chosen(self, make, granule):
        allocator = make(EVERYTHING, granule=granule)

        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(1 << 64)
        assert AddrRange(0, TOP) == caught.value.largest_free
        assert (1 << 64) - granule == caught.value.largest_aligned
        assert allocator.allocate_at(0, 1 << 64) == 0

    @pytest.mark.parametrize("granule", [2, PAGE])
    def test_everything_rolls_back(self, make, granule):
        allocator = make(EVERYTHING, granule=granule, allow_zero=True)

        with allocator.transaction() as transaction:
            allocator.allocate(1 << 64)
            transaction.rollback()
            assert len(allocator) == 0
            allocator.allocate(granule)
            transaction.rollback()
        allocator.allocate_at(0, 1 << 64, "kept")
        with allocator.transaction() as transaction:
            allocator.release(0)
            transaction.rollback()
        assert [Allocation(AddrRange(0, TOP), "kept")] == list(allocator)
        allocator._check()

    def test_last_byte_of_the_space_is_given(self, make):
        allocator = make(RangeSet([AddrRange(1, TOP)]), granule=1)

        assert allocator.allocate_at(TOP, 1) == TOP
        assert allocator.allocate(1, policy="last") == (1 << 64) - 2
        assert allocator.allocate((1 << 64) - 3) == 1
        assert spans(allocator) == []
        allocator._check()

    def test_range_beyond_the_top_raises_overflow(self, make):
        allocator = make(EVERYTHING, granule=PAGE)

        with pytest.raises(RangeOverflowError):
            allocator.allocate_at(TOP + 1 - PAGE, 2 * PAGE)
        with pytest.raises(RangeOverflowError):
            allocator.allocate_at(1 << 64, PAGE)
        with pytest.raises(RangeOverflowError):
            allocator.allocate_at(-PAGE, PAGE)


class TestWindow:
    def test_window_is_respected_at_both_edges(self, low):
        window = AddrRange(0x1_3000, 0x1_5FFF)

        assert low.allocate(PAGE, within=window) == 0x1_3000
        assert low.allocate(PAGE, within=window, policy="last") == 0x1_5000
        assert low.allocate(PAGE, within=window, policy="best") == 0x1_4000
        with pytest.raises(NoSpaceError) as caught:
            low.allocate(PAGE, within=window)
        assert caught.value.largest_free is None
        assert "0x13000-0x15fff" in caught.value.message

    def test_window_that_is_not_granular_counts_whole_granules(self, low):
        assert low.allocate(PAGE, within=AddrRange(0x1_2001, 0x1_3FFF)) == 0x1_3000
        with pytest.raises(NoSpaceError):
            low.allocate(PAGE, within=AddrRange(0x1_4001, 0x1_5FFE))

    def test_window_outside_of_the_usable_ranges_has_no_space(self, low):
        with pytest.raises(NoSpaceError):
            low.allocate(PAGE, within=AddrRange(0, 0xFFFF))

    @pytest.mark.parametrize("within", [(0, 1), 5, LOW, "0-1"])
    def test_window_of_another_type_raises_request_error(self, low, within):
        with pytest.raises(RequestError) as caught:
            low.allocate(PAGE, within=within)
        assert caught.value.field == "within"
        with pytest.raises(RequestError):
            low.free_spans(within)

    def test_free_spans_are_cut_to_the_window(self, low):
        low.allocate_at(0x1_4000, PAGE)

        assert spans(low, AddrRange(0x1_3800, 0x1_57FF)) == [
            (0x1_3800, 0x1_3FFF),
            (0x1_5000, 0x1_57FF),
        ]


class TestSeams:
    SEAMED = MappableRanges([AddrRange(0x1_0000, 0x1_3FFF), AddrRange(0x1_4000, 0x1_FFFF)])

    def test_no_allocation_crosses_a_seam(self, make):
        allocator = make(self.SEAMED, granule=PAGE)
        allocator.allocate(0x3000)

        assert allocator.allocate(0x2000) == 0x1_4000
        assert spans(allocator) == [(0x1_3000, 0x1_3FFF), (0x1_6000, 0x1_FFFF)]

    def test_spans_on_both_sides_of_a_seam_stay_apart(self, make):
        allocator = make(self.SEAMED, granule=PAGE)

        assert spans(allocator) == [(0x1_0000, 0x1_3FFF), (0x1_4000, 0x1_FFFF)]
        allocator.release(allocator.allocate_at(0x1_4000, PAGE))
        allocator.release(allocator.allocate_at(0x1_3000, PAGE))
        assert spans(allocator) == [(0x1_0000, 0x1_3FFF), (0x1_4000, 0x1_FFFF)]

    def test_placing_across_a_seam_raises_straddle_error(self, make):
        allocator = make(self.SEAMED, granule=PAGE)

        with pytest.raises(StraddleError) as caught:
            allocator.allocate_at(0x1_3000, 2 * PAGE)
        assert caught.value.seam == 0x1_4000

    def test_rangeset_forgets_the_seam(self, make):
        allocator = make(self.SEAMED.as_set(), granule=PAGE)

        assert allocator.allocate_at(0x1_3000, 2 * PAGE) == 0x1_3000


class TestPlaced:
    def test_occupied_names_the_owner(self, low):
        low.allocate_at(0x1_2000, 2 * PAGE, "nic queue")

        with pytest.raises(OccupiedError, match=r"0x12000-0x13fff of 'nic queue'") as caught:
            low.allocate_at(0x1_1000, 2 * PAGE)
        assert ("nic queue", AddrRange(0x1_2000, 0x1_3FFF)) == (
            caught.value.owner,
            caught.value.owner_range,
        )
        assert caught.value.exit_code == 3

    def test_place_inside_a_live_range_is_refused(self, make):
        # rust-vmm vm-allocator at d280653 accepts this, and later hands the same bytes out again.
        allocator = make(RangeSet([AddrRange(0x2_0000, 0x4_FFFF)]), granule=PAGE)
        assert allocator.allocate(0x3000) == 0x2_0000

        with pytest.raises(OccupiedError):
            allocator.allocate_at(0x2_1000, PAGE)
        assert allocator.allocate(PAGE) == 0x2_3000

    def test_failed_placement_loses_nothing(self, low):
        # In rust-vmm an overlapping insertion drops the whole tree.
        low.allocate_at(0x1_2000, PAGE)

        with pytest.raises(OccupiedError):
            low.allocate_at(0x1_0000, 0x1_0000)
        assert spans(low) == [(0x1_0000, 0x1_1FFF), (0x1_3000, 0x1_FFFF)]
        low._check()

    def test_overlap_is_judged_by_the_whole_range(self, low):
        # libvfn compares start addresses only; Linux reserve_iova() merges instead of failing.
        low.allocate_at(0x1_4000, PAGE)

        with pytest.raises(OccupiedError):
            low.allocate_at(0x1_3000, 3 * PAGE)
        assert len(low) == 1

    def test_outside_raises_aperture_error_with_the_limit(self, low):
        with pytest.raises(ApertureError) as caught:
            low.allocate_at(0x1_F000, 2 * PAGE)
        assert (AddrRange(0x1_F000, 0x2_0FFF), 0x1_FFFF) == (
            caught.value.range,
            caught.value.limit,
        )
        with pytest.raises(ApertureError) as caught:
            low.allocate_at(0, PAGE)
        assert caught.value.limit is None

    def test_outside_is_said_before_occupied(self, low):
        low.allocate_at(0x1_F000, PAGE)

        with pytest.raises(ApertureError):
            low.allocate_at(0x1_F000, 2 * PAGE)

    def test_misaligned_start_raises_misaligned_error(self, low):
        with pytest.raises(MisalignedError) as caught:
            low.allocate_at(0x1_0800, PAGE)
        assert (
            caught.value.field,
            caught.value.value,
            caught.value.align,
        ) == ("start", 0x1_0800, PAGE)


class TestRelease:
    def test_neighbours_join_again(self, low):
        places = [low.allocate(PAGE) for _ in range(3)]

        for place in (places[0], places[2], places[1]):
            low.release(place)
        assert spans(low) == [(0x1_0000, 0x1_FFFF)]
        assert low.allocate(0x1_0000) == 0x1_0000

    def test_release_twice_raises_not_allocated(self, low):
        place = low.allocate(PAGE)
        low.release(place)

        with pytest.raises(NotAllocatedError) as caught:
            low.release(place)
        assert place == caught.value.address

    def test_release_in_the_middle_names_the_allocation(self, low):
        # QEMU's iova-tree removes everything that overlaps what it is given.
        low.allocate_at(0x1_0000, 2 * PAGE, "ram")

        with pytest.raises(NotAllocatedError, match=r"inside 0x10000-0x11fff of 'ram'"):
            low.release(0x1_1000)
        with pytest.raises(NotAllocatedError, match="inside"):
            low.release(0x1_0001)
        assert len(low) == 1

    def test_size_of_the_whole_space_is_wrong_for_one_byte(self, make):
        allocator = make(EVERYTHING, granule=1)
        place = allocator.allocate(1)

        with pytest.raises(SizeMismatchError):
            allocator.release(place, 1 << 64)
        assert len(allocator) == 1

    @pytest.mark.parametrize("size", [0, 1, PAGE, 3 * PAGE, -1, 1 << 64, 1 << 70])
    def test_wrong_size_raises_and_releases_nothing(self, low, size):
        # Cloud Hypervisor ignores such a release in silence.
        low.allocate(2 * PAGE)

        with pytest.raises(SizeMismatchError) as caught:
            low.release(0x1_0000, size)
        assert (size, AddrRange(0x1_0000, 0x1_1FFF)) == (caught.value.value, caught.value.range)
        assert len(low) == 1

    def test_right_size_releases(self, low):
        low.release(low.allocate(2 * PAGE), 2 * PAGE)
        low.release(low.allocate(2 * PAGE), size=2 * PAGE)

        assert len(low) == 0

    def test_size_is_the_number_of_bytes_not_the_last_offset(self, low):
        # In QEMU's iova-tree `size` is one less than the number of bytes.
        low.allocate(PAGE)

        assert AddrRange(0x1_0000, 0x1_0FFF) == low.allocation_at(0x1_0000).range
        assert low.allocation_at(0x1_1000) is None

    def test_placed_ranges_are_reclaimed(self, low):
        # QEMU's vfio-helpers never reclaim a fixed IOVA.
        for _ in range(100):
            low.release(low.allocate_at(0x1_8000, 0x8000))
        assert low.free_bytes == 0x1_0000

    def test_released_space_is_free_at_once_and_sizes_are_exact(self, low):
        # Linux alloc_iova_fast() keeps released ranges in magazines, and rounds sizes up.
        places = [low.allocate(3 * PAGE) for _ in range(5)]
        assert places == [0x1_0000, 0x1_3000, 0x1_6000, 0x1_9000, 0x1_C000]

        for place in places:
            low.release(place)
        assert low.allocate(0x1_0000) == 0x1_0000

    @pytest.mark.parametrize("start", [None, "0x10000", 1.5, True])
    def test_address_of_another_type_raises_request_error(self, low, start):
        with pytest.raises(RequestError):
            low.release(start)
        with pytest.raises(RequestError):
            low.allocation_at(start)

    def test_address_outside_of_the_space_raises_overflow(self, low):
        for address in (-1, 1 << 64, 1 << 80):
            with pytest.raises(RangeOverflowError):
                low.release(address)
            with pytest.raises(RangeOverflowError):
                low.allocation_at(address)

    def test_hole_seam_and_untouched_zero_cannot_be_released(self, make):
        usable = MappableRanges(
            [AddrRange(0, 0xFFF), AddrRange(0x1000, 0x1FFF), AddrRange(0x4000, 0x4FFF)]
        )
        allocator = make(usable, granule=PAGE)

        for address in (0, 0x1000, 0x2000, 0x5000):
            with pytest.raises(NotAllocatedError):
                allocator.release(address)
            assert allocator.allocation_at(address) is None


class TestLargeSpaces:
    def test_48_bit_space_in_pages_fits(self, make):
        # OffsetAllocator counts in 32 bits: 2^48 bytes in 4 KiB pages do not fit.
        allocator = make(RangeSet([AddrRange(0x1_0000, (1 << 48) - 1)]), granule=PAGE)

        assert allocator.allocate(PAGE, policy="last") == (1 << 48) - PAGE
        assert allocator.allocate((1 << 48) - 0x1_0000 - PAGE) == 0x1_0000
        assert allocator.free_bytes == 0
        allocator._check()

    @pytest.mark.parametrize("granule", [1, PAGE])
    def test_huge_and_tiny_ranges_mix(self, make, granule):
        allocator = make(EVERYTHING, granule=granule)
        for power in range(0, 50, 3):
            allocator.allocate(granule << power, align=granule << power)
            allocator.allocate(granule << power, policy="last")
        allocator._check()
        for allocation in list(allocator)[::2]:
            allocator.release(allocation.range.start)
        allocator._check()

    def test_low_range_is_not_lost_when_a_large_request_skips_it(self, make):
        # libvfn's bump pointer moves past a range that was too small, and never comes back.
        usable = RangeSet([AddrRange(0, 0xFEDF_FFFF), AddrRange(0xFEF0_0000, 0x7F_FFFF_FFFF)])
        allocator = make(usable, granule=PAGE, allow_zero=True)

        assert allocator.allocate(1 << 32) == 0xFEF0_0000
        assert allocator.allocate(PAGE) == 0


class TestNoSpaceAtZero:
    """Address 0 is free although it is not chosen: part of its span, but not across a seam."""

    @pytest.mark.parametrize(
        ("ranges", "taken", "largest", "aligned", "total"),
        [
            ([(0, 0xFFF), (0x1000, 0x3FFF)], [], (0x1000, 0x3FFF), 0x3000, 0x4000),
            ([(0, 0x3FFF)], [], (0, 0x3FFF), 0x3000, 0x4000),
            ([(0, 0x1FFF), (0x2000, 0x3FFF)], [], (0, 0x1FFF), 0x2000, 0x4000),
            ([(0, 0xFFF), (0x1000, 0x1FFF)], [], (0, 0xFFF), 0x1000, 0x2000),
            ([(0, 0xFFF), (0x2000, 0x3FFF)], [], (0x2000, 0x3FFF), 0x2000, 0x3000),
            ([(0, 0xFFF)], [], (0, 0xFFF), 0, 0x1000),
            ([(0, 0xFFF), (0x1000, 0x3FFF)], [0x1000], (0x2000, 0x3FFF), 0x2000, 0x3000),
            ([(0, 0x3FFF)], [0x1000], (0x2000, 0x3FFF), 0x2000, 0x3000),
            ([(0, 0x3FFF)], [0], (0x1000, 0x3FFF), 0x3000, 0x3000),
            ([(0, 0xFFF), (0x1000, 0x3FFF)], [0], (0x1000, 0x3FFF), 0x3000, 0x3000),
        ],
    )
    def test_facts(self, make, ranges, taken, largest, aligned, total):
        allocator = make(MappableRanges(AddrRange(*item) for item in ranges), granule=PAGE)
        for start in taken:
            allocator.allocate_at(start, PAGE)

        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(0x10_0000)
        assert AddrRange(*largest) == caught.value.largest_free
        assert (caught.value.largest_aligned, caught.value.total_free) == (aligned, total)
        assert AddrRange(*largest) in list(allocator.free_spans())

    def test_address_0_is_named_as_what_is_missing(self, make):
        allocator = make(RangeSet([AddrRange(0, 0x3FFF)]), granule=PAGE)

        with pytest.raises(NoSpaceError, match="address 0 is not chosen by itself"):
            allocator.allocate(0x4000)

    def test_pieces_are_the_cure_where_a_seam_is_between(self, make):
        seamed = MappableRanges([AddrRange(0, 0xFFF), AddrRange(0x1000, 0x3FFF)])

        with pytest.raises(NoSpaceError, match="in several pieces"):
            make(seamed, granule=PAGE).allocate(0x4000)


class TestNoSpace:
    def test_facts_of_a_request_too_large(self, low):
        low.allocate_at(0x1_2000, PAGE)
        low.allocate_at(0x1_9000, PAGE)

        with pytest.raises(NoSpaceError) as caught:
            low.allocate(0x7000, align=0x2000)
        error = caught.value
        assert (error.size, error.align) == (0x7000, 0x2000)
        assert AddrRange(0x1_3000, 0x1_8FFF) == error.largest_free
        assert error.largest_aligned == 0x6000  # 0x1a000-0x1ffff begins aligned
        assert error.total_free == 0xE000
        assert "0x7000" in str(error)
        assert "0x13000-0x18fff" in str(error)

    def test_alignment_is_named_as_the_cure_when_it_is_one(self, make):
        allocator = make(RangeSet([AddrRange(0x1000, 0x4FFF)]), granule=PAGE)
        allocator.allocate_at(0x4000, PAGE)

        with pytest.raises(NoSpaceError, match="smaller alignment"):
            allocator.allocate(0x3000, align=0x2000)

    def test_error_pickles_with_its_facts(self, low):
        with pytest.raises(NoSpaceError) as caught:
            low.allocate(0x2_0000)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert vars(caught.value) == vars(copy)


@dataclass
class Judge:
    """What the host wing's `Usable` looks like to the allocator."""

    ranges: MappableRanges
    granule: int

    def refusal(self, wanted):
        if wanted.last > 0xFEE0_0000 - 1 and wanted.start <= 0xFEEF_FFFF:
            return ReservedError(
                f"{wanted} touches the MSI window",
                range=wanted,
                region=AddrRange(0xFEE0_0000, 0xFEEF_FFFF),
                cause="group 17 reserved_regions line 2",
            )
        return None


class TestJudge:
    JUDGE = Judge(
        MappableRanges([AddrRange(0, 0xFEDF_FFFF), AddrRange(0xFEF0_0000, (1 << 39) - 1)]), PAGE
    )

    def test_granule_is_the_judges(self, make):
        allocator = make(self.JUDGE)

        assert allocator.granule == PAGE
        assert self.JUDGE is allocator.usable

    def test_granule_below_the_judges_raises_request_error(self, make):
        with pytest.raises(RequestError):
            make(self.JUDGE, granule=0x800)

    def test_granule_above_the_judges_is_taken(self, make):
        assert make(self.JUDGE, granule=0x1_0000).granule == 0x1_0000

    def test_refusal_is_the_judges(self, make):
        with pytest.raises(ReservedError) as caught:
            make(self.JUDGE).allocate_at(0xFEDF_F000, 2 * PAGE)
        assert caught.value.cause == "group 17 reserved_regions line 2"

    def test_without_a_refusal_it_is_outside_of_the_aperture(self, make):
        with pytest.raises(ApertureError):
            make(self.JUDGE).allocate_at(1 << 39, PAGE)

    def test_new_ranges_with_a_larger_granule_raise_request_error(self, make):
        allocator = make(self.JUDGE)

        with pytest.raises(RequestError, match="granule"):
            allocator.narrow(Judge(self.JUDGE.ranges, 0x1_0000))


class TestNarrow:
    def test_narrow_names_the_allocations_in_the_way(self, low):
        low.allocate_at(0x1_0000, PAGE, "kept")
        low.allocate_at(0x1_7000, 2 * PAGE, "in the way")

        with pytest.raises(NarrowError, match=r"0x17000-0x18fff of 'in the way'") as caught:
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x1_7FFF)]))
        assert ((AddrRange(0x1_7000, 0x1_8FFF), "in the way"),) == caught.value.conflicts
        assert LOW is low.usable
        assert low.allocate(PAGE) == 0x1_1000

    def test_narrow_then_widen(self, low):
        low.allocate(PAGE)
        smaller = RangeSet([AddrRange(0x1_0000, 0x1_3FFF)])

        low.narrow(smaller)
        assert spans(low) == [(0x1_1000, 0x1_3FFF)]
        assert smaller is low.usable
        low.widen(LOW)
        assert spans(low) == [(0x1_1000, 0x1_FFFF)]
        low._check()

    def test_narrow_to_more_raises_request_error(self, low):
        with pytest.raises(RequestError, match="widen"):
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x2_FFFF)]))

    def test_widen_to_less_raises_request_error(self, low):
        with pytest.raises(RequestError, match="narrow"):
            low.widen(RangeSet([AddrRange(0x1_0000, 0x1_EFFF)]))

    def test_new_seam_through_an_allocation_is_refused(self, low):
        low.allocate_at(0x1_3000, 2 * PAGE)
        seamed = TestSeams.SEAMED

        with pytest.raises(NarrowError):
            low.narrow(seamed)
        with pytest.raises(NarrowError):
            low.widen(seamed)

    def test_many_conflicts_are_all_carried_and_a_few_named(self, low):
        for _ in range(16):
            low.allocate(PAGE)

        with pytest.raises(NarrowError, match="and 12 more") as caught:
            low.narrow(RangeSet())
        assert len(caught.value.conflicts) == 16

    def test_seam_moves_away(self, make):
        allocator = make(TestSeams.SEAMED, granule=PAGE)
        allocator.widen(LOW)

        assert allocator.allocate(0x1_0000) == 0x1_0000


class TestTransaction:
    def test_error_in_the_body_restores_everything(self, low):
        low.allocate_at(0x1_0000, PAGE, "kept")
        before = list(low)

        with pytest.raises(KeyError), low.transaction():  # noqa: PT012
            low.release(0x1_0000)
            low.allocate(3 * PAGE, tag="new")
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x1_7FFF)]))
            raise KeyError
        assert before == list(low)
        assert LOW is low.usable
        low._check()

    def test_refusal_in_the_body_restores_everything(self, low):
        with pytest.raises(NoSpaceError), low.transaction():  # noqa: PT012
            low.allocate(0x8000)
            low.allocate(0x1_0000)
        assert len(low) == 0

    def test_body_that_ends_well_stays(self, low):
        with low.transaction():
            low.allocate(PAGE)
        assert len(low) == 1

    def test_rollback_leaves_without_error(self, low):
        with low.transaction() as transaction:
            low.allocate(PAGE)
            transaction.rollback()
            assert len(low) == 0
            low.allocate(2 * PAGE)
        assert [AddrRange(0x1_0000, 0x1_1FFF)] == [a.range for a in low]

    def test_inner_transaction_is_undone_alone(self, low):
        with low.transaction():
            low.allocate(PAGE)
            with pytest.raises(ValueError, match="inner"), low.transaction():  # noqa: PT012
                low.allocate(PAGE)
                raise ValueError("inner")
            assert len(low) == 1
        assert len(low) == 1

    def test_outer_transaction_undoes_the_inner(self, low):
        with pytest.raises(ValueError, match="outer"), low.transaction():  # noqa: PT012
            with low.transaction():
                low.allocate(PAGE)
            raise ValueError("outer")
        assert len(low) == 0

    def test_rollback_after_the_transaction_raises_request_error(self, low):
        with low.transaction() as transaction:
            pass
        with pytest.raises(RequestError):
            transaction.rollback()

    def test_transaction_entered_twice_raises_request_error(self, low):
        with low.transaction() as transaction:
            low.allocate(PAGE, tag="outer")
            with pytest.raises(RequestError, match="open already"), transaction:
                pass
            low.allocate(PAGE)
            transaction.rollback()
            assert len(low) == 0
        low._check()

    def test_transaction_may_be_entered_again_when_it_was_left(self, low):
        transaction = low.transaction()
        for _ in range(2):
            with pytest.raises(KeyError), transaction:  # noqa: PT012
                low.allocate(PAGE)
                raise KeyError
        assert len(low) == 0

    @pytest.mark.parametrize("failed", [False, True])
    def test_leaving_a_transaction_that_is_not_open_raises_request_error(self, low, failed):
        stray = low.transaction()
        kind = KeyError if failed else None
        for _ in range(2):
            with pytest.raises(RequestError, match="is not open"):
                stray.__exit__(kind, None, None)

        with low.transaction() as transaction:
            low.allocate(PAGE)
            with pytest.raises(RequestError, match="is not open"):
                stray.__exit__(kind, None, None)
            transaction.rollback()
        assert len(low) == 0
        with low.transaction():
            low.allocate(PAGE)
        assert len(low) == 1
        low._check()

    def test_outer_rollback_takes_the_beginning_of_the_inner_with_it(self, low):
        # As where two threads interleave theirs.
        outer, inner = low.transaction(), low.transaction()
        low.allocate(PAGE, tag="before")
        before = list(low)
        outer.__enter__()
        low.allocate(PAGE)
        inner.__enter__()
        low.allocate(PAGE)
        outer.rollback()
        assert before == list(low)
        low.allocate(2 * PAGE)
        low.allocate(3 * PAGE)
        low.release(0x1_0000)
        inner.rollback()
        assert before == list(low)
        outer.__exit__(None, None, None)
        low.allocate(PAGE)
        inner.__exit__(KeyError, None, None)
        assert before == list(low)
        low._check()

    def test_ranges_changed_twice_and_back_are_restored(self, low):
        low.allocate(PAGE, tag="kept")
        low.allocate(2 * PAGE)
        before = list(low)
        with low.transaction() as transaction:
            low.release(0x1_1000)
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x1_7FFF)]))
            low.allocate(PAGE, tag="between")
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x1_3FFF)]))
            low.release(0x1_0000)
            low.widen(LOW)
            low.allocate(5 * PAGE, tag="last")
            transaction.rollback()
            assert (before, low.usable) == (list(low), LOW)
            low._check()
            low.narrow(RangeSet([AddrRange(0x1_0000, 0x1_3FFF)]))
        assert low.ranges == MappableRanges([AddrRange(0x1_0000, 0x1_3FFF)])
        assert before == list(low)
        low._check()

    def test_many_steps_with_tags_are_undone(self, low):
        for n in range(8):
            low.allocate(PAGE, tag=n)
        before = list(low)
        with low.transaction() as transaction:
            for n in range(50):
                start = 0x1_0000 + PAGE * (n % 8)
                low.release(start)
                low.allocate_at(start, PAGE, None if n % 3 else f"again {n}")
            transaction.rollback()
        assert before == list(low)
        low._check()

    def test_transaction_is_that_of_the_public_module(self, low, engine):
        transaction = low.transaction()
        assert type(transaction).__name__ == "Transaction"
        assert inspect.getdoc(type(transaction)) == inspect.getdoc(module.Transaction)
        assert inspect.getdoc(transaction.rollback) == inspect.getdoc(module.Transaction.rollback)
        if engine == module.engine_name():
            assert isinstance(transaction, module.Transaction)

    def test_zero_is_restored(self, make):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=PAGE)
        allocator.allocate_at(0, PAGE, "zero")

        with allocator.transaction() as transaction:
            allocator.release(0)
            allocator.allocate_at(0, 2 * PAGE)
            transaction.rollback()
        assert [Allocation(AddrRange(0, 0xFFF), "zero")] == list(allocator)
        allocator._check()


class TestLooking:
    def test_iteration_is_in_address_order_over_a_snapshot(self, low):
        for place in (0x1_8000, 0x1_0000, 0x1_4000):
            low.allocate_at(place, PAGE, hex(place))

        seen = []
        for allocation in low:
            seen.append((allocation.range.start, allocation.tag))
            low.release(allocation.range.start)
        assert seen == [(0x1_0000, "0x10000"), (0x1_4000, "0x14000"), (0x1_8000, "0x18000")]
        assert len(low) == 0

    def test_free_spans_are_those_of_the_call(self, low):
        found = low.free_spans()
        low.allocate(PAGE)

        assert [AddrRange(0x1_0000, 0x1_FFFF)] == list(found)

    def test_allocation_is_immutable(self, low):
        low.allocate(PAGE, tag="a")
        allocation = low.allocation_at(0x1_0FFF)

        with pytest.raises(AttributeError):
            allocation.tag = "b"

    def test_tag_may_be_anything_and_is_gone_after_release(self, low):
        place = low.allocate(PAGE, tag=["not", "hashable"])
        low.release(place)

        assert place == low.allocate(PAGE)
        assert low.allocation_at(place).tag is None

    def test_membership_asks_for_an_address(self, low):
        low.allocate(PAGE)

        assert 0x1_0FFF in low
        assert 0x1_1000 not in low

    @pytest.mark.parametrize(
        "value", [-1, -(1 << 70), 1 << 64, (1 << 64) + 0x1_0000, "x", None, 65536.0, True, b"", []]
    )
    def test_what_is_no_address_is_not_a_member(self, low, value):
        low.allocate(PAGE)

        assert value not in low

    def test_member_may_act_as_an_index(self, low):
        class Address:
            def __index__(self):
                return 0x1_0000

        low.allocate(PAGE)
        assert Address() in low

    def test_counters_follow(self, low):
        low.allocate(3 * PAGE)

        assert (len(low), low.allocated_bytes, low.free_bytes) == (1, 0x3000, 0xD000)
        assert "1 allocations" in repr(low)


class TestThreads:
    def test_threads_never_share_an_address(self, make):
        allocator = make(RangeSet([AddrRange(0x1_0000, 0xFF_FFFF)]), granule=PAGE)
        errors = []

        def churn(seed):
            try:
                mine = {}
                for step in range(400):
                    size = PAGE * (1 + (seed + step) % 5)
                    mine[allocator.allocate(size, tag=seed)] = size
                    if step % 3 == 2:
                        start, size = mine.popitem()
                        assert allocator.allocation_at(start).tag == seed
                        allocator.release(start, size)
                for start, size in mine.items():
                    allocator.release(start, size)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=churn, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(allocator) == 0
        allocator._check()


class TestCounterOfEverything:
    def test_two_allocations_of_everything_are_counted_as_everything(self, make):
        # 2^64 units of one byte do not fit into the counter that the engines keep.
        allocator = make(RangeSet.everything(), granule=1)
        assert allocator.allocate((1 << 64) - 1) == 1
        assert allocator.allocate_at(0, 1) == 0
        assert (allocator.allocated_bytes, allocator.free_bytes) == (1 << 64, 0)
        allocator._check()


class TestNoCopies:
    @pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_allocator_is_neither_copied_nor_pickled(self, make, act):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=0x1000)
        with pytest.raises(TypeError, match="an allocator is not"):
            act(allocator)

    @pytest.mark.parametrize("act", ["narrow", "widen"])
    def test_new_ranges_of_a_wrong_kind_are_refused(self, make, act):
        allocator = make(RangeSet([AddrRange(0, 0xFFFF)]), granule=0x1000)
        with pytest.raises(RequestError):
            getattr(allocator, act)(5)


class TestTwoEngines:
    def test_public_methods_have_the_same_signature_and_words(self):
        fast = pytest.importorskip("vmm_iova._fast")
        allocator_class("pure")  # what has it said in both
        assert issubclass(allocator_class("fast"), fast.Core)
        for name in (name for name in vars(fast.Core) if not name.startswith("_")):
            if not callable(ours := getattr(_pure.Core, name)):
                continue
            theirs = getattr(fast.Core, name)
            assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
            assert "Synchronization: " in inspect.getdoc(theirs), name
            parameters = [
                [(p.name, p.default, p.kind == p.KEYWORD_ONLY) for p in sides.parameters.values()]
                for sides in (inspect.signature(ours), inspect.signature(theirs))
            ]
            assert parameters[0] == parameters[1], name

    @pytest.mark.parametrize("name", ["allocate", "release_many", "narrow"])
    def test_help_shows_the_words_of_the_public_class(self, make, name):
        text = pydoc.plain(pydoc.render_doc(getattr(make, name)))

        assert name in text
        assert "Raises:" in text
        assert "Synchronization: " in text

    def test_class_of_the_engine_in_force_is_the_public_one(self):
        assert module.IovaAllocator is allocator_class(module.engine_name())

    def test_both_classes_have_the_same_public_names(self, make):
        public = {name for name in dir(allocator_class("pure")) if not name.startswith("_")}

        assert public == {name for name in dir(make) if not name.startswith("_")}


@pytest.mark.parametrize("start", [0, 7, (1 << 64) - 5])
def test_free_space_is_counted_right_after_all_of_it_was_one_span(make, start):
    # The count exists from the first refusal on; all 2^64 bytes do not fit 64 bits.
    allocator = make(RangeSet([AddrRange(0, (1 << 64) - 1)]), granule=1, allow_zero=True)
    with pytest.raises(NoSpaceError):
        allocator.allocate(2, within=AddrRange(9, 9))
    for _ in range(2):
        allocator.allocate_at(start, 5)
        allocator._check()
        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate((1 << 64) - 1)
        assert caught.value.total_free == (1 << 64) - 5
        allocator.release(start)
        allocator._check()


def test_best_in_a_window_passes_over_better_spans_outside(make):
    # Many of each size that fits better lie below the window, in it and above it; one is inside.
    allocator = make(RangeSet([AddrRange(0, (1 << 40) - 1)]), granule=PAGE)
    sizes = [2, 3, 2, 4] * 40 + [5, 3, 5, 6] * 10 + [2, 3, 2, 4] * 40
    starts = []
    for pages in sizes:
        starts.append(allocator.allocate(pages * PAGE))
        allocator.allocate(PAGE)
    for start, pages in zip(starts, sizes, strict=True):
        if pages != 3 or start < starts[160] or start >= starts[200]:
            allocator.release(start)
    window = AddrRange(starts[160], starts[200] - 1)
    assert allocator.allocate(2 * PAGE, policy="best", within=window) == starts[160]
    allocator.release(starts[160])
    for start in starts[161:200:4]:
        allocator.release(start)
    assert allocator.allocate(2 * PAGE, policy="best", within=window) == starts[161]
    assert allocator.allocate(2 * PAGE, policy="best") == starts[0]
    allocator._check()


@pytest.mark.parametrize("policy", ["first", "last", "best"])
def test_spans_about_the_size_where_numbers_are_capped_are_told_apart(make, policy):
    # The fast tree keeps sizes below 2^31 - 1 units in 32 bits, and larger ones elsewhere.
    half = 1 << 31
    sizes = [half - 2, half - 1, half, half + 1]
    allocator, starts = make(RangeSet([AddrRange(1, 2 * half * len(sizes))]), granule=1), {}
    at = 1
    for size in sizes:
        starts[size] = at
        at += size
        allocator.allocate_at(at, 1)
        at += 1
    allocator.allocate_at(at, 2 * half * len(sizes) - at + 1)
    for size in sizes:
        taken = starts[size]
        others = [allocator.allocate_at(starts[one], one) for one in sizes if one < size]
        assert len(others) == sizes.index(size)
        if policy == "last":
            taken = starts[sizes[-1]] + sizes[-1] - size
        assert allocator.allocate(size, policy=policy) == taken
        allocator.release(taken)
        for one in sizes[: len(others)]:
            allocator.release(starts[one])
        window = AddrRange(1, starts[size] + size - 2)  # cuts the first that would do
        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(size, policy=policy, within=window)
        assert caught.value.largest_free.size == size - 1
    with pytest.raises(NoSpaceError) as caught:
        allocator.allocate(half + 2, policy=policy)
    assert caught.value.largest_aligned == half + 1
    allocator._check()


@pytest.mark.parametrize("align", [PAGE, 4 * PAGE])
def test_best_in_a_window_among_spans_of_all_sizes_is_the_smallest_that_has_it(make, align):
    # One span of each size up to 600 pages, in no order: so many that fit lie out of each window.
    allocator, chance = make(RangeSet([AddrRange(0, (1 << 44) - 1)]), granule=PAGE), Random(5)
    spans, at = [], PAGE
    for number in range(600):
        pages = 1 + number * 7919 % 600
        spans.append((at, pages * PAGE))
        at += pages * PAGE
        allocator.allocate_at(at, PAGE)
        at += PAGE
    for step in range(300):
        low, high = sorted(chance.randrange(at) for _ in range(2))
        if step % 4 == 0:
            low = chance.choice(spans)[0]  # edges that cut nothing
            high = max(low, chance.choice(spans)[0] - 1)
        window, need = AddrRange(low, high), PAGE * chance.randint(1, 80)
        inside = []
        for start, size in spans:
            first = max(start, -(-low // PAGE) * PAGE)
            stop = min(start + size, (high + 1) & -PAGE)
            place = -(-first // align) * align
            if place + need <= stop:
                inside.append((stop - first, place, start, size))
        if not inside:
            with pytest.raises(NoSpaceError):
                allocator.allocate(need, align, "best", window)
            continue
        _, place, start, size = min(inside)
        assert allocator.allocate(need, align, "best", window) == place
        if step % 3:
            allocator.release(place)
            continue
        # What is left of the span, below the allocation and above it.
        spans.remove((start, size))
        rest = [(start, place - start), (place + need, start + size - place - need)]
        spans += [item for item in rest if item[1]]
        if step % 60 == 0:
            allocator._check()
    allocator._check()


def test_best_in_a_window_takes_the_lower_of_a_whole_and_a_cut_span(make):
    # The cut span at the window's upper edge was looked at first, and kept on a tie.
    allocator = make(RangeSet([AddrRange(0x1_0000, 0x8_FFFF)]), granule=PAGE)
    for page in range(0x1_0000, 0x9_0000, 4 * PAGE):
        allocator.allocate_at(page, 2 * PAGE)  # leaves spans of two pages
    window = AddrRange(0x4_0000, 0x4_CFFF)
    allocator.release(0x4_C000)
    allocator.allocate_at(0x4_A000, PAGE)  # 0x4b000-0x4cfff of four pages, cut by the window

    assert allocator.allocate(PAGE, policy="best", within=window) == 0x4_2000


# -- limits, exactly: ranges of bytes, so that one byte more or less is another answer -------------


def _bytes(make, *spans, **options):
    return make(MappableRanges(AddrRange(*span) for span in spans), granule=1, **options)


@pytest.mark.parametrize("cached", [False, True])
def test_request_that_lacks_one_byte_is_refused_and_one_that_fits_is_not(make, cached):
    allocator = _bytes(make, (10, 19), (30, 39), size_cache=cached)
    places = [allocator.allocate(5) for _ in range(4)]
    assert places == [10, 15, 30, 35]
    allocator.release(10)
    allocator.release(15)
    with pytest.raises(NoSpaceError) as caught:
        allocator.allocate(11)
    assert caught.value.largest_free == AddrRange(10, 19)
    assert allocator.allocate(10) == 10
    allocator.release(30)
    with pytest.raises(NoSpaceError):
        allocator.allocate(6)
    assert allocator.allocate_at(30, 5) == 30
    with pytest.raises(NoSpaceError):
        allocator.allocate(1)
    assert allocator.free_bytes == 0


def test_facts_of_a_refusal_are_those_of_its_window(make):
    allocator = _bytes(make, (8, 19), (32, 39), (41, 41))
    allocator.allocate_at(12, 2)
    for within, largest, aligned in (
        (AddrRange(0, 63), AddrRange(32, 39), 8),
        (AddrRange(0, 31), AddrRange(14, 19), 4),
        (AddrRange(0, 17), AddrRange(8, 11), 4),
        (AddrRange(41, 41), AddrRange(41, 41), 0),
        (AddrRange(40, 40), None, 0),
        (AddrRange(12, 13), None, 0),
        (AddrRange(33, 38), AddrRange(33, 38), 3),
    ):
        with pytest.raises(NoSpaceError) as caught:
            allocator.allocate(9, align=4, within=within)
        assert (caught.value.largest_free, caught.value.largest_aligned) == (largest, aligned)


def test_what_is_free_is_told_to_the_byte(make):
    allocator = _bytes(make, (10, 19), (20, 29), (40, 40))
    for start, size in ((11, 2), (14, 6), (20, 1), (28, 2)):
        allocator.allocate_at(start, size)
    for within, spans in (
        (None, [(10, 10), (13, 13), (21, 27), (40, 40)]),
        (AddrRange(10, 10), [(10, 10)]),
        (AddrRange(11, 12), []),
        (AddrRange(12, 21), [(13, 13), (21, 21)]),
        (AddrRange(29, 41), [(40, 40)]),
        (AddrRange(40, 40), [(40, 40)]),
    ):
        found = allocator.free_spans() if within is None else allocator.free_spans(within)
        assert [(item.start, item.last) for item in found] == spans
    assert allocator.free_bytes == 10


def test_address_belongs_to_an_allocation_up_to_its_last_byte(make):
    allocator = _bytes(make, (10, 29))
    allocator.allocate_at(12, 3)
    starts, lasts = allocator.lookup_many(array("Q", [11, 12, 14, 15]))
    assert (list(starts), list(lasts)) == ([1, 12, 12, 1], [0, 14, 14, 0])
    for start, size in ((14, 1), (10, 3), (13, 1), (11, 6)):
        with pytest.raises(OccupiedError) as caught:
            allocator.allocate_at(start, size)
        assert caught.value.owner_range == AddrRange(12, 14)
    assert allocator.allocate_at(15, 1) == 15
    assert allocator.allocate_at(10, 2) == 10
    for size in (2, 4):
        with pytest.raises(SizeMismatchError):
            allocator.release(12, size)
    allocator.release(12, 3)


@pytest.mark.parametrize(("granules", "kept"), [(1, True), (64, True), (65, False)])
def test_size_cache_keeps_up_to_64_granules_last_in_first_out(make, granules, kept):
    unit = 0x10
    space = MappableRanges([AddrRange(0, 0xF_FFFF)])
    allocator = make(space, granule=unit, size_cache=True)
    places = [allocator.allocate(granules * unit) for _ in range(4)]
    for place in places[:2]:
        allocator.release(place)
    assert allocator.allocate(granules * unit) == (places[1] if kept else places[0])


def test_size_cache_keeps_126_of_one_size(make):
    allocator = make(MappableRanges([AddrRange(0, 0xF_FFFF)]), granule=0x10, size_cache=True)
    places = [allocator.allocate(0x10) for _ in range(130)]
    for place in places[:128]:
        allocator.release(place)
    assert [allocator.allocate(0x10) for _ in range(128)] == [*places[125::-1], *places[126:128]]


def test_narrowing_keeps_what_ends_at_an_edge_and_names_what_crosses_it(make):
    allocator = _bytes(make, (10, 29))
    allocator.allocate_at(12, 3)
    allocator.narrow(MappableRanges([AddrRange(12, 14), AddrRange(20, 29)]))
    with pytest.raises(NarrowError):
        allocator.narrow(MappableRanges([AddrRange(12, 13)]))
    with pytest.raises(NarrowError):
        allocator.narrow(MappableRanges([AddrRange(13, 14)]))
    with pytest.raises(NarrowError):
        allocator.narrow(MappableRanges([AddrRange(12, 13), AddrRange(14, 14)]))
    assert allocator.allocate(10) == 20


@pytest.mark.parametrize(
    ("start", "size", "fits"), [(20, 5, True), (20, 20, True), (20, 21, False)]
)
def test_place_in_free_space_is_taken_while_others_are_kept(make, start, size, fits):
    allocator = _bytes(make, (10, 39), size_cache=True)
    for place in [allocator.allocate(5) for _ in range(2)]:
        allocator.release(place)  # 10 and 15 are kept
    if not fits:
        with pytest.raises(ApertureError):
            allocator.allocate_at(start, size)
        return
    assert allocator.allocate_at(start, size) == start
    assert allocator.allocate_at(12, 8) == 12  # over both that are kept
    with pytest.raises(OccupiedError):
        allocator.allocate_at(10, 5)
