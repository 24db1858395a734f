# SPDX-License-Identifier: Apache-2.0
"""What the kernel would refuse, explained before the first ioctl."""

from __future__ import annotations

import resource
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kit.kernels import HVA, MSI, NARROW_GPU_GROUP, NIC, NIC_GROUP, Space
from vmm_iova import AddrRange, MappableRanges, RangeSet
from vmm_iova.errors import (
    ApertureError,
    DmaError,
    EvidenceError,
    IovaError,
    LimitError,
    MisalignedError,
    OccupiedError,
    PrecheckError,
    RangeOverflowError,
    RequestError,
    ReservedError,
    StraddleError,
)
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.space import SpaceFacts
from vmm_iova.kernel.syscalls import LINUX, LockBudget
from vmm_iova.mapping import Piece, map_pieces, precheck
from vmm_iova.simulated import SimGroup, SimulatedKernel

GOOD = Piece(0x10_0000, 0x1000, HVA, "good")


def problem(space: Space, *pieces: Piece) -> IovaError:
    (found,) = precheck(space, pieces)
    for piece in pieces[:-1]:
        space.map(piece.iova, piece.hva, piece.size)
    last = pieces[-1]
    with pytest.raises(DmaError):  # the kernel agrees, in one word
        space.map(last.iova, last.hva, last.size, read=last.read, write=last.write)
    space.unmap_all()
    return found


def test_good_pieces_have_no_problem(space: Space) -> None:
    assert precheck(space, [GOOD]) == ()


@pytest.mark.parametrize(
    ("piece", "field"),
    [
        (Piece(0x10_0800, 0x1000, HVA, "a"), "iova"),
        (Piece(0x10_0000, 0x1000, HVA + 0x800, "a"), "hva"),
        (Piece(0x10_0000, 0x1800, HVA, "a"), "size"),
    ],
)
def test_misaligned_names_field_and_granule(space: Space, piece: Piece, field: str) -> None:
    found = problem(space, piece)

    assert isinstance(found, MisalignedError)
    assert (found.field, found.align) == (field, 0x1000)
    assert "piece a " in found.message


def test_reserved_names_the_region(space: Space) -> None:
    found = problem(space, Piece(0xFEDF_F000, 0x2000, HVA))

    assert isinstance(found, ReservedError)
    assert found.region == MSI


def test_beyond_the_width_names_the_last_usable_address(space: Space) -> None:
    found = problem(space, Piece(1 << 48, 0x1000, HVA))

    assert isinstance(found, ApertureError)
    assert found.limit == (1 << 48) - 1
    assert "what the IOMMU translates, 0x0-0xffffffffffff" in found.message


def test_overlap_within_the_list_names_the_other(space: Space) -> None:
    found = problem(space, GOOD, Piece(0x10_0000, 0x2000, HVA, "bad"))

    assert isinstance(found, OccupiedError)
    assert found.owner_range.overlaps(GOOD.range)


def test_piece_inside_a_wide_one_two_before_is_found(space: Space) -> None:
    wide, inner = Piece(0, 0x10000, HVA, "wide"), Piece(0x1000, 0x1000, HVA, "inner")
    last = Piece(0x8000, 0x1000, HVA, "last")

    found = precheck(space, [wide, inner, last])

    assert [item.owner for item in found if isinstance(item, OccupiedError)] == ["wide", "wide"]


def test_overlap_with_a_live_mapping_names_its_place(space: Space) -> None:
    space.map(0x10_0000, HVA, 0x1000)

    (found,) = precheck(space, [GOOD])

    assert isinstance(found, OccupiedError)
    assert "test_precheck.py" in found.message


def test_neither_read_nor_write(space: Space) -> None:
    assert isinstance(problem(space, Piece(0, 0x1000, HVA, "x", False, False)), RequestError)


@pytest.mark.parametrize("size", [0, -0x1000])
def test_no_bytes(space: Space, size: int) -> None:
    (found,) = precheck(space, [Piece(0, size, HVA, "x")])

    assert isinstance(found, RequestError)


@pytest.mark.parametrize(
    "piece", [Piece(2**64 - 0x1000, 0x2000, HVA), Piece(0, 0x2000, 2**64 - 0x1000)]
)
def test_wrap(space: Space, piece: Piece) -> None:
    assert any(isinstance(item, RangeOverflowError) for item in precheck(space, [piece]))


def test_all_problems_are_told_at_once(space: Space) -> None:
    bad = [Piece(1, 0x1000, HVA, "a"), Piece(1 << 50, 0x1000, HVA, "b"), GOOD, GOOD]

    with pytest.raises(PrecheckError) as caught:
        map_pieces(space, bad)

    assert [type(item) for item in caught.value.problems] == [
        MisalignedError,
        ApertureError,
        OccupiedError,
    ]
    assert "piece a " in (caught.value.detail or "")


