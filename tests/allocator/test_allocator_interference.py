# SPDX-License-Identifier: Apache-2.0
"""What runs in the middle of a call finds the allocator whole, and leaves it so, on each engine."""

from __future__ import annotations

import os
import threading
import zlib
from array import array

import pytest

from tests.kit.interference import Intruder, at_each_collection
from tests.kit.interrupts import Interrupter
from vmm_iova.allocator import allocator_class, book
from vmm_iova.errors import IovaError, RequestError
from vmm_iova.ranges import AddrRange, MappableRanges

PAGE = 0x1000
WIDE = MappableRanges([AddrRange(n << 20, (n << 20) + 0xFFFF) for n in range(1, 5)])
LESS = MappableRanges([AddrRange(n << 20, (n << 20) + 0xFFFF) for n in range(1, 4)])
# Of the places in a call, one in so many is tried; 1 is all of them, as in `make long`.
EVERY = int(os.environ.get("VMM_IOVA_EVERY", "67"))
COLLECTIONS = 1 + EVERY // 8


FILES = ("vmm_iova/allocator/", "sortedcontainers/")


def numbers(*values):
    return array("Q", values)


def prepared(make, *, cache=False):
    """An allocator with some allocations, two of them tagged, and some gaps."""
    allocator = make(WIDE, granule=PAGE, size_cache=cache)
    for n in range(10):
        allocator.allocate(PAGE * (1 + n % 3), tag=f"tag {n}" if n % 5 == 0 else None)
    for start in (0x10_1000, 0x10_7000):
        allocator.release(start)
    return allocator


def shown(allocator):
    """All that can be asked of an allocator; looking changes nothing."""
    return (
        [(str(item.range), item.tag) for item in allocator],
        [str(span) for span in allocator.free_spans()],
        [str(item) for item in allocator.ranges],
        len(allocator),
        allocator.allocated_bytes,
        allocator.free_bytes,
        str(allocator.usable),
    )


def attempt(act, allocator):
    """What a call returns, or the refusal with its facts."""
    try:
        result = act(allocator)
    except IovaError as error:
        facts = {name: str(value) for name, value in vars(error).items() if name != "value"}
        return type(error).__name__, facts, getattr(error, "__notes__", [])
    return list(result) if isinstance(result, array) else result


def rolled_back(allocator):
    with allocator.transaction() as transaction:
        allocator.allocate(2 * PAGE, tag="undone")
        allocator.release(0x10_0000)
        transaction.rollback()


def failing(allocator):
    try:
        with allocator.transaction():
            allocator.release_many(numbers(0x10_0000, 0x10_3000))
            allocator.narrow(LESS)
            allocator.allocate(3 * PAGE, tag="undone")
            raise LookupError
    except LookupError:
        pass


def kept(allocator):
    with allocator.transaction():
        allocator.allocate(2 * PAGE)
        allocator.release(0x10_0000)


SINGLE = {
    "allocate": lambda a: a.allocate(2 * PAGE),
    "allocate best": lambda a: a.allocate(PAGE, 2 * PAGE, "best", AddrRange(0, 1 << 21), "tag"),
    "allocate, refused": lambda a: a.allocate(0x2_0000),
    "allocate_at": lambda a: a.allocate_at(0x10_7000, PAGE, "tag"),
    "allocate_at, occupied": lambda a: a.allocate_at(0x10_0000, 2 * PAGE),
    "release": lambda a: a.release(0x10_0000),
    "release, refused": lambda a: a.release(0x10_1000),
    "allocate_many": lambda a: a.allocate_many(numbers(PAGE, 3 * PAGE, PAGE)),
    "allocate_many, refused": lambda a: a.allocate_many(numbers(PAGE, 3 * PAGE, 0x2_0000)),
    "release_many": lambda a: a.release_many(numbers(0x10_0000, 0x10_3000)),
    "release_many, refused": lambda a: a.release_many(numbers(0x10_0000, 0x10_3000, 0x10_7000)),
    "lookup_many": lambda a: [list(part) for part in a.lookup_many(numbers(0x10_0FFF, 5))],
    "narrow": lambda a: a.narrow(LESS),
    "narrow, refused": lambda a: a.narrow(MappableRanges([AddrRange(1 << 20, (1 << 20) + 0x1FFF)])),
    "allocation_at": lambda a: str(a.allocation_at(0x10_3000)),
    "iterate": lambda a: [(str(item.range), item.tag) for item in a],
    "free_spans": lambda a: [str(span) for span in a.free_spans(AddrRange(0x10_1800, 0x20_0FFF))],
    "free_bytes": lambda a: a.free_bytes,
    "repr": repr,
}
SEVERAL = {"rolled back": rolled_back, "failing": failing, "kept": kept}

INTRUSIONS = {
    "allocate": lambda a: a.allocate(PAGE, policy="last", tag="late"),
    "release": lambda a: a.release(0x10_3000),
    "refused": lambda a: a.release(0x10_4000),
    "narrow": lambda a: a.narrow(LESS),
    "transaction": kept,
    "allocate_many": lambda a: a.allocate_many(numbers(PAGE, PAGE)),
}


