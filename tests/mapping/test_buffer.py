# SPDX-License-Identifier: Apache-2.0
"""Memory for DMA: made, mapped, cut into parts, and given back."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import mmap
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.kernels import NIC, Space, refusal
from vmm_iova import AddrRange, Hva, IovaAllocator, RangeSet
from vmm_iova.errors import ClosedError, DmaError, NoSpaceError, RequestError
from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.mapping import DynamicMaps, GuestMemory
from vmm_iova.mapping import dynamic as dynamic_module
from vmm_iova.simulated import SimulatedKernel

MIB, GIB = 1 << 20, 1 << 30
WINDOW = AddrRange(0x10_0000, 16 * GIB - 1)
MAP = {"type1": uapi.IOMMU_MAP_DMA, "iommufd": abi.IOAS_MAP}


@pytest.fixture
def allocator() -> IovaAllocator:
    return IovaAllocator(RangeSet([WINDOW]), granule=0x1000)


@pytest.fixture
def maps(space: Space, allocator: IovaAllocator) -> Iterator[DynamicMaps]:
    with DynamicMaps(allocator, space) as opened:
        yield opened
    assert (len(opened), len(list(allocator)), len(space.live)) == (0, 0, 0)


class TestBuffer:
    @pytest.mark.parametrize("size", [1, 0x1000, 0x1001, 5 * MIB])
    def test_buffer_is_seen_by_the_device_at_its_iova(
        self, maps: DynamicMaps, sim: SimulatedKernel, size: int
    ) -> None:
        with maps.allocate(size, tag="queue") as buffer:
            assert (len(buffer), len(buffer.view), buffer.range.size) == (size, size, size)
            buffer.view[-1] = 7
            assert sim.device_read(NIC, buffer.iova + size - 1, 1) == b"\7"
            sim.device_write(NIC, buffer.iova, b"\5")
            assert buffer.view[0] in (5, 7)
            assert repr(buffer) == f"<DmaBuffer of {size:#x} bytes at {buffer.iova:#x}>"
        assert buffer.closed
        assert not sim.mapped()

    def test_large_buffer_is_congruent_to_its_iova_so_that_large_pages_can_be_used(
        self, maps: DynamicMaps, space: Space
    ) -> None:
        with maps.allocate(4 * MIB) as buffer:
            (live,) = space.live
            assert (live.hva - buffer.iova) % (2 * MIB) == 0

    def test_place_is_where_it_was_asked_for(self, maps: DynamicMaps) -> None:
        low = AddrRange(0x10_0000, 4 * GIB - 1)
        with (
            maps.allocate(0x1000, within=low, policy="last") as last,
            maps.allocate(0x1000, within=low, align=MIB) as aligned,
        ):
            assert last.iova == 4 * GIB - 0x1000
            assert aligned.iova % MIB == 0
            with mmap.mmap(-1, 0x1000) as memory:
                iova = maps.map(memory, within=AddrRange(GIB, 2 * GIB - 1), align=MIB)
                assert iova == GIB
                maps.unmap(iova)
                gc.collect()

    @pytest.mark.parametrize(("size", "page"), [(0, "4KiB"), (-1, "4KiB"), ("1", "4KiB"), (1, "8")])
    def test_what_is_no_size_or_no_page_is_refused(
        self, maps: DynamicMaps, size: Any, page: Any
    ) -> None:
        with pytest.raises(RequestError):
            maps.allocate(size, page=page)

    def test_huge_pages_that_are_not_there_are_replaced_and_that_is_said(
        self, maps: DynamicMaps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[str] = []

        def none_free(spans: Any, *, backing: Any, largest_page: int) -> GuestMemory:
            tried.append(backing)
            if backing != "anonymous":
                raise DmaError("none free", errno=errno.ENOMEM, ioctl="mmap")
            return GuestMemory(spans, backing=backing, largest_page=largest_page)

        monkeypatch.setattr(dynamic_module, "GuestMemory", none_free)
        with maps.allocate(MIB, page="2MiB") as buffer:
            assert (buffer.page, len(buffer.view)) == (mmap.PAGESIZE, MIB)
        assert tried == ["hugetlb-2m", "anonymous"]

    def test_refused_map_leaves_nothing(
        self, maps: DynamicMaps, space: Space, sim: SimulatedKernel
    ) -> None:
        sim.inject(errno.ENOMEM, request=MAP[space.kind])
        with refusal(errno.ENOMEM):
            maps.allocate(0x1000)
        assert len(maps) == 0

    def test_no_room_leaves_nothing(self, maps: DynamicMaps) -> None:
        with pytest.raises(NoSpaceError):
            maps.allocate(0x2000, within=AddrRange(0x10_0000, 0x10_0FFF))

    def test_closed_buffer_has_no_view_and_closes_once(self, maps: DynamicMaps) -> None:
        buffer = maps.allocate(0x1000)
        view = buffer.view
        view[0] = 9
        buffer.close()
        buffer.close()
        assert view[0] == 9
        with pytest.raises(ClosedError):
            _ = buffer.view

    def test_dropped_buffer_warns_with_its_place(self, maps: DynamicMaps) -> None:
        box = [maps.allocate(0x1000)]
        with pytest.warns(ResourceWarning, match=r"made at .*test_buffer.py:\d+"):
            box.clear()
        # It is still mapped, and so its memory is still there.
        assert len(maps) == 1
        assert maps.unmap_all() == 0x1000

    def test_unmap_of_all_closes_buffers(self, maps: DynamicMaps) -> None:
        buffer = maps.allocate(0x1000)
        maps.unmap_all()
        assert buffer.closed
        buffer.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda memory: memory,
        lambda memory: memoryview(memory),
        lambda memory: (ctypes.c_uint32 * 1024).from_buffer(memory),
    ],
    ids=["mmap", "memoryview", "ctypes"],
)
def test_map_takes_anything_with_a_buffer(maps: DynamicMaps, make: Any) -> None:
    memory = mmap.mmap(-1, 0x1000)
    iova = maps.map(make(memory))
    assert maps.unmap(iova) == 0x1000


def test_map_of_what_is_not_made_of_pages_says_how(maps: DynamicMaps) -> None:
    with pytest.raises(RequestError, match="not a multiple of the granule"):
        maps.map(array.array("B", bytes(100)))


def test_maps_print_what_they_hold(maps: DynamicMaps, space: Space) -> None:
    iova = maps.map_address(Hva(0x7000_0000), 0x3000)
    assert repr(maps) == f"<DynamicMaps by {space.kind}, 1 maps of 0x3000 bytes>"
    maps.unmap(iova)


class TestPool:
    def test_ten_thousand_parts_are_one_map_call(
        self, maps: DynamicMaps, sim: SimulatedKernel
    ) -> None:
        with maps.allocate(10_000 * 64) as buffer:
            pool, calls = buffer.pool(), sim.calls
            parts = [pool.allocate(64) for _ in range(10_000)]
            assert sim.calls == calls
            assert len({part.iova for part in parts}) == len(pool) == 10_000
            with pytest.raises(NoSpaceError):
                pool.allocate(1)
            for part in parts:
                part.close()
            assert len(pool) == 0

    def test_part_is_seen_at_its_iova_and_given_back_once(
        self, maps: DynamicMaps, sim: SimulatedKernel
    ) -> None:
        with maps.allocate(0x1000) as buffer:
            pool = buffer.pool()
            with pool.allocate(10, tag="head"), pool.allocate(5, align=256) as part:
                assert part.iova % 256 == 0
                part.view[:] = b"tails"
                assert sim.device_read(NIC, part.iova, 5) == b"tails"
                assert repr(part) == f"<DmaPart of 0x5 bytes at {part.iova:#x}>"
            part.close()
            assert len(pool) == 0
            with pytest.raises(ClosedError):
                _ = part.view

    def test_pool_of_a_closed_buffer_gives_nothing(self, maps: DynamicMaps) -> None:
        buffer = maps.allocate(0x1000)
        pool = buffer.pool()
        buffer.close()
        with pytest.raises(ClosedError):
            pool.allocate(1)
