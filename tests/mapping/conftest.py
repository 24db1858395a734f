# SPDX-License-Identifier: Apache-2.0
"""Both kinds of address space, on simulated hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm_iova import AddrRange
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator

NIC, GPU = "0000:00:04.0", "0000:00:05.0"
HVA = 0x7F00_0000_0000
MSI = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
GROUPS = [SimGroup(4, (NIC,)), SimGroup(5, (GPU,), aperture=AddrRange(0, (1 << 39) - 1))]

Space = Type1Container | Ioas


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel(GROUPS, memlock=1 << 40)


@pytest.fixture(params=["type1", "iommufd"])
def space(request: pytest.FixtureRequest, sim: SimulatedKernel) -> Iterator[Space]:
    with open_space([NIC], kernel=sim, via=request.param) as made:
        yield made
