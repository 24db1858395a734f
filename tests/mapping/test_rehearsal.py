# SPDX-License-Identifier: Apache-2.0
"""The attach rehearsal says what the kernel then does, on both backends.

Here against the simulated kernel; `lab/tests/test_kernel_rehearsal.py` does the same on real ones.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.kernels import GPU, HVA, MSI, NIC, RMRR, Space, attach
from vmm_iova import AddrRange, IovaAllocator, RangeSet, Usable
from vmm_iova.errors import DmaError
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.mapping import Rehearsal, rehearse_attach
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.kernel.space import SpaceKind

WAYS: tuple[SpaceKind, ...] = ("type1", "iommufd")
FIRST = SimGroup(4, (NIC,))
SECOND = SimGroup(5, (GPU,))
NARROW = AddrRange(0, (1 << 39) - 1)


def newcomer(sim: SimulatedKernel, group: SimGroup) -> Usable:
    aperture = f"{group.aperture.start:#x}-{group.aperture.last:#x}"
    return sim.host().usable(
        groups=[group.number],
        aperture=aperture,
        granule=group.page_sizes & -group.page_sizes,
    )


def both(
    way: SpaceKind,
    second: SimGroup,
    prepare: Callable[[Space], None] = lambda space: None,
    *,
    first: SimGroup | None = FIRST,
    unsafe: bool = False,
    foreign: str | None = None,
    memlock: int | None = None,
) -> tuple[Rehearsal, int | None, Space]:
    """Rehearse, and attach; return the answer, the kernel's errno, and the space afterwards."""
    groups = [second] if first is None else [first, second]
    sim = SimulatedKernel(groups, allow_unsafe_interrupts=unsafe, memlock=memlock)
    if foreign is not None:
        sim.sysfs.bind_foreign(foreign, "nvme")
    space: Space = Type1Container(sim) if way == "type1" else Ioas(Iommufd(sim), owns=True)
    if isinstance(space, Type1Container):
        if first is not None:
            space.add_group(first.number)
    elif first is not None:
        attach(space, sim, 0)
    prepare(space)
    answer = rehearse_attach(space, newcomer(sim, second))
    try:
        if isinstance(space, Type1Container):
            space.add_group(second.number)
        else:
            attach(space, sim, 0 if first is None else 1)
    except DmaError as error:
        return answer, error.errno, space
    return answer, None, space


def agree(answer: Rehearsal, number: int | None, space: Space) -> None:
    try:
        assert (answer.errno, answer.would_attach) == (number, number is None), answer.refusals
        if number is None:
            assert answer.ranges == space.facts().ranges
    finally:
        if len(space.live):
            space.unmap_all()
        space.close()


