# SPDX-License-Identifier: Apache-2.0
"""The engine in Python: the same answers as `_fast`, slower."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Self

from vmm_iova.allocator.book import NOTHING_KEPT, Book, Change, State, Transaction
from vmm_iova.allocator.contract import Contract, numbers_of, output_of, set_up_twice
from vmm_iova.allocator.orders import Orders
from vmm_iova.errors import InvariantError, RequestError
from vmm_iova.ranges import AddrRange, Iova, MappableRanges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.allocator.book import Kept, Owned
    from vmm_iova.allocator.contract import Facts, Held, Numbers, Policy

__all__ = ["Core", "Transaction"]

KEPT_SIZES = 64  # granules: the largest size that the size cache keeps
KEPT_DEEP = 126  # released ranges of one size that it keeps


class Core(Contract):
    """The requests of the pure engine, each one step on what is true."""

    __slots__ = ("_book", "_caches", "_unit", "_zero")

    _book: Book

    def __new__(cls, *_args: object, **_options: object) -> Self:
        """Make an allocator of nothing, until it is set up."""
        self = super().__new__(cls)
        self._book = Book(MappableRanges())
        self._unit, self._zero, self._caches = 1, False, False
        return self

    def _setup(
        self,
        usable: Any,
        ranges: MappableRanges,
        granule: int,
        allow_zero: bool,
        size_cache: bool,
    ) -> None:
        def act(state: State, orders: Orders) -> tuple[None, State]:
            if state.usable is not None:
                raise set_up_twice()
            self._unit, self._zero, self._caches = granule, allow_zero, size_cache
            orders.spoilt = True
            return None, State(usable, ranges)

        self._book.alone(act)

    @property
    def granule(self) -> int:
        """Bytes; sizes and places are multiples of it."""
        return self._unit

    @property
    def allow_zero(self) -> bool:
        """Whether address 0 may be chosen."""
        return self._zero

    @property
    def _usable(self) -> Any:
        return self._book.state.usable

    @property
    def _ranges(self) -> MappableRanges:
        return self._book.state.ranges

    def __len__(self) -> int:
        return self._book.state.number

    # Single requests.

    def allocate(
        self,
        size: int,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
        tag: object = None,
    ) -> Iova:
        """Choose a free range, own it, and return its first address."""
        plain = align is None and within is None and policy == "first"
        request = self._request(size, align, policy, within)

        def act(state: State, orders: Orders) -> tuple[int | Facts, State]:
            place, kept = self._choose(orders, state.kept, plain, *request)
            if place is None:
                facts = self._facts(orders, *request[1:])
                return facts, state if kept is state.kept else state._replace(change={}, kept=kept)
            change: Change = {place: (place + request[0] - 1, tag)}
            return place, self._book.changed(state, change, kept=kept)

        answer = self._book.alone(act)
        if isinstance(answer, int):
            return Iova(answer)
        return self._no_space(request[0], request[1], within, answer)

    def allocate_at(
        self, start: int, size: int, tag: object = None, *, align: int | None = None
    ) -> Iova:
        """Own the range at a place that the caller chose."""
        start, last = self._request_at(start, size, align)

        def act(state: State, orders: Orders) -> tuple[Any, State]:
            kept = state.kept
            span = orders.free_at(start)
            if kept and (span is None or last > span[1]):
                orders.give_all(kept)
                kept, span = NOTHING_KEPT, orders.free_at(start)
            if span is None or last > span[1]:
                owner = self._overlap(orders, start, last)
                return (owner, state.usable, state.ranges), state._replace(change={}, kept=kept)
            orders.own(start, last)
            return None, self._book.changed(state, {start: (last, tag)}, kept=kept)

        refusal = self._book.alone(act)
        if refusal is not None:
            self._refuse_at(start, last, *refusal)
        return Iova(start)

    def release(self, start: int, size: int | None = None) -> None:
        """Give an allocation back."""
        start, size = self._request_release(start, size)

        def act(state: State, orders: Orders) -> tuple[Held | bool | None, State]:
            last = self._last_of(start, size)
            if last is None:
                return self._held_at(orders, start), state
            kept = self._let_go(state, orders, state.kept, start, last)
            return True, self._book.changed(state, {start: None}, kept=kept)

        answer = self._book.alone(act)
        if not isinstance(answer, bool):
            self._refuse_release(start, size, answer)

    def _choose(
        self,
        orders: Orders,
        kept: Kept,
        plain: bool,
        size: int,
        align: int,
        policy: int,
        low: int,
        high: int,
    ) -> tuple[int | None, Kept]:
        """Choose a place and own it in the orders; return it, and what is then kept."""
        if plain and kept.get(size):
            *others, place = kept[size]
            orders.starts.add(place)
            # No size is noted of which nothing is kept: then nothing could be put back for space.
            rest = {other: starts for other, starts in kept.items() if other != size}
            return place, {**rest, size: tuple(others)} if others else rest
        bottom = low if self._zero else max(low, self._unit)
        chosen = orders.search(policy, size - 1, align, bottom, high)
        if chosen is None and kept and low <= high:
            orders.give_all(kept)
            kept = NOTHING_KEPT
            chosen = orders.search(policy, size - 1, align, bottom, high)
        if chosen is not None:
            orders.own(chosen, chosen + size - 1)
        return chosen, kept

    def _let_go(self, state: State, orders: Orders, kept: Kept, start: int, last: int) -> Kept:
        """Take an allocation out of the orders, free or kept; return what is then kept."""
        size = last - start + 1
        waiting = kept.get(size, ())
        if (
            self._caches
            and not state.opened
            and start
            and size <= KEPT_SIZES * self._unit
            and len(waiting) < KEPT_DEEP
        ):
            orders.starts.remove(start)
            return {**kept, size: (*waiting, start)}
        orders.disown(start, last)
        return kept

    def _last_of(self, start: int, size: int | None) -> int | None:
        """Return the last address of the allocation at `start`, if it is of that size."""
        held = self._book.owned.get(start)
        if held is None or size not in (None, held[0] - start + 1):
            return None
        return held[0]

    # Batches.

    def allocate_many(
        self,
        sizes: Numbers,
        out: Numbers | None = None,
        *,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
    ) -> Numbers:
        """Allocate a range for each size: all or nothing."""
        plain = align is None and within is None and policy == "first"
        options = self._request(self.granule, align, policy, within)[1:]
        wanted = numbers_of(sizes, "sizes").tolist()
        result, places = output_of(out, len(wanted), "out")
        unit = self._unit
        fine = next((i for i, size in enumerate(wanted) if not size or size % unit), len(wanted))

        def act(state: State, orders: Orders) -> tuple[tuple[list[int], Facts | None], State]:
            kept, change, starts = state.kept, Change(), []
            for size in wanted[:fine]:
                place, kept = self._choose(orders, kept, plain, size, *options)
                if place is None:
                    break
                starts.append(place)
                change[place] = (place + size - 1, None)
            if len(starts) == len(wanted):
                return (starts, None), self._book.changed(state, change, kept=kept)
            facts = None if len(starts) == fine else self._facts(orders, *options)
            orders.spoilt = True
            # What was put back for want of space stays free; what was taken is kept again.
            kept = NOTHING_KEPT if kept is NOTHING_KEPT else state.kept
            return (starts, facts), state._replace(change={}, kept=kept)

        starts, facts = self._book.alone(act)
        if len(starts) < len(wanted):
            with self._naming_item(len(starts)):
                size = self._size(wanted[len(starts)])
                assert facts is not None
                self._no_space(size, options[0], within, facts)
        places[:] = memoryview(array("Q", starts))
        return result

    def release_many(self, starts: Numbers, sizes: Numbers | None = None) -> None:
        """Release the allocation that begins at each address: all or nothing."""
        self._must_be_set_up()
        places = numbers_of(starts, "starts").tolist()
        lengths = [None] * len(places) if sizes is None else numbers_of(sizes, "sizes").tolist()
        if len(lengths) != len(places):
            raise RequestError(
                f"sizes has {len(lengths)} items for {len(places)} starts",
                field="sizes",
                value=sizes,
            )

        def act(state: State, orders: Orders) -> tuple[tuple[int, Held | None], State]:
            change, kept = Change(), state.kept
            for i, (start, size) in enumerate(zip(places, lengths, strict=True)):
                last = self._last_of(start, size)
                if last is None or start in change:
                    orders.spoilt = bool(change)
                    owner = None if start in change else self._held_at(orders, start)
                    return (i, owner), state
                kept = self._let_go(state, orders, kept, start, last)
                change[start] = None
            return (len(places), None), self._book.changed(state, change, kept=kept)

        done, owner = self._book.alone(act)
        if done < len(places):
            with self._naming_item(done):
                self._refuse_release(places[done], lengths[done], owner)

    def lookup_many(
        self, addresses: Numbers, starts: Numbers | None = None, lasts: Numbers | None = None
    ) -> tuple[Numbers, Numbers]:
        """Find the allocation that holds each address."""
        wanted = numbers_of(addresses, "addresses").tolist()
        first, first_view = output_of(starts, len(wanted), "starts")
        last, last_view = output_of(lasts, len(wanted), "lasts")

        def act(state: State, orders: Orders) -> tuple[list[Held | None], State]:
            return [self._held_at(orders, address) for address in wanted], state

        for i, held in enumerate(self._book.alone(act)):
            first_view[i], last_view[i] = (1, 0) if held is None else held[:2]
        return first, last

    # Steps that the public class calls.

    def _counts(self) -> tuple[MappableRanges, int, int]:
        """Return the usable ranges, the bytes allocated and the number of allocations."""
        state = self._book.state
        return state.ranges, state.total, state.number

    def _at(self, address: int) -> Held | None:
        return self._book.alone(lambda state, orders: (self._held_at(orders, address), state))

    def _held_at(self, orders: Orders, address: int) -> Held | None:
        start = orders.owner(address)
        if start is None:
            return None
        last, tag = self._book.owned[start]
        return (start, last, tag) if address <= last else None

    def _overlap(self, orders: Orders, start: int, last: int) -> Held | None:
        """Return the lowest allocation that shares an address with the range."""
        above = next(orders.starts.irange(start, last), last)
        return self._held_at(orders, start) or self._held_at(orders, above)

    def _snapshot(self) -> tuple[Sequence[int], Sequence[int], dict[int, object]]:
        def act(state: State, orders: Orders) -> tuple[list[tuple[int, Owned]], State]:
            return [(start, self._book.owned[start]) for start in orders.starts], state

        items = self._book.alone(act)
        return (
            array("Q", [start for start, _ in items]),
            array("Q", [last for _, (last, _) in items]),
            {start: tag for start, (_, tag) in items if tag is not None},
        )

    def _gaps(self, start: int, last: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return what is free in a window, cut to it: what no allocation has, kept or not."""

        def act(state: State, orders: Orders) -> tuple[list[tuple[int, int]], State]:
            spans = []
            for home in state.ranges:
                low, high = max(home.start, start), min(home.last, last)
                if low > high:
                    continue
                held = self._held_at(orders, low)
                if held is not None:
                    low = held[1] + 1
                for first in orders.starts.irange(low, high):
                    spans.append((low, first - 1))
                    low = self._book.owned[first][0] + 1
                spans.append((low, high))
            return [span for span in spans if span[0] <= span[1]], state

        spans = self._book.alone(act)
        return array("Q", [a for a, _ in spans]), array("Q", [b for _, b in spans])

    def _facts(self, orders: Orders, align: int, _policy: int, low: int, high: int) -> Facts:
        """Return the largest free span, the largest size that fits at `align`, all that is free."""
        largest: tuple[int, int] | None = None
        aligned = total = 0
        if low > high:
            return None, 0, 0
        bottom = low if self._zero else max(low, self._unit)
        for start, last in orders.free_within(low, high):
            if largest is None or last - start > largest[1] - largest[0]:
                largest = (start, last)
            place = (max(start, bottom) + align - 1) & -align
            aligned = max(aligned, last - place + 1)
            total += last - start + 1
        return largest, aligned, total

    def _swap(
        self, before: MappableRanges, usable: Any, ranges: MappableRanges
    ) -> list[Held] | None:
        """Take new usable ranges, or return the allocations that they do not cover.

        None, and nothing is done, where the present ranges are not `before`.
        """

        def act(state: State, orders: Orders) -> tuple[list[Held] | None, State]:
            if state.ranges is not before:
                return None, state
            held = [(start, *self._book.owned[start]) for start in orders.starts]
            outside = [item for item in held if AddrRange(item[0], item[1]) not in ranges]
            if outside:
                return outside, state
            orders.spoilt = True
            kept = NOTHING_KEPT
            return [], self._book.changed(state, {}, usable=usable, ranges=ranges, kept=kept)

        return self._book.alone(act)

    def _check_core(self) -> None:
        def act(state: State, orders: Orders) -> tuple[str | None, State]:
            # INVARIANT: the orders are what the allocations, ranges and size cache make of them.
            if orders.differs_from(Orders(state.ranges, self._book.owned, state.kept)):
                return "the orders of the free spans differ", state
            # INVARIANT: a log exists only inside a transaction, where the size cache is empty.
            if (state.log and not state.opened) or (state.opened and state.kept):
                return "the log or the size cache is out of order", state
            return None, state

        wrong = self._book.alone(act)
        if wrong is not None:
            raise InvariantError(wrong)
