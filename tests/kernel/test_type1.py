# SPDX-License-Identifier: Apache-2.0
"""The type1 container, on the simulated kernel."""

from __future__ import annotations

import errno
import pickle

import pytest

from tests.kit.kernels import GPU, GPU_GROUP, NIC, NIC_GROUP, refusal
from vmm_iova import AddrRange, MappableRanges, RangeSet
from vmm_iova.errors import (
    ClosedError,
    EvidenceError,
    NotAllocatedError,
    PartialUnmapError,
)
from vmm_iova.kernel import uapi
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

HVA = 0x7F00_0000_0000


class TestOpening:
    def test_missing_node_raises_enoent(self) -> None:
        with refusal(errno.ENOENT):
            Type1Container(SimulatedKernel([]), path="/dev/vfio/none")

    def test_forbidden_node_raises_eacces(self, sim: SimulatedKernel) -> None:
        sim.sysfs.forbidden["/dev/vfio/vfio"] = errno.EACCES

        with refusal(errno.EACCES):
            Type1Container(sim)

    @pytest.mark.parametrize("after", [0, 1])
    def test_refused_probe_closes_the_file(self, sim: SimulatedKernel, after: int) -> None:
        sim.inject(errno.EIO, after=after)

        with refusal(errno.EIO):
            Type1Container(sim)

        assert sim.open_files() == 0

    def test_native_container_is_told_from_compat(self, sim: SimulatedKernel) -> None:
        with Type1Container(sim) as native:
            assert not native.compat

    def test_iommufd_in_disguise_is_recognized(self) -> None:
        with Type1Container(SimulatedKernel([], compat_container=True)) as compat:
            assert compat.compat

    def test_info_before_a_group_raises_einval(self, sim: SimulatedKernel) -> None:
        with Type1Container(sim) as empty, refusal(errno.EINVAL):
            empty.facts()

    def test_use_after_close_raises_closed_error(self, sim: SimulatedKernel) -> None:
        made = Type1Container(sim)
        made.close()
        made.close()

        with pytest.raises(ClosedError, match=r"test_type1\.py"):
            made.map(0, HVA, 4096)


class TestGroups:
    def test_first_group_gives_the_ranges(self, container: Type1Container) -> None:
        facts = container.facts()

        assert facts.ranges == MappableRanges(
            [AddrRange(0, 0xFEDF_FFFF), AddrRange(0xFEF0_0000, (1 << 48) - 1)]
        )
        assert (facts.granule, facts.largest_page, facts.entries_left) == (4096, 1 << 30, 65535)

    def test_second_group_narrows_the_ranges(self, container: Type1Container) -> None:
        facts = container.add_group(5)

        assert facts.ranges is not None
        assert facts.ranges[-1].last == (1 << 39) - 1

    def test_removed_group_widens_them_again(self, container: Type1Container) -> None:
        container.add_group(5)

        facts = container.remove_group(5)

        assert facts is not None
        assert facts.ranges is not None
        assert facts.ranges[-1].last == (1 << 48) - 1

    def test_removed_last_group_takes_all_mappings(
        self, sim: SimulatedKernel, container: Type1Container
    ) -> None:
        container.map(0x1000, HVA, 0x1000)

        assert container.remove_group(4) is None
        assert not sim.mapped()
        assert not container.live

    def test_group_twice_raises_ebusy(self, container: Type1Container) -> None:
        with refusal(errno.EBUSY):
            container.add_group(4)

    def test_group_open_elsewhere_raises_ebusy(
        self, sim: SimulatedKernel, container: Type1Container
    ) -> None:
        with Type1Container(sim) as other, refusal(errno.EBUSY):
            other.add_group(4)

    def test_live_mapping_beyond_a_second_groups_aperture_raises_einval(
        self, sim: SimulatedKernel, container: Type1Container
    ) -> None:
        container.map(1 << 40, HVA, 0x1000)
        before = (sim.open_files(), container.facts())

        with refusal(errno.EINVAL):
            container.add_group(5)

        assert (sim.open_files(), container.facts()) == before

    def test_no_interrupt_remapping_raises_eperm_with_the_parameter(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), isolated_msi=False)])

        with Type1Container(sim) as made, refusal(errno.EPERM) as caught:
            made.add_group(4)

        assert "allow_unsafe_interrupts" in (caught.value.hint or "")

    def test_not_viable_group_raises_einval(self, sim: SimulatedKernel) -> None:
        sim.sysfs.bind_foreign(NIC, "e1000e")

        with Type1Container(sim) as made, refusal(errno.EINVAL) as caught:
            made.add_group(4)

        assert "not viable" in caught.value.message

    @pytest.mark.parametrize("step", range(4))
    def test_refusal_at_any_step_of_attach_leaves_no_group(
        self, sim: SimulatedKernel, step: int
    ) -> None:
        with Type1Container(sim) as made:
            sim.inject(errno.EIO, after=step)

            with refusal(errno.EIO):
                made.add_group(4)

            assert (made.groups, sim.open_files()) == ((), 1)
            assert made.add_group(4).ranges

    def test_open_device_of_another_group_raises_enodev(self, container: Type1Container) -> None:
        with refusal(errno.ENODEV):
            container.open_device(GPU, 4)

    def test_group_with_open_device_cannot_be_removed(self, container: Type1Container) -> None:
        container.open_device(NIC, 4)

        with refusal(errno.EBUSY):
            container.remove_group(4)

    def test_no_page_sizes_raises_evidence_error(
        self, sim: SimulatedKernel, container: Type1Container
    ) -> None:
        def clear_flag(answer: bytearray) -> None:
            answer[4:8] = bytes(4)

        sim.falsify(clear_flag, request=uapi.IOMMU_GET_INFO)
        sim.falsify(clear_flag, request=uapi.IOMMU_GET_INFO, after=0)

        with pytest.raises(EvidenceError):
            container.facts()