def test_seam_between_touching_ranges_is_a_straddle() -> None:
    """A region of length 0 splits a valid range in two that touch (Linux 5.4)."""
    sim = SimulatedKernel([NIC_GROUP], release=(5, 3))
    with open_space([NIC], kernel=sim, via="type1") as space:

        class Seamed:
            ranges = MappableRanges([AddrRange(0, 0xFFFF), AddrRange(0x1_0000, 0xF_FFFF)])

            def refusal(self, range: AddrRange) -> None:  # noqa: A002
                return None

        (found,) = precheck(space, [Piece(0xF000, 0x2000, HVA)], usable=Seamed())

    assert isinstance(found, StraddleError)
    assert found.seam == 0x1_0000


def test_judge_names_the_cause(space: Space) -> None:
    told = ReservedError("the BMC sits there", range=MSI, region=MSI, cause="group 23")

    class Told:
        ranges = MappableRanges([AddrRange(0, 0xFFFF_FFFF)])

        def refusal(self, range: AddrRange) -> ReservedError:  # noqa: A002
            return told

    (found,) = precheck(space, [Piece(0xFEE0_0000, 0x1000, HVA)], usable=Told())

    assert found is told


def test_kernel_without_a_list_and_no_judge_raises_evidence_error() -> None:
    sim = SimulatedKernel([[NIC_GROUP, NARROW_GPU_GROUP][0]], release=(5, 3))
    with open_space([NIC], kernel=sim) as space, pytest.raises(EvidenceError, match="nothing says"):
        precheck(space, [GOOD])


def test_entry_limit_names_the_value_that_would_do() -> None:
    sim = SimulatedKernel([[NIC_GROUP, NARROW_GPU_GROUP][0]], dma_entry_limit=4)
    with open_space([NIC], kernel=sim, via="type1") as space:
        space.map(0, HVA, 0x1000)
        many = [Piece(0x10_0000 + n * 0x1000, 0x1000, HVA) for n in range(4)]

        (found,) = precheck(space, many)

    assert isinstance(found, LimitError)
    assert (found.needed, found.available) == (5, 3)
    assert "dma_entry_limit=5" in (found.hint or "")


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_memlock_limit_that_is_named_does_exactly(via: str) -> None:
    sim = SimulatedKernel([[NIC_GROUP, NARROW_GPU_GROUP][0]], memlock=0x8000)
    wanted = [Piece(0x10_0000, 0x9000, HVA)]
    with open_space([NIC], kernel=sim, via=via) as space:
        space.map(0, HVA, 0x1000)

        (found,) = precheck(space, wanted)
        assert isinstance(found, LimitError)
        sim.memory.limit = found.needed - 1
        assert precheck(space, wanted)
        sim.memory.limit = found.needed

        with map_pieces(space, wanted):
            assert sim.memory.locked == found.needed


def test_io_pages_of_64k_are_the_granule() -> None:
    sim = SimulatedKernel([SimGroup(4, (NIC,), page_sizes=0x1_0000)], page=0x1_0000)
    with open_space([NIC], kernel=sim) as space:
        (found,) = precheck(space, [Piece(0x1000, 0x1_0000, HVA)])

    assert isinstance(found, MisalignedError)
    assert found.align == 0x1_0000


def test_io_pages_of_2k_on_a_4k_kernel_give_2k_to_iommufd_and_4k_to_type1() -> None:
    sim = SimulatedKernel([SimGroup(4, (NIC,), page_sizes=0x800)])
    granules = []
    for via in ("type1", "iommufd"):
        with open_space([NIC], kernel=sim, via=via) as space:
            granules.append(space.facts().granule)

    assert granules == [0x1000, 0x800]


def test_real_lock_budget_reads_this_process() -> None:
    budget = LINUX.lock_budget()

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert budget.limit in (None, soft)
    assert budget.locked >= 0
    assert RangeSet([]) == RangeSet()


# -- limits, exactly -------------------------------------------------------------------------------


class Live(tuple[Any, ...]):
    """Live mappings that overlap what they are asked to."""

    def overlapping(self, where: AddrRange) -> list[Any]:
        return [item for item in self if item.range.overlaps(where)]


def stub(
    *spans: tuple[int, int],
    entries: int | None = None,
    memlock: int | None = None,
    locked: int = 0,
    live: tuple[AddrRange, ...] = (),
    granule: int = 0x1000,
    final: bool = True,
) -> Any:
    """An address space that says what it is told to."""
    ranges = MappableRanges(AddrRange(*span) for span in spans or [(0, 2**64 - 1)])
    return SimpleNamespace(
        facts=lambda: SpaceFacts(ranges, granule, granule, entries, "the list", final),
        live=Live(SimpleNamespace(range=span, place="vmm.py:7") for span in live),
        lock_budget=lambda: LockBudget(memlock, locked),
    )


