# SPDX-License-Identifier: Apache-2.0
"""Exact limits: what just fits, and what is one too many."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.kernels import HVA, NIC, NIC_GROUP, Space
from vmm_iova import AddrRange, Hva, Iova, MappableRanges
from vmm_iova.errors import (
    ApertureError,
    LimitError,
    MisalignedError,
    OccupiedError,
    RangeOverflowError,
    RequestError,
    ReservedError,
    StraddleError,
)
from vmm_iova.kernel import open_space
from vmm_iova.mapping import Piece, map_pieces, precheck
from vmm_iova.mapping import mapped as mapped_module
from vmm_iova.simulated import SimGroup, SimulatedKernel

PAGE = 0x1000
TOP = 1 << 64


def piece(iova: int, size: int = PAGE, hva: int = HVA, **more: Any) -> Piece:
    return Piece(Iova(iova), size, Hva(hva), **more)


def kinds(space: Space, *pieces: Piece, **more: Any) -> list[type]:
    return [type(problem) for problem in precheck(space, pieces, **more)]


@pytest.mark.parametrize(("count", "problems"), [(0, []), (2, []), (3, [LimitError])])
def test_as_many_pieces_as_entries_are_left_fit(count: int, problems: list[type]) -> None:
    sim = SimulatedKernel([NIC_GROUP], dma_entry_limit=3)
    with open_space([NIC], kernel=sim, via="type1") as space:
        space.map(Iova(0x100_0000), Hva(HVA), PAGE)
        found = precheck(space, [piece(n * PAGE) for n in range(count)])
        assert [type(problem) for problem in found] == problems
        for problem in found:
            assert isinstance(problem, LimitError)
            assert (problem.needed, problem.available) == (4, 2)
        space.unmap_all()


@pytest.mark.parametrize(
    ("size", "problems"), [(2 * PAGE, []), (2 * PAGE - 1, []), (3 * PAGE, [LimitError])]
)
def test_as_many_bytes_as_may_be_locked_fit(size: int, problems: list[type]) -> None:
    sim = SimulatedKernel([SimGroup(4, (NIC,), page_sizes=0x1)], page=1, memlock=3 * PAGE)
    sim.memory.page = PAGE
    sim.memory.locked = PAGE
    with open_space([NIC], kernel=sim, via="iommufd") as space:
        found = precheck(space, [piece(0, size)])
        limits = [problem for problem in found if isinstance(problem, LimitError)]
        assert [type(problem) for problem in limits] == problems
        for problem in limits:
            assert (problem.needed, problem.available) == (4 * PAGE, 2 * PAGE)
    sim.memory.locked = 0


@pytest.mark.parametrize("locked", [3 * PAGE, 4 * PAGE])
def test_nothing_more_fits_where_all_is_locked(locked: int) -> None:
    sim = SimulatedKernel([NIC_GROUP], memlock=3 * PAGE)
    with open_space([NIC], kernel=sim) as space:
        sim.memory.locked = locked
        (problem,) = precheck(space, [piece(0)])
        assert isinstance(problem, LimitError)
        assert (problem.needed, problem.available) == (locked + PAGE, 0)
        sim.memory.locked = 0


WHOLE = MappableRanges([AddrRange(0, TOP - 1)])


class Anywhere:
    """A judge to whom all is well."""

    ranges = WHOLE

    def refusal(self, range: AddrRange, /) -> None:  # noqa: A002
        return None


@pytest.fixture
def wide() -> Any:
    group = SimGroup(4, (NIC,), aperture=AddrRange(0, TOP - 1), reserved=())
    with open_space([NIC], kernel=SimulatedKernel([group]), via="type1") as space:
        yield space


@pytest.mark.parametrize(
    ("wanted", "problems"),
    [
        (piece(TOP - PAGE), []),
        (piece(TOP - PAGE, 2 * PAGE), [RangeOverflowError]),
        (piece(TOP - PAGE, PAGE + 1), [RangeOverflowError, MisalignedError]),
        (piece(0, hva=TOP - PAGE), []),
        (piece(0, 2 * PAGE, hva=TOP - PAGE), [RangeOverflowError]),
        (piece(-PAGE), [RangeOverflowError]),
        (piece(0, hva=-PAGE), [RangeOverflowError]),
        (piece(0, 0), [RequestError]),
        (piece(0, -PAGE), [RequestError]),
        (piece(0, 1), [MisalignedError]),
        (piece(1), [MisalignedError]),
        (piece(0, hva=HVA + 1), [MisalignedError]),
        (piece(0, read=False, write=False), [RequestError]),
        (piece(0, read=False), []),
        (piece(0, write=False), []),
        (piece(0, TOP, hva=0), [RangeOverflowError]),
        (piece(0, TOP - PAGE, hva=0), []),
    ],
    ids=str,
)
def test_shape_of_a_piece_at_its_limits(wide: Space, wanted: Piece, problems: list[type]) -> None:
    assert kinds(wide, wanted) == problems


HALVES = MappableRanges(
    [AddrRange(PAGE, 0x3FFF), AddrRange(0x4000, 0x7FFF), AddrRange(0x9000, 0xFFFF)]
)


class Halves(Anywhere):
    ranges = HALVES


@pytest.fixture
def halves() -> Any:
    """A space whose kernel gives no list, so that the judge's is taken."""
    with open_space(
        [NIC], kernel=SimulatedKernel([NIC_GROUP], release=(5, 3)), via="type1"
    ) as made:
        yield made


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (piece(0x3000), None),
        (piece(0x4000), None),
        (piece(0x1000, 0x3000), None),
        (piece(0x3000, 0x2000), StraddleError),
        (piece(0x7000), None),
        (piece(0x7000, 0x2000), ReservedError),
        (piece(0x8000), ReservedError),
        (piece(0x9000), None),
        (piece(0x8000, 0x2000), ReservedError),
        (piece(0xF000), None),
        (piece(0xF000, 0x2000), ApertureError),
        (piece(0x10000), ApertureError),
        (piece(0x1000), None),
        (piece(0), ApertureError),
        (piece(0, 0x2000), ApertureError),
    ],
    ids=str,
)
def test_place_of_a_piece_at_the_edges_of_the_ranges(
    halves: Space, wanted: Piece, problem: type | None
) -> None:
    assert kinds(halves, wanted, usable=Halves()) == ([] if problem is None else [problem])


