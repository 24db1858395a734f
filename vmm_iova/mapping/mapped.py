# SPDX-License-Identifier: Apache-2.0
"""Mapping a list of pieces: all, or none; and taking them back in reverse."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

from vmm_iova.errors import DmaError, MappingError, PrecheckError, RequestError, UndoError
from vmm_iova.kernel.book import caller
from vmm_iova.mapping.precheck import precheck
from vmm_iova.ranges import ADDRESS_LAST, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_iova.kernel.space import AddressSpace
    from vmm_iova.mapping.piece import Piece
    from vmm_iova.mapping.precheck import Judge
    from vmm_iova.ranges import AddrRange

    Left = list[tuple[AddrRange, object, BaseException]]


CHUNK_BYTES = 256 * MIB
"""Bytes that are mapped in one entry to C; a larger piece is one chunk."""

CHUNK_PIECES = 512
"""Pieces that are mapped in one entry to C."""


class Mapped:
    """Pieces that are mapped; leaving `with`, or `unmap`, takes them back.

    Attributes:
        pieces: what is mapped, in the order of mapping.

    Synchronization: external.
    """

    def __init__(self, space: AddressSpace, pieces: Sequence[Piece]) -> None:
        self._space = space
        self.pieces = tuple(pieces)
        self._place = "{}:{}".format(*caller())

    def __repr__(self) -> str:
        total = sum(piece.size for piece in self.pieces)
        return f"<Mapped {len(self.pieces)} pieces of {total:#x} bytes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.unmap()

    def __del__(self) -> None:
        # The address space warns, too, when it is dropped; this says it as soon as it is certain.
        if getattr(self, "pieces", ()) and any(p.iova in self._space.live for p in self.pieces):
            warnings.warn(
                f"{len(self.pieces)} mapping(s) made at {self._place} were dropped without unmap()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def unmap(self) -> None:
        """Take all pieces back in reverse, verifying each size. Idempotent.

        One that cannot be taken back is named and left: `unmap_all` of the space is the next step.

        Raises:
            UndoError: some are still there; it names them, and all others are gone.
        """
        count, rest = len(self.pieces), list(self.pieces)
        left: Left = []
        try:
            while rest:
                left += _take_back(self._space, rest[-1:])
                del rest[-1]
        finally:
            # After an interrupt the rest is still ours, and can be taken back by another call.
            self.pieces = tuple(rest)
        if left:
            raise UndoError(f"{len(left)} of {count} mappings could not be undone", left=left)


def map_pieces(
    space: AddressSpace,
    pieces: Iterable[Piece],
    *,
    usable: Judge | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Mapped:
    """Map every piece, or none.

    What the kernel would refuse is found before the first ioctl. When it refuses all the same, or
    `progress` raises, or Ctrl-C comes, what was mapped is taken back in reverse, each size is
    verified, and what could not be taken back is named.

    Args:
        space: where; attach all devices before, since each can narrow it.
        pieces: what; their memory must stay until they are unmapped.
        usable: the host's judge, for causes.
        check: look before the first ioctl; the kernel checks in any case.
        progress: called with bytes done and bytes in all, after each chunk (see `CHUNK_BYTES`).

    Returns:
        The mapped pieces; use it in `with`.

    Raises:
        PrecheckError: nothing was tried; carries every problem.
        MappingError: the kernel refused one piece; carries which, and what is left (nothing,
            unless the undo was refused as well).
        EvidenceError: nothing says which addresses are valid.

    Complexity: one ioctl a piece; the check is O(n log n).
    Synchronization: external.
    """
    wanted = tuple(pieces)
    if check:
        problems = precheck(space, wanted, usable=usable)
        if problems:
            raise PrecheckError(
                f"{len(problems)} problem(s) with {len(wanted)} pieces; nothing was mapped",
                problems=problems,
            )
    for piece in wanted:
        if not _sound(piece):
            raise RequestError(
                f"{piece} does not lie within 64 bits", field="pieces", value=piece.iova
            )
    total = sum(piece.size for piece in wanted)
    before = [item.range for piece in wanted for item in space.live.overlapping(piece.range)]
    done = bytes_done = 0
    # What an interrupt may have left noted in the book, and not yet counted here.
    in_doubt: Sequence[Piece] = ()
    try:
        for chunk in _chunks(wanted):
            in_doubt = chunk
            count, refused = space.map_many(chunk)
            done += count
            in_doubt = ()
            bytes_done += sum(piece.size for piece in chunk[:count])
            if refused is not None:
                raise refused
            if progress is not None:
                progress(bytes_done, total)
        return Mapped(space, wanted)
    except BaseException as exc:
        try:
            left = _undo(space, wanted[:done], in_doubt, before)
        except BaseException:
            # Ctrl-C meanwhile: once more from the start, what is gone is gone.
            _undo(space, wanted[:done], in_doubt, before)
            raise
        if isinstance(exc, DmaError):
            piece = wanted[done]
            raise MappingError(
                f"{piece}, number {done + 1} of {len(wanted)}: {exc.message}",
                errno=exc.errno or 0,
                ioctl=exc.ioctl,
                index=done,
                tag=piece.tag,
                left=left,
                iova=piece.iova,
                length=piece.size,
                hva=piece.hva,
                hint=exc.hint,
            ) from exc
        for where, tag, why in left:
            exc.add_note(f"still mapped: {where} ({tag}): {why}")
        raise


def _undo(
    space: AddressSpace,
    done: Sequence[Piece],
    in_doubt: Sequence[Piece],
    before: Sequence[AddrRange],
) -> Left:
    """Unmap what was mapped of a list; return what could not be."""
    # What was there before is not ours: the kernel has refused to map over it.
    noted = [
        piece
        for piece in in_doubt
        if piece.iova in space.live and not any(piece.range.overlaps(item) for item in before)
    ]
    return _take_back(space, [*done, *noted])


def _sound(piece: Piece) -> bool:
    """Tell whether a piece can be written into the kernel's structure at all."""
    last = ADDRESS_LAST + 1 - piece.size
    return 0 < piece.size <= ADDRESS_LAST and 0 <= piece.iova <= last and 0 <= piece.hva <= last


def _chunks(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Cut a list so that no chunk takes long: Ctrl-C and progress wait for the end of one."""
    start = size = 0
    for index, piece in enumerate(pieces):
        if index > start and (size + piece.size > CHUNK_BYTES or index - start >= CHUNK_PIECES):
            yield pieces[start:index]
            start, size = index, 0
        size += piece.size
    if start < len(pieces):
        yield pieces[start:]


def _take_back(space: AddressSpace, pieces: Sequence[Piece]) -> Left:
    """Unmap in reverse; return what could not be. What is gone already is well."""
    left: Left = []
    for piece in reversed(pieces):
        if not space.live.overlapping(piece.range):
            continue
        try:
            space.unmap(piece.iova, piece.size)
        except Exception as exc:
            left.append((piece.range, piece.tag, exc))
    return left
