# SPDX-License-Identifier: Apache-2.0
"""All or none: a failure at every step leaves nothing, and says which piece met what."""

from __future__ import annotations

import errno
import pickle
from typing import TYPE_CHECKING

import pytest

from tests.kit.kernels import HVA, NARROW_GPU_GROUP, NIC, NIC_GROUP, Space
from vmm_iova import IovaAllocator
from vmm_iova.errors import DmaError, MappingError, PrecheckError, UndoError
from vmm_iova.kernel import uapi, uapi_iommufd
from vmm_iova.kernel.device import open_space
from vmm_iova.mapping import Piece, map_pieces
from vmm_iova.simulated import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable

MAP = {"type1": uapi.IOMMU_MAP_DMA, "iommufd": uapi_iommufd.IOAS_MAP}
UNMAP = {"type1": uapi.IOMMU_UNMAP_DMA, "iommufd": uapi_iommufd.IOAS_UNMAP}
PIECES = 200


def pieces(count: int = PIECES) -> list[Piece]:
    return [
        Piece(0x10_0000 + index * 0x3000, 0x2000, HVA + index * 0x2000, tag=f"ram{index}")
        for index in range(count)
    ]


def test_all_pieces_are_mapped_and_taken_back(sim: SimulatedKernel, space: Space) -> None:
    with map_pieces(space, pieces()) as mapped:
        assert len(mapped.pieces) == PIECES
        assert sim.mapped().size == PIECES * 0x2000
        assert sim.memory.locked == PIECES * 0x2000

    assert (len(sim.mapped()), sim.memory.locked, len(space.live)) == (0, 0, 0)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=() if step % 25 == 0 or step == PIECES - 1 else pytest.mark.slow)
        for step in range(PIECES)
    ],
)
def test_refusal_at_any_step_leaves_nothing_and_names_the_piece(
    sim: SimulatedKernel, space: Space, step: int
) -> None:
    allocator = IovaAllocator(space.facts().ranges, granule=0x1000)
    before = (sim.memory.locked, list(allocator.free_spans()))
    sim.inject(errno.ENOMEM, request=MAP[space.kind], after=step)

    def place_and_map() -> None:
        with allocator.transaction():
            for piece in pieces():
                allocator.allocate_at(piece.iova, piece.size)
            map_pieces(space, pieces())

    with pytest.raises(MappingError) as caught:
        place_and_map()

    error = caught.value
    assert (error.errno, error.index, error.tag, error.left) == (
        errno.ENOMEM,
        step,
        f"ram{step}",
        (),
    )
    assert f"piece ram{step} " in error.message
    assert (sim.memory.locked, list(allocator.free_spans())) == before
    assert (len(sim.mapped()), len(space.live)) == (0, 0)
    with map_pieces(space, pieces()):
        pass


@pytest.mark.parametrize("stuck", [0, 3, 6])
def test_undo_that_is_refused_goes_on_and_names_what_is_left(
    sim: SimulatedKernel, space: Space, stuck: int
) -> None:
    sim.inject(errno.ENOMEM, request=MAP[space.kind], after=7)
    sim.inject(errno.EBUSY, request=UNMAP[space.kind], after=stuck)

    with pytest.raises(MappingError, match="still mapped") as caught:
        map_pieces(space, pieces(10))

    kept = 6 - stuck
    assert [(str(where), tag) for where, tag, _ in caught.value.left] == [
        (str(pieces()[kept].range), f"ram{kept}")
    ]
    assert list(sim.mapped()) == [pieces()[kept].range]
    space.unmap_all()


def test_undo_that_removes_another_size_is_reported(sim: SimulatedKernel, space: Space) -> None:
    sim.inject(errno.ENOMEM, request=MAP[space.kind], after=2)
    sim.falsify(
        lambda answer: answer.__setitem__(slice(16, 24), bytes(8)), request=UNMAP[space.kind]
    )

    with pytest.raises(MappingError) as caught:
        map_pieces(space, pieces(3))

    assert "0x0 bytes instead of 0x2000" in str(caught.value.left[0][2])


def test_unmap_that_is_refused_raises_undo_error_after_the_others(
    sim: SimulatedKernel, space: Space
) -> None:
    mapped = map_pieces(space, pieces(5))
    sim.inject(errno.EBUSY, request=UNMAP[space.kind], after=2)

    with pytest.raises(UndoError, match="1 of 5") as caught:
        mapped.unmap()

    assert [tag for _, tag, _ in caught.value.left] == ["ram2"]
    assert list(sim.mapped()) == [pieces()[2].range]
    space.unmap_all()