def said(space: Any, *pieces: Piece) -> list[tuple[str, object]]:
    """What is wrong: the kind of each error, and the attribute that tells it from its like."""
    names = ("field", "seam", "region", "owner", "limit")
    found = []
    for error in precheck(space, pieces):
        told = [getattr(error, name, None) for name in names]
        found.append(
            (type(error).__name__, next((part for part in told if part is not None), None))
        )
    return found


TOP = 2**64 - 1
WRAP, OFF = "RangeOverflowError", "MisalignedError"


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (Piece(0, 0, 0), [("RequestError", "size")]),
        (Piece(0, 1, 0), [(OFF, "size")]),
        (Piece(0, TOP, 0), [(OFF, "size")]),
        (Piece(0, TOP + 1, 0), [(WRAP, "size")]),
        (Piece(TOP - 0xFFF, 0x1000, TOP - 0xFFF), []),
        (Piece(TOP - 0x1FFF, 0x3000, 0), [(WRAP, "iova")]),
        (Piece(0, 0x3000, TOP - 0x1FFF), [(WRAP, "hva")]),
        (Piece(-0x1000, 0x1000, 0), [(WRAP, "iova")]),
        (Piece(0, 0x1000, -0x1000), [(WRAP, "hva")]),
        (Piece(0, 0x1000, 0, "r", True, False), []),
        (Piece(0, 0x1000, 0, "w", False, True), []),
        (Piece(0, 0x1000, 0, "n", False, False), [("RequestError", "read")]),
        (Piece(1, 0x1001, 1), [(OFF, "iova"), (OFF, "hva"), (OFF, "size")]),
    ],
)
def test_shape_at_its_limits(piece: Piece, expected: list[tuple[str, object]]) -> None:
    found: list[tuple[str, object]]
    try:
        found = said(stub(), piece)
    except RangeOverflowError as error:  # of a range that no set can hold
        found = [(WRAP, error.field)]
    assert found == expected


@pytest.mark.parametrize(
    ("spans", "start", "last", "expected"),
    [
        # What touches an edge is inside; a page more is not.
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x1000, 0x3FFF, []),
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x6000, 0x8FFF, []),
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x0000, 0x1FFF, [("ApertureError", None)]),
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x8000, 0x9FFF, [("ApertureError", 0x8FFF)]),
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x9000, 0x9FFF, [("ApertureError", 0x8FFF)]),
        ([(0x1000, 0x3FFF), (0x6000, 0x8FFF)], 0x0000, 0x9FFF, [("ApertureError", 0x8FFF)]),
        (
            [(0x1000, 0x3FFF), (0x6000, 0x8FFF)],
            0x3000,
            0x4FFF,
            [("ReservedError", AddrRange(0x4000, 0x5FFF))],
        ),
        (
            [(0, 0xFFF), (0x2000, 0x3FFF), (0x6000, 0x8FFF)],
            0x5000,
            0x6FFF,
            [("ReservedError", AddrRange(0x4000, 0x5FFF))],
        ),
        # A piece from one end of the hull to the other lies outside of nothing, and touches a hole.
        (
            [(0x1000, 0x3FFF), (0x6000, 0x8FFF)],
            0x1000,
            0x4FFF,
            [("ReservedError", AddrRange(0x4000, 0x5FFF))],
        ),
        (
            [(0x1000, 0x3FFF), (0x6000, 0x8FFF)],
            0x1000,
            0x8FFF,
            [("ReservedError", AddrRange(0x4000, 0x5FFF))],
        ),
        # The seam that is crossed is named, not one where the piece begins.
        ([(0, 0x1FFF), (0x2000, 0x3FFF), (0x4000, 0x8FFF)], 0x2000, 0x3FFF, []),
        (
            [(0, 0x1FFF), (0x2000, 0x3FFF), (0x4000, 0x8FFF)],
            0x2000,
            0x4FFF,
            [("StraddleError", 0x4000)],
        ),
        (
            [(0, 0x1FFF), (0x2000, 0x3FFF), (0x4000, 0x8FFF)],
            0x1000,
            0x4FFF,
            [("StraddleError", 0x2000)],
        ),
    ],
)
def test_place_at_its_limits(
    spans: list[tuple[int, int]], start: int, last: int, expected: list[tuple[str, object]]
) -> None:
    assert said(stub(*spans), Piece(start, last - start + 1, 0)) == expected


def test_list_of_nothing_is_said_to_translate_nothing() -> None:
    judge = SimpleNamespace(ranges=MappableRanges(), refusal=lambda range: None)  # noqa: A006
    (found,) = precheck(stub(final=False), [GOOD], usable=judge)
    assert "what the IOMMU translates, nothing" in found.message


