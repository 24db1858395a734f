# SPDX-License-Identifier: Apache-2.0
"""The allocator: both engines give the same answers and refusals, whatever is asked of them."""

from __future__ import annotations

import contextlib
from array import array
from typing import TYPE_CHECKING, Any

from fuzz.kit import Bytes
from vmm_iova.allocator import IovaAllocator, allocator_class
from vmm_iova.errors import EngineError, IovaError
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LENGTH = 512
_POLICIES = ("first", "last", "best")


def _engines() -> list[type[IovaAllocator]]:
    """Both engines; without the compiled one, the plain one must agree with itself at least."""
    try:
        return [allocator_class("fast"), allocator_class("pure")]
    except EngineError:
        return [allocator_class("pure"), allocator_class("pure")]


_ENGINES = _engines()


def one_input(data: bytes) -> None:
    """Do the same to both, and compare each answer and what is left."""
    source = Bytes(data)
    granule = 1 << source.below(3) * 6  # 1, 64, 4096
    ranges = _ranges(source, granule)
    options = source.below(4)
    try:
        pair = [
            engine(ranges, granule, bool(options & 1), size_cache=bool(options & 2))
            for engine in _ENGINES
        ]
    except IovaError:
        return
    _calls(pair, source, granule, 0)
    for one in pair:
        one._check()
    assert _state(pair[0]) == _state(pair[1])


def _calls(pair: list[IovaAllocator], source: Bytes, granule: int, depth: int) -> None:
    while source.left:
        kind = source.below(16)
        if kind == 15 and depth:
            return
        if kind == 14 and depth < 3:
            how = source.below(3)
            with contextlib.ExitStack() as stack:
                bodies = [stack.enter_context(one.transaction()) for one in pair]
                _calls(pair, source, granule, depth + 1)
                if how == 0:
                    for body in bodies:
                        body.rollback()
            continue
        call = _call(kind, source, granule)
        answers = [_answer(call, one) for one in pair]
        assert answers[0] == answers[1], answers
        if kind == 13:
            assert _state(pair[0]) == _state(pair[1])


def _call(kind: int, source: Bytes, granule: int) -> Callable[[IovaAllocator], Any]:
    size = _size(source, granule)
    if kind < 4:
        align = (None, granule, granule << 4, source.number(8))[source.below(4)]
        policy: Any = _POLICIES[source.below(3)]
        within = None if source.below(2) else _span(source, granule)
        return lambda one: one.allocate(size, align, policy, within, kind)
    if kind == 4:
        start = _address(source, granule)
        return lambda one: one.allocate_at(start, size, kind)
    if kind < 8:
        nth, wrong = source.number(2), source.below(8)
        return lambda one: one.release(_nth(one, nth) + (wrong == 0), size if wrong == 1 else None)
    if kind == 8:
        sizes = array("Q", [_size(source, granule) & (1 << 64) - 1 for _ in range(source.below(9))])
        policy = _POLICIES[source.below(3)]
        return lambda one: list(one.allocate_many(sizes, policy=policy))
    if kind == 9:
        chosen = [source.number(2) for _ in range(source.below(9))]
        return lambda one: one.release_many(array("Q", [_nth(one, nth) for nth in chosen]))
    if kind == 10:
        asked = array("Q", [_address(source, granule) for _ in range(source.below(5))])
        return lambda one: [list(part) for part in one.lookup_many(asked)]
    if kind == 11:
        ranges = _ranges(source, granule)
        if source.below(2):
            return lambda one: one.widen(ranges)
        return lambda one: one.narrow(ranges)
    if kind == 12:
        span = _span(source, granule)
        return lambda one: list(one.free_spans(span))
    start = _address(source, granule)
    return lambda one: (one.allocation_at(start), start in one, one.free_bytes)


def _answer(call: Callable[[IovaAllocator], Any], one: IovaAllocator) -> Any:
    try:
        return call(one)
    except IovaError as error:
        return type(error).__name__, error.message, error.hint


def _nth(one: IovaAllocator, nth: int) -> int:
    starts = [item.range.start for item in one]
    return starts[nth % len(starts)] if starts else 0x1000


def _state(one: IovaAllocator) -> Any:
    return list(one), list(one.free_spans()), one.free_bytes


def _size(source: Bytes, granule: int) -> int:
    kind = source.below(8)
    if kind < 6:
        return granule * (1 + source.below(16))
    return source.number(8) if kind == 6 else granule << source.below(60)


def _address(source: Bytes, granule: int) -> int:
    return source.number(2) * granule if source.below(4) else source.number(8)


def _span(source: Bytes, granule: int) -> AddrRange:
    start = _address(source, granule)
    last = start + granule * source.below(256) + granule - 1
    return AddrRange(start, min(last, (1 << 64) - 1))


def _ranges(source: Bytes, granule: int) -> RangeSet | MappableRanges:
    """Some ranges; in the second form they may touch and stay two."""
    kind = source.below(8)
    if kind == 0:
        return RangeSet([AddrRange(0, (1 << 64) - 1)])
    spans, at = [], 0
    for _ in range(1 + source.below(5)):
        at += granule * source.below(4)
        size = granule * (1 + source.below(200)) - (source.below(32) == 0)
        if size <= 0:
            continue
        spans.append(AddrRange(at, at + size - 1))
        at += size
    if kind == 1:
        spans.append(AddrRange((1 << 64) - 64 * granule, (1 << 64) - 1))
    return MappableRanges(spans) if kind % 2 else RangeSet(spans)


def seeds() -> Iterator[bytes]:
    """Calls of every kind."""
    for number in range(64):
        yield bytes((number * 31 + step * step + step * number) % 256 for step in range(256))
