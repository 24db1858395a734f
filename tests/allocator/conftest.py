# SPDX-License-Identifier: Apache-2.0
"""Each test of the allocator runs on each engine that this machine can have."""

import os

import pytest
from hypothesis import HealthCheck, settings

from vmm_iova.allocator import allocator_class
from vmm_iova.errors import EngineError

settings.register_profile(
    "house",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("house")


@pytest.fixture(params=["pure", "fast"])
def engine(request):
    """Name of an engine."""
    try:
        allocator_class(request.param)
    except EngineError as error:
        if os.environ.get("VMM_IOVA_REQUIRE_EXT") == "1":
            raise
        pytest.skip(error.message)
    return request.param


@pytest.fixture
def make(engine):
    """The allocator class of that engine."""
    return allocator_class(engine)
