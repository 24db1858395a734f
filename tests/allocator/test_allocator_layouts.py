# SPDX-License-Identifier: Apache-2.0
"""Where everything lands, on recorded traces: a faster search places nothing elsewhere.

The sums below were printed by the engines as they stood before the tree was last rewritten
(`python tests/allocator/test_allocator_layouts.py`), and both engines gave them.
"""

import hashlib
import os
import random
from array import array

import pytest

from vmm_iova.allocator import allocator_class
from vmm_iova.errors import IovaError
from vmm_iova.ranges import AddrRange, MappableRanges

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SPACE = [(0x1_0000, 0xFEDF_FFFF), (0xFEF0_0000, 0xFC_FFFF_FFFF), (0x100_0000_0000, (1 << 48) - 1)]
WINDOWS = [None, None, (0, 0xFFFF_FFFF), (0x100_0000_0000, 0x17F_FFFF_FFFF), (MIB, 96 * MIB)]

TRACES = {
    # name: granule, ranges, live allocations aimed at, options of the allocator, of a request
    "first fit": (4 * KIB, SPACE, 3000, {}, {}),
    "last fit": (4 * KIB, SPACE, 3000, {}, {"policy": ["last"]}),
    "best fit": (4 * KIB, SPACE, 1500, {}, {"policy": ["best"]}),
    "aligned": (4 * KIB, SPACE, 1500, {}, {"align": [1, 64 * KIB, 2 * MIB, GIB]}),
    "in windows": (
        4 * KIB,
        SPACE,
        1500,
        {},
        {"policy": ["first", "last", "best"], "within": WINDOWS, "align": [1, 1, 2 * MIB]},
    ),
    "size cache": (
        4 * KIB,
        SPACE,
        1500,
        {"size_cache": True},
        {"policy": ["first"] * 5 + ["best"]},
    ),
    "zero allowed": (4 * KIB, [(0, 64 * MIB - 1)], 800, {"allow_zero": True}, {}),
    "seams": (64 * KIB, [(n * MIB, (n + 1) * MIB - 1) for n in range(3000)], 900, {}, {}),
    "bytes of all 64 bits": (1, [(0, (1 << 64) - 1)], 900, {}, {"align": [1, 1, 4096, 1 << 33]}),
}

STEPS, LONG = 4_000, 60_000
FEW = 1_000  # of the pure engine beside 3,000 ranges, where each step costs a millisecond
EVERY = "VMM_IOVA_STEPS" in os.environ
"""`make long`: the pure engine, which takes a minute for them, goes the long traces too."""
SUMS = {
    ("first fit", 4000): "6f3541274b3d7fea",
    ("first fit", 60000): "8e172b9722281152",
    ("last fit", 4000): "1e45bc91fe7fefbd",
    ("last fit", 60000): "e4e283b14800c8b3",
    ("best fit", 4000): "f6479c883fc7f80f",
    ("best fit", 60000): "eefd19f3ac631faf",
    ("aligned", 4000): "e9f7d6e54e5846ba",
    ("aligned", 60000): "2989d4e7418ab22f",
    ("in windows", 4000): "6b3a8e3d1f16a759",
    ("in windows", 60000): "744b40a73996abce",
    ("size cache", 4000): "d7e25c9c0af40ea3",
    ("size cache", 60000): "cd840282239407c4",
    ("zero allowed", 4000): "8ff7c4ff198551a5",
    ("zero allowed", 60000): "82ae4595598dab0c",
    ("seams", 1000): "6e2e8039265da4f7",
    ("seams", 4000): "fb6ca612c099cf52",
    ("bytes of all 64 bits", 4000): "f8b758b7f1bb337d",
}
SHORT = [name for name, steps in SUMS if steps == STEPS and name != "seams"]
SLOW = [
    *((name, STEPS, "pure") for name in SHORT),
    ("seams", FEW, "pure"),
    ("seams", STEPS, "fast"),
    *((name, steps, "fast") for name, steps in SUMS if steps == LONG),
    *((name, steps, "pure") for name, steps in SUMS if EVERY and steps == LONG),
]


def walk(engine, name, steps):
    """Take the steps of one trace; return a sum of every answer and of what is held at the end."""
    granule, ranges, live, options, request = TRACES[name]
    chance = random.Random(f"layouts {name}")
    usable = MappableRanges(AddrRange(*item) for item in ranges)
    allocator = allocator_class(engine)(usable, granule=granule, **options)
    far = [1 << 31, 1 << 34] if granule == 1 else []
    pages = [1, 1, 1, 2, 3, 5, 8, 13, 64, 257, *far]
    held: list[int] = []
    told = hashlib.sha256()

    def wish():
        return {key: chance.choice(values) for key, values in request.items()}

    def take(act):
        try:
            return act()
        except IovaError as error:
            return type(error).__name__

    def step():
        kind = chance.random()
        if kind < 0.02 and len(held) > 40:
            many = array("Q", (held.pop(chance.randrange(len(held))) for _ in range(33)))
            allocator.release_many(many)
        elif kind < 0.04:
            sizes = array("Q", (granule * chance.choice(pages) for _ in range(33)))
            out = take(lambda: list(allocator.allocate_many(sizes, **windowed(wish()))))
            told.update(repr(out).encode())
            held.extend(out if isinstance(out, list) else [])
        elif kind < 0.06:
            place = chance.randrange(ranges[-1][1] + 1) // granule * granule
            if take(lambda: allocator.allocate_at(place, granule * 2)) is None:
                held.append(place)
                told.update(b"placed")
        elif kind < 0.07:
            mark = list(held)
            with allocator.transaction() as transaction:
                for _ in range(8):
                    one()
                transaction.rollback()
            held[:] = mark
        else:
            one()

    def windowed(wanted):
        window = wanted.get("within")
        return {**wanted, "within": AddrRange(*window)} if window else wanted

    def one():
        if held and chance.random() < len(held) / (2 * live):
            place = chance.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            allocator.release(held.pop())
        else:
            size = granule * chance.choice(pages)
            start = take(lambda: allocator.allocate(size, **windowed(wish())))
            told.update(repr(start).encode())
            if isinstance(start, int):
                held.append(start)

    for _ in range(steps):
        step()
    told.update(repr([(item.range.start, item.range.size) for item in allocator]).encode())
    allocator._check()
    return told.hexdigest()[:16]


@pytest.mark.parametrize("name", SHORT)
def test_layout_is_what_it_was(name):
    assert walk("fast", name, STEPS) == SUMS[name, STEPS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "engine"), SLOW)
def test_layout_after_a_long_trace_is_what_it_was(name, steps, engine):
    assert walk(engine, name, steps) == SUMS[name, steps]


if __name__ == "__main__":
    for trace, length in SUMS:
        ours, others = walk("fast", trace, length), walk("pure", trace, length)
        assert ours == others, trace
        print(f'    ("{trace}", {length}): "{ours}",')
