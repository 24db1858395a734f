# SPDX-License-Identifier: Apache-2.0
"""iommufd and its address spaces, on the simulated kernel."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import struct
from typing import TYPE_CHECKING

import pytest

from tests.kit.kernels import GPU, NIC, NIC_GROUP, attach, refusal
from vmm_iova import AddrRange, MappableRanges
from vmm_iova.errors import (
    CapabilityError,
    ClosedError,
    NotAllocatedError,
    PartialUnmapError,
)
from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd
from vmm_iova.kernel.syscalls import UserBuffer
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator

HVA = 0x7F00_0000_0000
TOP = 2**64 - 1
COMMANDS = sorted(abi.COMMANDS.keys() - {abi.IOAS_CHANGE_PROCESS})


class TestRanges:
    def test_fresh_ioas_says_everything_and_is_not_final(self, fresh: Ioas) -> None:
        facts = fresh.facts()

        assert (facts.ranges, facts.granule, facts.final) == (
            MappableRanges([AddrRange(0, TOP)]),
            1,
            False,
        )

    def test_attached_device_gives_the_true_ranges(self, ioas: Ioas) -> None:
        facts = ioas.facts()

        assert facts.ranges == MappableRanges(
            [AddrRange(0, 0xFEDF_FFFF), AddrRange(0xFEF0_0000, (1 << 48) - 1)]
        )
        assert (facts.granule, facts.final) == (4096, True)

    def test_second_device_narrows_and_its_detach_widens(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        attach(ioas, sim, 1)
        narrow = ioas.facts().ranges

        wide = ioas.detach(GPU).ranges

        assert narrow is not None
        assert wide is not None
        assert (narrow[-1].last, wide[-1].last) == ((1 << 39) - 1, (1 << 48) - 1)

    def test_list_that_grows_between_the_calls_is_asked_again(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        # The first answer claims one range; when two come, the kernel says EMSGSIZE again.
        sim.inject(errno.EMSGSIZE, request=abi.IOAS_IOVA_RANGES)

        ranges, _ = ioas.ranges()

        assert len(ranges) == 2

    def test_list_that_grows_for_ever_raises(self, sim: SimulatedKernel, ioas: Ioas) -> None:
        for _ in range(uapi.GROW_LIMIT):
            sim.inject(errno.EMSGSIZE, request=abi.IOAS_IOVA_RANGES)

        with pytest.raises(CapabilityError, match="keeps growing"):
            ioas.ranges()

    def test_buffer_for_one_of_two_is_filled_with_the_first(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:

        room = UserBuffer(16)
        arg = abi.RANGES_ARG.pack(size=32, ioas_id=ioas.id, num_iovas=1, allowed_iovas=room.address)

        with pytest.raises(OSError, match="too long"):
            sim.ioctl(ioas.iommufd.fd, abi.IOAS_IOVA_RANGES, arg)

        assert struct.unpack("=QQ", room.content()) == (0, 0xFEDF_FFFF)
        assert abi.RANGES_ARG.read(arg)["num_iovas"] == 2

    def test_attach_touching_a_live_mapping_raises_eaddrinuse_and_changes_nothing(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        ioas.map(1 << 40, HVA, 0x1000)
        before = ioas.facts()

        with refusal(errno.EADDRINUSE):
            attach(ioas, sim, 1)

        assert ioas.facts() == before

    def test_attach_raising_the_alignment_over_a_mapping_raises_eaddrinuse(
        self, sim: SimulatedKernel, fresh: Ioas
    ) -> None:
        fresh.map(0x10_0001, HVA + 1, 1)

        with refusal(errno.EADDRINUSE):
            attach(fresh, sim, 0)

    def test_attach_with_io_pages_above_the_cpus_raises_einval(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), page_sizes=0x1_0000)])
        with Ioas(Iommufd(sim), owns=True) as space, refusal(errno.EINVAL):
            attach(space, sim, 0)


class TestAllow:
    def test_automatic_placement_stays_inside(self, ioas: Ioas) -> None:
        ioas.allow([AddrRange(0x4000_0000, 0x4FFF_FFFF)])

        assert ioas.map_anywhere(HVA, 0x20_0000) == 0x4000_0000

    def test_fixed_mapping_outside_is_still_accepted(self, ioas: Ioas) -> None:
        ioas.allow([AddrRange(0x4000_0000, 0x4FFF_FFFF)])

        ioas.map(0x1000, HVA, 0x1000)

        assert 0x1000 in ioas.live

    def test_attach_that_would_reserve_an_allowed_part_raises_eaddrinuse(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        ioas.allow([AddrRange(1 << 40, (1 << 41) - 1)])

        with refusal(errno.EADDRINUSE):
            attach(ioas, sim, 1)

    def test_allowed_part_over_the_msi_window_raises_eaddrinuse(self, ioas: Ioas) -> None:
        with refusal(errno.EADDRINUSE):
            ioas.allow([AddrRange(0xFEE0_0000, 0xFEE0_0FFF)])

    @pytest.mark.parametrize(
        "ranges",
        [[AddrRange(5, 5)], [AddrRange(0, 0x1FFF), AddrRange(0x1000, 0x2FFF)]],
        ids=["one-byte", "overlapping"],
    )
    def test_wrong_list_raises_einval(self, ioas: Ioas, ranges: list[AddrRange]) -> None:
        with refusal(errno.EINVAL):
            ioas.allow(ranges)

    def test_empty_list_clears(self, ioas: Ioas) -> None:
        ioas.allow([AddrRange(0x4000_0000, 0x4FFF_FFFF)])
        ioas.allow([])

        assert ioas.map_anywhere(HVA, 0x1000) < 0x4000_0000


class TestMapping:
    @pytest.mark.parametrize(
        ("args", "number"),
        [
            ((1, HVA, 4096), errno.EINVAL),
            ((0x20_0000, HVA, 0), errno.EINVAL),
            ((0x20_0000, HVA, 4095), errno.EINVAL),
            ((0x20_0000, HVA + 1, 4096), errno.EINVAL),
            ((0xFEE0_0000, HVA, 4096), errno.EINVAL),
            ((1 << 48, HVA, 4096), errno.EINVAL),
            ((0x10_0000, HVA, 4096), errno.EEXIST),
            # Reserved is said before the overlap is looked at: the reverse of type1.
            ((0x10_0000, HVA, 1 << 49), errno.EINVAL),
            ((TOP, HVA, 4096), errno.EOVERFLOW),
            ((0x20_0000, HVA, TOP), errno.EOVERFLOW),
            ((0x20_0000, TOP - 4095, 8192), errno.EOVERFLOW),
            ((TOP - 4095, HVA, 8192), errno.EOVERFLOW),
        ],
    )
    def test_map_refused_leaves_the_space_as_it_was(
        self, sim: SimulatedKernel, ioas: Ioas, args: tuple[int, int, int], number: int
    ) -> None:
        ioas.map(0x10_0000, HVA, 4096)
        before = (sim.mapped(), len(ioas.live))

        with refusal(number):
            ioas.map(*args)

        assert (sim.mapped(), len(ioas.live)) == before

    def test_map_without_rights_is_refused_since_6_9(self, ioas: Ioas) -> None:
        with refusal(errno.EINVAL):
            ioas.map(0, HVA, 4096, read=False, write=False)

    def test_map_anywhere_never_gives_zero(self, ioas: Ioas) -> None:
        assert ioas.map_anywhere(HVA + 0x1000, 0x1000) == 0x1000

    def test_map_anywhere_is_congruent_to_its_memory(self, ioas: Ioas) -> None:
        assert ioas.map_anywhere(HVA, 0x40_0000) % 0x20_0000 == 0

    def test_map_anywhere_too_large_raises_enospc(self, ioas: Ioas) -> None:
        with refusal(errno.ENOSPC):
            ioas.map_anywhere(HVA, 1 << 48)

    def test_map_anywhere_of_half_the_space_raises_eoverflow(self, fresh: Ioas) -> None:
        with refusal(errno.EOVERFLOW):
            fresh.map_anywhere(0, 1 << 63)

    def test_map_before_attach_pins_at_attach(self) -> None:
        sim = SimulatedKernel([NIC_GROUP], memlock=0x1000)
        with Ioas(Iommufd(sim), owns=True) as space:
            space.map(0, HVA, 0x2000)

            with refusal(errno.ENOMEM):
                attach(space, sim, 0)

            assert sim.memory.locked == 0

    def test_map_file_counts_by_its_offset(self, ioas: Ioas) -> None:
        assert ioas.map_file(3, 0x2000, 0x1000, 0x5000) == 0x5000

    def test_map_file_without_a_file_raises_ebadf(self, ioas: Ioas) -> None:
        with refusal(errno.EBADF):
            ioas.map_file(-1, 0, 0x1000)

    def test_copy_shares_the_pins(self) -> None:
        sim = SimulatedKernel([NIC_GROUP], memlock=1 << 20)
        with Iommufd(sim) as iommufd, Ioas(iommufd) as one, Ioas(iommufd) as two:
            attach(one, sim, 0)
            one.map(0, HVA, 0x4000)

            two.copy_from(one, 0, 0x4000, 0x10_0000)

            assert sim.memory.locked == 0x4000

    def test_copy_of_a_gap_raises_enoent(self, sim: SimulatedKernel) -> None:
        with Iommufd(sim) as iommufd, Ioas(iommufd) as one, Ioas(iommufd) as two:
            one.map(0, HVA, 0x1000)

            with refusal(errno.ENOENT):
                two.copy_from(one, 0, 0x2000, 0)

    def test_writeable_copy_of_read_only_raises_eperm(self, sim: SimulatedKernel) -> None:
        with Iommufd(sim) as iommufd, Ioas(iommufd) as one, Ioas(iommufd) as two:
            one.map(0, HVA, 0x1000, write=False)

            with refusal(errno.EPERM):
                two.copy_from(one, 0, 0x1000, 0)


class TestUnmapping:
    def test_unmap_of_what_was_mapped_gives_its_size(self, ioas: Ioas) -> None:
        ioas.map(0x1000, HVA, 0x3000)

        assert ioas.unmap(0x1000, 0x3000) == 0x3000

    def test_map_of_a_closed_one_says_so_though_its_file_is_open(self, ioas: Ioas) -> None:
        ioas._owns = False
        ioas.close()
        assert not ioas.iommufd.closed
        with pytest.raises(ClosedError, match="is closed"):
            ioas.map(0x1000, HVA, 0x1000)
        ioas.iommufd.close()

    def test_unmap_of_a_part_raises_before_any_ioctl(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        ioas.map(0x1000, HVA, 0x3000)
        calls = sim.calls

        with pytest.raises(NotAllocatedError):
            ioas.unmap(0x1000, 0x1000)

        assert sim.calls == calls

    def test_unmap_of_another_size_raises_partial(self, sim: SimulatedKernel, ioas: Ioas) -> None:
        ioas.map(0x1000, HVA, 0x3000)
        sim.falsify(
            lambda answer: answer.__setitem__(slice(16, 24), bytes(8)), request=abi.IOAS_UNMAP
        )

        with pytest.raises(PartialUnmapError):
            ioas.unmap(0x1000, 0x3000)

    def test_bare_unmap_of_nothing_raises_enoent(self, ioas: Ioas) -> None:
        with refusal(errno.ENOENT):
            ioas.unmap_range(0x1000, 0x1000)

    def test_bare_unmap_cutting_the_upper_end_has_taken_the_lower(
        self, sim: SimulatedKernel, ioas: Ioas
    ) -> None:
        ioas.map(0x1000, HVA, 0x1000)
        ioas.map(0x2000, HVA, 0x2000)

        with refusal(errno.ENOENT):
            ioas.unmap_range(0x1000, 0x2000)

        assert list(sim.mapped()) == [AddrRange(0x2000, 0x3FFF)]

    def test_unmap_all_twice_succeeds(self, ioas: Ioas) -> None:
        ioas.map(0x1000, HVA, 0x3000)

        assert (ioas.unmap_all(), ioas.unmap_all()) == (0x3000, 0)


class TestDirty:
    @pytest.fixture
    def tracked(self) -> Iterator[tuple[SimulatedKernel, Ioas]]:
        sim = SimulatedKernel([SimGroup(4, (NIC,), tracks_dirty=True)])
        with Ioas(Iommufd(sim), owns=True) as space:
            attach(space, sim, 0, dirty=True)
            yield sim, space

    def test_written_page_is_told_once(self, tracked: tuple[SimulatedKernel, Ioas]) -> None:

        sim, space = tracked

        memory = mmap.mmap(-1, 0x4000)
        hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        space.map(0x1_0000, hva, 0x4000)
        space.start_dirty()
        sim.device_write(NIC, 0x1_1FFF, b"ab")

        first, second = space.read_dirty(0x1_0000, 0x4000), space.read_dirty(0x1_0000, 0x4000)

        assert (uapi.read_bits(first), uapi.read_bits(second)) == (0b0110, 0)
        assert memory[0x1FFF:0x2001] == b"ab"

    def test_reading_without_tracking_raises_einval(
        self, tracked: tuple[SimulatedKernel, Ioas]
    ) -> None:
        with refusal(errno.EINVAL):
            tracked[1].read_dirty(0, 0x1000)

    def test_tracking_without_such_a_table_raises_eopnotsupp(self, ioas: Ioas) -> None:
        with refusal(errno.EOPNOTSUPP):
            ioas.start_dirty()

    def test_table_that_the_iommu_cannot_make_raises_eopnotsupp_and_attaches_nothing(
        self, sim: SimulatedKernel, fresh: Ioas
    ) -> None:
        with refusal(errno.EOPNOTSUPP):
            attach(fresh, sim, 0, dirty=True)

        assert not fresh.facts().final


class TestClosing:
    def test_body_that_raises_leaves_nothing_open(self, sim: SimulatedKernel) -> None:
        def body() -> None:
            with Ioas(Iommufd(sim), owns=True) as space:
                attach(space, sim, 0)
                space.map(0, HVA, 0x1000)
                raise KeyError("a defect of the embedder")

        with pytest.raises(KeyError):
            body()

        assert (sim.open_files(), len(sim.mapped())) == (0, 0)

    def test_refused_unmap_at_close_is_no_news_when_the_file_goes_too(
        self, sim: SimulatedKernel
    ) -> None:
        space = Ioas(Iommufd(sim), owns=True)
        space.map(0, HVA, 0x1000)
        sim.inject(errno.ENOENT, request=abi.IOAS_UNMAP)

        space.close()

        assert (sim.open_files(), len(sim.mapped())) == (0, 0)

    def test_refused_unmap_at_close_is_told_when_the_file_stays(self, sim: SimulatedKernel) -> None:
        with Iommufd(sim) as iommufd:
            space = Ioas(iommufd)
            space.map(0, HVA, 0x1000)
            sim.inject(errno.EBUSY, request=abi.IOAS_UNMAP)

            with refusal(errno.EBUSY):
                space.close()

            assert len(sim.mapped()) == 1

    def test_forgotten_mapping_warns_with_its_place(self, sim: SimulatedKernel) -> None:
        box = [Ioas(Iommufd(sim), owns=True)]
        box[0].map(0x1000, HVA, 0x1000)

        with pytest.warns(ResourceWarning, match=r"0x1000-.*test_iommufd.py:\d+"):
            box.clear()

        gc.collect()
        assert sim.open_files() == 0
