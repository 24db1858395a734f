# SPDX-License-Identifier: Apache-2.0
"""Type1: the first version, dirty tracking, and closing."""

from __future__ import annotations

import ctypes
import errno
import gc
import struct
from typing import TYPE_CHECKING

import pytest

from tests.kit.kernels import NIC, NIC_GROUP, refusal
from vmm_iova import AddrRange, Hva, Iova, RangeSet
from vmm_iova.errors import DmaError
from vmm_iova.kernel import open_space, uapi
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator

HVA = 0x7F00_0000_0000


class TestVersionOne:
    @pytest.fixture
    def old(self, sim: SimulatedKernel) -> Iterator[Type1Container]:
        with Type1Container(sim, version=1) as made:
            made.add_group(4)
            made.map(0x1000, HVA, 0x3000)
            yield made
            made.unmap_all()

    def test_unmap_of_the_first_page_takes_the_whole_mapping(self, old: Type1Container) -> None:
        assert old.unmap_range(0x1000, 0x1000) == 0x3000

    def test_unmap_inside_a_mapping_gives_zero(self, old: Type1Container) -> None:
        assert old.unmap_range(0x2000, 0x1000) == 0

    def test_dirty_tracking_raises_eacces(self, old: Type1Container) -> None:
        with refusal(errno.EACCES):
            old.start_dirty()


class TestDirty:
    def test_pinned_pages_all_count_as_written(self, container: Type1Container) -> None:
        container.map(0, HVA, 0x41000)
        container.start_dirty()

        bitmap = container.read_dirty(0, 0x41000)

        assert (uapi.read_bits(bitmap), len(bitmap)) == ((1 << 65) - 1, 16)

    def test_bits_behind_a_mapping_are_masked(
        self, sim: SimulatedKernel, container: Type1Container
    ) -> None:
        """Seed 7 of the differential test: a real kernel left bits of an earlier reading there."""
        container.map(0, HVA, 0x8000)
        container.start_dirty()

        def leave_bits(answer: bytearray) -> None:
            (pointer,) = struct.unpack_from("=Q", answer, 40)
            ctypes.memmove(pointer, uapi.write_bits(0x3FF, 8), 8)

        sim.falsify(leave_bits, request=uapi.IOMMU_DIRTY_PAGES)

        assert uapi.read_bits(container.read_dirty(0, 0x10000)) == 0xFF

    def test_reading_without_tracking_raises_einval(self, container: Type1Container) -> None:
        container.map(0, HVA, 0x1000)

        with refusal(errno.EINVAL):
            container.read_dirty(0, 0x1000)

    def test_reading_a_cut_mapping_raises_einval(self, container: Type1Container) -> None:
        container.map(0, HVA, 0x2000)
        container.start_dirty()

        with refusal(errno.EINVAL):
            container.read_dirty(0, 0x1000)

    def test_tracking_before_5_8_raises_enotty(self) -> None:
        with Type1Container(SimulatedKernel([NIC_GROUP], release=(5, 7))) as made:
            made.add_group(4)

            with refusal(errno.ENOTTY):
                made.start_dirty()

    def test_stop_ends_it(self, container: Type1Container) -> None:
        container.map(0, HVA, 0x1000)
        container.start_dirty()
        container.stop_dirty()

        with refusal(errno.EINVAL):
            container.read_dirty(0, 0x1000)


class TestClosing:
    def test_body_that_raises_leaves_nothing_open(self, sim: SimulatedKernel) -> None:
        def body() -> None:
            with Type1Container(sim) as made:
                made.add_group(4)
                made.open_device(NIC, 4)
                made.map(0, HVA, 0x1000)
                raise KeyError("a defect of the embedder")

        with pytest.raises(KeyError):
            body()

        assert (sim.open_files(), sim.memory.locked, len(sim.mapped())) == (0, 0, 0)

    def test_close_closes_devices_before_unmapping(self, sim: SimulatedKernel) -> None:
        made = Type1Container(sim)
        made.add_group(4)
        device = made.open_device(NIC, 4)
        made.map(0, HVA, 0x1000)
        order: list[str] = []
        close, ioctl = sim.close, sim.ioctl
        sim.close = lambda fd: (order.append("device" if fd == device else "file"), close(fd))[1]
        sim.ioctl = lambda fd, request, arg=0: (
            order.append("unmap") if request == uapi.IOMMU_UNMAP_DMA else None,
            ioctl(fd, request, arg),
        )[1]

        made.close()

        assert order == ["device", "unmap", "file", "file"]

    def test_forgotten_mapping_warns_with_its_place(self, sim: SimulatedKernel) -> None:
        made = Type1Container(sim)
        made.add_group(4)
        made.map(0x1000, HVA, 0x1000)

        box = [made]
        del made
        with pytest.warns(ResourceWarning, match=r"0x1000-.*test_type1_life.py:\d+"):
            box.clear()
        gc.collect()

        assert sim.open_files() == 0

    def test_container_without_mappings_is_dropped_silently(self, sim: SimulatedKernel) -> None:
        made = Type1Container(sim)
        made.add_group(4)

        del made
        gc.collect()

        assert sim.open_files() == 0


@pytest.mark.parametrize("step", range(3))
def test_unmap_all_that_is_refused_half_way_leaves_the_book_true(step: int) -> None:
    """Before 5.12 it takes several calls: across 2^63, below, and above."""
    group = SimGroup(4, ("0000:00:04.0",), aperture=AddrRange(0, (1 << 64) - 1), reserved=())
    sim = SimulatedKernel([group], release=(5, 4))
    with open_space(["0000:00:04.0"], kernel=sim, via="type1") as space:
        for iova in (0x1000, (1 << 63) - 0x1000, 1 << 63 | 0x10_0000):
            space.map(Iova(iova), Hva(0x7F00_0000_0000), 0x2000)
        sim.inject(errno.ENOMEM, request=uapi.IOMMU_UNMAP_DMA, after=step)
        with pytest.raises(DmaError):
            space.unmap_all()
        assert len(space.live) == 3 - step
        assert RangeSet(item.range for item in space.live) == sim.mapped()
        assert space.unmap_all() == (3 - step) * 0x2000
        assert (len(space.live), len(sim.mapped())) == (0, 0)
