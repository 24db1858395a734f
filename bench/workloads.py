# SPDX-License-Identifier: Apache-2.0
"""What the allocators are made to do. Every workload has a name, a seed and a description.

Times are CPU time of the thread, for the machines that this runs on are shared; each figure is the
first quartile over many short stretches, net of the loop, which is measured in the same process.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from vmm_iova.ranges import AddrRange, RangeSet

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30

APERTURE = RangeSet(
    [
        AddrRange(0x1_0000, 0xFEDF_FFFF),
        AddrRange(0xFEF0_0000, 0xFC_FFFF_FFFF),
        AddrRange(0x100_0000_0000, (1 << 48) - 1),
    ]
)
"""64 KiB to 2^48 without the x86 MSI window and the AMD HyperTransport hole."""

_SIZES = [pages * PAGE for pages in range(1, 513)]
_WEIGHTS = list(itertools.accumulate(pages**-1.5 for pages in range(1, 513)))

DESCRIPTIONS = {
    "W1 churn": "release a random live range, allocate one of another size (4 KiB to 2 MiB, "
    "p(s) ~ s^-1.5); seed 7",
    "W2 lookup": "addresses of random live ranges; seed 7",
    "W3 scan": "G gaps of one page, and a 4 MiB request that fits only behind all of them",
    "W4b align": "G gaps of 1022 pages, none with an aligned 2 MiB block; ask for one",
    "W5 memory": "bytes that the structure holds per live range after W1",
    "window": "the low window holds G gaps of one page; ask for two pages inside it, which fit "
    "only at its top",
    "boot-64-devices": "64 devices: queues, rings and BAR-like buffers of 4 KiB to 16 MiB, then "
    "guest RAM of 64 x 1 GiB at 1 GiB alignment; then all is released; seed 7",
    "hotplug-churn": "devices of 20 ranges come and go, oldest first, 50 alive; seed 7",
    "viommu-pages": "a guest maps and unmaps single pages, 20,000 alive, half of them the page "
    "released last; seed 7",
    "one-size-queue": "4 KiB buffers, first in first out, 256 alive",
}


def sizes(chance: random.Random, count: int) -> list[int]:
    """Draw sizes of W1, bytes."""
    return chance.choices(_SIZES, cum_weights=_WEIGHTS, k=count)


def quartile(values: list[float]) -> float:
    """Return the first quartile."""
    return sorted(values)[len(values) // 4]


@dataclass
class Churn:
    """W1 on one allocator: made once, then timed in stretches."""

    subject: Any
    live: int
    warm: int
    policy: str = "first"
    seed: int = 7

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        options = () if self.policy == "first" else (None, self.policy)
        allocate, release = self.subject.allocate, self.subject.release
        self.held = [allocate(size, *options) for size in sizes(self.chance, self.live)]
        for place, size in self._steps(self.warm):
            release(self.held[place])
            self.held[place] = allocate(size, *options)

    def _steps(self, count: int) -> list[tuple[int, int]]:
        places = [self.chance.randrange(self.live) for _ in range(count)]
        return list(zip(places, sizes(self.chance, count), strict=True))

    def pair(self, stretches: int, length: int) -> float:
        """Return ns of one release and one allocation, net of the loop."""
        allocate, release, held = self.subject.allocate, self.subject.release, self.held
        policy, plain = self.policy, self.policy == "first"
        now = time.thread_time_ns
        loops, both = [], []
        gc.disable()
        try:
            for _ in range(stretches):
                steps = self._steps(length)
                begin = now()
                for place, _size in steps:
                    start = held[place]
                    held[place] = start
                loops.append((now() - begin) / length)
                if plain:
                    begin = now()
                    for place, size in steps:
                        release(held[place])
                        held[place] = allocate(size)
                    both.append((now() - begin) / length)
                else:
                    begin = now()
                    for place, size in steps:
                        release(held[place])
                        held[place] = allocate(size, None, policy)
                    both.append((now() - begin) / length)
        finally:
            gc.enable()
        return quartile(both) - quartile(loops)

    def tail(self, count: int) -> float:
        """Return the p99.9 of one allocation, ns, net of the clock: the least of ten rounds.

        A round in which the machine did something else says nothing of the allocator.
        """
        allocate, release, held = self.subject.allocate, self.subject.release, self.held
        now = time.perf_counter_ns
        rounds, clock = [], []
        gc.disable()
        try:
            for _ in range(10):
                times = []
                for place, size in self._steps(count // 10):
                    release(held[place])
                    begin = now()
                    start = allocate(size)
                    times.append(now() - begin)
                    held[place] = start
                rounds.append(sorted(times)[len(times) * 999 // 1000])
            for _ in range(count):
                begin = now()
                clock.append(now() - begin)
        finally:
            gc.enable()
        return min(rounds) - quartile(clock)

    def batch(self, stretches: int, length: int) -> float:
        """Return ns of one release and one allocation in batches of `length`."""
        now = time.thread_time_ns
        results = []
        for _ in range(stretches):
            places = self.chance.sample(range(self.live), min(length, self.live))
            starts = array("Q", [self.held[place] for place in places])
            wanted = array("Q", sizes(self.chance, len(places)))
            out = array("Q", bytes(8 * len(places)))
            begin = now()
            self.subject.release_many(starts)
            self.subject.allocate_many(wanted, out)
            results.append((now() - begin) / len(places))
            for place, start in zip(places, out, strict=True):
                self.held[place] = start
        return quartile(results)

    def lookups(self, stretches: int, length: int) -> float:
        """Return ns of one address in batches of lookups."""
        now = time.thread_time_ns
        results = []
        for _ in range(stretches):
            asked = array("Q", [self.held[self.chance.randrange(self.live)] for _ in range(length)])
            starts, lasts = (array("Q", bytes(8 * length)) for _ in range(2))
            begin = now()
            self.subject.lookup_many(asked, starts, lasts)
            results.append((now() - begin) / length)
        return quartile(results)


class SizeQueue:
    """A queue of buffers of one size, the oldest given back first, with `size_cache`."""

    def __init__(self, allocator: Any, live: int) -> None:
        self.subject, self.live, self.place = allocator, live, 0
        self.held = array("Q", bytes(8 * live))
        allocator.allocate_many(array("Q", [PAGE] * live), self.held)

    def batch(self, stretches: int, length: int) -> float:
        """Return ns of one release and one allocation in batches of `length`."""
        now = time.thread_time_ns
        length = min(length, self.live)
        wanted, results = array("Q", [PAGE] * length), []
        for _ in range(stretches):
            if self.place + length > self.live:
                self.place = 0
            oldest = self.held[self.place : self.place + length]
            out = array("Q", bytes(8 * length))
            begin = now()
            self.subject.release_many(oldest)
            self.subject.allocate_many(wanted, out)
            results.append((now() - begin) / length)
            self.held[self.place : self.place + length] = out
            self.place += length
        return quartile(results)


def clock_tail(count: int) -> float:
    """Return the p99.9 of nothing, timed as `Churn.tail` does: the machine's own part."""
    now = time.perf_counter_ns
    rounds, clock = [], []
    for _ in range(10):
        times = []
        for _ in range(count // 10):
            begin = now()
            times.append(now() - begin)
        rounds.append(sorted(times)[len(times) * 999 // 1000])
        clock.extend(times)
    return min(rounds) - quartile(clock)


@dataclass
class Request:
    """One request that is made and undone again and again, the worst of its workload."""

    subject: Any
    size: int
    options: dict[str, object] = field(default_factory=dict)

    def pair(self) -> float:
        """Return ns of one allocation and its release, net of the loop."""
        stretches, length = 60, 500
        now = time.thread_time_ns
        # The call is written out, so that no more is timed than what a caller would write.
        words = "".join(f", {name}={name}" for name in self.options)
        code = (
            "def run(allocate, release, size, align=None, within=None):\n"
            f"    for _ in range({length}):\n"
            f"        release(allocate(size{words}))\n"
        )
        scope: dict[str, Any] = {}
        exec(code, scope)
        loops, both = [], []
        for _ in range(stretches):
            begin = now()
            for _ in range(length):
                pass
            loops.append((now() - begin) / length)
            begin = now()
            scope["run"](self.subject.allocate, self.subject.release, self.size, **self.options)
            both.append((now() - begin) / length)
        return quartile(both) - quartile(loops)


def scan(allocator: Any, gaps: int) -> Request:
    """W3: the large request."""
    starts = allocator.allocate_many(array("Q", [PAGE]) * (2 * gaps))
    allocator.release_many(starts[::2])
    return Request(allocator, 4 * MIB)


def align(allocator: Any, gaps: int) -> Request:
    """W4b: the aligned request."""
    base = 1 << 40
    for number in range(gaps):
        allocator.allocate_at(base + number * 4 * MIB, PAGE)
        allocator.allocate_at(base + (number + 1) * 4 * MIB - PAGE, PAGE)
    for span in list(allocator.free_spans(AddrRange(0, base - 1))):
        allocator.allocate_at(span.start, span.size)
    return Request(allocator, 2 * MIB, {"align": 2 * MIB})


def window(allocator: Any, gaps: int) -> Request:
    """Window: the request inside the low window."""
    starts = allocator.allocate_many(array("Q", [PAGE]) * (2 * gaps + 2))
    allocator.release_many(starts[: 2 * gaps : 2])
    allocator.release_many(starts[-2:])
    low = AddrRange(0, starts[-1] + PAGE - 1)
    return Request(allocator, 2 * PAGE, {"within": low})


def boot(allocator: Any) -> None:
    """boot-64-devices, once."""
    chance = random.Random(7)
    places: list[int] = []
    for _device in range(64):
        places.extend(allocator.allocate(PAGE << chance.randrange(0, 4)) for _ in range(20))
        places.append(allocator.allocate(16 * MIB))
    places.extend(allocator.allocate(GIB, GIB) for _ in range(64))
    for place in places:
        allocator.release(place)


def hotplug(allocator: Any, rounds: int = 200) -> None:
    """hotplug-churn."""
    chance = random.Random(7)
    devices: list[list[int]] = []
    for _ in range(rounds):
        devices.append([allocator.allocate(PAGE << chance.randrange(0, 6)) for _ in range(20)])
        if len(devices) > 50:
            for place in devices.pop(0):
                allocator.release(place)
    for device in devices:
        for place in device:
            allocator.release(place)


def viommu(allocator: Any, steps: int = 20_000) -> None:
    """viommu-pages."""
    chance = random.Random(7)
    held = [allocator.allocate(PAGE) for _ in range(20_000)]
    for _ in range(steps):
        place = chance.randrange(len(held)) if chance.random() < 0.5 else -1
        allocator.release(held[place])
        held[place] = allocator.allocate(PAGE)
    for place in held:
        allocator.release(place)


def queue(allocator: Any, steps: int = 20_000) -> None:
    """one-size-queue."""
    held = [allocator.allocate(PAGE) for _ in range(256)]
    for step in range(steps):
        allocator.release(held[step % 256])
        held[step % 256] = allocator.allocate(PAGE)
    for place in held:
        allocator.release(place)


VMM = {
    "boot-64-devices": boot,
    "hotplug-churn": hotplug,
    "viommu-pages": viommu,
    "one-size-queue": queue,
}