def test_error_at_an_edge_carries_the_exact_facts(halves: Space) -> None:
    (seam,) = precheck(halves, [piece(0x3000, 0x2000)], usable=Halves())
    (above,) = precheck(halves, [piece(0xF000, 0x2000)], usable=Halves())
    (below,) = precheck(halves, [piece(0)], usable=Halves())
    (hole,) = precheck(halves, [piece(0x7000, 0x2000)], usable=Halves())
    assert isinstance(seam, StraddleError)
    assert isinstance(above, ApertureError)
    assert isinstance(below, ApertureError)
    assert isinstance(hole, ReservedError)
    assert (seam.seam, above.limit, below.limit) == (0x4000, 0xFFFF, None)
    assert hole.region == AddrRange(0x8000, 0x8FFF)


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        ((piece(0x1000), piece(0x2000)), 0),
        ((piece(0x2000), piece(0x1000)), 0),
        ((piece(0x1000, 0x2000), piece(0x2000)), 1),
        ((piece(0x1000), piece(0x1000)), 1),
        # The widest so far counts, not the last.
        ((piece(0x1000, 0x5000), piece(0x2000), piece(0x5000)), 2),
        ((piece(0x1000, 0x5000), piece(0x2000), piece(0x6000)), 1),
    ],
)
def test_pieces_that_touch_do_not_overlap(
    space: Space, pieces: tuple[Piece, ...], count: int
) -> None:
    assert kinds(space, *pieces) == [OccupiedError] * count


@pytest.mark.parametrize(
    ("wanted", "problems"),
    [
        (piece(0x1000), []),
        (piece(0x4000), []),
        (piece(0x1000, 0x2000), [OccupiedError]),
        (piece(0x3000), [OccupiedError]),
        (piece(0x2000), [OccupiedError]),
    ],
    ids=str,
)
def test_piece_beside_a_live_mapping_fits(
    space: Space, wanted: Piece, problems: list[type]
) -> None:
    space.map(Iova(0x2000), Hva(HVA), 0x2000)
    assert kinds(space, wanted) == problems
    space.unmap_all()


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ((4, 4), [2]),
        ((4, 5), [1, 1]),
        ((8,), [1]),
        ((9,), [1]),
        ((9, 1), [1, 1]),
        ((1, 1, 1, 1), [3, 1]),
        ((1, 1, 1), [3]),
        ((), []),
    ],
)
def test_chunk_is_full_at_its_bytes_and_at_its_pieces(
    sizes: tuple[int, ...], chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_module, "CHUNK_BYTES", 8 * PAGE)
    monkeypatch.setattr(mapped_module, "CHUNK_PIECES", 3)
    pieces = [piece(0x10_0000 * n, size * PAGE) for n, size in enumerate(sizes)]
    assert [len(chunk) for chunk in mapped_module._chunks(pieces)] == chunks


@pytest.mark.parametrize(
    ("wanted", "sound"),
    [
        (piece(TOP - PAGE), True),
        (piece(TOP - PAGE + 1), False),
        (piece(0, hva=TOP - PAGE), True),
        (piece(0, hva=TOP - PAGE + 1), False),
        (piece(0, 1), True),
        (piece(0, 0), False),
        (piece(-1), False),
        (piece(0, hva=-1), False),
        (piece(0, TOP - 1, hva=1), True),
        (piece(0, TOP, hva=0), False),
        (piece(0, TOP - 1, hva=0), True),
    ],
    ids=str,
)
def test_piece_goes_into_the_kernels_structure(wanted: Piece, sound: bool) -> None:
    assert mapped_module._sound(wanted) is sound


def test_whole_64_bits_in_one_piece_is_refused_in_words(wide: Space) -> None:
    with pytest.raises(RequestError, match="within 64 bits"):
        map_pieces(wide, [piece(0, TOP, hva=0)], check=False)
