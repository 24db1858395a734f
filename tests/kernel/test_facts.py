# SPDX-License-Identifier: Apache-2.0
"""What an open address space adds to the host model."""

from __future__ import annotations

import pytest

from tests.kit.kernels import GPU, NIC, NIC_GROUP
from vmm_iova import AddrRange, Host
from vmm_iova.host.facts import Device, Group, Limits
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.facts import with_kernel_facts
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd
from vmm_iova.simulated import SimGroup, SimulatedKernel

HOST = Host(
    "sim",
    groups=(Group("4", (NIC,)), Group("5", (GPU,))),
    devices=(Device(NIC, "4"), Device(GPU, "5")),
    limits=Limits(65535, None),
)


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_list_of_the_kernel_is_the_evidence_that_counts(sim: SimulatedKernel, via: str) -> None:
    with open_space([NIC, GPU], kernel=sim, via=via) as space:
        host = with_kernel_facts(HOST, space)
        told = space.facts()
    usable = host.usable(devices=[NIC, GPU])

    (listed,) = host.kernel_ranges
    assert (listed.api, listed.groups, listed.ranges) == (via, ("4", "5"), told.ranges)
    assert usable.ranges == told.ranges
    assert usable.granule == 0x1000


def test_list_is_replaced_when_it_is_read_again(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim) as space:
        host = with_kernel_facts(with_kernel_facts(HOST, space), space)

    assert len(host.kernel_ranges) == 1


def test_limits_are_those_of_the_container() -> None:
    sim = SimulatedKernel([NIC_GROUP], dma_entry_limit=77, memlock=1 << 20)
    with open_space([NIC], kernel=sim, via="type1") as space:
        space.map(0, 0x7F00_0000_0000, 0x1000)

        assert with_kernel_facts(HOST, space).limits == Limits(77, 1 << 20)


def test_fresh_ioas_adds_no_list(sim: SimulatedKernel) -> None:
    with Ioas(Iommufd(sim), owns=True) as space:
        assert with_kernel_facts(HOST, space).kernel_ranges == ()


def test_old_s390_kernel_tells_by_the_device_alone() -> None:
    window = AddrRange(1 << 32, 0x1_3FFF_FFFF)
    group = SimGroup(4, (NIC,), aperture=window, reserved=(), page_sizes=0x1000, zpci=window)
    sim = SimulatedKernel([group], release=(5, 3))

    with open_space([NIC], kernel=sim) as space:
        host = with_kernel_facts(HOST, space)

    assert host.kernel_ranges == ()
    assert [item.range for item in host.windows] == [window]
    assert host.usable(devices=[NIC]).ranges.hull == window
