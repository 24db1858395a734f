# SPDX-License-Identifier: Apache-2.0
"""Every exception of the package, with its facts and its exit code.

An error is one sentence for people, attributes for programs, and a `hint` for the next step. What
the kernel refused stays an `OSError` with its errno. All errors pickle, because planners run in
worker processes. The table of exit codes is `EXIT_CODES`; the command line documents it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.ranges import AddrRange

EXIT_CODES: dict[int, str] = {
    0: "done; the answer is yes",
    1: "done, but current kernels will not hand out a device that was asked for",
    2: "the command line or a value in it makes no sense",
    3: "the answer is no: it cannot be placed or mapped, and the text says why",
    4: "no such group, device, machine, bundled host or allocation",
    5: "a source (file, text, snapshot) is malformed; of a fleet, the others fit",
    6: "a source is missing or may not be read",
    7: "the kernel refused",
    8: "the engine that was asked for is not available",
    9: "the facts do not settle it: no evidence for the aperture, or causes that are only likely",
    70: "a defect of this program",
}
"""What each exit status of `vmm-iova` means."""


def _restore(cls: type[IovaError], args: tuple[Any, ...], state: dict[str, Any]) -> IovaError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class IovaError(Exception):
    """Root of every error of this package; never raised itself.

    Attributes:
        message: one sentence, facts in hex.
        detail: further facts, or None.
        hint: what to do next, or None.
        exit_code: exit status that the command line gives for it (see `EXIT_CODES`).
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.detail:
            parts.append(f"detail: {self.detail}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Default pickling calls cls(*args), which keyword-only facts do not survive.
        return _restore, (type(self), self.args, self.__dict__.copy())


class RequestError(IovaError, ValueError):
    """A size, alignment, range or option makes no sense on any host.

    Attributes:
        field: name of the argument.
        value: what was given.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        field: str,
        value: object,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.field = field
        self.value = value


class RangeOverflowError(RequestError):
    """A range or an alignment reaches beyond 2^64-1."""


class MisalignedError(RequestError):
    """A size or an address is not a multiple of the granule or of the alignment asked for.

    Attributes:
        align: bytes that the value should be a multiple of.
    """

    def __init__(
        self, message: str, *, field: str, value: int, align: int, hint: str | None = None
    ) -> None:
        super().__init__(message, field=field, value=value, hint=hint)
        self.align = align


class SizeMismatchError(RequestError):
    """A release names a size that the allocation does not have; nothing was released.

    Attributes:
        range: the allocation as it stands.
    """

    def __init__(self, message: str, *, value: int, range: AddrRange) -> None:  # noqa: A002
        super().__init__(message, field="size", value=value)
        self.range = range


class PlacementError(IovaError):
    """Root of "it cannot be put there"."""

    exit_code = 3


class ApertureError(PlacementError):
    """A range lies, wholly or in part, outside of what the IOMMU can translate.

    Attributes:
        range: what was asked for.
        limit: last usable address below the offending part, or None when there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        range: AddrRange,  # noqa: A002
        limit: int | None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.range = range
        self.limit = limit


class ReservedError(PlacementError):
    """A range touches a reserved region.

    Attributes:
        range: what was asked for.
        region: the reserved region in the way.
        cause: where the region was read, as text.
    """

    def __init__(
        self,
        message: str,
        *,
        range: AddrRange,  # noqa: A002
        region: AddrRange,
        cause: str,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.range = range
        self.region = region
        self.cause = cause


class StraddleError(PlacementError):
    """A range crosses the seam between two touching ranges of the kernel's list.

    Attributes:
        range: what was asked for.
        seam: first address of the upper range.
    """

    def __init__(self, message: str, *, range: AddrRange, seam: int) -> None:  # noqa: A002
        super().__init__(message, hint=f"map it in two pieces, cut at {seam:#x}")
        self.range = range
        self.seam = seam


class OccupiedError(PlacementError):
    """A range overlaps an allocation.

    Attributes:
        range: what was asked for.
        owner: the tag of the lowest allocation in the way (None when it has none).
        owner_range: that allocation.
    """

    def __init__(
        self,
        message: str,
        *,
        range: AddrRange,  # noqa: A002
        owner: object,
        owner_range: AddrRange,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.range = range
        self.owner = owner
        self.owner_range = owner_range


class NoSpaceError(PlacementError):
    """No free span satisfies the request.

    Attributes:
        size: bytes asked for.
        align: alignment asked for, bytes.
        largest_free: the largest free span (within the window asked for), or None.
        largest_aligned: bytes that could be had at that alignment and place; 0 when none.
        total_free: bytes free in all (within the window asked for).
    """

    def __init__(
        self,
        message: str,
        *,
        size: int,
        align: int,
        largest_free: AddrRange | None,
        largest_aligned: int,
        total_free: int,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.size = size
        self.align = align
        self.largest_free = largest_free
        self.largest_aligned = largest_aligned
        self.total_free = total_free


class NarrowError(PlacementError):
    """New usable ranges do not cover every live allocation; nothing was changed.

    Attributes:
        conflicts: the allocations in the way, ascending, each `(range, tag)`.
    """

    def __init__(
        self,
        message: str,
        *,
        conflicts: Sequence[tuple[AddrRange, object]],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.conflicts = tuple(conflicts)


class PlanError(PlacementError):
    """No layout satisfies the guest on this host.

    Attributes:
        reasons: every reason that was found, the one to cure first at the front.
        fixes: things that can be done, the most promising first.
    """

    def __init__(
        self,
        message: str,
        *,
        reasons: Sequence[object] = (),
        fixes: Sequence[str] = (),
        detail: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint="; or ".join(fixes) or None)
        self.reasons = tuple(reasons)
        self.fixes = tuple(fixes)


class NotAllocatedError(IovaError, LookupError):
    """Nothing is allocated at that address.

    Attributes:
        address: what was given.
    """

    exit_code = 4

    def __init__(self, message: str, *, address: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.address = address


class UnknownNameError(IovaError, LookupError):
    """No group, device, machine or bundled host has that name.

    Attributes:
        kind: what was looked for ("group", "device", "machine", "host").
        name: the name given.
        known: names that exist, sorted.
    """

    exit_code = 4

    def __init__(
        self, message: str, *, kind: str, name: str, known: Sequence[str], hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.name = name
        self.known = tuple(known)


class EvidenceError(IovaError):
    """The facts at hand do not say what may be mapped, and guessing is not done.

    Attributes:
        looked_at: what was looked at, in order, and what it said.
        settles: what would settle it.
    """

    exit_code = 9

    def __init__(self, message: str, *, looked_at: Sequence[str], settles: Sequence[str]) -> None:
        super().__init__(
            message,
            detail="looked at: " + "; ".join(looked_at) if looked_at else None,
            hint="any of these settles it: " + "; ".join(settles) if settles else None,
        )
        self.looked_at = tuple(looked_at)
        self.settles = tuple(settles)


class HostDataError(IovaError, ValueError):
    """A source of host facts is malformed.

    Attributes:
        source: file name or what the text is.
        line: line number from 1, or None.
        text: the offending text, shortened.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        source: str,
        line: int | None = None,
        text: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.source = source
        self.line = line
        self.text = text


class HostUnavailableError(IovaError):
    """A source of host facts is absent or may not be read.

    Attributes:
        source: path or name.
        errno: errno of the failed call, or None.
    """

    exit_code = 6

    def __init__(
        self, message: str, *, source: str, errno: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.source = source
        self.errno = errno


class EngineError(IovaError, ImportError):
    """The engine that was asked for cannot be had.

    Attributes:
        engine: its name.
    """

    exit_code = 8

    def __init__(self, message: str, *, engine: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.engine = engine


class InvariantError(IovaError, AssertionError):
    """A truth of this package does not hold: a defect of ours, please report it."""

    exit_code = 70


def _restore_refusal(
    cls: type[DmaError], args: tuple[Any, ...], state: dict[str, Any], number: int
) -> DmaError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    error.errno, error.strerror = number, os.strerror(number)
    return error


class DmaError(IovaError, OSError):
    """The kernel refused a call; `errno` is the kernel's own.

    Attributes:
        errno: what the kernel answered.
        ioctl: name of the request, or of the system call.
        iova: first IOVA that the call was about, or None.
        length: bytes that it was about, or None.
        hva: address of the memory in this process, or None.
    """

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        ioctl: str,
        iova: int | None = None,
        length: int | None = None,
        hva: int | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.errno = errno
        self.strerror = os.strerror(errno)
        self.ioctl = ioctl
        self.iova = iova
        self.length = length
        self.hva = hva

    def __reduce__(self) -> tuple[Any, ...]:
        # errno lives in a slot of OSError, which __dict__ does not show.
        return _restore_refusal, (type(self), self.args, self.__dict__.copy(), self.errno)


class PartialUnmapError(DmaError):
    """The kernel unmapped another number of bytes than were mapped there.

    Attributes:
        unmapped: bytes that it says it removed.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        ioctl: str,
        unmapped: int,
        iova: int | None = None,
        length: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, errno=errno, ioctl=ioctl, iova=iova, length=length, hint=hint)
        self.unmapped = unmapped


class DeviceOpenError(DmaError):
    """A device cannot be had, and `problem` says in one word why not.

    Attributes:
        bdf: the device.
        problem: `absent`, `no-iommu`, `wrong-driver`, `no-node`, `unreadable`, `busy`,
            `unsafe-interrupts`, `direct-region`, `not-viable` or `refused`.
        group: its IOMMU group, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        bdf: str,
        problem: str,
        errno: int,
        ioctl: str,
        group: int | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, errno=errno, ioctl=ioctl, detail=detail, hint=hint)
        self.bdf = bdf
        self.problem = problem
        self.group = group


class CapabilityError(IovaError, ValueError):
    """An answer of the kernel contradicts its own description; it was not used.

    Attributes:
        offset: byte in the answer where the contradiction is.
    """

    exit_code = 5

    def __init__(self, message: str, *, offset: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class LimitError(PlacementError):
    """A limit of the host would be passed.

    Attributes:
        limit: its name, `dma_entry_limit` or `RLIMIT_MEMLOCK`.
        needed: the value that would do.
        available: what there is left.
    """

    def __init__(
        self, message: str, *, limit: str, needed: int, available: int, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.needed = needed
        self.available = available


class PrecheckError(PlacementError):
    """A list of pieces cannot be mapped as it stands; no ioctl was made.

    Attributes:
        problems: every problem that was found, in the order of the pieces.
    """

    def __init__(self, message: str, *, problems: Sequence[IovaError]) -> None:
        super().__init__(message, detail="; ".join(item.message for item in problems))
        self.problems = tuple(problems)
        hints = [item.hint for item in problems if item.hint]
        self.hint = hints[0] if hints else None


class MappingError(DmaError):
    """The kernel refused one piece of a list; what was mapped of it was taken back.

    Attributes:
        index: which piece, from 0.
        tag: its tag.
        left: what could not be taken back, each `(range, tag, error)`; empty when nothing stayed.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        ioctl: str,
        index: int,
        tag: object,
        left: Sequence[tuple[AddrRange, object, BaseException]] = (),
        iova: int | None = None,
        length: int | None = None,
        hva: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(
            message, errno=errno, ioctl=ioctl, iova=iova, length=length, hva=hva, hint=hint
        )
        self.index = index
        self.tag = tag
        self.left = tuple(left)
        if self.left:
            self.detail = "still mapped: " + "; ".join(
                f"{where} ({tag}): {error}" for where, tag, error in self.left
            )


class UndoError(IovaError):
    """Mappings that should have gone are still there.

    Attributes:
        left: each `(range, tag, error)`.
    """

    exit_code = 7

    def __init__(
        self, message: str, *, left: Sequence[tuple[AddrRange, object, BaseException]]
    ) -> None:
        super().__init__(
            message,
            detail="; ".join(f"{where} ({tag}): {error}" for where, tag, error in left),
            hint="unmap_all on the address space, or closing it, removes them",
        )
        self.left = tuple(left)


class ClosedError(IovaError, ValueError):
    """A closed container, address space or device was used."""

    exit_code = 70
