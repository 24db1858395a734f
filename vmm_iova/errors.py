# SPDX-License-Identifier: Apache-2.0
"""Every exception of the package, with its facts and its exit code.

An error is one sentence for people, attributes for programs, and a `hint` for the next step. What
the kernel refused stays an `OSError` with its errno. All errors pickle, because planners run in
worker processes. The table of exit codes is `EXIT_CODES`; the command line documents it.

The classes are declared: an annotation is a fact, given by its name to the constructor and kept as
an attribute; one with a value may be left out. Every error takes `detail` and `hint` as well.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.ranges import AddrRange, Hva, Iova


class ExitCode(IntEnum):
    """An exit status of `vmm-iova`, with what it means."""

    meaning: str

    DONE = 0, "done; the answer is yes"
    UNASSIGNABLE = (
        1,
        "done, but not on the host as it is: the guest does not start there, or current kernels "
        "will not hand out a device that was asked for",
    )
    USAGE = 2, "the command line or a value in it makes no sense"
    REFUSED = 3, "the answer is no: it cannot be placed or mapped, and the text says why"
    UNKNOWN_NAME = 4, "no such group, device, machine, bundled host or allocation"
    DAMAGED = 5, "a source (file, text, snapshot) is malformed; of a fleet, the others fit"
    UNAVAILABLE = 6, "a source is missing or may not be read"
    KERNEL = 7, "the kernel refused"
    ENGINE = 8, "the engine that was asked for is not available"
    UNSETTLED = 9, "the facts do not settle it: no evidence for the aperture, or only likely causes"
    DEFECT = 70, "a defect of this program"

    def __new__(cls, number: int, meaning: str) -> Self:  # noqa: D102
        code = int.__new__(cls, number)
        code._value_ = number
        code.meaning = meaning
        return code


EXIT_CODES: dict[int, str] = {code: code.meaning for code in ExitCode}
"""What each exit status of `vmm-iova` means."""

NameKind = Literal["group", "device", "machine", "host", "fleet"]
LimitName = Literal["dma_entry_limit", "RLIMIT_MEMLOCK"]
OpenProblem = Literal[
    "absent",
    "no-iommu",
    "wrong-driver",
    "no-node",
    "unreadable",
    "busy",
    "unsafe-interrupts",
    "direct-region",
    "not-viable",
    "refused",
]

_REQUIRED = object()


def _fact(*, kw_only: bool) -> Any:
    """Mark a fact that is not given by its name; type checkers read this, nothing else does."""
    return _REQUIRED


def _restore(cls: type[IovaError], args: tuple[Any, ...], facts: dict[str, Any]) -> IovaError:
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in facts.items():
        setattr(error, name, value)
    return error


# PERF: a dataclass would compile five methods a class when it is imported, 0.6 ms each. The
# annotations are read instead, and type checkers make the same constructor of them.
@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(_fact,))
class _Declared(Exception):  # noqa: N818 - the root of errors, no error by itself
    """Makes the constructor of a class from its annotations."""

    _facts: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        named = [name for name, kind in cls.__annotations__.items() if "ClassVar" not in str(kind)]
        cls._facts = {
            name: cls.__dict__.get(name, cls._facts.get(name, _REQUIRED))
            for name in dict.fromkeys((*cls._facts, *named))
        }

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        given = {"message": message, **facts}
        for name, default in self._facts.items():
            value = given.pop(name, default)
            if value is _REQUIRED:
                raise TypeError(f"{type(self).__name__} is not raised without {name}=")
            # What an error carries does not change under its reader.
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        if given:
            raise TypeError(f"{type(self).__name__} has no {', '.join(given)}")
        self._complete()

    def _complete(self) -> None:
        """Word what follows from the facts."""


class IovaError(_Declared):
    """Root of every error of this package; never raised itself.

    Attributes:
        message: one sentence, facts in hex.
        detail: further facts, or None.
        hint: what to do next, or None.
        exit_code: exit status that the command line gives for it (see `EXIT_CODES`).
    """

    exit_code: ClassVar[ExitCode] = ExitCode.DEFECT
    message: str = _fact(kw_only=False)
    detail: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        more = (("detail", self.detail), ("hint", self.hint))
        return "\n".join([self.message, *(f"{label}: {text}" for label, text in more if text)])

    def __reduce__(self) -> tuple[Any, ...]:
        # Default pickling calls cls(*args), which facts by name do not survive; and of an OSError
        # errno and strerror lie in slots that __dict__ does not show.
        slots = {name: getattr(self, name) for name in ("errno", "strerror") if hasattr(self, name)}
        return _restore, (type(self), self.args, {**self.__dict__, **slots})


class RequestError(IovaError, ValueError):
    """A size, alignment, range or option makes no sense on any host.

    Attributes:
        field: name of the argument.
        value: what was given.
    """

    exit_code = ExitCode.USAGE
    field: str
    value: object


class RangeOverflowError(RequestError):
    """A range or an alignment reaches beyond 2^64-1."""


class MisalignedError(RequestError):
    """A size or an address is not a multiple of the granule or of the alignment asked for.

    Attributes:
        align: bytes that the value should be a multiple of.
    """

    align: int


class SizeMismatchError(RequestError):
    """A release names a size that the allocation does not have; nothing was released.

    Attributes:
        range: the allocation as it stands.
    """

    field: str = "size"
    range: AddrRange


class PlacementError(IovaError):
    """Root of "it cannot be put there"."""

    exit_code = ExitCode.REFUSED


class ApertureError(PlacementError):
    """A range lies, wholly or in part, outside of what the IOMMU can translate.

    Attributes:
        range: what was asked for.
        limit: last usable address below the offending part, or None when there is none.
    """

    range: AddrRange
    limit: int | None


class ReservedError(PlacementError):
    """A range touches a reserved region.

    Attributes:
        range: what was asked for.
        region: the reserved region in the way.
        cause: where the region was read, as text.
    """

    range: AddrRange
    region: AddrRange
    cause: str


class StraddleError(PlacementError):
    """A range crosses the seam between two touching ranges of the kernel's list.

    Attributes:
        range: what was asked for.
        seam: first address of the upper range.
    """

    range: AddrRange
    seam: int

    def _complete(self) -> None:
        self.hint = self.hint or f"map it in two pieces, cut at {self.seam:#x}"


class OccupiedError(PlacementError):
    """A range overlaps an allocation.

    Attributes:
        range: what was asked for.
        owner: the tag of the lowest allocation in the way (None when it has none).
        owner_range: that allocation.
    """

    range: AddrRange
    owner: object
    owner_range: AddrRange


class NoSpaceError(PlacementError):
    """No free span satisfies the request.

    Attributes:
        size: bytes asked for.
        align: alignment asked for, bytes.
        largest_free: the largest free span (within the window asked for), or None.
        largest_aligned: bytes that could be had at that alignment and place; 0 when none.
        total_free: bytes free in all (within the window asked for).
    """

    size: int
    align: int
    largest_free: AddrRange | None
    largest_aligned: int
    total_free: int


class NarrowError(PlacementError):
    """New usable ranges do not cover every live allocation; nothing was changed.

    Attributes:
        conflicts: the allocations in the way, ascending, each `(range, tag)`.
    """

    conflicts: Sequence[tuple[AddrRange, object]]


class PlanError(PlacementError):
    """No layout satisfies the guest on this host.

    Attributes:
        reasons: every reason that was found, the one to cure first at the front.
        fixes: things that can be done, the most promising first.
    """

    reasons: Sequence[object] = ()
    fixes: Sequence[str] = ()

    def _complete(self) -> None:
        self.hint = self.hint or "; or ".join(self.fixes) or None


class NotAllocatedError(IovaError, LookupError):
    """Nothing is allocated at that address.

    Attributes:
        address: what was given.
    """

    exit_code = ExitCode.UNKNOWN_NAME
    address: int


class UnknownNameError(IovaError, LookupError):
    """No group, device, machine or bundled host has that name.

    Attributes:
        kind: what was looked for.
        name: the name given.
        known: names that exist, sorted.
    """

    exit_code = ExitCode.UNKNOWN_NAME
    kind: NameKind
    name: str
    known: Sequence[str]


class EvidenceError(IovaError):
    """The facts at hand do not say what may be mapped, and guessing is not done.

    Attributes:
        looked_at: what was looked at, in order, and what it said.
        settles: what would settle it.
    """

    exit_code = ExitCode.UNSETTLED
    looked_at: Sequence[str]
    settles: Sequence[str]

    def _complete(self) -> None:
        if self.looked_at:
            self.detail = "looked at: " + "; ".join(self.looked_at)
        if self.settles:
            self.hint = "give one of: " + "; ".join(self.settles)


class HostDataError(IovaError, ValueError):
    """A source of host facts is malformed.

    Attributes:
        source: file name or what the text is.
        line: line number from 1, or None.
        text: the offending text, shortened.
    """

    exit_code = ExitCode.DAMAGED
    source: str
    line: int | None = None
    text: str | None = None


class HostUnavailableError(IovaError):
    """A source of host facts is absent or may not be read.

    Attributes:
        source: path or name.
        errno: errno of the failed call, or None.
    """

    exit_code = ExitCode.UNAVAILABLE
    source: str
    errno: int | None = None


class EngineError(IovaError, ImportError):
    """The engine that was asked for cannot be had.

    Attributes:
        engine: its name.
    """

    exit_code = ExitCode.ENGINE
    engine: str


class InvariantError(IovaError, AssertionError):
    """A truth of this package does not hold: a defect of ours, please report it."""


class DmaError(IovaError, OSError):
    """The kernel refused a call; `errno` is the kernel's own.

    Attributes:
        errno: what the kernel answered.
        ioctl: name of the request, or of the system call.
        iova: first IOVA that the call was about, or None.
        length: bytes that it was about, or None.
        hva: address of the memory in this process, or None.
    """

    exit_code = ExitCode.KERNEL
    errno: int
    ioctl: str
    iova: Iova | None = None
    length: int | None = None
    hva: Hva | None = None

    def _complete(self) -> None:
        self.strerror = os.strerror(self.errno)


class PartialUnmapError(DmaError):
    """The kernel unmapped another number of bytes than were mapped there.

    Attributes:
        unmapped: bytes that it says it removed.
    """

    unmapped: int


class DeviceOpenError(DmaError):
    """A device cannot be had, and `problem` says in one word why not.

    Attributes:
        bdf: the device.
        problem: why not.
        group: its IOMMU group, or None.
    """

    bdf: str
    problem: OpenProblem
    group: int | None = None


class CapabilityError(IovaError, ValueError):
    """An answer of the kernel contradicts its own description; it was not used.

    Attributes:
        offset: byte in the answer where the contradiction is.
    """

    exit_code = ExitCode.DAMAGED
    offset: int


class LimitError(PlacementError):
    """A limit of the host would be passed.

    Attributes:
        limit: its name.
        needed: the value that would do.
        available: what there is left.
    """

    limit: LimitName
    needed: int
    available: int


class PrecheckError(PlacementError):
    """A list of pieces cannot be mapped as it stands; no ioctl was made.

    Attributes:
        problems: every problem that was found, in the order of the pieces.
    """

    problems: Sequence[IovaError]

    def _complete(self) -> None:
        self.detail = "; ".join(item.message for item in self.problems)
        self.hint = next((item.hint for item in self.problems if item.hint), None)


class MappingError(DmaError):
    """The kernel refused one piece of a list; what was mapped of it was taken back.

    Attributes:
        index: which piece, from 0.
        tag: its tag.
        left: what could not be taken back, each `(range, tag, error)`; empty when nothing stayed.
    """

    index: int
    tag: object
    left: Sequence[tuple[AddrRange, object, BaseException]] = ()

    def _complete(self) -> None:
        super()._complete()
        self.detail = f"still mapped: {_listed(self.left)}" if self.left else self.detail


class UndoError(IovaError):
    """Mappings that should have gone are still there.

    Attributes:
        left: each `(range, tag, error)`.
    """

    exit_code = ExitCode.KERNEL
    left: Sequence[tuple[AddrRange, object, BaseException]]

    def _complete(self) -> None:
        self.detail = _listed(self.left)
        self.hint = "unmap_all on the address space, or closing it, removes them"


class ClosedError(IovaError, ValueError):
    """A closed container, address space or device was used."""


def _listed(left: Sequence[tuple[AddrRange, object, BaseException]]) -> str:
    return "; ".join(f"{where} ({tag}): {error}" for where, tag, error in left)