@pytest.mark.parametrize(
    ("release", "entries", "has_ranges"),
    [((5, 3), None, False), ((5, 4), None, True), ((5, 8), None, True), ((5, 10), 65535, True)],
)
def test_facts_of_old_kernels_leave_out_what_they_do_not_say(
    release: tuple[int, int], entries: int | None, has_ranges: bool
) -> None:
    with Type1Container(SimulatedKernel([NIC_GROUP], release=release)) as made:
        facts = made.add_group(4)

    assert (facts.entries_left, facts.ranges is not None) == (entries, has_ranges)


@pytest.mark.parametrize("release", [(5, 10), (6, 5), (6, 6), (7, 3)])
def test_facts_are_the_same_whatever_the_alignment_of_the_chain(release: tuple[int, int]) -> None:
    with Type1Container(SimulatedKernel([NIC_GROUP, GPU_GROUP], release=release)) as made:
        made.add_group(4)
        facts = made.add_group(5)

    assert facts.ranges == MappableRanges(
        [AddrRange(0, 0xFEDF_FFFF), AddrRange(0xFEF0_0000, (1 << 39) - 1)]
    )


MAP_REFUSALS = [
    pytest.param((0, HVA, 0), errno.EINVAL, id="empty"),
    pytest.param((1, HVA, 4096), errno.EINVAL, id="iova-misaligned"),
    pytest.param((0, HVA + 1, 4096), errno.EINVAL, id="hva-misaligned"),
    pytest.param((0, HVA, 4095), errno.EINVAL, id="size-misaligned"),
    pytest.param((0xFEE0_0000, HVA, 4096), errno.EINVAL, id="msi-window"),
    pytest.param((0xFEDF_F000, HVA, 0x2000), errno.EINVAL, id="into-the-msi-window"),
    pytest.param((1 << 48, HVA, 4096), errno.EINVAL, id="beyond-the-width"),
    pytest.param((0x10_0000, HVA, 4096), errno.EEXIST, id="identical"),
    pytest.param((0xFEDF_F000, HVA, 0x10_2000), errno.EINVAL, id="across-the-msi-window"),
    pytest.param((2**64 - 4096, HVA, 8192), errno.EOVERFLOW, id="wraps"),
    pytest.param((0, 2**64 - 4096, 8192), errno.EOVERFLOW, id="memory-wraps"),
    # EEXIST is said before the ranges are looked at.
    pytest.param((0x10_0000, HVA, 1 << 49), errno.EEXIST, id="overlap-and-out-of-range"),
]


