# SPDX-License-Identifier: Apache-2.0
"""A layout rehearsed on a kernel in memory, from every bundled host that has its evidence."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

import vmm_iova as vi
from vmm_iova.host.facts import Limits
from vmm_iova.mapping import dry_run


@pytest.mark.parametrize("via", ["type1", "iommufd"])
@pytest.mark.parametrize("on_hole", ["split", "move"])
def test_amd_layout_is_taken_call_by_call(via: str, on_hole: vi.guest.plan.OnHole) -> None:
    layout = vi.plan(vi.Guest("q35", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable(), on_hole)
    done = dry_run(layout, via)
    assert [span for span, _ in done.calls] == [item.iova for item in layout.ram]
    assert sum(span.size for span, _ in done.calls) == 3 << 39
    assert done.entries_left == (65535 - len(layout.ram) if via == "type1" else None)


@pytest.mark.parametrize(
    ("host", "machine"),
    [
        ("arm-hisilicon-d05-group3", "virt"),
        ("arm-nxp-lx2160a-fslmc-group0", "virt"),
        ("intel-dmar-8thread-laptop", "q35"),
        ("s390x-32g", "s390x"),
    ],
)
def test_layout_of_other_hosts_is_taken(host: str, machine: str) -> None:
    usable = vi.load_host(host).usable(aperture=42)
    layout = vi.plan(vi.Guest(machine, "16G"), usable)
    assert len(dry_run(layout).calls) == len(layout.ram)


def test_entry_limit_of_the_host_is_rehearsed_before_any_call() -> None:
    host = replace(vi.load_host("amd-epyc-1tb"), limits=Limits(dma_entries=2))
    layout = vi.plan(vi.Guest("own-x86", "1.5TiB"), host.usable())
    with pytest.raises(vi.errors.PrecheckError, match="nothing was mapped"):
        dry_run(layout)


def test_locked_memory_of_the_host_is_rehearsed_with_the_limit_that_would_do() -> None:
    host = replace(vi.load_host("amd-epyc-1tb"), limits=Limits(memlock=8 << 20))
    layout = vi.plan(vi.Guest("q35", "4G"), host.usable())
    with pytest.raises(vi.errors.PrecheckError) as caught:
        dry_run(layout)
    assert "ulimit -l 4194304 (KiB)" in str(caught.value)


def _with_bars() -> vi.Layout:
    bars = [
        vi.Bar("gpu", 1 << 30, required=True),
        vi.Bar("nic", 1 << 24, required=True),
        vi.Bar("other", 1 << 26),
    ]
    usable = vi.load_host("amd-epyc-1tb").usable()
    return vi.plan(vi.Guest("own-x86", "8G", bars=bars), usable)


def test_required_bars_are_mapped_with_the_ram_by_type1() -> None:
    layout = _with_bars()
    names = [name for _, name in dry_run(layout).calls]
    assert sorted(names) == sorted([*(item.name for item in layout.ram), "gpu", "nic"])


def test_required_bars_are_refused_by_iommufd_which_has_no_memory_to_pin() -> None:
    with pytest.raises(vi.errors.MappingError) as caught:
        dry_run(_with_bars(), "iommufd")
    assert (caught.value.errno, caught.value.left) == (errno.EFAULT, ())


def test_budget_counts_mapped_bars_and_does_not_lock_them() -> None:
    layout = _with_bars()
    cost = vi.budget(layout)
    mapped = [item for item in layout.items if item.kind is vi.ItemKind.BAR and item.iova]
    assert (cost.bars, cost.bar_bytes) == ((len(mapped), 2), sum(i.iova.size for i in mapped))
    assert cost.entries == len(layout.ram) + len(mapped)
    assert cost.locked_bytes == 8 << 30
    assert f"mapped BARs    {len(mapped)}, 2 of them required, 1104 MiB, not locked" in (
        layout.text()
    )
