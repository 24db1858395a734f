# SPDX-License-Identifier: Apache-2.0
"""An allocator that is slow and obviously right: every question is answered by looking at all."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vmm_iova.ranges import ADDRESS_LAST

Span = tuple[int, int]

KEPT_SIZES, KEPT_DEEP = 64, 126


@dataclass
class Model:
    """Lists of closed intervals, and nothing else."""

    ranges: list[Span]
    granule: int
    allow_zero: bool = False
    cache: bool = False
    taken: dict[int, tuple[int, object]] = field(default_factory=dict)
    kept: list[tuple[int, int]] = field(default_factory=list)  # size and start, in order of release
    flushes: int = 0
    open: int = 0  # transactions

    def free(
        self, low: int = 0, high: int = ADDRESS_LAST, but: Iterable[tuple[int, int]] = ()
    ) -> list[Span]:
        """Every free span of the window, cut to it; what the size cache keeps is free."""
        taken = {start: last for start, (last, _) in self.taken.items()}
        taken.update((start, start + size - 1) for size, start in but)
        spans = []
        for start, last in self.ranges:
            position = start
            for first in sorted(taken):
                if start <= first <= last:
                    spans.append((position, first - 1))
                    position = taken[first] + 1
            spans.append((position, last))
        cut = [(max(a, low), min(b, high)) for a, b in spans]
        return [(a, b) for a, b in cut if a <= b]

    def inward(self, low: int, high: int) -> Span:
        """The window, cut inward to whole granules."""
        return -(-low // self.granule) * self.granule, (high + 1) // self.granule * self.granule - 1

    def places(
        self, size: int, align: int, low: int, high: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """For each span that can hold it: its size, its start, lowest and highest place."""
        low, high = self.inward(low, high)
        bottom = low if self.allow_zero else max(low, self.granule)
        for start, last in self.free(bottom, high, self.kept):
            lowest = -(-start // align) * align
            if lowest + size - 1 <= last:
                yield last - start + 1, start, lowest, (last - size + 1) // align * align

    def choose(self, size: int, align: int, policy: str, low: int, high: int) -> int | None:
        places = list(self.places(size, max(align, self.granule), low, high))
        if not places:
            return None
        if policy == "first":
            return min(place[2] for place in places)
        if policy == "last":
            return max(place[3] for place in places)
        return min(places)[2]

    def allocate(
        self,
        size: int,
        align: int | None = None,
        policy: str = "first",
        window: Span | None = None,
        tag: object = None,
    ) -> int | None:
        """The address, or None; what was kept is given back where nothing else fits."""
        low, high = (0, ADDRESS_LAST) if window is None else window
        place = None
        if align is None and window is None and policy == "first":
            place = next((start for kept, start in reversed(self.kept) if kept == size), None)
        if place is not None:
            self.kept.remove((size, place))
        else:
            place = self.choose(size, align or self.granule, policy, low, high)
            low, high = self.inward(low, high)
            if place is None and low <= high and self.kept:
                self.kept.clear()
                self.flushes += 1
                place = self.choose(size, align or self.granule, policy, low, high)
        if place is not None:
            self.taken[place] = (place + size - 1, tag)
        return place

    def allocate_many(
        self,
        sizes: list[int],
        align: int | None = None,
        policy: str = "first",
        window: Span | None = None,
    ) -> tuple[list[int] | int, Model | None]:
        """The addresses; or the number of the item that failed, and the model of that moment."""
        trial, places = copy.deepcopy(self), []
        for number, size in enumerate(sizes):
            fine = size and size % self.granule == 0
            place = trial.allocate(size, align, policy, window) if fine else None
            if place is None:
                if trial.flushes > self.flushes:
                    self.kept.clear()  # given back for want of space: that stays
                return number, trial
            places.append(place)
        self.taken, self.kept = trial.taken, trial.kept
        return places, None

    def allocate_at(self, start: int, size: int, tag: object = None) -> bool:
        """Whether it was done. The place must be usable and within 64 bits."""
        last = start + size - 1
        if not any(a <= start and last <= b for a, b in self.free(0, ADDRESS_LAST, self.kept)):
            self.kept.clear()
        if not any(a <= start and last <= b for a, b in self.free()):
            return False
        self.taken[start] = (last, tag)
        return True

    def release(self, start: int) -> None:
        size = self.taken.pop(start)[0] - start + 1
        room = sum(kept == size for kept, _ in self.kept) < KEPT_DEEP
        if self.cache and not self.open and start and room and size <= KEPT_SIZES * self.granule:
            self.kept.append((size, start))

    def facts(self, align: int, low: int, high: int) -> tuple[Span | None, int, int]:
        """Largest free span, largest size that fits at the alignment, bytes free in all."""
        low, high = self.inward(low, high)
        free = self.free(low, high)
        bottom = low if self.allow_zero else max(low, self.granule)
        aligned = [last - -(-start // align) * align + 1 for start, last in self.free(bottom, high)]
        largest = max(free, key=lambda span: (span[1] - span[0], -span[0]), default=None)
        return largest, max([0, *aligned]), sum(last - start + 1 for start, last in free)

    def at(self, address: int) -> tuple[int, int, object] | None:
        for start, (last, tag) in self.taken.items():
            if start <= address <= last:
                return start, last, tag
        return None

    def overlapping(self, low: int, high: int) -> int | None:
        """The lowest allocation that shares an address with the range."""
        found = [start for start, (last, _) in self.taken.items() if start <= high and last >= low]
        return min(found, default=None)

    def usable(self, low: int, high: int) -> bool:
        return any(start <= low and high <= last for start, last in self.ranges)
