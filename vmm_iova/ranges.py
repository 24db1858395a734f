# SPDX-License-Identifier: Apache-2.0
"""Closed address ranges `[start, last]` and two kinds of collections of them.

Both ends are inclusive, as iommufd has them, so that the last byte of the 64-bit space and the
whole space can be written. The two collections answer different questions:

* `RangeSet` is a *set of addresses*: touching ranges are one, and set algebra applies.
* `MappableRanges` is a *list of places for one mapping*: touching ranges stay two, because the
  kernel accepts a mapping only inside one range of its list
  (drivers/vfio/vfio_iommu_type1.c, vfio_iommu_iova_dma_valid, Linux 5.4).

Neither can be taken for the other: they are different types and never compare equal.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, NewType, overload

from vmm_iova.errors import RangeOverflowError, RequestError
from vmm_iova.record import ordered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Iova = NewType("Iova", int)
"""An address as a device gives it to the IOMMU: an int that type checkers tell from the others."""

Gpa = NewType("Gpa", int)
"""A guest-physical address; likewise."""

Hva = NewType("Hva", int)
"""An address in the memory of this process (host-virtual); likewise."""

ADDRESS_LAST = (1 << 64) - 1
"""The last address of a 64-bit space."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
"""Bytes of the binary units."""

BASE_PAGE = 4 * KIB
"""Bytes of the smallest page of any IOMMU driver of Linux, and of every kernel that has VFIO."""

HUGE_PAGES = (GIB, 2 * MIB)
"""Bytes of the larger pages of VT-d, AMD-Vi and SMMUv3 with 4 KiB pages, the largest first."""


def check_granule(granule: int, field: str = "granule") -> int:
    """Return `granule` if it is a power of two from 1 to 2^63; raise RequestError otherwise."""
    if (
        isinstance(granule, bool)
        or not isinstance(granule, int)
        or not 1 <= granule <= 1 << 63
        or granule & (granule - 1)
    ):
        shown = f"{granule:#x}" if isinstance(granule, int) else repr(granule)
        raise RequestError(
            f"{field} {shown} is not a power of two from 1 to 2^63", field=field, value=granule
        )
    return granule


def align_up(value: int, align: int) -> int:
    """Round up to a multiple of `align`.

    Args:
        value: address, 0 to 2^64-1.
        align: bytes, a power of two.

    Raises:
        RequestError: `align` is not a power of two.
        RangeOverflowError: the result would be beyond 2^64-1.
    """
    check_granule(align, "align")
    result = (value + align - 1) & -align
    if result > ADDRESS_LAST:
        raise RangeOverflowError(
            f"{value:#x} rounded up to a multiple of {align:#x} is beyond 2^64-1",
            field="value",
            value=value,
        )
    return result


def align_down(value: int, align: int) -> int:
    """Round down to a multiple of `align`; raise RequestError unless that is a power of two."""
    return value & -check_granule(align, "align")


def power_up(size: int) -> int:
    """Return the smallest power of two that is `size` or more; `size` is at least 1."""
    return 1 << (size - 1).bit_length()


