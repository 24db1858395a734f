# SPDX-License-Identifier: Apache-2.0
"""The same random calls on the real kernel of this guest and on the simulated one."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab.device_calls import device_ops
from lab.differential import (
    Arena,
    DivergenceError,
    IommufdWorld,
    Op,
    Pools,
    Type1World,
    World,
    compare,
    iommufd_ops,
    mixed,
    type1_ops,
)
from vmm_iova.kernel import device_facts, uapi
from vmm_iova.kernel.syscalls import LINUX
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.ranges import AddrRange
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CALLS = int(os.environ.get("VMM_IOVA_LAB_CALLS", "20000"))
SEED = int(os.environ.get("VMM_IOVA_LAB_SEED", "20261124"))


def _reserved(group: int) -> tuple[tuple[AddrRange, str], ...]:
    lines = Path(f"/sys/kernel/iommu_groups/{group}/reserved_regions").read_text().splitlines()
    words = [line.split() for line in lines]
    return tuple((AddrRange(int(w[0], 16), int(w[1], 16)), w[2]) for w in words)


def _group(device: dict[str, Any]) -> SimGroup:
    """Describe a group to the simulation by what the kernel says of it alone."""
    number = int(device["group"])
    with Type1Container() as container:
        facts = container.add_group(number)
        # Read while attached: s390 leaves a region out until then.
        reserved = _reserved(number)
        coherent = bool(container.extension(uapi.DMA_CC_IOMMU))
    assert facts.ranges
    hull = facts.ranges.hull
    assert hull is not None
    inside = tuple((where, kind) for where, kind in reserved if where.overlaps(hull))
    return SimGroup(
        number,
        (device["bdf"],),
        aperture=hull,
        reserved=inside,
        page_sizes=facts.page_sizes,
        coherent=coherent,
    )


@pytest.fixture(scope="module")
def twins(lab: dict[str, Any]) -> tuple[SimulatedKernel, list[SimGroup]]:
    groups = [_group(device) for device in lab["devices"][:2]]
    major, minor = lab["release"].split(".")[:2]
    huge = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
    kernel = SimulatedKernel(
        groups,
        release=(int(major), int(minor.split("-")[0])),
        page=lab["page_size"],
        max_auto_alignment=int(huge.read_text()) if huge.exists() else lab["page_size"],
        allow_unsafe_interrupts=True,
    )
    if _has_edu(lab):
        with Type1Container() as container:
            container.add_group(groups[0].number)
            fd = container.open_device(groups[0].devices[0], groups[0].number)
            flags = device_facts(fd).flags
        kernel.device(groups[0].devices[0]).resets = bool(flags & uapi.DEVICE_FLAG_RESET)
    return kernel, groups


def _has_edu(lab: dict[str, Any]) -> bool:
    kind: str = lab["devices"][0]["kind"]
    return kind == "edu"


def _calls(lab: dict[str, Any], calls: list[Op], first: int = 0) -> list[Op]:
    """Mix calls on a device in, where the guest has the one that the simulation knows."""
    if not _has_edu(lab):
        return calls
    rng = random.Random(SEED + 1)
    return mixed(rng, calls, device_ops(rng, len(calls) // 4), first)


@pytest.fixture
def pools(lab: dict[str, Any], twins: tuple[SimulatedKernel, list[SimGroup]]) -> Pools:
    kernel, groups = twins
    arena = Arena(lab["page_size"])
    kernel.memory.absent, kernel.memory.read_only = arena.absent, arena.read_only
    edges = sorted({edge for group in groups for edge in _edges(group)})
    return Pools(lab["page_size"], arena, edges, spare_the_top=kernel.settings.release < (6, 18))


def _edges(group: SimGroup) -> Iterator[int]:
    yield group.aperture.start
    yield min(group.aperture.last + 1, (1 << 64) - 1)
    for where, _ in group.reserved:
        yield where.start
        yield min(where.last + 1, (1 << 64) - 1)


def _run(worlds: Sequence[World], ops: Sequence[Op], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        seen = compare(worlds[0], worlds[1], ops, SEED)
    finally:
        for world in worlds:
            world.close()
    with capsys.disabled():
        taken = sum(count for key, count in seen.items() if key.endswith("taken"))
        print(f"\nseed {SEED}: {len(ops)} calls agree, {taken} of them taken")
        print("; ".join(f"{key}: {count}" for key, count in sorted(seen.items())))
    assert taken > len(ops) // 10


@pytest.mark.proves("type1: simulated and real kernel agree on random calls")
@pytest.mark.parametrize("version", [uapi.TYPE1_V2_IOMMU, uapi.TYPE1_IOMMU])
def test_type1_real_and_simulated_agree(
    lab: dict[str, Any],
    twins: tuple[SimulatedKernel, list[SimGroup]],
    pools: Pools,
    version: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel, groups = twins
    count = CALLS if version == uapi.TYPE1_V2_IOMMU else CALLS // 4
    ops = _calls(lab, type1_ops(random.Random(SEED), pools, count))
    numbers = [group.number for group in groups]
    worlds = [Type1World(each, numbers, version) for each in (LINUX, kernel)]
    if _has_edu(lab):
        for world in worlds:
            world.open_device(groups[0].devices[0])

    _run(worlds, ops, capsys)


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("registers, interrupts and resets: simulated and real kernel agree")
def test_calls_on_a_device_real_and_simulated_agree(
    twins: tuple[SimulatedKernel, list[SimGroup]], capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, groups = twins
    numbers = [group.number for group in groups]
    worlds = [Type1World(each, numbers, uapi.TYPE1_V2_IOMMU) for each in (LINUX, kernel)]
    for world in worlds:
        world.open_device(groups[0].devices[0])

    _run(worlds, device_ops(random.Random(SEED), CALLS // 4), capsys)


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("a device that differs on purpose is caught")
@pytest.mark.parametrize("fault", ["a register", "an interrupt", "a number"])
def test_device_that_differs_on_purpose_is_caught(
    twins: tuple[SimulatedKernel, list[SimGroup]], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    kernel, groups = twins
    wrong = kernel.device(groups[0].devices[0])
    if fault == "a register":
        load = wrong.load
        monkeypatch.setattr(
            wrong, "load", lambda at, size: b"\0" * size if at == 4 else load(at, size)
        )
    elif fault == "an interrupt":
        monkeypatch.setattr(wrong, "signal", lambda *_: None)
    else:
        monkeypatch.setattr(wrong, "irqs", {0: 1, 1: 2})
    numbers = [group.number for group in groups]
    worlds = [Type1World(each, numbers, uapi.TYPE1_V2_IOMMU) for each in (LINUX, kernel)]
    for world in worlds:
        world.open_device(groups[0].devices[0])

    with pytest.raises(DivergenceError, match=f"seed {SEED}, call"):
        _run(worlds, device_ops(random.Random(SEED), 2000), None)  # type: ignore[arg-type]


@pytest.mark.guests("iommufd")
@pytest.mark.proves("iommufd: simulated and real kernel agree on random calls")
def test_iommufd_real_and_simulated_agree(
    lab: dict[str, Any],
    twins: tuple[SimulatedKernel, list[SimGroup]],
    pools: Pools,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel, _ = twins
    # Nothing can be asked of a device that is not bound: that is the second call.
    ops = _calls(lab, iommufd_ops(random.Random(SEED), pools, CALLS), first=4)
    real = IommufdWorld(LINUX, [device["cdev"] for device in lab["devices"][:2]])
    simulated = IommufdWorld(kernel, ["/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1"])

    _run([real, simulated], ops, capsys)


@pytest.mark.proves("a divergence put in on purpose is caught")
def test_divergence_on_purpose_is_caught(
    twins: tuple[SimulatedKernel, list[SimGroup]], pools: Pools
) -> None:
    _, groups = twins
    wider = AddrRange(groups[0].aperture.start, groups[0].aperture.last - pools.page)
    wrong = SimulatedKernel(
        [dataclasses.replace(groups[0], aperture=wider), groups[1]],
        release=twins[0].settings.release,
        page=pools.page,
        allow_unsafe_interrupts=True,
    )
    wrong.memory.absent, wrong.memory.read_only = pools.arena.absent, pools.arena.read_only
    numbers = [group.number for group in groups]
    worlds = [Type1World(each, numbers, uapi.TYPE1_V2_IOMMU) for each in (LINUX, wrong)]

    with pytest.raises(DivergenceError, match=f"seed {SEED}, call"):
        _run(worlds, type1_ops(random.Random(SEED), pools, 2000), None)  # type: ignore[arg-type]