def test_interrupted_unmap_can_be_called_again(
    sim: SimulatedKernel, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = map_pieces(space, pieces(5))
    real, calls = space.unmap, iter([0, 0, KeyboardInterrupt])

    def unmap(iova: int, size: int) -> int:
        if next(calls, 0) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return real(iova, size)

    monkeypatch.setattr(space, "unmap", unmap)

    with pytest.raises(KeyboardInterrupt):
        mapped.unmap()

    assert [piece.tag for piece in mapped.pieces] == ["ram0", "ram1", "ram2"]
    mapped.unmap()
    assert not sim.mapped()


def test_unmap_twice_is_nothing(space: Space) -> None:
    mapped = map_pieces(space, pieces(2))
    mapped.unmap()
    mapped.unmap()

    assert not space.live


def test_progress_counts_bytes(space: Space) -> None:
    seen: list[tuple[int, int]] = []

    big = [Piece(n << 28, 1 << 28, HVA, n) for n in range(3)]
    with map_pieces(space, big, progress=lambda done, total: seen.append((done, total))):
        pass

    assert seen == [(1 << 28, 3 << 28), (2 << 28, 3 << 28), (3 << 28, 3 << 28)]


def test_small_pieces_go_in_chunks_of_512(space: Space) -> None:
    seen: list[int] = []

    with map_pieces(space, pieces(1100), progress=lambda done, total: seen.append(done)):
        assert len(space.live) == 1100

    assert seen == [512 * 0x2000, 1024 * 0x2000, 1100 * 0x2000]


def test_nothing_is_mapped_from_nothing(space: Space) -> None:
    with map_pieces(space, []) as mapped:
        assert mapped.pieces == ()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_progress_that_raises_leaves_nothing(
    sim: SimulatedKernel, space: Space, kind: type[BaseException]
) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise kind

    with pytest.raises(kind):
        map_pieces(space, pieces(1100), progress=progress)

    assert (len(sim.mapped()), sim.memory.locked, len(space.live)) == (0, 0, 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_around_the_ioctl_leaves_nothing(
    sim: SimulatedKernel, space: Space, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C can come between the ioctl and the note of it; the piece is mapped then."""
    real: Callable[..., int] = sim.ioctl
    count = 0

    def ioctl(fd: int, request: int, arg: int | bytes | bytearray = 0) -> int:
        nonlocal count
        if request == MAP[space.kind]:
            count += 1
            if count == 3 and when == "before":
                raise KeyboardInterrupt
            answer = real(fd, request, arg)
            if count == 3:
                raise KeyboardInterrupt
            return answer
        return real(fd, request, arg)

    monkeypatch.setattr(sim, "ioctl", ioctl)

    with pytest.raises(KeyboardInterrupt):
        map_pieces(space, pieces(5))

    assert (len(sim.mapped()), sim.memory.locked, len(space.live)) == (0, 0, 0)


def test_interrupt_with_refused_undo_notes_what_is_left(sim: SimulatedKernel, space: Space) -> None:
    sim.inject(errno.EBUSY, request=UNMAP[space.kind])

    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        map_pieces(space, pieces(1), progress=progress)

    assert "still mapped: 0x100000-0x101fff (ram0)" in caught.value.__notes__[0]
    space.unmap_all()


def test_body_that_raises_unmaps_everything(sim: SimulatedKernel, space: Space) -> None:
    def body() -> None:
        with map_pieces(space, pieces(4)):
            raise KeyError("a defect of the embedder")

    with pytest.raises(KeyError):
        body()

    assert not sim.mapped()


def test_problem_found_before_makes_no_map_ioctl(sim: SimulatedKernel, space: Space) -> None:
    sim.inject(errno.EIO, request=MAP[space.kind])

    with pytest.raises(PrecheckError, match="nothing was mapped"):
        map_pieces(space, [*pieces(2), Piece(0xFEE0_0000, 0x1000, HVA)])

    assert len(sim.faults) == 1


def test_without_check_the_kernel_refuses_and_the_first_is_taken_back(
    sim: SimulatedKernel, space: Space
) -> None:
    with pytest.raises(MappingError) as caught:
        map_pieces(space, [*pieces(2), Piece(0xFEE0_0000, 0x1000, HVA, "msi")], check=False)

    assert (caught.value.errno, caught.value.tag) == (errno.EINVAL, "msi")
    assert not sim.mapped()


def test_dropped_without_unmap_warns_with_its_place(space: Space) -> None:
    box = [map_pieces(space, pieces(1))]

    with pytest.warns(ResourceWarning, match=r"test_mapped.py:\d+"):
        box.clear()

    space.unmap_all()


def test_error_survives_pickling(sim: SimulatedKernel, space: Space) -> None:
    sim.inject(errno.ENOSPC, request=MAP[space.kind])
    with pytest.raises(MappingError) as caught:
        map_pieces(space, pieces(1))

    again = pickle.loads(pickle.dumps(caught.value))

    assert (again.errno, again.index, again.tag, str(again)) == (
        errno.ENOSPC,
        0,
        "ram0",
        str(caught.value),
    )
    assert isinstance(again, DmaError)
    assert isinstance(again, OSError)


def test_entry_limit_halfway_rolls_back() -> None:
    sim = SimulatedKernel([NIC_GROUP, NARROW_GPU_GROUP], dma_entry_limit=3)
    with open_space([NIC], kernel=sim, via="type1") as space:
        with pytest.raises(MappingError) as caught:
            map_pieces(space, pieces(5), check=False)

        assert (caught.value.errno, caught.value.index) == (errno.ENOSPC, 3)
        assert space.facts().entries_left == 3
        assert not sim.mapped()
