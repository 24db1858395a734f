# SPDX-License-Identifier: Apache-2.0
"""From an open address space to facts, to usable ranges, to a plan, to mappings: the whole way."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from vmm_iova.host.model import Device, Group, Host
from vmm_iova.host.snapshot import dump_snapshot, load_snapshot
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.learn import learn_host
from vmm_iova.kernel.simulated import SimulatedKernel
from vmm_iova.mapping import GuestMemory, map_pieces
from vmm_iova.ranges import AddrRange

from .conftest import GPU, GPU_GROUP, NIC, NIC_GROUP


@pytest.fixture
def host() -> Host:
    return Host(
        "sim",
        groups=(Group("4", (NIC,)), Group("5", (GPU,))),
        devices=(Device(NIC, group="4"), Device(GPU, group="5")),
        sysfs=True,
    )


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_learn_gives_the_list_with_groups_granule_and_source(
    sim: SimulatedKernel, host: Host, via: str
) -> None:
    with open_space([NIC, GPU], kernel=sim, via=via) as space:
        learned = learn_host(space, [NIC, GPU], host, kernel=sim)

    (listed,) = learned.kernel_ranges
    assert (listed.api, listed.groups, listed.granule) == (via, ("4", "5"), 0x1000)
    assert NIC in str(listed.source)
    usable = learned.usable(devices=[NIC, GPU])
    assert list(usable.ranges) == [
        AddrRange(0, 0xFEDF_FFFF),
        AddrRange(0xFEF0_0000, (1 << 39) - 1),
    ]
    assert usable.granule_known


def test_learn_for_one_device_is_no_evidence_for_the_other(
    sim: SimulatedKernel, host: Host
) -> None:
    with open_space([NIC], kernel=sim) as space:
        learned = learn_host(space, [NIC], host, kernel=sim)
    with pytest.raises(vi.EvidenceError, match="group 5"):
        learned.usable(devices=[GPU])


def test_learn_from_a_kernel_before_5_4_says_that_there_is_no_list(host: Host) -> None:
    sim = SimulatedKernel([NIC_GROUP, GPU_GROUP], release=(5, 3))
    with open_space([NIC], kernel=sim, via="type1") as space:
        learned = learn_host(space, [NIC], host, kernel=sim)
    assert learned.kernel_ranges == ()
    assert "nothing says the aperture" in learned.notes[-1].text
    with pytest.raises(vi.EvidenceError):
        learned.usable(devices=[NIC])


def test_learned_host_survives_a_snapshot(sim: SimulatedKernel, host: Host) -> None:
    with open_space([NIC, GPU], kernel=sim) as space:
        learned = learn_host(space, [NIC, GPU], host, kernel=sim)
    again = load_snapshot(dump_snapshot(learned, "test"), "again.json")
    assert again.usable(devices=[GPU]).ranges == learned.usable(devices=[GPU]).ranges


@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_guest_is_planned_backed_mapped_and_taken_back(
    sim: SimulatedKernel, host: Host, via: str
) -> None:
    with open_space([GPU], kernel=sim, via=via) as space:
        usable = learn_host(space, [GPU], host, kernel=sim).usable(devices=[GPU])
        layout = vi.plan(vi.Guest("q35", "3GiB"), usable)
        with (
            GuestMemory.for_layout(layout) as memory,
            map_pieces(space, memory.pieces, usable=usable),
        ):
            assert [item.range for item in space.live] == [item.iova for item in layout.ram]
        assert len(space.live) == 0
