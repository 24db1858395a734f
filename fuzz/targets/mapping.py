# SPDX-License-Identifier: Apache-2.0
"""Mapping on the simulated kernel, with ioctls that fail: all or nothing, and no false book."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from fuzz.kit import Bytes
from vmm_iova.allocator import IovaAllocator
from vmm_iova.errors import IovaError
from vmm_iova.kernel.device import open_space
from vmm_iova.mapping import DynamicMaps, Piece, map_pieces
from vmm_iova.ranges import AddrRange, RangeSet
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LENGTH = 256
_NIC, _GPU = "0000:00:04.0", "0000:00:05.0"
_HVA = 0x7F00_0000_0000
_PAGE = 4096
_ERRNOS = (errno.EINVAL, errno.ENOMEM, errno.ENOSPC, errno.EEXIST, errno.EFAULT, errno.EINTR)
_WINDOW = RangeSet([AddrRange(0x10_0000, 0x1F_FFFF)])


class _InterruptError(BaseException):
    """As Ctrl-C in a callback."""


def one_input(data: bytes) -> None:
    """Map and unmap, with faults; at the end everything is gone, in every book."""
    source = Bytes(data)
    groups = [SimGroup(4, (_NIC,)), SimGroup(5, (_GPU,), aperture=AddrRange(0, (1 << 39) - 1))]
    kernel = SimulatedKernel(
        groups,
        release=((5, 10), (6, 1), (6, 8), (7, 3))[source.below(4)],
        dma_entry_limit=(3, 65535)[source.below(2)],
        memlock=(64 << 10, 1 << 40)[source.below(2)],
    )
    via: Any = ("type1", "iommufd")[source.below(2)]
    try:
        space = open_space([_NIC], kernel=kernel, via=via)
    except IovaError:
        return
    with space:
        held = _steps(space, kernel, source)
        kernel.faults.clear()
        for mapped in held:
            with contextlib.suppress(IovaError):
                mapped.unmap()
        space.unmap_all()
        assert not list(space.live)
    assert kernel.memory.locked == 0


def _steps(space: Any, kernel: SimulatedKernel, source: Bytes) -> list[Any]:
    maps = DynamicMaps(IovaAllocator(_WINDOW, granule=_PAGE), space)
    dynamic: list[int] = []
    held: list[Any] = []
    while source.left:
        kind = source.below(8)
        before = _mapped(space)
        faulty = kind == 0
        if faulty:
            kernel.inject(_ERRNOS[source.below(len(_ERRNOS))], after=source.below(4))
            continue
        pending = bool(kernel.faults)
        try:
            if kind < 4:
                held.append(map_pieces(space, _pieces(source), progress=_progress(source)))
            elif kind == 4 and held:
                held[source.below(len(held))].unmap()
            elif kind == 5:
                dynamic.append(maps.map_address(_HVA + _PAGE * source.below(64), _PAGE))
            elif kind == 6 and dynamic:
                maps.unmap(dynamic.pop(source.below(len(dynamic))))
            elif kind == 7:
                space.unmap_all()
        except (IovaError, _InterruptError):
            if kind < 4 and not pending:
                assert _mapped(space) == before, "half of it is mapped"
        assert len(maps) <= 256
    return held


def _progress(source: Bytes) -> Any:
    stop = source.below(8)

    def progress(done: int, total: int) -> None:
        assert 0 <= done <= total
        if stop == 1:
            raise _InterruptError

    return progress


def _mapped(space: Any) -> list[tuple[int, int]]:
    return sorted((item.range.start, item.range.size) for item in space.live)


def _pieces(source: Bytes) -> list[Piece]:
    pieces = []
    for _ in range(1 + source.below(4)):
        iova = source.number(1) * 0x8_0000 + (source.below(16) == 0)
        size = _PAGE * (1 + source.below(8)) - (source.below(32) == 0)
        pieces.append(Piece(iova, size, _HVA + iova))
    return pieces


def seeds() -> Iterator[bytes]:
    """Calls of every kind."""
    for number in range(64):
        yield bytes((number * 37 + step * step + step * number) % 256 for step in range(120))
