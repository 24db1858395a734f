# SPDX-License-Identifier: Apache-2.0
"""Simulated hosts that several tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm_iova import AddrRange
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator

NIC, GPU = "0000:00:04.0", "0000:00:05.0"
NIC_GROUP = SimGroup(4, (NIC,))
GPU_GROUP = SimGroup(
    5,
    (GPU,),
    aperture=AddrRange(0, (1 << 39) - 1),
    reserved=(
        (AddrRange(0x7B80_0000, 0x7FFF_FFFF), "direct-relaxable"),
        (AddrRange(0xFEE0_0000, 0xFEEF_FFFF), "msi"),
    ),
)


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel([NIC_GROUP, GPU_GROUP])


@pytest.fixture
def container(sim: SimulatedKernel) -> Iterator[Type1Container]:
    with Type1Container(sim) as made:
        made.add_group(4)
        yield made


@pytest.fixture
def ioas(sim: SimulatedKernel) -> Iterator[Ioas]:
    with Ioas(Iommufd(sim), owns=True) as made:
        device = VfioCdev(sim, "/dev/vfio/devices/vfio0")
        device.bind(made.iommufd)
        made.attach(NIC, device)
        yield made


@pytest.fixture
def fresh(sim: SimulatedKernel) -> Iterator[Ioas]:
    with Ioas(Iommufd(sim), owns=True) as made:
        yield made


def attach(space: Ioas, sim: SimulatedKernel, index: int, *, dirty: bool = False) -> VfioCdev:
    device = VfioCdev(sim, f"/dev/vfio/devices/vfio{index}")
    device.bind(space.iommufd)
    space.attach((NIC, GPU)[index], device, dirty=dirty)
    return device
