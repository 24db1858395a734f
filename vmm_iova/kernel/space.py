# SPDX-License-Identifier: Apache-2.0
"""What a type1 container, an IOAS and their simulation have in common: an address space.

`AddressSpace` is all that `mapping` needs to know; what each has mapped stands in `kernel.book`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self, TypeVar

from vmm_iova.errors import (
    DmaError,
    PartialUnmapError,
    RangeOverflowError,
    RequestError,
)
from vmm_iova.kernel.syscalls import _ioctl
from vmm_iova.ranges import ADDRESS_LAST, GIB, Hva, Iova, MappableRanges
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.kernel.book import LiveMappings, Mappable, Spot
    from vmm_iova.kernel.registers import Device
    from vmm_iova.kernel.syscalls import Kernel, LockBudget


_LARGEST_IN_USE = GIB  # VT-d, AMD-Vi and SMMUv3 with 4 KiB pages; congruence costs nothing


@record
class SpaceFacts:
    """What the kernel says of an address space, after the devices that are attached now.

    Attributes:
        ranges: where mappings may lie, each inside ONE of them; or None: the kernel does not say.
        granule: bytes; IOVA, HVA and size of a mapping are multiples of it.
        page_sizes: bitmap of the IOMMU's page sizes; with iommufd, which does not tell, the granule
            and 0 for the rest.
        entries_left: map calls that can still be made, or None: no limit, or not told.
        source: the call that told.
        final: whether attaching the devices that are attached now can change nothing any more;
            a fresh IOAS says "everything" and means nothing.
    """

    ranges: MappableRanges | None
    granule: int
    page_sizes: int
    entries_left: int | None
    source: str
    final: bool

    @property
    def largest_page(self) -> int:
        """The largest page that the IOMMU may use, bytes: 1 GiB where nothing tells (iommufd)."""
        return 1 << self.page_sizes.bit_length() - 1 if self.page_sizes else _LARGEST_IN_USE


try:
    from vmm_iova.kernel._ioctl import Direct as Direct
except ImportError:  # not compiled

    class Direct:  # type: ignore[no-redef]
        """Where C makes no calls."""


class Calls(Direct):
    """Map and unmap calls of both kinds of address space: their names, and what is refused.

    Where C was compiled, its `map` and `unmap` come first; see `calls_in_c`.
    """

    _map_name: ClassVar[str]
    _map_hints: ClassVar[dict[int, str]]
    _unmap_name: ClassVar[str]

    def _map_refused(self, iova: Iova | None, hva: Hva, size: int, number: int) -> DmaError:
        """Make the error of a map call; no IOVA is "anywhere"."""
        where = "anywhere" if iova is None else f"to {iova:#x}"
        why = os.strerror(number)
        refusal = DmaError(
            f"the kernel does not map {size:#x} bytes at {hva:#x} {where}: {why}",
            errno=number,
            ioctl=self._map_name,
            iova=iova,
            length=size,
            hva=hva,
            hint=self._map_hints.get(number),
        )
        refusal.__cause__ = OSError(number, why)
        return refusal

    def _unmap_refused(self, iova: Iova, size: int, number: int) -> DmaError:
        """Make the error of an unmap call."""
        why = os.strerror(number)
        refusal = DmaError(
            f"the kernel does not unmap {size:#x} bytes at {iova:#x}: {why}",
            errno=number,
            ioctl=self._unmap_name,
            iova=iova,
            length=size,
        )
        refusal.__cause__ = OSError(number, why)
        return refusal

    def _whole(self, iova: Iova, size: int, unmapped: int) -> int:
        """Make sure that as much was unmapped as was to be; return it."""
        if unmapped != size:
            raise PartialUnmapError(
                f"{self._unmap_name} at {iova:#x} removed {unmapped:#x} bytes instead of {size:#x}",
                errno=0,
                ioctl=self._unmap_name,
                iova=iova,
                length=size,
                unmapped=unmapped,
                hint="something else maps in this address space; unmap_all makes it empty",
            )
        return unmapped


_C = TypeVar("_C", bound=type[Calls])


def calls_in_c(cls: _C) -> _C:
    """Let C's `map` and `unmap` come before those of a class, which serve for all that C leaves."""
    if _ioctl is not None:
        for name in ("map", "unmap"):
            setattr(cls, f"_plain_{name}", getattr(cls, name))
            delattr(cls, name)
    return cls


class Doubtful(NamedTuple):
    """One mapping of which an interrupt makes it doubtful whether it is there."""

    iova: Iova
    hva: Hva
    size: int
    read: bool
    write: bool


