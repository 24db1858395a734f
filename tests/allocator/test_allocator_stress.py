# SPDX-License-Identifier: Apache-2.0
"""Both engines through the same long random walk, with every option mixed.

`VMM_IOVA_STEPS` sets the length (1000000 is the million of the design goals) and
`VMM_IOVA_SEED` the walk; both are part of every failure message.
"""

import os
import random
from array import array

import pytest

from vmm_iova.allocator import allocator_class
from vmm_iova.errors import IovaError
from vmm_iova.ranges import AddrRange, MappableRanges

STEPS = int(os.environ.get("VMM_IOVA_STEPS", "12000"))
SEED = int(os.environ.get("VMM_IOVA_SEED", "20261124"))
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

WORLDS = {
    # name: granule, usable ranges, live allocations aimed at, sizes in granules, alignments
    "pages": (
        4 * KIB,
        [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0xFC_FFFF_FFFF), (0x100_0000_0000, (1 << 48) - 1)],
        4000,
        [1, 1, 1, 2, 3, 5, 8, 16, 64, 512],
        [4 * KIB, 4 * KIB, 64 * KIB, 2 * MIB, 1 * GIB],
    ),
    "bytes at the top": (
        1,
        [((1 << 64) - 40_000, (1 << 64) - 1)],
        3000,
        [1, 1, 2, 3, 7, 12],
        [1, 1, 2, 4, 8, 64],
    ),
    "seams": (
        64 * KIB,
        [(n * MIB, (n + 1) * MIB - 1) for n in range(300)],
        1200,
        [1, 1, 2, 3, 4, 15],
        [64 * KIB, 64 * KIB, 128 * KIB, 512 * KIB],
    ),
    "far apart": (
        1,
        [(0, (1 << 64) - 1)],
        700,
        [1, 5, 4096, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 52],
        [1, 1, 4096, 1 << 33, 1 << 50],
    ),
    # Best fit in a window has many sizes to pass over: the compiled engine makes zones.
    "all sizes": (
        4 * KIB,
        [(64 * KIB, 2 * GIB - 1), (2 * GIB, 6 * GIB - 1)],
        2000,
        [*range(1, 300)],
        [4 * KIB, 4 * KIB, 16 * KIB],
    ),
    "full": (4 * KIB, [(0, 8 * MIB - 1)], 4000, [1, 1, 2, 3], [4 * KIB, 8 * KIB, 16 * KIB]),
}


def attempt(act):
    try:
        return act()
    except IovaError as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", None)


