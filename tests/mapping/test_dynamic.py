# SPDX-License-Identifier: Apache-2.0
"""Dynamic maps, and dirty ranges."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.kernels import HVA, MSI, NIC, Space
from vmm_iova import AddrRange, IovaAllocator, RangeSet
from vmm_iova.errors import (
    DmaError,
    MisalignedError,
    NotAllocatedError,
    RequestError,
)
from vmm_iova.kernel import uapi, uapi_iommufd
from vmm_iova.mapping import DynamicMaps, fewest_ranges, written_ranges

if TYPE_CHECKING:
    from vmm_iova.simulated import SimulatedKernel

MAP = {"type1": uapi.IOMMU_MAP_DMA, "iommufd": uapi_iommufd.IOAS_MAP}
UNMAP = {"type1": uapi.IOMMU_UNMAP_DMA, "iommufd": uapi_iommufd.IOAS_UNMAP}


@pytest.fixture
def allocator(space: Space) -> IovaAllocator:
    return IovaAllocator(space.facts().ranges, granule=0x1000)


@pytest.fixture
def maps(space: Space, allocator: IovaAllocator) -> DynamicMaps:
    return DynamicMaps(allocator, space)


class TestDynamicMaps:
    def test_bytes_reach_the_buffer_at_the_iova(
        self, sim: SimulatedKernel, maps: DynamicMaps
    ) -> None:
        buffer = mmap.mmap(-1, 0x2000)

        iova = maps.map(buffer)
        sim.device_write(NIC, iova + 0x1000, b"data")

        assert buffer[0x1000:0x1004] == b"data"
        assert maps.unmap(iova) == 0x2000
        buffer.close()

    def test_buffer_cannot_be_closed_while_mapped(self, maps: DynamicMaps) -> None:
        buffer = mmap.mmap(-1, 0x1000)
        iova = maps.map(buffer)

        with pytest.raises(BufferError):
            buffer.close()

        maps.unmap(iova)
        buffer.close()

    def test_refused_map_gives_the_address_back(
        self, sim: SimulatedKernel, space: Space, maps: DynamicMaps, allocator: IovaAllocator
    ) -> None:
        """A peer kept the address when the kernel refused; it leaked until none was left."""
        sim.inject(errno.ENOMEM, request=MAP[space.kind])

        with pytest.raises(DmaError):
            maps.map_address(HVA, 0x1000)

        assert (allocator.allocated_bytes, len(maps)) == (0, 0)

    def test_interrupted_map_gives_the_address_back(
        self,
        sim: SimulatedKernel,
        space: Space,
        maps: DynamicMaps,
        allocator: IovaAllocator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        real = space.map

        def late(*args: int, **rights: bool) -> None:
            real(*args, **rights)
            raise KeyboardInterrupt

        monkeypatch.setattr(space, "map", late)

        with pytest.raises(KeyboardInterrupt):
            maps.map_address(HVA, 0x1000)

        assert (allocator.allocated_bytes, len(sim.mapped())) == (0, 0)

    def test_refused_unmap_keeps_the_address_owned(
        self, sim: SimulatedKernel, space: Space, maps: DynamicMaps, allocator: IovaAllocator
    ) -> None:
        iova = maps.map_address(HVA, 0x1000)
        sim.inject(errno.EBUSY, request=UNMAP[space.kind])

        with pytest.raises(DmaError):
            maps.unmap(iova)

        assert allocator.allocated_bytes == 0x1000
        assert maps.unmap_all() == 0x1000

    def test_unmap_of_nothing_raises(self, maps: DynamicMaps) -> None:
        with pytest.raises(NotAllocatedError):
            maps.unmap(0x1000)

    @pytest.mark.parametrize(("hva", "size"), [(HVA + 8, 0x1000), (HVA, 0x1008)])
    def test_buffer_of_part_pages_is_refused(self, maps: DynamicMaps, hva: int, size: int) -> None:
        with pytest.raises(MisalignedError):
            maps.map_address(hva, size)

    @pytest.mark.parametrize("buffer", [b"read-only" * 1000, bytearray()])
    def test_buffer_that_cannot_be_written_is_refused(
        self, maps: DynamicMaps, buffer: object
    ) -> None:
        with pytest.raises(RequestError):
            maps.map(buffer)

    def test_large_buffer_is_congruent_to_its_iova(self, maps: DynamicMaps, space: Space) -> None:
        iova = maps.map_address(HVA, 4 << 20)

        # iommufd does not tell its page sizes, so only the granule is known there.
        assert (iova - HVA) % (2 << 20 if space.kind == "type1" else 0x1000) == 0
        maps.unmap(iova)


def naive_cover(pages: set[int], at_most: int) -> int:
    """The least number of pages that `at_most` runs need to cover `pages`, by trying all cuts."""
    from itertools import combinations

    order = sorted(pages)
    best = order[-1] - order[0] + 1
    for count in range(1, at_most):
        for cuts in combinations(range(1, len(order)), count):
            edges = [0, *cuts, len(order)]
            size = sum(order[high - 1] - order[low] + 1 for low, high in itertools.pairwise(edges))
            best = min(best, size)
    return best


class TestFewestRanges:
    @given(pages=st.sets(st.integers(0, 40), min_size=1, max_size=8), at_most=st.integers(1, 4))
    def test_covers_all_with_the_least_else(self, pages: set[int], at_most: int) -> None:
        ranges = [AddrRange.from_size(page * 0x1000, 0x1000) for page in pages]

        found = fewest_ranges(ranges, at_most, 0x1000)

        assert len(found) <= at_most
        assert RangeSet(ranges) <= RangeSet(found)
        assert sum(item.size for item in found) == naive_cover(pages, at_most) * 0x1000

    def test_nothing_needs_nothing(self) -> None:
        assert fewest_ranges([], 3, 0x1000) == ()

    def test_part_pages_are_widened(self) -> None:
        assert fewest_ranges([AddrRange(0x1234, 0x1235)], 1, 0x1000) == (AddrRange(0x1000, 0x1FFF),)

    def test_no_range_at_all_raises(self) -> None:
        with pytest.raises(RequestError, match="at_most 0"):
            fewest_ranges([], 0, 0x1000)


class TestWrittenRanges:
    @given(st.sets(st.integers(0, 190)))
    def test_names_exactly_the_pages_of_the_bits(self, pages: set[int]) -> None:
        bitmap = uapi.write_bits(sum(1 << page for page in pages), 24)

        found = written_ranges(bitmap, 0x10_0000, 0x1000)

        assert found == RangeSet(
            AddrRange.from_size(0x10_0000 + page * 0x1000, 0x1000) for page in pages
        )

    @pytest.mark.parametrize(("order", "first"), [("little", 1), ("big", 0)])
    def test_words_have_the_machines_order(self, order: str, first: int) -> None:
        assert uapi.write_bits(1, 8, order)[0] == first
        assert uapi.read_bits(uapi.write_bits(0x1234_5678_9ABC, 16, order), order) == 0x123456789ABC


class TestTranslate:
    @pytest.mark.parametrize(
        ("address", "want", "got"),
        [
            (0x0, 0x60_0000, 0x60_0000),
            (0x1000, 0x60_0000, 0x5F_F000),
            (0x1000, 0x21F, 0x21F),
            (0x5F_FF3C, 0x21F, 0xC4),
        ],
    )
    def test_tells_how_many_bytes_are_contiguous(
        self, space: Space, address: int, want: int, got: int
    ) -> None:
        """spdk-translate-length of the shared cases."""
        space.map(0, HVA, 0x60_0000)

        assert space.live.translate(address, want) == (HVA + address, got)

    def test_goes_on_where_the_memory_does(self, space: Space) -> None:
        space.map(0, HVA, 0x1000)
        space.map(0x1000, HVA + 0x1000, 0x1000)
        space.map(0x2000, HVA + 0x9000, 0x1000)

        assert space.live.translate(0x800, 0x10000) == (HVA + 0x800, 0x1800)

    @pytest.mark.parametrize("address", [0, 0x2000, 0xFFF])
    def test_of_nothing_raises(self, space: Space, address: int) -> None:
        space.map(0x1000, HVA, 0x1000)

        with pytest.raises(NotAllocatedError):
            space.live.translate(address, 0x10)


def test_msi_window_is_what_both_kernels_hold_back(space: Space) -> None:
    ranges = space.facts().ranges

    assert ranges is not None
    assert next(iter(~RangeSet(ranges))) == MSI
    assert ctypes.sizeof(ctypes.c_void_p) == 8