def orders(make, act, intrude, cache):
    """What comes out of both, one after the other, either first."""
    first, second = prepared(make, cache=cache), prepared(make, cache=cache)
    intruder = attempt(intrude, first)
    yield attempt(act, first), intruder, shown(first)
    result = attempt(act, second)
    yield result, attempt(intrude, second), shown(second)


def is_free(lock):
    """Tell whether another thread could take the lock of the pure engine."""
    taken = []

    def take():
        taken.append(lock.acquire(blocking=False))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken == [True]


def test_the_calls_do_what_their_names_say(make):
    for name, act in (SINGLE | INTRUSIONS).items():
        allocator = prepared(make)
        before, refused = shown(allocator), isinstance(attempt(act, allocator), tuple)
        assert refused == name.endswith(("refused", "occupied")), name
        if refused:
            assert shown(allocator) == before, name


@pytest.mark.parametrize(
    "cache", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "cache"]
)
@pytest.mark.parametrize("intrusion", INTRUSIONS)
@pytest.mark.parametrize("name", SINGLE)
def test_finalizer_in_the_middle_of_a_call_comes_before_it_or_after(
    engine, make, name, intrusion, cache
):
    # Each call of either side is one step: the outcome is that of one order or of the other.
    act, intrude = SINGLE[name], INTRUSIONS[intrusion]
    allowed = list(orders(make, act, intrude, cache))
    number = 1 + zlib.crc32(f"{name} {intrusion}".encode()) % COLLECTIONS
    ran = missed = 0
    while missed < 3:
        allocator, results = prepared(make, cache=cache), []
        seen = at_each_collection(
            lambda: results.append(attempt(act, allocator)),  # noqa: B023
            lambda: results.append(attempt(intrude, allocator)),  # noqa: B023
            number,
        )
        number += COLLECTIONS
        missed = 0 if seen else missed + 1
        if not seen:
            continue
        ran += 1
        allocator._check()
        assert (results[1], results[0], shown(allocator)) in allowed, number
    # The compiled ones make nothing that the collector counts: no finalizer runs inside of them.
    closed = engine == "fast" and name in ("allocate", "release")
    assert COLLECTIONS > 1 or (ran == 0) == closed


@pytest.mark.slow
@pytest.mark.parametrize("intrusion", INTRUSIONS)
@pytest.mark.parametrize("name", SINGLE)
def test_call_in_the_middle_of_a_call_comes_before_it_or_after(make, name, intrusion):
    # As a signal handler has it, or a finalizer: at every place where CPython may run one.
    act, intrude = SINGLE[name], INTRUSIONS[intrusion]
    allowed = list(orders(make, act, intrude, False))
    number = zlib.crc32(f"{name} {intrusion}".encode()) % EVERY
    while True:
        allocator, results = prepared(make), []
        intruder = Intruder(
            FILES,
            number,
            lambda: results.append(attempt(intrude, allocator)),  # noqa: B023
            ["_settle"],  # only a dict changes there
        )
        error = intruder.run(lambda: results.append(attempt(act, allocator)))  # noqa: B023
        assert error is None, intruder.place
        if intruder.place is None:
            break
        allocator._check()
        assert (results[1], results[0], shown(allocator)) in allowed, intruder.place
        number += EVERY


def window():
    """Where Ctrl-C comes as the pure engine's `__exit__` is entered, before its first line.

    Python code cannot close it; the last test says what then holds.
    """
    code = book.Transaction.__exit__.__code__
    return f"book.{code.co_qualname}:{code.co_firstlineno}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_interrupt_leaves_all_of_a_call_or_nothing(make, name):
    act = (SINGLE | SEVERAL)[name]
    done = prepared(make, cache=True)
    allowed = [shown(done)]
    attempt(act, done)
    allowed.append(shown(done))
    number = zlib.crc32(name.encode()) % EVERY
    while True:
        allocator = prepared(make, cache=True)
        interrupter = Interrupter(FILES, number)
        interrupter.run(lambda: attempt(act, allocator))  # noqa: B023
        place = interrupter.place
        if place is None:
            break
        number += EVERY
        allocator._check()
        if hasattr(allocator, "_book"):
            assert is_free(allocator._book._lock), place
        if place == window():
            continue
        assert shown(allocator) in allowed, place
        # No transaction is open: only then is a released range kept for the next of its size.
        held = allocator.allocate(PAGE)
        allocator.allocate(PAGE)
        allocator.release(held)
        assert allocator.allocate_many(numbers(PAGE))[0] == held, place


def test_interrupt_as_exit_is_entered_leaves_the_transaction_open_and_its_changes():
    # The window that is left, on the pure engine only: the compiled one has no Python code there.
    allocator = prepared(allocator_class("pure"))
    before = shown(allocator)
    transaction = allocator.transaction()

    def body():
        with transaction:
            allocator.allocate(2 * PAGE)
            raise LookupError

    number = 0
    place = None
    while place != window():
        interrupter = Interrupter(FILES, number)
        assert isinstance(interrupter.run(body), KeyboardInterrupt)
        number, place = number + 1, interrupter.place
        if place != window():
            assert shown(allocator) == before, place
    assert shown(allocator) != before
    with pytest.raises(RequestError, match="open already"):
        transaction.__enter__()
    transaction.rollback()
    assert shown(allocator) == before
    transaction.__exit__(None, None, None)
    allocator._check()