@pytest.mark.parametrize(
    ("spans", "owners"),
    [
        ([(0, 0x1FFF), (0x2000, 0x2FFF)], []),  # they touch
        ([(0, 0x2FFF), (0x2000, 0x3FFF)], ["0"]),
        ([(0, 4), (4, 8)], ["0"]),
        ([(0, 4), (5, 8)], []),
        # The one that reaches highest is named; of two that reach as high, the first.
        ([(0, 0x3FFF), (0x1000, 0x3FFF), (0x3000, 0x3FFF)], ["0", "0"]),
        ([(0, 0x1FFF), (0x1000, 0x3FFF), (0x3000, 0x3FFF)], ["0", "1"]),
    ],
)
def test_overlap_names_the_piece_that_reaches_highest(
    spans: list[tuple[int, int]], owners: list[str]
) -> None:
    pieces = [Piece(a, b - a + 1, 0, str(n)) for n, (a, b) in enumerate(spans)]
    assert said(stub(granule=1), *pieces) == [("OccupiedError", owner) for owner in owners]


@pytest.mark.parametrize(("start", "free"), [(0x0, True), (0x1000, False), (0x2000, True)])
def test_live_mapping_is_in_the_way_of_its_own_addresses_alone(start: int, free: bool) -> None:
    found = precheck(stub(live=(AddrRange(0x1000, 0x1FFF),)), [Piece(start, 0x1000, 0, "p")])
    assert (not found) is free
    for error in found:
        assert error.message.endswith("the live mapping 0x1000-0x1fff, made at vmm.py:7")
        assert error.hint == "unmap it first: the kernel says EEXIST even for the same mapping"


@pytest.mark.parametrize(("left", "fits"), [(None, True), (3, True), (2, False), (0, False)])
def test_entries_that_are_left_are_enough_exactly(left: int | None, fits: bool) -> None:
    pieces = [Piece(0x1000 * n, 0x1000, 0) for n in range(3)]
    live = (AddrRange(1 << 40, (1 << 40) + 0xFFF), AddrRange(1 << 41, (1 << 41) + 0xFFF))
    found = precheck(stub(entries=left, live=live), pieces)
    assert (not found) is fits
    for error in found:
        assert isinstance(error, LimitError)
        assert (error.limit, error.needed, error.available) == ("dma_entry_limit", 5, left)
        assert error.message == f"3 pieces need as many entries, and {left} are left"
        assert (error.hint or "").startswith("dma_entry_limit=5 ")


@pytest.mark.parametrize(
    ("limit", "locked", "sizes", "needed", "left"),
    [
        (0x8000, 0x4000, [0x4000], None, 0),
        (0x8000, 0x4000, [0x2000, 0x2000], None, 0),
        (0x8000, 0x4000, [0x4000, 0x1000], 0x9000, 0x4000),
        (0x8000, 0x9000, [0x1000], 0xA000, 0),  # other mappings have more than the limit is now
        (0x4000, 0, [0x800] * 4, None, 0),  # whole pages count, each mapping anew
        (0x4000, 0, [0x800] * 5, 0x5000, 0x4000),
        (0, 0, [0x1000], 0x1000, 0),
        (None, 1 << 60, [0x1000], None, 0),
    ],
)
def test_memory_that_may_be_locked_is_enough_exactly(
    limit: int | None, locked: int, sizes: list[int], needed: int | None, left: int
) -> None:
    pieces = [Piece(0x10000 * n, size, 0) for n, size in enumerate(sizes)]
    found = precheck(stub(memlock=limit, locked=locked, granule=0x800), pieces)
    assert [
        (error.needed, error.available) for error in found if isinstance(error, LimitError)
    ] == ([] if needed is None else [(needed, left)])
    for error in found:
        assert needed is not None
        kib = needed >> 10
        assert (error.hint or "").startswith(f"ulimit -l {kib} (KiB), LimitMEMLOCK={needed} ")


@pytest.mark.parametrize("final", [True, False])
def test_space_that_says_nothing_says_why(final: bool) -> None:
    space = stub(final=final)
    facts = SpaceFacts(None, 0x1000, 0x1000, None, "the call", final)
    space.facts = lambda: facts
    with pytest.raises(EvidenceError) as caught:
        precheck(space, [GOOD])
    why = "no list of ranges (Linux before 5.4" if final else "no device is attached yet"
    assert caught.value.looked_at[0].startswith(f"the call: {why}")
    judge = SimpleNamespace(ranges=MappableRanges([GOOD.range]), refusal=lambda range: None)  # noqa: A006
    assert precheck(space, [GOOD], usable=judge) == ()
