# SPDX-License-Identifier: Apache-2.0
"""What the strategies draw is what the package takes."""

from __future__ import annotations

import pytest
from hypothesis import given

import vmm_iova as vi
from tests.kit.examples import examples
from vmm_iova.kernel import open_space
from vmm_iova.simulated import SimulatedKernel
from vmm_iova.testing.strategies import guests, hosts


@pytest.mark.slow
@examples(40)
@given(hosts())
def test_drawn_host_is_judged_and_its_kernel_has_the_same_ranges(host: vi.Host) -> None:
    usable = host.usable(groups=[host.groups[0].id])
    sim = SimulatedKernel.from_host(host)
    with open_space(host.groups[0].devices, kernel=sim, via="type1") as space:
        ranges = space.facts().ranges
    assert ranges is not None
    assert ranges.as_set() == usable.ranges.as_set()


@examples(40)
@given(guests(), hosts(max_groups=1))
def test_drawn_guest_has_a_layout_or_is_refused_with_reasons(
    guest: vi.Guest, host: vi.Host
) -> None:
    try:
        layout = vi.plan(guest, host.usable())
    except vi.PlanError:
        return
    assert sum(item.place.size for item in layout.ram) == guest.ram
