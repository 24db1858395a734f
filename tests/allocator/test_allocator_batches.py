# SPDX-License-Identifier: Apache-2.0
"""Batches, the size cache, memory that runs out, and the functions to cimport."""

import contextlib
import ctypes
import random
import subprocess
import sys
import sysconfig
import threading
from array import array
from ctypes import c_double, c_int64, c_size_t, c_uint64, c_ulong, c_void_p
from pathlib import Path

import pytest

import vmm_iova
from vmm_iova.allocator import allocator_class
from vmm_iova.errors import (
    EngineError,
    IovaError,
    MisalignedError,
    NoSpaceError,
    NotAllocatedError,
    OccupiedError,
    RequestError,
    SizeMismatchError,
)
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

PAGE = 0x1000
LOW = RangeSet([AddrRange(0x1_0000, 0x1_FFFF)])  # sixteen pages
WIDE = RangeSet([AddrRange(0x1_0000, (1 << 40) - 1)])


def numbers(*values):
    return array("Q", values)


class Pair(ctypes.Structure):
    """Eight bytes that are no integer."""

    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint32))


FITTING = ["Q", "q", "L", "l", "N", "n", "@Q", "@l", c_uint64, c_int64, c_ulong, c_size_t]
OTHER = ["d", "@d", "P", c_double, c_void_p, Pair]
OTHER += (
    [c_uint64.__ctype_be__, c_int64.__ctype_be__, c_double.__ctype_be__]
    if sys.byteorder == "little"
    else [c_uint64.__ctype_le__, c_int64.__ctype_le__, c_double.__ctype_le__]
)


def one_item(kind, value):
    """A writable buffer of one item with the format of `memoryview`, or of a type of ctypes."""
    raw = bytearray(value.to_bytes(8, sys.byteorder))
    return memoryview(raw).cast(kind) if isinstance(kind, str) else (kind * 1).from_buffer(raw)


@pytest.fixture
def low(make):
    """An allocator of sixteen pages at 0x10000."""
    return make(LOW, granule=PAGE)


