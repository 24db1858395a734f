# SPDX-License-Identifier: Apache-2.0
"""A host as a kernel in memory: what the judge says of it, the kernel does."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from vmm_iova import AddrRange, Hva, Iova
from vmm_iova.errors import DmaError, EvidenceError
from vmm_iova.kernel import open_space, with_kernel_facts
from vmm_iova.simulated import SimGroup, SimulatedKernel


def _host(name: str) -> vi.Host:
    """A bundled host, or the first of several that its text holds."""
    try:
        return vi.load_host(name)
    except vi.errors.HostDataError:
        return vi.load_host(f"{name}#1")


WITH_GROUPS = [name for name in vi.bundled_hosts() if _host(name).groups]


@pytest.mark.parametrize("name", WITH_GROUPS)
@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_every_group_of_a_bundled_host_maps_what_the_judge_calls_usable(
    name: str, via: str
) -> None:
    host = _host(name)
    try:
        sim = SimulatedKernel.from_host(host, release=(7, 3))
    except EvidenceError:
        sim = SimulatedKernel.from_host(host, release=(7, 3), aperture=39)
    assert sim.devices()
    for group in list(sim.sysfs.groups.values())[:6]:
        if not group.devices or group.direct:
            continue
        with open_space(group.devices[:1], kernel=sim, via=via) as space:  # type: ignore[arg-type]
            ranges = space.facts().ranges
            assert ranges is not None
            page = space.facts().granule
            for where in ranges:
                for iova in {where.start, where.last + 1 - page}:
                    space.map(Iova(iova), Hva(1 << 40), page)
            space.unmap_all()
            hole = next(iter(ranges.as_set().complement(ranges.hull)), None)
            if hole is not None and hole.size >= page:
                with pytest.raises(DmaError):
                    space.map(Iova(hole.start & -page), Hva(1 << 40), page)


def test_kernel_of_a_host_gives_that_host_back_and_its_settings() -> None:
    device = vi.Device("0000:03:00.0", "7")
    group = vi.Group("7", (device.name,))
    width = vi.StatedWidth(46, vi.Source("dmesg"))
    host = vi.Host(
        "made",
        page_size=0x1_0000,
        release="6.1.0-17-arm64",
        groups=(group,),
        devices=(device,),
        widths=(width,),
        limits=vi.Limits(77, 1 << 30),
    )
    sim = SimulatedKernel.from_host(host)
    assert vi.load_host(kernel=sim) is host
    assert (sim.memory.page, sim.memory.limit) == (0x1_0000, 1 << 30)
    assert (sim.settings.release, sim.settings.dma_entry_limit) == ((6, 1), 77)
    first = device.name
    with open_space([first], kernel=sim) as space:
        asked = with_kernel_facts(vi.load_host(kernel=sim), space)
    usable = asked.usable(devices=[first])
    assert usable.ranges == host.usable(devices=[first]).ranges


def test_plan_for_a_host_is_mapped_on_its_kernel() -> None:
    host = vi.load_host("amd-epyc-1tb")
    sim = SimulatedKernel.from_host(host)
    device = next(bdf for bdf in sim.devices())
    with open_space([device], kernel=sim) as space:
        usable = with_kernel_facts(vi.load_host(kernel=sim), space).usable(devices=[device])
        layout = vi.plan(vi.Guest("q35", "1.5TiB"), usable)
        for item in layout.ram:
            assert item.iova is not None
            space.map(Iova(item.iova.start), Hva(1 << 42), item.iova.size)
        assert sim.mapped() == vi.RangeSet(item.iova for item in layout.ram if item.iova)
        space.unmap_all()


def test_host_without_evidence_is_refused_and_a_stated_aperture_settles_it() -> None:
    group = vi.Group("7", ("0000:03:00.0",))
    host = vi.Host("bare", groups=(group,), devices=(vi.Device("0000:03:00.0", "7"),))
    with pytest.raises(EvidenceError):
        SimulatedKernel.from_host(host)
    sim = SimulatedKernel.from_host(host, aperture=39)
    assert sim.sysfs.groups[7].aperture.last == (1 << 39) - 1


def test_kernel_made_by_hand_says_what_its_sysfs_would_and_no_aperture() -> None:
    region = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
    sim = SimulatedKernel([SimGroup(4, ("0000:01:00.0",), reserved=((region, "msi"),))])
    host = vi.load_host(kernel=sim)
    assert host.group(4).devices == ("0000:01:00.0",)
    with pytest.raises(EvidenceError):
        host.usable()
    with open_space(["0000:01:00.0"], kernel=sim) as space:
        usable = with_kernel_facts(host, space).usable()
    assert usable.ranges[-1].last == (1 << 48) - 1
    (cause,) = usable.causes_of(region)
    assert cause.kind in (vi.CauseKind.REGION, vi.CauseKind.KERNEL_GAP)


def test_paste_that_names_no_device_gets_one() -> None:
    host = vi.Host("paste", groups=(vi.Group("pasted"),))
    sim = SimulatedKernel.from_host(host, aperture=39)
    (device,) = sim.devices()[:1]
    with open_space([device], kernel=sim) as space:
        host = with_kernel_facts(vi.load_host(kernel=sim), space)
        assert host.usable(devices=[device]).ranges