class Walk:
    """One random walk over two allocators that must never differ."""

    def __init__(self, world, seed, cache):
        self.granule, self.ranges, self.live, self.sizes, self.aligns = WORLDS[world]
        self.random = random.Random(f"{world} {seed} {cache}")
        self.usable = MappableRanges(AddrRange(*item) for item in self.ranges)
        allow_zero = self.random.random() < 0.5
        self.pair = [
            allocator_class(name)(
                self.usable, granule=self.granule, allow_zero=allow_zero, size_cache=cache
            )
            for name in ("pure", "fast")
        ]
        self.held = []
        self.cut = False

    def both(self, act):
        first, second = (attempt(lambda: act(one)) for one in self.pair)  # noqa: B023
        assert first == second
        return first

    def window(self):
        item = self.random.choice(self.ranges)
        low = self.random.randint(*item)
        return AddrRange(low, min(low + self.random.choice([MIB, GIB, TIB]), (1 << 64) - 1))

    def place(self):
        """An address near an allocation, or anywhere."""
        if self.held and self.random.random() < 0.7:
            start = self.random.choice(self.held)
            return max(0, start + self.random.choice([-2, -1, 0, 1, 2, 9]) * self.granule)
        return self.random.randint(*self.random.choice(self.ranges)) // self.granule * self.granule

    def step(self):
        choice = self.random.random()
        grow = 0.62 if len(self.held) < self.live else 0.38
        if choice < grow * 0.85:
            size = self.random.choice(self.sizes) * self.granule
            align = self.random.choice([None, None, *self.aligns])
            policy = self.random.choice(["first", "last", "best"])
            within = self.window() if self.random.random() < 0.25 else None
            tag = self.random.choice([None, None, None, size])
            done = self.both(lambda a: a.allocate(size, align, policy, within, tag))
        elif choice < grow:
            start, size = self.place(), self.random.choice(self.sizes) * self.granule
            done = self.both(lambda a: a.allocate_at(start, size))
        elif choice > 0.995:
            done = None
            self.batch()
        elif choice < 0.97:
            done = None
            if self.held:
                index = self.random.randrange(len(self.held))
                self.held[index], self.held[-1] = self.held[-1], self.held[index]
                start = self.held.pop()
                self.both(lambda a: a.release(start))
        elif choice < 0.99:
            address = self.place()
            done = None
            self.both(lambda a: a.allocation_at(min(address, (1 << 64) - 1)))
            window = self.window()
            self.both(lambda a: [next(iter(a.free_spans(window)), None)])
        else:
            done = None
            self.both(lambda a: a.release(min(self.place_again, (1 << 64) - 1)))
        if isinstance(done, int):
            self.held.append(done)

    def batch(self):
        """A batch of allocations or of releases; now and then one that is refused."""
        count = self.random.randint(0, 24)
        bad = self.random.random() < 0.3
        if self.random.random() < 0.5:
            sizes = [self.random.choice(self.sizes) * self.granule for _ in range(count)]
            if bad:
                sizes.insert(self.random.randint(0, count), self.random.choice([0, 1 << 63]))
            within = self.window() if self.random.random() < 0.2 else None
            policy = self.random.choice(["first", "first", "last", "best"])
            places = self.both(
                lambda a: list(a.allocate_many(array("Q", sizes), policy=policy, within=within))
            )
            self.held += places if isinstance(places, list) else []
            return
        self.random.shuffle(self.held)
        count = min(count, len(self.held))
        starts, rest = self.held[:count], self.held[count:]
        if bad:
            extra = starts[0] if starts else self.place_again
            starts.insert(self.random.randint(0, count), min(extra, (1 << 64) - 1))
        if self.both(lambda a: a.release_many(array("Q", starts))) is None:
            self.held = rest
        addresses = array("Q", [min(self.place(), (1 << 64) - 1) for _ in range(3)])
        self.both(lambda a: [list(part) for part in a.lookup_many(addresses)])

    @property
    def place_again(self):
        """An address between allocations: the same for both of a pair."""
        return (self.held[-1] if self.held else 0) | 1

    def rollback(self):
        """A stretch of steps that is undone."""
        before, held = list(self.pair[0]), list(self.held)
        handles = [one.transaction() for one in self.pair]
        for handle in handles:
            handle.__enter__()
        for _ in range(40):
            self.step()
        for handle in handles:
            handle.rollback()
            handle.__exit__(None, None, None)
        self.held = held
        assert before == list(self.pair[0])

    def narrow_and_widen(self):
        hole = self.window()
        less = self.usable & ~MappableRanges([hole]).as_set()
        self.both(lambda a: a.narrow(less))
        self.both(lambda a: a.widen(self.usable))

    def compare(self):
        assert list(self.pair[0]) == list(self.pair[1])
        assert list(self.pair[0].free_spans()) == list(self.pair[1].free_spans())
        self.pair[0]._check()
        self.pair[1]._check()


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True], ids=["plain", "cache"])
@pytest.mark.parametrize("world", WORLDS)
def test_engines_agree_on_a_long_walk(world, cache):
    pytest.importorskip("vmm_iova._fast")
    walk = Walk(world, SEED, cache)
    done = 0
    try:
        for done in range(STEPS // len(WORLDS) // 2):
            walk.step()
            if done % 997 == 500:
                walk.rollback()
            if done % 1499 == 700:
                walk.narrow_and_widen()
            if done % 800 == 799:
                walk.compare()
        walk.compare()
    except BaseException as error:
        error.add_note(f"world {world!r}, VMM_IOVA_SEED={SEED}, step {done}")
        raise