class TestBatches:
    def test_allocate_many_gives_what_single_calls_give(self, make):
        sizes = numbers(*(PAGE * (1 + n % 5) for n in range(300)))
        batch, single = make(WIDE, granule=PAGE), make(WIDE, granule=PAGE)

        starts = batch.allocate_many(sizes, align=2 * PAGE, policy="last")

        assert list(starts) == [single.allocate(size, 2 * PAGE, "last") for size in sizes]
        assert list(batch) == list(single)
        batch._check()

    def test_allocate_many_writes_into_the_buffer_given(self, low):
        sizes = numbers(PAGE, 2 * PAGE)
        out = numbers(0, 0)

        assert low.allocate_many(sizes, out) is out
        assert list(out) == [0x1_0000, 0x1_1000]

    def test_sizes_may_be_replaced_by_their_addresses(self, low):
        both = numbers(PAGE, 2 * PAGE)

        low.allocate_many(both, both)
        assert list(both) == [0x1_0000, 0x1_1000]

    def test_allocate_many_that_does_not_fit_changes_nothing(self, low):
        low.allocate(PAGE, tag="kept")

        with pytest.raises(NoSpaceError) as caught:
            low.allocate_many(numbers(PAGE, 0x8000, 0x8000))
        assert caught.value.__notes__ == ["item 2 of the batch; the whole of it was undone"]
        assert (caught.value.largest_aligned, caught.value.total_free) == (0x6000, 0x6000)
        assert [a.tag for a in low] == ["kept"]
        low._check()

    @pytest.mark.parametrize("size", [0, 1, PAGE + 1])
    def test_allocate_many_with_a_bad_size_changes_nothing(self, low, size):
        with pytest.raises(RequestError) as caught:
            low.allocate_many(numbers(PAGE, size))
        assert "item 1" in caught.value.__notes__[0]
        assert type(caught.value) is (MisalignedError if size else RequestError)
        assert len(low) == 0

    @pytest.mark.parametrize(
        "buffer", [[PAGE], b"12345678", array("I", [PAGE]), array("d", [1.0]), 5]
    )
    def test_buffers_of_another_kind_raise_request_error(self, low, buffer):
        for act in (low.allocate_many, low.release_many, low.lookup_many):
            with pytest.raises(RequestError, match="64-bit"):
                act(buffer)

    @pytest.mark.parametrize("kind", FITTING, ids=repr)
    def test_buffers_of_native_64_bit_integers_are_taken(self, low, kind):
        sizes, out = one_item(kind, PAGE), one_item(kind, 0)

        assert low.allocate_many(sizes, out) is out
        assert bytes(out) == (0x1_0000).to_bytes(8, sys.byteorder)
        starts, lasts = low.lookup_many(out, one_item(kind, 0))
        assert bytes(starts) == bytes(out)
        assert list(lasts) == [0x1_0FFF]
        low.release_many(out, sizes)
        assert len(low) == 0

    @pytest.mark.parametrize("kind", OTHER, ids=repr)
    def test_buffers_of_anything_else_of_eight_bytes_raise_request_error(self, low, kind):
        # Doubles and the other byte order, too, have items of eight bytes.
        buffer = one_item(kind, PAGE)

        for act in (low.allocate_many, low.release_many, low.lookup_many):
            with pytest.raises(RequestError, match="native 64-bit integers"):
                act(buffer)
        with pytest.raises(RequestError, match="native 64-bit integers"):
            low.allocate_many(numbers(PAGE), buffer)
        with pytest.raises(RequestError, match="native 64-bit integers"):
            low.release_many(numbers(0x1_0000), buffer)
        assert len(low) == 0

    def test_buffer_that_is_not_contiguous_raises_request_error(self, low):
        every_other = memoryview(numbers(PAGE, 0, PAGE, 0))[::2]

        with pytest.raises(RequestError, match="contiguous"):
            low.allocate_many(every_other)
        with pytest.raises(RequestError, match="contiguous"):
            low.lookup_many(numbers(1, 2), every_other)

    def test_buffer_of_two_dimensions_is_taken_in_order(self, low):
        table = memoryview(numbers(PAGE, 2 * PAGE, PAGE, PAGE)).cast("B").cast("Q", shape=[2, 2])
        out = memoryview(bytearray(32)).cast("Q", shape=[2, 2])

        low.allocate_many(table, out)
        assert out.tolist() == [[0x1_0000, 0x1_1000], [0x1_3000, 0x1_4000]]

    @pytest.mark.parametrize(
        "options",
        [
            {"align": 3},
            {"align": -1},
            {"align": "4K"},
            {"policy": "lowest"},
            {"policy": None},
            {"within": (0, 1)},
        ],
    )
    def test_options_are_checked_although_the_batch_is_empty(self, low, options):
        with pytest.raises(RequestError) as caught:
            low.allocate_many(numbers(), **options)
        assert caught.value.field == next(iter(options))

    def test_refused_batch_leaves_its_buffers_as_they_were(self, low):
        sizes = numbers(PAGE, 0x10_0000)
        with pytest.raises(NoSpaceError):
            low.allocate_many(sizes, sizes)
        assert list(sizes) == [PAGE, 0x10_0000]

    def test_output_may_overlap_the_sizes_anyhow(self, low):
        both = numbers(PAGE, 2 * PAGE, 3 * PAGE, 0)
        view = memoryview(both)

        with low.transaction() as transaction:
            low.allocate_many(view[:3], view[1:])
            assert list(both)[1:] == [0x1_0000, 0x1_1000, 0x1_3000]
            transaction.rollback()
        assert len(low) == 0
        low._check()

    def test_buffers_of_another_length_raise_request_error(self, low):
        with pytest.raises(RequestError):
            low.allocate_many(numbers(PAGE), numbers(0, 0))
        with pytest.raises(RequestError):
            low.release_many(numbers(0x1_0000), numbers(PAGE, PAGE))
        with pytest.raises(RequestError):
            low.lookup_many(numbers(0x1_0000), numbers(0, 0))
        with pytest.raises(RequestError):
            low.lookup_many(numbers(0x1_0000), None, numbers())

    def test_read_only_output_raises_request_error(self, low):
        with pytest.raises(RequestError):
            low.allocate_many(numbers(PAGE), memoryview(bytes(8)).cast("Q"))

    def test_signed_buffers_are_taken(self, low):
        starts = low.allocate_many(array("q", [PAGE, PAGE]))

        low.release_many(array("q", starts))
        assert len(low) == 0

    def test_empty_batches_do_nothing(self, low):
        assert list(low.allocate_many(numbers())) == []
        low.release_many(numbers())
        assert [list(part) for part in low.lookup_many(numbers())] == [[], []]

    def test_release_many_releases_all_with_their_tags(self, low):
        places = [low.allocate(PAGE, tag=n) for n in range(4)]

        low.release_many(numbers(*places[1:]), numbers(PAGE, PAGE, PAGE))
        assert [a.tag for a in low] == [0]
        assert low.allocation_at(low.allocate(PAGE)).tag is None
        low._check()

    @pytest.mark.parametrize("bad", [0x1_5000, 0x1_0800, 0x1_0000])
    def test_release_many_with_a_bad_address_changes_nothing(self, low, bad):
        for n in range(3):
            low.allocate(PAGE, tag=n)
        before = list(low)

        with pytest.raises(NotAllocatedError) as caught:
            low.release_many(numbers(0x1_0000, 0x1_1000, bad))  # 0x10000 twice is bad too
        assert "item 2" in caught.value.__notes__[0]
        assert before == list(low)
        low._check()

    def test_release_many_with_a_wrong_size_changes_nothing(self, low):
        low.allocate(PAGE)
        low.allocate(PAGE)

        with pytest.raises(SizeMismatchError):
            low.release_many(numbers(0x1_0000, 0x1_1000), numbers(PAGE, 2 * PAGE))
        assert len(low) == 2

    def test_batches_are_undone_with_their_transaction(self, low):
        low.allocate(PAGE, tag="kept")
        before = list(low)

        with low.transaction() as transaction:
            low.allocate_many(numbers(PAGE, PAGE, 2 * PAGE))
            low.release_many(numbers(0x1_0000, 0x1_2000))
            transaction.rollback()
        assert before == list(low)
        low._check()

    def test_lookup_many_tells_the_allocation_of_each_address(self, low):
        low.allocate_at(0x1_2000, 2 * PAGE)

        starts, lasts = low.lookup_many(numbers(0, 0x1_1FFF, 0x1_2000, 0x1_3FFF, (1 << 64) - 1))
        assert list(starts) == [1, 1, 0x1_2000, 0x1_2000, 1]
        assert list(lasts) == [0, 0, 0x1_3FFF, 0x1_3FFF, 0]

    def test_batches_of_the_whole_space(self, make):
        allocator = make(RangeSet.everything(), granule=2, allow_zero=True)
        allocator.allocate(1 << 64)

        assert [list(part) for part in allocator.lookup_many(numbers(0, 5))] == [
            [0, 0],
            [(1 << 64) - 1] * 2,
        ]
        with pytest.raises(NoSpaceError):
            allocator.allocate_many(numbers(2))
        with pytest.raises(NotAllocatedError):
            allocator.release_many(numbers(6))
        allocator.release_many(numbers(0))
        assert len(allocator) == 0

    def test_lookup_many_agrees_with_single_lookups(self, make):
        allocator = make(WIDE, granule=PAGE)
        chance = random.Random(5)
        for _ in range(3000):
            allocator.allocate(PAGE * chance.randint(1, 9))
        for allocation in list(allocator)[::3]:
            allocator.release(allocation.range.start)
        addresses = numbers(*(chance.randrange(0, 0x500_0000) for _ in range(2001)))

        starts, lasts = allocator.lookup_many(addresses)

        found = [allocator.allocation_at(address) for address in addresses]
        assert list(starts) == [1 if one is None else one.range.start for one in found]
        assert list(lasts) == [0 if one is None else one.range.last for one in found]