class TestMapping:
    @pytest.mark.parametrize(("args", "number"), MAP_REFUSALS)
    def test_map_refused_leaves_the_space_as_it_was(
        self,
        sim: SimulatedKernel,
        container: Type1Container,
        args: tuple[int, int, int],
        number: int,
    ) -> None:
        container.map(0x10_0000, HVA, 4096)
        before = (sim.mapped(), len(container.live), container.facts().entries_left)

        with refusal(number) as caught:
            container.map(*args)

        assert (sim.mapped(), len(container.live), container.facts().entries_left) == before
        assert (caught.value.iova, caught.value.hva, caught.value.length) == args

    def test_map_without_rights_raises_einval(self, container: Type1Container) -> None:
        with refusal(errno.EINVAL):
            container.map(0, HVA, 4096, read=False, write=False)

    def test_map_beyond_the_entry_limit_raises_enospc(self) -> None:
        with Type1Container(SimulatedKernel([NIC_GROUP], dma_entry_limit=1)) as made:
            made.add_group(4)
            made.map(0, HVA, 4096)

            with refusal(errno.ENOSPC) as caught:
                made.map(0x1000, HVA, 4096)

        assert "dma_entry_limit" in (caught.value.hint or "")

    def test_map_beyond_memlock_raises_enomem_and_accounts_nothing(self) -> None:
        sim = SimulatedKernel([NIC_GROUP], memlock=0x4000)
        with Type1Container(sim) as made:
            made.add_group(4)
            made.map(0, HVA, 0x3000)

            with refusal(errno.ENOMEM):
                made.map(0x10_0000, HVA, 0x2000)

            assert sim.memory.locked == 0x3000
        assert sim.memory.locked == 0

    def test_map_of_absent_memory_raises_efault(self, container, sim) -> None:

        sim.memory.absent = RangeSet([AddrRange(HVA + 0x1000, HVA + 0x1FFF)])

        with refusal(errno.EFAULT):
            container.map(0, HVA, 0x3000)

        assert not sim.mapped()

    def test_refusal_survives_pickling(self, container: Type1Container) -> None:
        with refusal(errno.EINVAL) as caught:
            container.map(1, HVA, 4096)

        again = pickle.loads(pickle.dumps(caught.value))

        assert (again.errno, again.iova, again.ioctl, str(again)) == (
            errno.EINVAL,
            1,
            "VFIO_IOMMU_MAP_DMA",
            str(caught.value),
        )

    def test_before_5_4_the_kernel_takes_the_msi_window(self) -> None:
        with Type1Container(SimulatedKernel([NIC_GROUP], release=(5, 3))) as made:
            made.add_group(4)

            made.map(0xFEE0_0000, HVA, 4096)

            assert len(made.live) == 1


class TestUnmapping:
    def test_unmap_of_what_was_mapped_gives_its_size(self, container: Type1Container) -> None:
        container.map(0x1000, HVA, 0x3000)

        assert container.unmap(0x1000, 0x3000) == 0x3000

    @pytest.mark.parametrize(("iova", "size"), [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0x4000)])
    def test_unmap_of_another_range_raises_before_any_ioctl(
        self, sim: SimulatedKernel, container: Type1Container, iova: int, size: int
    ) -> None:
        container.map(0x1000, HVA, 0x3000)
        calls = sim.calls

        with pytest.raises(NotAllocatedError, match="0x1000-0x3fff"):
            container.unmap(iova, size)

        assert sim.calls == calls

    @pytest.mark.parametrize("told", [0, 0x1000, 0x4000])
    def test_unmap_of_another_size_than_mapped_raises_partial(
        self, sim: SimulatedKernel, container: Type1Container, told: int
    ) -> None:
        container.map(0x1000, HVA, 0x3000)
        sim.falsify(
            lambda answer: answer.__setitem__(slice(16, 24), told.to_bytes(8, "little")),
            request=uapi.IOMMU_UNMAP_DMA,
        )

        with pytest.raises(PartialUnmapError, match=f"{told:#x} bytes instead of 0x3000") as caught:
            container.unmap(0x1000, 0x3000)

        assert caught.value.unmapped == told

    def test_bare_unmap_cutting_a_mapping_raises_einval(self, container: Type1Container) -> None:
        container.map(0x1000, HVA, 0x3000)

        with refusal(errno.EINVAL):
            container.unmap_range(0x1000, 0x1000)

    def test_bare_unmap_of_nothing_gives_zero(self, container: Type1Container) -> None:
        assert container.unmap_range(0x1000, 0x1000) == 0

    @pytest.mark.parametrize("release", [(5, 11), (5, 12), (7, 3)])
    def test_unmap_all_with_and_without_the_flag_empties(self, release: tuple[int, int]) -> None:
        group = SimGroup(4, (NIC,), aperture=AddrRange(0, 2**64 - 1))
        sim = SimulatedKernel([group], release=release)
        with Type1Container(sim) as made:
            made.add_group(4)
            made.map(0, HVA, 0x1000)
            made.map((1 << 63) - 0x1000, HVA, 0x2000)
            made.map((1 << 63) + 0x10000, HVA, 0x1000)

            assert made.unmap_all() == 0x4000
            assert not sim.mapped()
            assert not made.live