@pytest.mark.parametrize("way", WAYS)
class TestBothBackends:
    def test_free_way_is_taken_and_the_ranges_are_as_told(self, way: SpaceKind) -> None:
        def prepare(space: Space) -> None:
            space.map(0x1000, HVA, 0x1000)

        agree(*both(way, replace(SECOND, aperture=NARROW), prepare))

    def test_mapping_beyond_the_aperture_is_in_the_way(self, way: SpaceKind) -> None:
        def prepare(space: Space) -> None:
            space.map(1 << 40, HVA, 0x1000)

        answer, number, space = both(way, replace(SECOND, aperture=NARROW), prepare)

        agree(answer, number, space)
        assert number == (errno.EINVAL if way == "type1" else errno.EADDRINUSE)
        assert [item.range.start for item, _ in answer.mappings] == [1 << 40]
        assert "test_rehearsal.py" in answer.refusals[0].text
        assert AddrRange(1 << 39, (1 << 48) - 1) in RangeSet(answer.lost)

    def test_mapping_in_a_new_region_is_in_the_way(self, way: SpaceKind) -> None:
        def prepare(space: Space) -> None:
            space.map(RMRR.start, HVA, 0x1000)

        second = replace(SECOND, reserved=((RMRR, "reserved"), (MSI, "msi")))
        answer, number, space = both(way, second, prepare)

        agree(answer, number, space)
        assert "reserved region" in answer.refusals[0].text

    def test_relaxable_region_is_in_nobodys_way(self, way: SpaceKind) -> None:
        def prepare(space: Space) -> None:
            space.map(RMRR.start, HVA, 0x1000)

        agree(*both(way, replace(SECOND, reserved=((RMRR, "direct-relaxable"),)), prepare))

    def test_direct_region_is_refused_whatever_is_mapped(self, way: SpaceKind) -> None:
        answer, number, space = both(way, replace(SECOND, reserved=((RMRR, "direct"),)))
        agree(answer, number, space)
        assert number == errno.EINVAL

    def test_interrupts_that_are_not_isolated_are_refused(self, way: SpaceKind) -> None:
        answer, number, space = both(way, replace(SECOND, isolated_msi=False))
        agree(answer, number, space)
        assert number == errno.EPERM
        assert "allow_unsafe_interrupts" in answer.refusals[0].text

    def test_interrupts_that_may_be_unsafe_are_taken(self, way: SpaceKind) -> None:
        agree(*both(way, replace(SECOND, isolated_msi=False), unsafe=True))

    def test_member_with_another_driver_is_refused_and_named(self, way: SpaceKind) -> None:
        second = replace(SECOND, devices=(GPU, "0000:00:05.1"))
        answer, number, space = both(way, second, foreign="0000:00:05.1")
        agree(answer, number, space)
        assert "0000:00:05.1 has driver nvme" in answer.refusals[0].text

    def test_disjoint_apertures_are_what_type1_alone_refuses(self, way: SpaceKind) -> None:
        high = AddrRange(1 << 49, (1 << 50) - 1)
        answer, number, space = both(way, replace(SECOND, aperture=high))
        agree(answer, number, space)
        assert number == (errno.EINVAL if way == "type1" else None)
        assert not answer.ranges

    def test_first_group_of_an_empty_space_is_judged_too(self, way: SpaceKind) -> None:
        agree(*both(way, SECOND, first=None))
        agree(*both(way, replace(SECOND, isolated_msi=False), first=None))

    def test_last_page_of_the_space_is_the_kernels_own(self, way: SpaceKind) -> None:
        wide = AddrRange(0, (1 << 64) - 1)

        def prepare(space: Space) -> None:
            space.map((1 << 64) - 0x2000, HVA, 0x1000)

        first = replace(FIRST, aperture=wide)
        agree(*both(way, replace(SECOND, aperture=wide), prepare, first=first))

    def test_rehearsal_changes_nothing(self, way: SpaceKind) -> None:
        sim = SimulatedKernel([FIRST, SECOND])
        with Type1Container(sim) if way == "type1" else Ioas(Iommufd(sim), owns=True) as space:
            if isinstance(space, Type1Container):
                space.add_group(4)
            else:
                attach(space, sim, 0)
            space.map(0x1000, HVA, 0x1000)
            before, mapped = space.facts(), sim.mapped()
            assert before.ranges is not None
            allocator = IovaAllocator(before.ranges, granule=0x1000)
            allocator.allocate_at(1 << 41, 0x1000, tag="vIOMMU")
            narrow = sim.host().usable(groups=[5], aperture=39)

            answer = rehearse_attach(space, narrow, allocator=allocator)

            assert [(where.start, tag) for where, tag, _ in answer.allocations] == [
                (1 << 41, "vIOMMU")
            ]
            assert (space.facts(), sim.mapped()) == (before, mapped)
            space.unmap_all()