@ordered
class AddrRange:
    """A range of addresses, both ends inclusive. Immutable, ordered, never empty.

    Absence is `None` or an empty collection, so nothing needs a test for "empty range".

    Attributes:
        start: first address, 0 to 2^64-1.
        last: last address, `start` to 2^64-1.

    Raises:
        RequestError: `last` is below `start`, or an end is not an int.
        RangeOverflowError: an end is outside of 0 to 2^64-1.

    Synchronization: none required (immutable).
    """

    start: int
    last: int

    def __post_init__(self) -> None:
        start, last = self.start, self.last
        if not type(start) is type(last) is int:  # a subclass of int will do
            self._check_types()
        if not 0 <= start <= last <= ADDRESS_LAST:
            raise self._wrong()

    def _check_types(self) -> None:
        for field, value in (("start", self.start), ("last", self.last)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(
                    f"{field} of a range must be an int, not {type(value).__name__}",
                    field=field,
                    value=value,
                )

    def _wrong(self) -> RequestError:
        """Say which end is wrong."""
        for field, value in (("start", self.start), ("last", self.last)):
            if not 0 <= value <= ADDRESS_LAST:
                return RangeOverflowError(
                    f"{field} {value:#x} of a range is outside of 0 to 2^64-1",
                    field=field,
                    value=value,
                )
        return RequestError(
            f"last {self.last:#x} of a range is below its start {self.start:#x}",
            field="last",
            value=self.last,
            hint="last is inclusive: a range of one byte has last equal to start",
        )

    @classmethod
    def from_size(cls, start: int, size: int) -> AddrRange:
        """Make the range of `size` bytes (1 to 2^64) that begins at `start`.

        Raises:
            RequestError: `size` is below 1.
            RangeOverflowError: it would reach beyond 2^64-1.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RequestError(
                f"size {size!r} of a range is not a positive number of bytes",
                field="size",
                value=size,
            )
        if isinstance(start, int) and start + size - 1 > ADDRESS_LAST:
            raise RangeOverflowError(
                f"a range of {size:#x} bytes at {start:#x} reaches beyond 2^64-1",
                field="size",
                value=size,
            )
        return cls(start, start + size - 1)

    @property
    def size(self) -> int:
        """Bytes, 1 to 2^64."""
        return self.last - self.start + 1

    def __contains__(self, other: object) -> bool:
        """Tell whether an address, or the whole of another range, lies inside."""
        if isinstance(other, AddrRange):
            return self.start <= other.start and other.last <= self.last
        return isinstance(other, int) and self.start <= other <= self.last

    def overlaps(self, other: AddrRange) -> bool:
        """Tell whether the two share an address."""
        return self.start <= other.last and other.start <= self.last

    def intersect(self, other: AddrRange) -> AddrRange | None:
        """Return what the two share, or None."""
        start, last = max(self.start, other.start), min(self.last, other.last)
        return AddrRange(start, last) if start <= last else None

    def subtract(self, other: AddrRange) -> tuple[AddrRange, ...]:
        """Return what is left of this one without the other: no, one or two ranges, ascending."""
        if not self.overlaps(other):
            return (self,)
        left = []
        if self.start < other.start:
            left.append(AddrRange(self.start, other.start - 1))
        if other.last < self.last:
            left.append(AddrRange(other.last + 1, self.last))
        return tuple(left)

    def align_inward(self, granule: int) -> AddrRange | None:
        """Return the largest range of whole granules inside, or None."""
        whole = _whole((self,), check_granule(granule))
        return whole[0] if whole else None

    def align_outward(self, granule: int) -> AddrRange:
        """Return the smallest range of whole granules around."""
        check_granule(granule)
        return AddrRange(self.start & -granule, self.last | (granule - 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AddrRange):
            return NotImplemented
        return self.start == other.start and self.last == other.last

    def __hash__(self) -> int:
        return hash((self.start, self.last))

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.last:#x}"

    def __repr__(self) -> str:
        return f"AddrRange({self.start:#x}, {self.last:#x})"


_start = attrgetter("start")
_ends = attrgetter("start", "last")  # sorts as the ranges do, without a call for each pair

_SHOWN = 4  # of a collection, in its repr

_BISECTS = 32  # a step of a walk is that much cheaper than a search, about


def _whole(ranges: Iterable[AddrRange], granule: int) -> list[AddrRange]:
    """Cut ranges to whole granules; those without one go."""
    cut = [((item.start + granule - 1) & -granule, (item.last + 1) & -granule) for item in ranges]
    return [AddrRange(start, stop - 1) for start, stop in cut if start < stop]


def _merge(ranges: Iterable[AddrRange]) -> tuple[AddrRange, ...]:
    """Sort, and join what overlaps or touches."""
    merged: list[AddrRange] = []
    for item in sorted(ranges, key=_ends):
        if merged and item.start <= merged[-1].last + 1:
            merged[-1] = AddrRange(merged[-1].start, max(item.last, merged[-1].last))
        else:
            merged.append(item)
    return tuple(merged)


class _Ranges:
    """What both collections share: an ascending tuple of disjoint ranges, and how to look in."""

    __slots__ = ("_ranges",)
    _ranges: tuple[AddrRange, ...]

    def __iter__(self) -> Iterator[AddrRange]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    @overload
    def __getitem__(self, index: int) -> AddrRange: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AddrRange, ...]: ...
    def __getitem__(self, index: int | slice) -> AddrRange | tuple[AddrRange, ...]:
        return self._ranges[index]

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash((type(self), self._ranges))

    def __repr__(self) -> str:
        shown = [str(item) for item in self._ranges[:_SHOWN]]
        more = len(self._ranges) - len(shown)
        shown += [f"and {more} more"] if more else []
        return f"{type(self).__name__}([{', '.join(shown)}])"

    @property
    def size(self) -> int:
        """Bytes in all, 0 to 2^64."""
        return sum(item.size for item in self._ranges)

    @property
    def hull(self) -> AddrRange | None:
        """From the lowest to the highest address, or None when empty."""
        return AddrRange(self._ranges[0].start, self._ranges[-1].last) if self._ranges else None

    def range_at(self, address: int) -> AddrRange | None:
        """Return the range that holds `address`, or None. O(log n)."""
        index = bisect_right(self._ranges, address, key=_start) - 1
        if index >= 0 and address <= self._ranges[index].last:
            return self._ranges[index]
        return None

    def overlapping(self, window: AddrRange) -> tuple[AddrRange, ...]:
        """Return the ranges that share an address with `window`, uncut, ascending. O(log n + k)."""
        index = bisect_right(self._ranges, window.start, key=_start) - 1
        index = index if index >= 0 and self._ranges[index].last >= window.start else index + 1
        last = bisect_right(self._ranges, window.last, key=_start)
        return self._ranges[index:last]

    def __contains__(self, other: object) -> bool:
        """Tell whether an address, or the whole of a range, lies inside ONE of the ranges."""
        if isinstance(other, AddrRange):
            home = self.range_at(other.start)
            return home is not None and other.last <= home.last
        return isinstance(other, int) and self.range_at(other) is not None


class RangeSet(_Ranges):
    """An immutable set of 64-bit addresses, kept as the fewest ascending ranges.

    `|` is union, `&` intersection, `-` difference, `^` symmetric difference, `~` complement over
    0..2^64-1, `<=` subset; `in` takes an address or an `AddrRange`. Iteration yields the ranges.

    Args:
        ranges: any order, may overlap or touch: they are joined.

    Complexity: building O(n log n); operators O(n + m), and O(n log m) where n is much
    the smaller; `<=` and `isdisjoint` O(n log m); `in` O(log n).
    Synchronization: none required (immutable).
    """

    __slots__ = ()

    def __init__(self, ranges: Iterable[AddrRange] = ()) -> None:
        self._ranges = _merge(ranges)

    @classmethod
    def _of(cls, ascending: Iterable[AddrRange]) -> RangeSet:
        """Wrap ranges known to be ascending, disjoint and not touching."""
        wrapped = cls.__new__(cls)
        wrapped._ranges = tuple(ascending)
        return wrapped

    @classmethod
    def everything(cls) -> RangeSet:
        """Return the whole space, 0..2^64-1."""
        return cls._of((AddrRange(0, ADDRESS_LAST),))

    def __or__(self, other: RangeSet) -> RangeSet:
        return RangeSet((*self._ranges, *_set_of(other)))

    def __and__(self, other: RangeSet) -> RangeSet:
        return RangeSet._of(_intersect(self._ranges, _set_of(other)))

    def __invert__(self) -> RangeSet:
        gaps, start = [], 0
        for item in self._ranges:
            if start < item.start:
                gaps.append(AddrRange(start, item.start - 1))
            start = item.last + 1
        if start <= ADDRESS_LAST:
            gaps.append(AddrRange(start, ADDRESS_LAST))
        return RangeSet._of(gaps)

    def __sub__(self, other: RangeSet) -> RangeSet:
        return self & ~RangeSet._of(_set_of(other))

    def __xor__(self, other: RangeSet) -> RangeSet:
        return (self - other) | (other - self)

    def __le__(self, other: RangeSet) -> bool:
        _set_of(other)
        return all(item in other for item in self._ranges)

    def __ge__(self, other: RangeSet) -> bool:
        return other <= self

    def isdisjoint(self, other: RangeSet) -> bool:
        """Tell whether the two share no address."""
        few, many = sorted((self._ranges, _set_of(other)), key=len)
        whole = RangeSet._of(many)
        return not any(whole.overlapping(item) for item in few)

    def complement(self, within: AddrRange | None = None) -> RangeSet:
        """Return what is not in the set, of the whole space or of `within`."""
        outside = ~self
        return outside if within is None else outside & RangeSet._of((within,))

    def align_inward(self, granule: int) -> RangeSet:
        """Keep only whole granules: what may be mapped with that granule.

        Args:
            granule: bytes, a power of two.

        Raises:
            RequestError: it is not one.
        """
        return RangeSet._of(_whole(self._ranges, check_granule(granule)))

    def align_outward(self, granule: int) -> RangeSet:
        """Widen to whole granules: what a hole costs with that granule."""
        return RangeSet(item.align_outward(granule) for item in self._ranges)


class MappableRanges(_Ranges):
    """Ascending disjoint ranges, each a place for one mapping; touching neighbours stay two.

    `in` answers the kernel's question: does this range fit inside ONE of them?

    Args:
        ranges: any order, disjoint.

    Raises:
        RequestError: two of them overlap.

    Complexity: building O(n log n); `in` O(log n).
    Synchronization: none required (immutable).
    """

    __slots__ = ()

    def __init__(self, ranges: Iterable[AddrRange] = ()) -> None:
        self._ranges = tuple(sorted(ranges, key=_ends))
        for below, above in pairwise(self._ranges):
            if above.start <= below.last:
                raise RequestError(
                    f"the ranges {below} and {above} overlap", field="ranges", value=above
                )

    @property
    def seams(self) -> tuple[int, ...]:
        """First address of each range that touches the one below it, ascending."""
        return tuple(
            above.start for below, above in pairwise(self._ranges) if above.start == below.last + 1
        )

    def split_at(self, address: int) -> MappableRanges:
        """Put a seam before `address`, if it lies inside one of the ranges."""
        home = self.range_at(address)
        if home is None or home.start == address:
            return self
        halves = (AddrRange(home.start, address - 1), AddrRange(address, home.last))
        return MappableRanges((*(item for item in self._ranges if item is not home), *halves))

    def as_set(self) -> RangeSet:
        """Return the addresses, with the seams forgotten."""
        return RangeSet(self._ranges)

    def __and__(self, other: RangeSet | MappableRanges) -> MappableRanges:
        """Cut to what `other` has too; the seams of both stay."""
        return MappableRanges(_intersect(self._ranges, tuple(other)))

    def __sub__(self, other: RangeSet) -> MappableRanges:
        return self & ~other

    def align_inward(self, granule: int) -> MappableRanges:
        """Keep only whole granules of each range; one that has none goes."""
        return MappableRanges(_whole(self._ranges, check_granule(granule)))


def _set_of(other: RangeSet) -> tuple[AddrRange, ...]:
    if not isinstance(other, RangeSet):
        raise TypeError(
            f"a RangeSet combines with a RangeSet, not with {type(other).__name__}; "
            "MappableRanges.as_set() forgets the seams"
        )
    return other._ranges


def _intersect(ours: tuple[AddrRange, ...], theirs: tuple[AddrRange, ...]) -> Iterator[AddrRange]:
    """Walk two ascending disjoint sequences and yield what they share, ascending.

    O(n + m), and O(k log m) for k of one against many of the other.
    """
    few, many = sorted((ours, theirs), key=len)
    if len(few) * _BISECTS < len(many):
        whole = RangeSet._of(many)
        for item in few:
            for met in whole.overlapping(item):
                yield AddrRange(max(item.start, met.start), min(item.last, met.last))
        return
    i = j = 0
    while i < len(ours) and j < len(theirs):
        shared = ours[i].intersect(theirs[j])
        if shared is not None:
            yield shared
        if ours[i].last < theirs[j].last:
            i += 1
        else:
            j += 1
