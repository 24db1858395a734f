# SPDX-License-Identifier: Apache-2.0
"""Address spaces on a simulated host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit import through_c
from tests.kit.kernels import GPU_GROUP, NIC_GROUP, attach
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel([NIC_GROUP, GPU_GROUP])


@pytest.fixture(params=["in Python", "in C"])
def way(
    request: pytest.FixtureRequest, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Who makes the map and unmap calls."""
    if request.param == "in Python":
        yield
    elif not through_c.BUILT:
        pytest.skip("not compiled")
    else:
        with through_c.answered(monkeypatch) as bridge:
            bridge.sim = sim
            yield


@pytest.fixture
def container(sim: SimulatedKernel, way: None) -> Iterator[Type1Container]:
    with Type1Container(sim) as container:
        container.add_group(4)
        yield container


@pytest.fixture
def ioas(fresh: Ioas, sim: SimulatedKernel) -> Ioas:
    attach(fresh, sim, 0)
    return fresh


@pytest.fixture
def fresh(sim: SimulatedKernel, way: None) -> Iterator[Ioas]:
    with Ioas(Iommufd(sim), owns=True) as ioas:
        yield ioas