class TestSizeCache:
    def test_last_released_of_a_size_is_given_first(self, make):
        allocator = make(LOW, granule=PAGE, size_cache=True)
        places = [allocator.allocate(PAGE) for _ in range(4)]

        for place in (places[0], places[2]):
            allocator.release(place)
        assert [allocator.allocate(PAGE), allocator.allocate(PAGE)] == [places[2], places[0]]
        allocator._check()

    def test_what_is_kept_counts_as_free(self, make):
        allocator = make(LOW, granule=PAGE, size_cache=True)
        place = allocator.allocate(PAGE, tag="x")
        allocator.release(place)

        assert len(allocator) == 0
        assert allocator.free_bytes == 0x1_0000
        with pytest.raises(NotAllocatedError):
            allocator.release(place)
        assert allocator.allocation_at(place) is None
        assert list(allocator.free_spans()) == [AddrRange(0x1_0000, 0x1_FFFF)]

    def test_refused_batch_that_took_all_that_was_kept_keeps_it_again(self, make):
        eight = MappableRanges([AddrRange(0x1_0000, 0x1_7FFF)])
        allocator = make(eight, granule=PAGE, size_cache=True)
        places = [allocator.allocate(PAGE) for _ in range(5)]
        allocator.release(places[4])

        with pytest.raises(NoSpaceError):
            allocator.allocate_many(array("Q", [PAGE, 4 * PAGE]))

        # Kept, it is in the way of what is not asked for plainly; and it is the first of its size.
        assert allocator.allocate(PAGE, align=2 * PAGE) == 0x1_6000
        assert allocator.allocate(PAGE) == places[4]
        allocator._check()

    def test_what_is_kept_is_put_back_when_it_is_needed(self, make):
        allocator = make(LOW, granule=PAGE, size_cache=True)
        for place in [allocator.allocate(PAGE) for _ in range(16)]:
            allocator.release(place)

        assert allocator.allocate(0x1_0000) == 0x1_0000

    def test_place_that_is_kept_can_be_asked_for(self, make):
        allocator = make(LOW, granule=PAGE, size_cache=True)
        allocator.release(allocator.allocate(2 * PAGE))

        assert allocator.allocate_at(0x1_1000, PAGE) == 0x1_1000

    @pytest.fixture
    def caching(self, make):
        """Six pages owned, then the second and the fifth kept: the fifth comes first."""
        allocator = make(LOW, granule=PAGE, size_cache=True)
        places = [allocator.allocate(PAGE) for _ in range(6)]
        allocator.release(places[1])
        allocator.release(places[4])
        return allocator

    @pytest.mark.parametrize(
        "look",
        [
            lambda a: list(a),
            lambda a: list(a.free_spans()),
            lambda a: a.allocation_at(0x1_1000),
            lambda a: 0x1_1000 in a,
            lambda a: a.lookup_many(numbers(0x1_1000, 0x1_0000)),
            lambda a: (len(a), a.free_bytes, a.allocated_bytes, repr(a)),
            lambda a: a._check(),
            lambda a: a.lookup_many(numbers()),
            lambda a: a.allocate_many(numbers()),
            lambda a: a.release_many(numbers()),
        ],
    )
    def test_to_look_at_it_leaves_what_is_kept(self, caching, look):
        look(caching)

        assert list(caching.allocate_many(numbers(PAGE, PAGE))) == [0x1_4000, 0x1_1000]

    @pytest.mark.parametrize(
        "refused",
        [
            lambda a: a.allocate_at((1 << 64) - PAGE, 2 * PAGE),
            lambda a: a.allocate_at(0x1_0001, PAGE),
            lambda a: a.allocate(PAGE + 1),
            lambda a: a.allocate(PAGE, policy="lowest"),
            lambda a: a.allocate(PAGE, within=AddrRange(0x1_1001, 0x1_1FFF)),
            lambda a: a.release(0x1_1000),
            lambda a: a.release(0x1_0000, 2 * PAGE),
            lambda a: a.release_many(numbers(0x1_0000, 0x1_2000, 0x1_1000)),
            lambda a: a.allocate_many(numbers(PAGE, PAGE, 0)),
            lambda a: a.narrow(RangeSet()),
            lambda a: a.narrow(WIDE),
        ],
    )
    def test_request_that_makes_no_sense_or_is_not_owned_leaves_what_is_kept(
        self, caching, refused
    ):
        with pytest.raises(IovaError):
            refused(caching)

        assert list(caching.allocate_many(numbers(PAGE, PAGE))) == [0x1_4000, 0x1_1000]
        caching._check()

    @pytest.mark.parametrize(
        "act",
        [
            lambda a: a.allocate(0x10_0000),
            lambda a: a.allocate_many(numbers(PAGE, 0x10_0000)),
            lambda a: a.allocate_at(0x1_0000, PAGE),
            lambda a: a.allocate_at(0x1_4000, PAGE),
            lambda a: a.transaction().__enter__().__exit__(None, None, None),
            lambda a: a.narrow(RangeSet([AddrRange(0x1_0000, 0x1_8FFF)])),
        ],
    )
    def test_what_is_kept_goes_back_where_nothing_else_fits(self, caching, act):
        with contextlib.suppress(NoSpaceError, OccupiedError):
            act(caching)

        assert caching.allocate(PAGE) == 0x1_1000
        caching._check()

    def test_nothing_is_kept_inside_a_transaction(self, caching):
        with caching.transaction() as transaction:
            caching.release(0x1_3000)
            caching.release_many(numbers(0x1_5000))
            transaction.rollback()
        for place in (0x1_3000, 0x1_5000):
            assert place in caching
        caching.release(0x1_5000)
        assert [caching.allocate(PAGE) for _ in range(3)] == [0x1_5000, 0x1_1000, 0x1_4000]

    def test_rollback_keeps_nothing_of_what_was_undone(self, make):
        # The compiled engine used to keep what a rollback released, and chose it later.
        allocator = make(WIDE, granule=PAGE, size_cache=True)
        kept, other, hole = (allocator.allocate(PAGE) for _ in range(3))
        with allocator.transaction() as transaction:
            allocator.release(other)
            allocator.allocate_at(0x9_0000, PAGE)
            transaction.rollback()
        allocator.release(other)
        with allocator.transaction() as transaction:
            allocator.allocate_at(0x9_0000, PAGE)
            transaction.rollback()
        assert [allocator.allocate(PAGE) for _ in range(2)] == [other, hole + PAGE]
        assert kept in allocator

    def test_batch_keeps_what_it_releases_and_takes_it_as_single_calls_do(self, make):
        batch, single = (make(WIDE, granule=PAGE, size_cache=True) for _ in range(2))
        sizes = numbers(PAGE, 2 * PAGE, PAGE, 65 * PAGE, 64 * PAGE, PAGE)
        starts = batch.allocate_many(sizes)
        for size in sizes:
            single.allocate(size)

        batch.release_many(starts, sizes)
        for start in starts:
            single.release(start)
        again = batch.allocate_many(sizes)
        assert list(again) == [single.allocate(size) for size in sizes]
        assert list(again) == [starts[5], starts[1], starts[2], starts[3], starts[4], starts[0]]
        batch._check()

    def test_no_more_than_126_of_a_size_are_kept(self, make):
        allocator = make(WIDE, granule=PAGE, size_cache=True)
        starts = allocator.allocate_many(numbers(*[PAGE] * 200))

        allocator.release_many(starts)
        # 126 are kept, the last of them the 126th; the 74 above are free, with what follows.
        assert allocator.allocate(PAGE) == starts[125]
        assert allocator.allocate(74 * PAGE) == starts[126]
        allocator._check()

    def test_refused_batch_gives_back_what_it_took_in_its_order(self, caching):
        with pytest.raises(RequestError):
            caching.allocate_many(numbers(PAGE, PAGE, PAGE, 1))
        assert list(caching.allocate_many(numbers(PAGE, PAGE, PAGE))) == [
            0x1_4000,
            0x1_1000,
            0x1_6000,
        ]

    def test_batch_that_finds_nothing_when_it_has_taken_all_that_is_kept_keeps_it_again(self, make):
        # Nothing was left to give back for want of space: so the one that was taken is kept.
        usable = RangeSet([AddrRange(0x1000, 0x8FFF)])
        allocator = make(usable, granule=PAGE, size_cache=True)
        start = allocator.allocate(PAGE)
        allocator.release(start)
        with pytest.raises(NoSpaceError):
            allocator.allocate_many(numbers(PAGE, 8 * PAGE))
        assert list(allocator.allocate_many(numbers(2 * PAGE, PAGE))) == [start + PAGE, start]
        allocator._check()

    def test_engines_agree_with_the_size_cache(self):
        pytest.importorskip("vmm_iova._fast")
        pair = [
            allocator_class(name)(WIDE, granule=PAGE, size_cache=True) for name in ("pure", "fast")
        ]
        chance, held = random.Random(11), []
        for step in range(4000):
            if held and chance.random() < 0.5:
                place = held.pop(chance.randrange(len(held)))
                for one in pair:
                    one.release(place)
            elif chance.random() < 0.1:
                sizes = numbers(*(PAGE * chance.randint(1, 3) for _ in range(5)))
                first, second = (list(one.allocate_many(sizes)) for one in pair)
                assert first == second
                held += first
            else:
                size = PAGE * chance.choice([1, 1, 2, 64, 65])
                policy = chance.choice(["first", "first", "best"])
                first, second = (one.allocate(size, None, policy) for one in pair)
                assert first == second
                held.append(first)
            if step % 500 == 0:
                assert list(pair[0]) == list(pair[1])
                for one in pair:
                    one._check()