class TestIommufd:
    def test_allowed_range_in_a_new_region_is_in_the_way(self) -> None:
        def prepare(space: Space) -> None:
            assert isinstance(space, Ioas)
            space.allow([AddrRange(0x7000_0000, 0x7FFF_FFFF)])

        second = replace(SECOND, reserved=((RMRR, "reserved"),))
        answer, number, space = both("iommufd", second, prepare)

        agree(answer, number, space)
        assert number == errno.EADDRINUSE
        assert "allowed range 0x70000000-0x7fffffff" in answer.refusals[0].text

    def test_list_that_was_cleared_is_in_nobodys_way(self) -> None:
        def prepare(space: Space) -> None:
            assert isinstance(space, Ioas)
            space.allow([AddrRange(0x7000_0000, 0x7FFF_FFFF)])
            space.allow([])

        agree(*both("iommufd", replace(SECOND, reserved=((RMRR, "reserved"),)), prepare))

    def test_refused_list_is_not_remembered(self) -> None:
        sim = SimulatedKernel([FIRST])
        with Ioas(Iommufd(sim), owns=True) as space:
            attach(space, sim, 0)
            space.allow([AddrRange(0x1000, 0x1FFF)])
            with pytest.raises(DmaError):
                space.allow([MSI])
            assert space.allowed == (AddrRange(0x1000, 0x1FFF),)

    def test_mapping_that_was_made_finer_than_the_newcomers_pages_is_in_the_way(self) -> None:
        def prepare(space: Space) -> None:
            space.map(0x1200, HVA + 0x200, 0x400)

        answer, number, space = both("iommufd", SECOND, prepare, first=None)

        agree(answer, number, space)
        assert "not aligned to 0x1000" in answer.refusals[0].text

    @pytest.mark.parametrize("limit", [0x2000, 0x4000])
    def test_memory_that_is_locked_with_the_first_device_has_to_fit_the_limit(
        self, limit: int
    ) -> None:
        def prepare(space: Space) -> None:
            space.map(0x10000, HVA, 0x4000)

        answer, number, space = both("iommufd", SECOND, prepare, first=None, memlock=limit)

        agree(answer, number, space)
        assert number == (errno.ENOMEM if limit < 0x4000 else None)

    def test_container_on_an_iommufd_follows_the_rules_of_iommufd(self) -> None:
        high = replace(SECOND, aperture=AddrRange(1 << 49, (1 << 50) - 1))
        sim = SimulatedKernel([FIRST, high], compat_container=True)
        with Type1Container(sim) as container:
            container.add_group(4)
            container.open_device(NIC, 4)
            assert rehearse_attach(container, newcomer(sim, high)).would_attach
            container.add_group(5)
            container.open_device(GPU, 5)


class TestType1:
    def test_group_that_is_attached_already_changes_nothing(self) -> None:
        sim = SimulatedKernel([FIRST])
        with Type1Container(sim) as container:
            container.add_group(4)
            answer = rehearse_attach(container, newcomer(sim, FIRST))
            assert (answer.would_attach, answer.lost) == (True, ())

    def test_kernel_before_5_4_takes_the_group_and_dma_fails_later(self) -> None:
        narrow = replace(SECOND, aperture=NARROW)
        sim = SimulatedKernel([FIRST, narrow], release=(5, 3), iommufd=False)
        with Type1Container(sim) as container:
            container.add_group(4)
            container.map(1 << 40, HVA, 0x1000)
            answer = rehearse_attach(container, newcomer(sim, narrow))
            assert answer.would_attach
            assert [item.range.start for item, _ in answer.mappings] == [1 << 40]
            container.unmap_all()


ADDRESSES = (
    0x0,
    0x1000,
    0x7B80_0000,
    0xFEDF_F000,
    0xFEF0_0000,
    1 << 38,
    1 << 40,
    (1 << 48) - 0x1000,
)
SPANS = st.builds(
    lambda start, pages: AddrRange.from_size(start, pages * 0x1000),
    st.sampled_from(ADDRESSES[:-1]),
    st.sampled_from([1, 2, 0x100]),
)
APERTURES = st.sampled_from(
    [NARROW, AddrRange(0, (1 << 48) - 1), AddrRange(0x1000, (1 << 40) + 0xFFF)]
)
REGIONS = st.lists(
    st.tuples(SPANS, st.sampled_from(["reserved", "msi", "direct-relaxable", "direct"])), max_size=3
)


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data())
def test_answer_is_what_the_kernel_then_does(way: SpaceKind, data: st.DataObject) -> None:
    second = replace(
        SECOND,
        aperture=data.draw(APERTURES),
        reserved=tuple(data.draw(REGIONS)),
        isolated_msi=data.draw(st.booleans()),
        devices=(GPU, "0000:00:05.1"),
    )
    maps, allowed = data.draw(st.lists(SPANS, max_size=3)), data.draw(st.lists(SPANS, max_size=2))

    def prepare(space: Space) -> None:
        for span in maps:
            try:
                space.map(span.start, HVA, span.size)
            except DmaError:
                continue
        if isinstance(space, Ioas):
            with contextlib.suppress(DmaError):
                space.allow(allowed)

    foreign = data.draw(st.sampled_from([None, None, "0000:00:05.1"]))
    agree(*both(way, second, prepare, foreign=foreign, unsafe=data.draw(st.booleans())))
