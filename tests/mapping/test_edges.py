# SPDX-License-Identifier: Apache-2.0
"""Where embedders slip: what was there before stays, and what cannot be told is not told."""

from __future__ import annotations

import errno

import pytest

import vmm_iova as vi
from vmm_iova.host.host import Host
from vmm_iova.kernel import Ioas, Iommufd, VfioCdev, open_space
from vmm_iova.kernel.facts import with_kernel_facts
from vmm_iova.mapping import DynamicMaps, GuestMemory, Piece, map_pieces, precheck, prefault
from vmm_iova.ranges import AddrRange
from vmm_iova.simulated import SimGroup, SimulatedKernel

NIC, GPU = "0000:00:04.0", "0000:00:05.0"
HVA = 0x7F00_0000_0000


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel(
        [SimGroup(4, (NIC,), tracks_dirty=True), SimGroup(5, (GPU,), tracks_dirty=True)]
    )


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_largest_page_is_that_of_the_iommu_whichever_way(sim: SimulatedKernel, via: str) -> None:
    with open_space([NIC], kernel=sim, via=via) as space:
        largest = space.facts().largest_page
    with GuestMemory(
        [(AddrRange.from_size(1 << 32, 64 << 20), "ram")], largest_page=largest
    ) as ram:
        assert (ram.pieces[0].hva - ram.pieces[0].iova) % (2 << 20) == 0


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_undo_leaves_a_mapping_that_was_there_before(sim: SimulatedKernel, via: str) -> None:
    with open_space([NIC], kernel=sim, via=via) as space:
        space.map(0x10_0000, HVA, 0x1000)
        with pytest.raises(vi.errors.MappingError) as caught:
            map_pieces(space, [Piece(0x10_0000, 0x1000, HVA)], check=False)
        assert caught.value.errno == errno.EEXIST
        assert [item.range.start for item in space.live] == [0x10_0000]
        space.unmap_all()


@pytest.mark.parametrize("piece", [Piece(-0x1000, 0x1000, HVA), Piece((1 << 64) - 1, 0x1000, HVA)])
def test_piece_outside_of_64_bits_is_refused_without_the_check_too(
    sim: SimulatedKernel, piece: Piece
) -> None:
    with open_space([NIC], kernel=sim) as space:
        with pytest.raises(vi.RequestError, match="within 64 bits"):
            map_pieces(space, [Piece(0, 0x1000, HVA), piece], check=False)
        assert len(space.live) == 0


def test_list_before_an_attach_is_no_evidence(sim: SimulatedKernel) -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    pieces = [Piece(0xFEE0_0000, 0x1000, HVA, "msi")]
    with Ioas(Iommufd(sim), owns=True) as space:
        with pytest.raises(vi.errors.EvidenceError, match="nothing says"):
            precheck(space, pieces)
        (problem,) = precheck(space, pieces, usable=usable)
        assert isinstance(problem, vi.errors.ReservedError)
        assert "piece msi" in problem.__notes__[0]


def test_hole_that_only_the_judge_knows_is_refused(sim: SimulatedKernel) -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    with open_space([NIC], kernel=sim) as space:
        (problem,) = precheck(space, [Piece(0xFD_0000_0000, 0x1000, HVA)], usable=usable)
    assert "HyperTransport" in str(problem)


def test_dirty_bitmap_is_refused_where_a_device_writes_unseen(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim, via="iommufd", dirty=True) as space:
        assert isinstance(space, Ioas)
        space.start_dirty()
        other = VfioCdev(sim, "/dev/vfio/devices/vfio1")
        other.bind(space.iommufd)
        space.attach(GPU, other)
        with pytest.raises(vi.DmaError, match=f"{GPU} was attached without dirty tracking"):
            space.read_dirty(0, 0x1000)


def test_detached_device_takes_its_dirty_table_along(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim, via="iommufd", dirty=True) as space:
        assert isinstance(space, Ioas)
        space.detach(NIC)
        with pytest.raises(vi.DmaError, match="no device has dirty tracking"):
            space.start_dirty()


def _dynamic(space: Ioas) -> DynamicMaps:
    window = vi.RangeSet([AddrRange(0x10_0000, 0x1F_FFFF)])
    return DynamicMaps(vi.IovaAllocator(window, granule=0x1000), space)


def test_dynamic_map_is_given_back_after_unmap_all_of_the_space(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim) as space:
        maps = _dynamic(space)  # type: ignore[arg-type]
        iova = maps.map_address(HVA, 0x1000)
        space.unmap_all()
        assert maps.unmap(iova) == 0
        assert maps.map_address(HVA, 0x1000) == iova
        assert maps.unmap_all() == 0x1000


def test_device_named_twice_is_refused(sim: SimulatedKernel) -> None:
    with pytest.raises(vi.RequestError, match="named twice"):
        open_space([NIC, NIC], kernel=sim)


def test_one_device_may_be_given_as_text(sim: SimulatedKernel) -> None:
    with open_space(NIC, kernel=sim) as space:  # type: ignore[arg-type]
        assert space.open_devices == (NIC,)


@pytest.mark.parametrize("chunk", [0, -1, 100])
def test_prefault_by_odd_chunks_is_refused(chunk: int) -> None:
    with pytest.raises(vi.RequestError, match="not whole pages"):
        prefault([Piece(0, 0x2000, HVA)], chunk=chunk)


def test_prefault_of_memory_inside_a_page_is_refused() -> None:
    with pytest.raises(vi.errors.MisalignedError, match="multiple of the page"):
        prefault([Piece(0, 0x2000, HVA + 1)])


def test_guest_memory_congruent_modulo_no_power_of_two_is_refused() -> None:
    with pytest.raises(vi.RequestError, match="largest_page"):
        GuestMemory([(AddrRange(0, 0xFFFF), "ram")], largest_page=12345)


def test_facts_of_a_host_without_the_device_are_refused(sim: SimulatedKernel) -> None:
    with (
        open_space([NIC], kernel=sim) as space,
        pytest.raises(vi.RequestError, match="knows none of the devices"),
    ):
        with_kernel_facts(Host("other"), space)