@pytest.fixture
def fast():
    """The class of the compiled engine."""
    try:
        return allocator_class("fast")
    except EngineError as error:
        pytest.skip(error.message)


class TestMemory:
    """Allocation failure inside leaves everything as it was."""

    @pytest.mark.parametrize("policy", ["first", "last", "best"])
    def test_failure_anywhere_changes_nothing(self, fast, policy):
        allocator = fast(WIDE, granule=PAGE)
        chance, held, failures = random.Random(3), [], 0
        for step in range(3000):
            allocator._fail_after(0 if step % 3 else 1)
            before = len(allocator), allocator.allocated_bytes
            align = chance.choice([None, 2 * PAGE, 16 * PAGE, 512 * PAGE])
            try:
                if held and chance.random() < 0.3:
                    place = held[-1]
                    allocator.release(place)
                    held.pop()
                else:
                    held.append(allocator.allocate(PAGE * chance.randint(1, 9), align, policy))
            except MemoryError:
                failures += 1
                assert (len(allocator), allocator.allocated_bytes) == before
                allocator._check()
                allocator._fail_after(1)
        assert failures > 0
        assert sorted(held) == [a.range.start for a in allocator]
        allocator._check()

    @pytest.mark.parametrize("cache", [False, True])
    def test_release_without_memory_is_done_and_best_fit_answers_as_before(self, fast, cache):
        # Each release leaves a gap to be noted by size, for which there is no memory.
        sizes = [PAGE * (1 + number % 50) for number in range(5000)]
        room = RangeSet([AddrRange(0x1_0000, 0x1_0000 + sum(sizes) + 9 * PAGE - 1)])
        plenty, scarce = (fast(room, granule=PAGE, size_cache=cache) for _ in range(2))
        for allocator in (plenty, scarce):
            allocator.release(allocator.allocate(PAGE, policy="best"))
            held = allocator.allocate_many(array("Q", sizes))
            allocator._fail_after(0 if allocator is scarce else 1 << 40)
            for start in held[::2]:
                allocator.release(start)
            allocator.release_many(held[1::4])
            allocator.allocate(60 * PAGE)  # with the cache: found only in what that gives back
            allocator._check()
        scarce._fail_after(1 << 40)

        for pages in (3, 1, 40, 2, 2):
            places = [a.allocate(pages * PAGE, policy="best") for a in (plenty, scarce)]
            assert places[0] == places[1]
        scarce._check()

    @pytest.mark.parametrize("pieces", range(4))
    def test_best_in_a_window_without_memory_for_zones_answers_as_before(self, fast, pieces):
        # Spans of many sizes: with memory, parts of the space get an order by size of their own.
        plenty, scarce = (fast(WIDE, granule=PAGE) for _ in range(2))
        chance = random.Random(8)
        for allocator in (plenty, scarce):
            allocator.release(allocator.allocate(PAGE, policy="best"))
            held = [allocator.allocate(PAGE * (1 + n % 700)) for n in range(3000)]
            for start in held[::2]:
                allocator.release(start)
        scarce._fail_after(pieces)
        for _ in range(300):
            low, high = held[chance.randrange(1200)], held[chance.randrange(1800, 3000)]
            window, size = AddrRange(low, high), PAGE * chance.randint(1, 50)
            place = plenty.allocate(size, policy="best", within=window)
            while True:
                try:
                    assert scarce.allocate(size, policy="best", within=window) == place
                    break
                except MemoryError:
                    scarce._check()
                    scarce._fail_after(1)
        assert scarce._bytes() < plenty._bytes()
        assert list(scarce) == list(plenty)
        scarce._check()

    def test_batch_that_runs_out_of_memory_changes_nothing(self, fast):
        allocator = fast(WIDE, granule=PAGE)
        allocator._fail_after(2)

        with pytest.raises(MemoryError):
            allocator.allocate_many(array("Q", [PAGE] * 100_000))
        assert len(allocator) == 0
        allocator._check()

    @pytest.mark.slow
    def test_live_range_takes_at_most_twelve_and_a_half_bytes(self, fast):
        # Goal: bytes per live range in random churn, untagged.
        allocator, chance = fast(WIDE, granule=PAGE), random.Random(9)
        held = list(
            allocator.allocate_many(
                array("Q", [PAGE * chance.choice([1, 2, 4, 9]) for _ in range(100_000)])
            )
        )
        for _ in range(200_000):
            place = chance.randrange(len(held))
            allocator.release(held[place])
            held[place] = allocator.allocate(PAGE * chance.choice([1, 1, 2, 4, 9]))
        assert allocator._bytes() / len(allocator) <= 12.5


