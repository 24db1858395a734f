# SPDX-License-Identifier: Apache-2.0
"""Mapping a list of pieces: all, or none; and taking them back in reverse."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

from vmm_iova.errors import DmaError, MappingError, PrecheckError, UndoError
from vmm_iova.kernel.space import caller, make_sure_unmapped
from vmm_iova.mapping.precheck import precheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm_iova.kernel.space import AddressSpace
    from vmm_iova.mapping.piece import Piece
    from vmm_iova.mapping.precheck import Judge
    from vmm_iova.ranges import AddrRange

    Left = list[tuple[AddrRange, object, BaseException]]


class Mapped:
    """Pieces that are mapped; leaving `with`, or `unmap`, takes them back.

    Attributes:
        pieces: what is mapped, in the order of mapping.

    Synchronization: external.
    """

    def __init__(self, space: AddressSpace, pieces: Sequence[Piece]) -> None:
        self._space = space
        self.pieces = tuple(pieces)
        self._place = caller()

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

        Raises:
            UndoError: some are still there; it names them, and all others are gone.
        """
        pieces, self.pieces = self.pieces, ()
        left = _take_back(self._space, pieces)
        if left:
            raise UndoError(f"{len(left)} of {len(pieces)} mappings could not be undone", left=left)


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
        progress: called with bytes done and bytes in all, after each piece.

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
    total = sum(piece.size for piece in wanted)
    done: list[Piece] = []
    bytes_done = 0
    # What an interrupt may have left between the ioctl and our note of it.
    in_doubt: Piece | None = None
    try:
        for piece in wanted:
            in_doubt = piece
            space.map(piece.iova, piece.hva, piece.size, read=piece.read, write=piece.write)
            done.append(piece)
            in_doubt = None
            bytes_done += piece.size
            if progress is not None:
                progress(bytes_done, total)
        return Mapped(space, wanted)
    except DmaError as exc:
        left = _take_back(space, done)
        piece = wanted[len(done)]
        raise MappingError(
            f"{piece}, number {len(done) + 1} of {len(wanted)}: {exc.message}",
            errno=exc.errno or 0,
            ioctl=exc.ioctl,
            index=len(done),
            tag=piece.tag,
            left=left,
            iova=piece.iova,
            length=piece.size,
            hva=piece.hva,
            hint=exc.hint,
        ) from exc
    except BaseException as exc:
        left = []
        if in_doubt is not None:
            try:
                make_sure_unmapped(space, in_doubt.iova, in_doubt.size)
            except DmaError as refused:
                left.append((in_doubt.range, in_doubt.tag, refused))
        left += _take_back(space, [piece for piece in done if piece is not in_doubt])
        for where, tag, reason in left:
            exc.add_note(f"still mapped: {where} ({tag}): {reason}")
        raise


def _take_back(space: AddressSpace, pieces: Sequence[Piece]) -> Left:
    """Unmap in reverse; return what could not be."""
    left: Left = []
    for piece in reversed(pieces):
        try:
            space.unmap(piece.iova, piece.size)
        except Exception as exc:
            left.append((piece.range, piece.tag, exc))
    return left
