# SPDX-License-Identifier: Apache-2.0
"""Mapping on the simulated kernel, with refusals, falsified answers and Ctrl-C in the mix.

After every step the book of the space is what the kernel has mapped, the dynamic maps are what the
allocator has given out, and only the package's own errors came out. In the end everything is
closed, and nothing is open, mapped or locked.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import warnings
from itertools import count
from typing import TYPE_CHECKING

from fuzz.draw import Draw
from tests.kit.interrupts import Interrupter
from vmm_iova import AddrRange, Hva, Iova, IovaAllocator, RangeSet
from vmm_iova.errors import IovaError
from vmm_iova.kernel import Ioas, Type1Container, open_space, uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.mapping import DynamicMaps, Piece, map_pieces
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.mapping import Mapped

NIC, GPU, DISK = (f"0000:00:0{n}.0" for n in (4, 5, 6))
GROUPS = (
    SimGroup(4, (NIC,)),
    SimGroup(5, (GPU,), aperture=AddrRange(0, (1 << 39) - 1)),
    SimGroup(6, (DISK,), page_sizes=0x1_0000),
)
MSI = 0xFEE0_0000
HVA = 0x7F00_0000_0000
DYNAMIC = AddrRange(1 << 32, (1 << 32) + 0xFF_FFFF)
FILES = ("vmm_iova/kernel/", "vmm_iova/mapping/")
ERRNOS = (errno.ENOMEM, errno.EBUSY, errno.EFAULT, errno.ENOSPC, errno.EINVAL, errno.ENOENT)
REQUESTS = (
    None,
    uapi.IOMMU_MAP_DMA,
    uapi.IOMMU_UNMAP_DMA,
    uapi.IOMMU_GET_INFO,
    abi.IOAS_MAP,
    abi.IOAS_UNMAP,
    abi.IOAS_IOVA_RANGES,
)
RELEASES = ((5, 4), (5, 10), (5, 15), (6, 2), (6, 6), (7, 3))


class Scene:
    """A host, an open space and what is mapped in it, driven by choices."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.sim = SimulatedKernel(
            GROUPS,
            release=draw.one_of(RELEASES),
            memlock=draw.one_of((1 << 40, 0x1_0000, 0x4000)),
            dma_entry_limit=draw.one_of((65535, 3, 1)),
        )
        bdfs = draw.one_of(((NIC,), (NIC, GPU), (DISK,)))
        via = draw.one_of(("auto", "type1", "iommufd"))
        self.allocator = IovaAllocator(RangeSet([DYNAMIC]), granule=0x1000)
        self.batches: list[Mapped] = []
        self.owned: dict[Iova, int] = {}
        self.space: Type1Container | Ioas | None = None
        self.maps: DynamicMaps | None = None
        with contextlib.suppress(IovaError):
            self.space = open_space(bdfs, kernel=self.sim, via=via)  # type: ignore[arg-type]
            self.maps = DynamicMaps(self.allocator, self.space)

    def pieces(self, count: int) -> list[Piece]:
        """Draw pieces, most of them sound."""
        return [
            Piece(
                Iova(self.draw.below(24) * 0x1000 + self.draw.one_of((0, 0, 0, MSI, 0x800))),
                self.draw.one_of((0x1000, 0x1000, 0x2000, 0x1_0000, 0x10, 0)),
                Hva(HVA + self.draw.below(16) * 0x1000),
                tag,
                read=bool(self.draw.below(8)),
            )
            for tag in range(count)
        ]

    def act(self) -> Callable[[], object]:
        """Draw the next step."""
        space, maps = self.space, self.maps
        assert space is not None
        assert maps is not None
        kind = self.draw.below(11)
        (piece,) = self.pieces(1)
        live = list(space.live)
        chosen = live[self.draw.below(len(live))] if live else None
        given = sorted(maps._keep)
        if kind == 0:
            return lambda: space.map(piece.iova, piece.hva, piece.size, read=piece.read)
        if kind == 1 and chosen:
            return lambda: space.unmap(Iova(chosen.range.start), chosen.range.size)
        if kind == 2:
            return lambda: space.unmap(piece.iova, piece.size)
        if kind in (3, 4):
            many, check = self.pieces(self.draw.below(5)), bool(self.draw.below(3))
            return lambda: self.map_all(many, check=check)
        if kind == 5 and self.batches:
            batch = self.batches.pop(self.draw.below(len(self.batches)))
            return lambda: self.take_back(batch)
        if kind in (6, 7):
            return lambda: maps.map_address(piece.hva, piece.size, read=piece.read)
        if kind == 8 and given:
            return lambda: maps.unmap(given[self.draw.below(len(given))])
        if kind == 9:
            return maps.unmap_all
        if kind == 10 and isinstance(space, Ioas):
            return lambda: space.map_anywhere(piece.hva, piece.size)
        return space.unmap_all if not self.draw.below(4) else space.facts

    def map_all(self, pieces: list[Piece], *, check: bool) -> None:
        """Map all of them, or leave the kernel as it was."""
        assert self.space is not None
        before = self.sim.mapped()
        try:
            self.batches.append(map_pieces(self.space, pieces, check=check))
        except IovaError as error:
            named = RangeSet(where for where, _, _ in getattr(error, "left", ()))
            now = self.sim.mapped()
            silent = not hasattr(error, "__notes__")  # what stays is in `left`, or in a note
            assert before <= now, (before, now)
            assert not silent or now - before <= named, (now, before, named)
            raise

    def take_back(self, batch: Mapped) -> None:
        """Unmap a batch: nothing of it is mapped then."""
        pieces = batch.pieces
        batch.unmap()
        left = self.sim.mapped() & RangeSet(piece.range for piece in pieces)
        assert not left, left

    def step(self) -> None:
        """Do one step, sometimes with a fault, sometimes with Ctrl-C, and look at the books."""
        act = self.act()
        trouble = self.draw.below(4)
        at = self.draw.below(64)
        if trouble == 1:
            number, request = self.draw.one_of(ERRNOS), self.draw.one_of(REQUESTS)
            self.sim.inject(number, request=request, after=at % 4)
        error = Interrupter(FILES if trouble == 2 else (), at).run(act)
        assert error is None or isinstance(error, IovaError | KeyboardInterrupt), repr(error)
        interrupted = isinstance(error, KeyboardInterrupt)
        assert not interrupted or trouble == 2
        # Of a batch that was interrupted on its way to us, the pieces are still in the book.
        del error, act
        self.sim.faults.clear()
        self.look()

    def look(self) -> None:
        """Hold the books against each other."""
        space, maps = self.space, self.maps
        assert space is not None
        assert maps is not None
        book = [item.range for item in space.live]
        assert RangeSet(book) == self.sim.mapped(), (book, self.sim.mapped())
        assert sum(item.size for item in book) == sum(item.size for item in self.sim.mapped())
        owned = [item.range.start for item in self.allocator]
        assert owned == sorted(maps._keep), (owned, sorted(maps._keep))

    def end(self) -> None:
        """Close, and see that nothing stays."""
        if self.space is not None:
            self.space.close()
        left = (self.sim.open_files(), len(self.sim.mapped()), self.sim.memory.locked)
        assert left == (0, 0, 0), left


_INPUTS = count(1)


def one_input(data: bytes) -> None:
    """Open a space, do what the bytes say, close it."""
    draw = Draw(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        scene = Scene(draw)
        steps = 0
        while draw and scene.space is not None and steps < 60:
            scene.step()
            steps += 1
        scene.end()
        # What is dropped warns at once; asked for alone, the young are all that is ever looked at.
        gc.collect(0 if next(_INPUTS) % 256 else 2)