class AddressSpace(Protocol):
    """An I/O address space: where devices see memory of this process.

    Synchronization: external.
    """

    kind: SpaceKind
    live: LiveMappings

    def facts(self) -> SpaceFacts:
        """Ask the kernel; the answer can change with every attach."""

    def map(
        self, iova: Iova, hva: Hva, size: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Map `size` bytes of this process at `iova`, or raise DmaError and leave nothing."""

    def map_many(self, pieces: Sequence[Mappable]) -> tuple[int, DmaError | None]:
        """Map in the order given until one is refused; return how many are mapped, and why."""

    def unmap(self, iova: Iova, size: int) -> int:
        """Unmap exactly one mapping; return its bytes. Raise PartialUnmapError if not so many."""

    def unmap_range(self, iova: Iova, size: int) -> int:
        """Make the bare call, whatever `live` says; return the bytes that the kernel removed."""

    def unmap_all(self) -> int:
        """Unmap everything; return the bytes."""

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock."""

    @property
    def kernel(self) -> Kernel:
        """Where the calls go."""

    def device_fd(self, bdf: str) -> int:
        """Return the descriptor of an attached device.

        Raises UnknownNameError if it is not attached, ClosedError when the space is closed.
        """

    def device(self, bdf: str) -> Device:
        """Return an attached device with its registers and interrupts; raises as `device_fd`."""

    def __enter__(self) -> Self:
        """Return this; leaving closes."""

    def __exit__(self, *exc: object) -> None:
        """Close, also when the body raised."""

    def close(self) -> None:
        """Close devices, mappings and files, in this order. Idempotent."""


def no_number(**values: object) -> RequestError:
    """Make the error for what no field of 64 bits can take; struct does not say which it was."""
    field, value = next(
        (
            (field, value)
            for field, value in values.items()
            if not isinstance(value, int) or not 0 <= value <= ADDRESS_LAST
        ),
        ("pieces", values),
    )
    if not isinstance(value, int):
        return RequestError(f"{field} {value!r} is not a number", field=field, value=value)
    return RangeOverflowError(
        f"{field} {value:#x} is outside of 0 to 2^64-1", field=field, value=value
    )


def no_numbers(pieces: Sequence[Mappable]) -> RequestError:
    """Make that error for the first of many pieces that has it."""
    errors = (no_number(iova=item.iova, hva=item.hva, size=item.size) for item in pieces)
    return next((error for error in errors if error.field != "pieces"), no_number())


def undo_doubtful(space: AddressSpace, pieces: Sequence[Mappable], place: Spot) -> None:
    """Unmap in reverse what an interrupted map call with this place has mapped, noted or not.

    What the kernel refuses stays, noted or not: an interrupt is on its way, and has the word.
    """
    ours = [item for item in pieces if space.live.none_but(place, item.iova, item.size)]
    for item in reversed(ours):
        with contextlib.suppress(DmaError):
            make_sure_unmapped(space, item.iova, item.size)


def make_sure_unmapped(space: AddressSpace, iova: Iova, size: int) -> None:
    """Unmap what may or may not be mapped: an interrupt came before the book was written.

    Raises:
        DmaError: the kernel refused; ENOENT, iommufd's word for "nothing there", is no refusal.
    """
    try:
        space.unmap_range(iova, size)
    except DmaError as exc:
        if exc.errno != errno.ENOENT:
            raise
    space.live.discard(iova)


def unmap_exactly(space: AddressSpace, iova: Iova, size: int) -> int:
    """Unmap one whole mapping; return the bytes that the kernel removed.

    Raises:
        NotAllocatedError: `size` bytes at `iova` are not one mapping; nothing was done.
        DmaError: the kernel refused.
    """
    space.live.demand(iova, size)
    try:
        unmapped = space.unmap_range(iova, size)
        space.live.discard(iova)
    except DmaError:
        raise
    except BaseException:
        # An interrupt: whether before the call or after it, it is brought to its end.
        with contextlib.suppress(DmaError):
            make_sure_unmapped(space, iova, size)
        raise
    return unmapped


def empty(space: AddressSpace, unmap_everything: Callable[[], int]) -> int:
    """Unmap everything, and forget it; return the bytes.

    Raises:
        DmaError: the kernel refused; nothing is forgotten.
    """
    try:
        total = unmap_everything()
        space.live.clear()
    except DmaError:
        raise
    except BaseException:
        with contextlib.suppress(DmaError):
            unmap_everything()
            space.live.clear()
        raise
    return total
