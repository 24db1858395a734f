# SPDX-License-Identifier: Apache-2.0
"""What a plan costs, in ranges made and found: it grows like the holes, not like their square."""

from __future__ import annotations

from contextlib import suppress

import pytest

import vmm_iova as vi
from vmm_iova.errors import PlanError
from vmm_iova.host.load import parse_hosts
from vmm_iova.host.usable import Usable

POLICIES: tuple[vi.OnHole, ...] = ("auto", "move", "split", "refuse")


def usable(holes: int) -> Usable:
    """A host with a hole of a page in every 256 MiB from 8 GiB on."""
    starts = (0x2_0000_0000 + (index << 28) for index in range(holes))
    text = "\n".join(f"{start:#018x} {start + 0xFFF:#018x} reserved" for start in starts)
    return parse_hosts(text, "holes")[0].usable(aperture=48)


def steps(monkeypatch: pytest.MonkeyPatch, holes: int, machine: str, policy: vi.OnHole) -> int:
    """Count the ranges that are made, or looked up, for one plan."""
    host, counted = usable(holes), 0
    made, found = vi.AddrRange.__post_init__, vi.RangeSet.overlapping

    def make(self: vi.AddrRange) -> None:
        nonlocal counted
        counted += 1
        made(self)

    def find(self: vi.RangeSet, window: vi.AddrRange) -> tuple[vi.AddrRange, ...]:
        nonlocal counted
        answer = found(self, window)
        counted += 1 + len(answer)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(vi.AddrRange, "__post_init__", make)
        patch.setattr(vi.RangeSet, "overlapping", find)
        with suppress(PlanError):
            vi.plan(vi.Guest(machine=machine, ram=f"{holes // 2}GiB"), host, on_hole=policy)
    return counted


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("machine", ["own-x86", "q35", "i440fx", "virt"])
def test_plan_with_twice_the_holes_takes_about_twice_the_steps(
    monkeypatch: pytest.MonkeyPatch, machine: str, policy: vi.OnHole
) -> None:
    few, many = (steps(monkeypatch, holes, machine, policy) for holes in (250, 500))

    assert many <= 2.5 * few + 2000


def test_refusal_among_500_holes_names_a_few_places_and_counts_the_others() -> None:
    guest, host = vi.Guest(machine="own-x86", ram="125GiB"), usable(500)
    pieces = len(vi.plan(guest, host, on_hole="split").ram)

    with pytest.raises(PlanError) as caught:
        vi.plan(guest, host, on_hole="refuse")

    assert f"and {pieces - 8} more places" in str(caught.value)
    assert len(str(caught.value)) < 2000
