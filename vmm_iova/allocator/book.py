# SPDX-License-Identifier: Apache-2.0
"""What is true of an allocator of the pure engine, and how that changes: whole, or not at all.

Ctrl-C, a signal handler, a finalizer that the garbage collector runs: each may come between any
two steps of Python code, and may call the same allocator. So what is true changes at one point of
a call, by one assignment: see `Book.alone`.
"""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

from vmm_iova.allocator.contract import never_set_up, not_open, open_already
from vmm_iova.allocator.orders import Orders

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from vmm_iova.ranges import MappableRanges

Owned = tuple[int, object]  # last address, tag
Change = dict[int, Owned | None]  # by first address; None is released
Kept = dict[int, tuple[int, ...]]  # first addresses, by size; released last is last

NOTHING_KEPT: Kept = {}

_Answer = TypeVar("_Answer")


class _Step(NamedTuple):
    """What undoes one change while a transaction is open, and the steps before."""

    undo: Change
    usable: Any
    ranges: MappableRanges
    depth: int
    below: _Step | None


class State(NamedTuple):
    """What is true of an allocator, together with `Book.owned`. Never changed, but replaced."""

    usable: Any  # None until the allocator is set up
    ranges: MappableRanges
    total: int = 0  # bytes allocated
    number: int = 0  # allocations
    kept: Kept = NOTHING_KEPT
    change: Change = {}  # noqa: RUF012  (on its way into `Book.owned`; never changed)
    log: _Step | None = None
    opened: dict[Transaction, _Step | None] = {}  # noqa: RUF012  (what the log was when each began)


class HasBook(Protocol):
    """What a transaction asks of an allocator."""

    _book: Book


class Transaction:
    """A stretch of changes that stays whole, or is undone whole."""

    __slots__ = ("_book",)

    _book: Book

    def __new__(cls, allocator: HasBook) -> Self:
        """Make one that is not open yet."""
        self = super().__new__(cls)
        self._book = allocator._book
        return self

    def __enter__(self) -> Self:
        book = self._book
        opened = book.state.opened
        try:
            book.begin(self)
            return self
        except BaseException:
            # Ctrl-C after it had begun: nobody will leave it.
            if self in book.state.opened and self not in opened:
                book.finish(self, False)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        book = self._book
        try:
            book.finish(self, kind is not None)
        except BaseException:
            # Ctrl-C before it was finished.
            if self in book.state.opened:
                book.finish(self, kind is not None)
            raise

    def rollback(self) -> None:
        """Undo now everything since the transaction was entered."""
        self._book.undo(self)


class Book:
    """The state, the allocations, and a key to both.

    Attributes:
        state: what is true, with `owned`.
        owned: the allocations, but for a change of the state that is still on its way.
    """

    __slots__ = ("_lock", "_orders", "_settled", "owned", "state")

    def __init__(self, ranges: MappableRanges) -> None:
        self._lock = RLock()
        self.owned: dict[int, Owned] = {}
        self.state = self._settled = State(None, ranges)
        self._orders: Orders | None = None

    def alone(self, act: Callable[[State, Orders], tuple[_Answer, State]]) -> _Answer:
        """Let `act` work out an answer and the next state; make that true, and return the answer.

        Other threads wait. Another call of this thread, from a signal handler or a finalizer, finds
        the orders taken away and makes its own; then what `act` worked out does not count, and it
        begins anew. The next state is true from one assignment on, before which CPython runs no
        other code after the check: it does so only at calls, at jumps back and where it allocates.
        What was broken off after that, the next call completes.
        """
        with self._lock:
            while True:
                state = self.state
                if self._settled is not state:
                    self._settle(state)
                orders, self._orders = self._orders, None
                try:
                    if orders is None:
                        orders = Orders(state.ranges, self.owned.copy(), state.kept)
                    answer, after = act(state, orders)
                except Exception:
                    if self.state is state:
                        raise
                    continue
                if self.state is not state:
                    continue
                self.state = after
                self._orders = None  # where a call that came between may have left its own
                if after is not state:
                    self._settle(after)
                if self.state is after and not orders.spoilt:
                    self._orders = orders
                return answer

    def _settle(self, state: State) -> None:
        """Bring the change of a state into `owned`; doing so twice does no harm."""
        owned = self.owned
        for start, held in state.change.items():
            if self.state is not state:
                return  # another call came between, and has done this
            if held is None:
                owned.pop(start, None)
            else:
                owned[start] = held
        if self.state is state:
            self._settled = state

    def changed(self, state: State, change: Change, **others: Any) -> State:
        """Return the state after a change, and note what undoes it where a transaction is open."""
        before = {start: self.owned.get(start) for start in change}
        bytes_, number = _weigh(change)
        bytes_before, number_before = _weigh(before)
        if state.opened:
            depth = 1 if state.log is None else state.log.depth + 1
            others["log"] = _Step(before, state.usable, state.ranges, depth, state.log)
        return state._replace(
            change=change,
            total=state.total + bytes_ - bytes_before,
            number=state.number + number - number_before,
            **others,
        )

    # Transactions.

    def begin(self, transaction: Transaction) -> None:
        """Open a transaction; what the size cache keeps becomes free."""

        def act(state: State, orders: Orders) -> tuple[None, State]:
            if state.usable is None:
                raise never_set_up()
            if transaction in state.opened:
                raise open_already(transaction)
            orders.give_all(state.kept)
            opened = {**state.opened, transaction: state.log}
            return None, state._replace(change={}, kept=NOTHING_KEPT, opened=opened)

        self.alone(act)

    def finish(self, transaction: Transaction, failed: bool) -> None:
        """Close a transaction, and undo it if it failed."""

        def act(state: State, orders: Orders) -> tuple[None, State]:
            after = self._undone(state, orders, transaction) if failed else state
            if transaction not in after.opened:
                raise not_open(transaction)
            opened = {other: log for other, log in after.opened.items() if other is not transaction}
            change = after.change if failed else {}
            log = after.log if opened else None
            return None, after._replace(change=change, opened=opened, log=log)

        self.alone(act)

    def undo(self, transaction: Transaction) -> None:
        """Bring back what was true when the transaction was opened; it stays open."""
        self.alone(lambda state, orders: (None, self._undone(state, orders, transaction)))

    def _undone(self, state: State, orders: Orders, transaction: Transaction) -> State:
        """Return the state before a transaction: the change from here to there is one."""
        if transaction not in state.opened:
            raise not_open(transaction)
        step = state.log
        log = state.opened[transaction]
        usable, ranges, change = state.usable, state.ranges, Change()
        while step is not None and step is not log:
            change.update(step.undo)
            usable, ranges, step = step.usable, step.ranges, step.below
        gone = {start: self.owned[start] for start in change if start in self.owned}
        orders.spoilt = ranges is not state.ranges
        if not orders.spoilt:
            for start, (last, _) in gone.items():
                orders.disown(start, last)
            for start, held in change.items():
                if held is not None:
                    orders.own(start, held[0])
        depth = 0 if log is None else log.depth
        # What began in the meantime began from what is true now.
        opened = {
            other: log if mark is not None and mark.depth > depth else mark
            for other, mark in state.opened.items()
        }
        quiet = state._replace(opened={})
        after = self.changed(quiet, change, usable=usable, ranges=ranges, log=log)
        return after._replace(opened=opened)


def _weigh(change: Change) -> tuple[int, int]:
    """Return the bytes and the number of the allocations in a change."""
    sizes = [held[0] - start + 1 for start, held in change.items() if held is not None]
    return sum(sizes), len(sizes)
