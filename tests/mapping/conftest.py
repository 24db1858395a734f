# SPDX-License-Identifier: Apache-2.0
"""Both kinds of address space, on a simulated host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.kernels import NARROW_GPU_GROUP, NIC, NIC_GROUP, Space
from vmm_iova.kernel.device import open_space
from vmm_iova.simulated import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel([NIC_GROUP, NARROW_GPU_GROUP], memlock=1 << 40)


@pytest.fixture(params=["type1", "iommufd"])
def space(request: pytest.FixtureRequest, sim: SimulatedKernel) -> Iterator[Space]:
    with open_space([NIC], kernel=sim, via=request.param) as space:
        yield space