class TestThreads:
    @pytest.mark.slow
    def test_batches_of_threads_never_share_an_address(self, make):
        allocator = make(WIDE, granule=PAGE)
        errors = []

        def churn(seed):
            try:
                for step in range(40):
                    sizes = array("Q", [PAGE * (1 + (seed + step + n) % 7) for n in range(50)])
                    starts = allocator.allocate_many(sizes)
                    found, lasts = allocator.lookup_many(starts)
                    assert found == starts
                    assert [b - a + 1 for a, b in zip(found, lasts, strict=True)] == list(sizes)
                    with pytest.raises(NotAllocatedError):
                        allocator.release_many(array("Q", [*starts, 0x1001]))
                    allocator.release_many(starts, sizes)
            except BaseException as error:
                errors.append(error)

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=churn, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
        assert errors == []
        assert len(allocator) == 0
        allocator._check()


CIMPORT = """
# cython: language_level=3
from libc.stdint cimport uint64_t
from vmm_iova._fast cimport Core

def run(Core allocator):
    cdef uint64_t start = 0, last = 0, first = 0
    cdef int results[7]
    with nogil:
        results[0] = allocator.place(0x2000, 0x2000, 0, 0, 0xFFFFFFFFFFFFFFFF, &start)
        results[1] = allocator.place_at(0x18000, 0x1000)
        results[2] = allocator.place_at(0x18000, 0x1000)
        results[3] = allocator.find(0x11fff, &first, &last)
        results[4] = allocator.place(0x1001, 0, 0, 0, 0xFFFFFFFFFFFFFFFF, &start)
        results[5] = allocator.give(0x18000, 0x2000)
        results[6] = allocator.give(0x18000, 0x1000)
    return list(results), start, first, last
"""


@pytest.mark.slow
def test_functions_to_cimport_work_without_the_gil(fast, tmp_path):
    (tmp_path / "user.pyx").write_text(CIMPORT, "utf-8")
    root = Path(vmm_iova.__file__).parents[1]
    build = subprocess.run(
        [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "user.pyx"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert (tmp_path / f"user{suffix}").exists()
    sys.path.insert(0, str(tmp_path))
    try:
        import user
    finally:
        sys.path.remove(str(tmp_path))
    allocator = fast(LOW, granule=PAGE)

    results, start, first, last = user.run(allocator)

    assert results == [0, 0, 2, 0, 3, 3, 0]
    assert (start, first, last) == (0x1_0000, 0x1_0000, 0x1_1FFF)
    assert [a.range for a in allocator] == [AddrRange(0x1_0000, 0x1_1FFF)]
