# SPDX-License-Identifier: Apache-2.0
"""Both engines against the slow model, step by step, with every option mixed."""

import copy
from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.kit.allocator import Model
from tests.kit.examples import examples
from vmm_iova.allocator import allocator_class
from vmm_iova.errors import EngineError, IovaError, NoSpaceError, OccupiedError, RequestError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges

TOP = 1 << 64


def engines():
    found = []
    for name in ("pure", "fast"):
        try:
            found.append(allocator_class(name))
        except EngineError:
            continue
    return found


@st.composite
def worlds(draw):
    """Granule, and usable ranges in granules: anywhere, touching or not, up to the very top."""
    granule = draw(st.sampled_from([1, 1, 2, 0x1000, 0x10000]))
    pieces = draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=5)
    )
    span = sum(gap + length for gap, length in pieces)
    total = TOP // granule
    if draw(st.integers(0, 7)) == 0:
        return granule, [(0, TOP - 1)]
    base = draw(st.sampled_from([0, 0, 1, 7, 0x100000 // granule + 3, (1 << 32) - 9, total - span]))
    base = min(base, total - span)
    ranges, position = [], base
    for gap, length in pieces:
        position += gap
        ranges.append((position * granule, (position + length) * granule - 1))
        position += length
    if draw(st.booleans()) and position < total:
        # One huge range above, so that lengths beyond 32 bits occur too.
        ranges.append(((position + 2) * granule, TOP - 1) if position + 2 < total else ranges.pop())
    return granule, ranges


class EnginesAgainstModel(RuleBasedStateMachine):
    """What one does, all do; what one refuses, all refuse in the same words."""

    @initialize(world=worlds(), allow_zero=st.booleans(), cache=st.booleans())
    def begin(self, world, allow_zero, cache):
        granule, ranges = world
        self.granule = granule
        self.model = Model(ranges, granule, allow_zero, cache)
        self.full = list(ranges)
        usable = MappableRanges(AddrRange(*item) for item in ranges)
        self.subjects = [
            kind(usable, granule=granule, allow_zero=allow_zero, size_cache=cache)
            for kind in engines()
        ]
        self.open = []

    def step(self, act):
        """Do the same on every engine; return the value or the error, which must be the same."""
        results = []
        for subject in self.subjects:
            try:
                results.append((act(subject), None, None))
            except IovaError as error:
                facts = {k: v for k, v in vars(error).items() if k != "value"}
                results.append((None, type(error), facts | {"text": str(error)}))
        assert all(result == results[0] for result in results), results
        return results[0]

    def address(self, data, label):
        """An address that is likely to be on some edge."""
        edges = {0, TOP - 1}
        for start, last in [*self.model.ranges, *self.model.free()]:
            edges |= {start, last, last + 1, start + self.granule, last + 1 - self.granule}
        for start, (last, _) in self.model.taken.items():
            edges |= {start, last + 1}
        fine = sorted(edge for edge in edges if 0 <= edge < TOP)
        edge = data.draw(st.sampled_from(fine), label)
        nudge = data.draw(st.sampled_from([0, 0, 0, 1, -1, 3, -5]), label) * self.granule
        return min(max(edge + nudge, 0), TOP - 1) & -self.granule

    def size(self, data):
        free = sorted({last - start + 1 for start, last in self.model.free()})
        size = data.draw(
            st.one_of(st.integers(1, 12).map(lambda n: n * self.granule), st.sampled_from(free))
            if free
            else st.just(self.granule),
            "size",
        )
        size = max(size & -self.granule, self.granule)
        return size - 1 if size == TOP and self.granule == 1 else size

    def window(self, data):
        if data.draw(st.booleans(), "windowed"):
            ends = sorted([self.address(data, "low"), self.address(data, "high")])
            nudge = data.draw(st.sampled_from([0, 1, -1]), "nudge")
            return AddrRange(ends[0], min(max(ends[1] + nudge, ends[0]), TOP - 1))
        return None

    @rule(
        data=st.data(),
        policy=st.sampled_from(["first", "last", "best"]),
        align=st.one_of(st.none(), st.integers(0, 63).map(lambda n: 1 << n)),
        close=st.integers(0, 5),
        tag=st.sampled_from([None, None, "ram", 7]),
    )
    def allocate(self, data, policy, align, close, tag):
        align = self.granule << close if align is None else align
        size, within = self.size(data), self.window(data)
        low, high = (0, ADDRESS_LAST) if within is None else (within.start, within.last)
        expected = self.model.allocate(size, align, policy, (low, high), tag)

        place, refusal, facts = self.step(
            lambda a: a.allocate(size, align=align, policy=policy, within=within, tag=tag)
        )

        assert place == expected, (hex(size), hex(align), policy, within)
        if place is None:
            assert refusal is NoSpaceError
            self.facts_fit(facts, align, low, high)

    def facts_fit(self, facts, align, low, high, model=None):
        largest, aligned, total = (model or self.model).facts(max(align, self.granule), low, high)
        assert facts["largest_free"] == (None if largest is None else AddrRange(*largest))
        assert (facts["largest_aligned"], facts["total_free"]) == (aligned, total)

    @rule(data=st.data(), tag=st.sampled_from([None, None, "plain"]))
    def allocate_plainly(self, data, tag):
        size = self.size(data)
        expected = self.model.allocate(size, tag=tag)

        place, refusal, facts = self.step(lambda a: a.allocate(size, tag=tag))

        assert place == expected, hex(size)
        if place is None:
            assert refusal is NoSpaceError
            self.facts_fit(facts, 1, 0, ADDRESS_LAST)

    @rule(data=st.data(), policy=st.sampled_from([None, "first", "last", "best"]))
    def allocate_many(self, data, policy):
        sizes = [self.size(data) for _ in range(data.draw(st.integers(0, 5), "count"))]
        if data.draw(st.integers(0, 5), "bad") == 0 and sizes:
            sizes[data.draw(st.integers(0, len(sizes) - 1))] = data.draw(
                st.sampled_from([0, 1, self.granule + 1])
            )
        within = None if policy is None else self.window(data)
        window = None if within is None else (within.start, within.last)
        if max(sizes, default=0) >= TOP:
            return  # more than a buffer of 64-bit integers can say
        outcome, moment = self.model.allocate_many(sizes, None, policy or "first", window)

        batch = array("Q", sizes)
        places, refusal, facts = self.step(
            lambda a: list(a.allocate_many(batch, policy=policy or "first", within=within))
        )

        if moment is None:
            assert places == outcome
        elif sizes[outcome] == 0 or sizes[outcome] % self.granule:
            assert issubclass(refusal, RequestError)
            assert facts["__notes__"][0].startswith(f"item {outcome} ")
        else:
            assert refusal is NoSpaceError
            assert facts["__notes__"][0].startswith(f"item {outcome} ")
            self.facts_fit(facts, 1, *(window or (0, ADDRESS_LAST)), moment)

    @rule(data=st.data(), sized=st.booleans())
    def release_many(self, data, sized):
        known = sorted(self.model.taken)
        starts = data.draw(st.lists(st.sampled_from(known), unique=True) if known else st.just([]))
        sizes = [self.model.taken[start][0] - start + 1 for start in starts]
        bad = data.draw(st.integers(0, 3), "bad") == 0 and TOP - 1 not in self.model.taken
        if bad:
            where = data.draw(st.integers(0, len(starts)), "where")
            again = starts[0] if where else TOP - 1
            starts.insert(where, again)
            sizes.insert(where, self.granule)
        if any(size >= TOP for size in sizes):
            return

        _, refusal, _ = self.step(
            lambda a: a.release_many(array("Q", starts), array("Q", sizes) if sized else None)
        )

        if bad and again not in self.model.taken:
            assert refusal.__name__ == "NotAllocatedError"
        elif bad:
            assert refusal.__name__ in ("NotAllocatedError", "SizeMismatchError")
        else:
            assert refusal is None
            for start in starts:
                self.model.release(start)

    @rule(data=st.data())
    def look_up_many(self, data):
        addresses = [self.address(data, "address") for _ in range(3)]
        expected = [self.model.at(address) or (1, 0) for address in addresses]

        results, _, _ = self.step(
            lambda a: [list(part) for part in a.lookup_many(array("Q", addresses))]
        )

        assert results == [[item[0] for item in expected], [item[1] for item in expected]]

    @rule(data=st.data(), tag=st.sampled_from([None, "bar"]))
    def allocate_at(self, data, tag):
        start, size = self.address(data, "start"), self.size(data)
        last = start + size - 1
        in_the_way = self.model.overlapping(start, last)

        place, refusal, facts = self.step(lambda a: a.allocate_at(start, size, tag))

        if last > ADDRESS_LAST:
            assert refusal.__name__ == "RangeOverflowError"
        elif not self.model.usable(start, last):
            assert refusal.__name__ in ("ApertureError", "StraddleError")
        elif in_the_way is not None:
            owner_last, owner = self.model.taken[in_the_way]
            assert refusal is OccupiedError
            assert (facts["owner"], facts["owner_range"]) == (
                owner,
                AddrRange(in_the_way, owner_last),
            )
        else:
            assert place == start
        if last <= ADDRESS_LAST:
            assert self.model.allocate_at(start, size, tag) == (place is not None)

    @rule(data=st.data())
    def release(self, data):
        known = sorted(self.model.taken)
        address = data.draw(st.sampled_from(known) if known else st.just(0), "known")
        address = min(address + data.draw(st.sampled_from([0, 0, 0, 0, 1, self.granule])), TOP - 1)
        held = self.model.taken.get(address)
        size = None if held is None else held[0] - address + 1
        given = data.draw(st.sampled_from([None, size, (size or 0) + self.granule, 0]), "size")

        _, refusal, _ = self.step(lambda a: a.release(address, given))

        if held is None:
            assert refusal.__name__ == "NotAllocatedError"
        elif given not in (None, size):
            assert refusal.__name__ == "SizeMismatchError"
        else:
            assert refusal is None
            self.model.release(address)

    @rule(data=st.data())
    def look_up(self, data):
        address = min(self.address(data, "address") + data.draw(st.sampled_from([0, 1])), TOP - 1)
        expected = self.model.at(address)

        found, _, _ = self.step(lambda a: a.allocation_at(address))

        told = None if found is None else (found.range.start, found.range.last, found.tag)
        assert told == expected

    @rule(data=st.data())
    def look_at_free_spans(self, data):
        within = self.window(data)
        low, high = (0, ADDRESS_LAST) if within is None else (within.start, within.last)

        spans, _, _ = self.step(lambda a: list(a.free_spans(within)))

        assert [(span.start, span.last) for span in spans] == self.model.free(low, high)

    @rule(data=st.data())
    def narrow(self, data):
        cut = sorted([self.address(data, "from"), self.address(data, "to")])
        hole = AddrRange(cut[0], cut[1])
        ranges = [part for item in self.model.ranges for part in AddrRange(*item).subtract(hole)]
        if data.draw(st.booleans(), "seam"):
            ranges = [
                part
                for item in ranges
                for part in (
                    [AddrRange(item.start, hole.start - 1), AddrRange(hole.start, item.last)]
                    if item.start < hole.start <= item.last
                    else [item]
                )
            ]
        self.adopt("narrow", [(item.start, item.last) for item in ranges])

    @rule()
    def widen(self):
        self.adopt("widen", self.full)

    def adopt(self, method, ranges):
        cut = [AddrRange(*item).align_inward(self.granule) for item in ranges]
        new = [(item.start, item.last) for item in cut if item is not None]
        trial = Model(new, self.granule)
        conflicts = [
            (AddrRange(start, last), tag)
            for start, (last, tag) in sorted(self.model.taken.items())
            if not trial.usable(start, last)
        ]
        usable = MappableRanges(AddrRange(*item) for item in ranges)

        _, refusal, facts = self.step(lambda a: getattr(a, method)(usable))

        if conflicts:
            assert refusal.__name__ == "NarrowError"
            assert facts["conflicts"] == tuple(conflicts)
        else:
            assert refusal is None
            self.model.ranges = new
            self.model.kept.clear()

    @precondition(lambda self: len(self.open) < 3)
    @rule()
    def enter(self):
        handles = [subject.transaction() for subject in self.subjects]
        for handle in handles:
            handle.__enter__()
        self.model.kept.clear()
        self.open.append((handles, copy.deepcopy(self.model)))
        self.model.open = len(self.open)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["commit", "error", "rollback"]))
    def leave(self, data, how):
        # Mostly the innermost; but threads may leave theirs in any order.
        number = data.draw(st.sampled_from([len(self.open) - 1] * 3 + [0]), "which")
        handles, before = self.open[number]
        for handle in handles:
            if how == "rollback":
                handle.rollback()
            else:
                error = KeyError() if how == "error" else None
                handle.__exit__(type(error) if error else None, error, None)
        if how != "commit":
            self.model = copy.deepcopy(before)
            # What was entered after it began from what is true now.
            self.open[number:] = [(later, before) for later, _ in self.open[number:]]
        if how != "rollback":
            del self.open[number]
        self.model.open = len(self.open)

    @invariant()
    def same(self):
        for subject in getattr(self, "subjects", []):
            subject._check()
            assert [(a.range.start, a.range.last, a.tag) for a in subject] == [
                (start, last, tag) for start, (last, tag) in sorted(self.model.taken.items())
            ]
            assert subject.allocated_bytes == sum(
                last - start + 1 for start, (last, _) in self.model.taken.items()
            )


EnginesAgainstModel.TestCase.settings = settings(examples(150), stateful_step_count=40)
TestEnginesAgainstModel = EnginesAgainstModel.TestCase
