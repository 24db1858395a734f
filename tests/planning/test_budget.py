# SPDX-License-Identifier: Apache-2.0
"""What mapping costs, counted against a tree built page by page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.diagnosis.causes import SLOT_MAX
from vmm_iova.host.facts import Limits
from vmm_iova.planning.budget import _chunks, _settings
from vmm_iova.planning.page_tables import ALL_LEAVES, page_tables
from vmm_iova.ranges import GIB, AddrRange

ALL = 1 << 12 | 1 << 21 | 1 << 30


def _model(spans: list[AddrRange], sizes: int) -> tuple[dict[int, int], int]:
    """Insert every leaf by itself, as a page-table walk does; count leaves and tables."""
    leaves: dict[int, int] = {size: 0 for size in (1 << 30, 1 << 21, 1 << 12) if sizes & size}
    tables: set[tuple[int, int]] = set()
    for span in spans:
        at = span.start
        while at <= span.last:
            fits = (s for s in leaves if at % s == 0 and at + s - 1 <= span.last)
            size = max(fits)
            leaves[size] += 1
            for shift in range(size.bit_length() - 1 + 9, 49, 9):
                tables.add((shift, at >> shift))
            at += size
    return leaves, len(tables) * 4096


@pytest.mark.parametrize("sizes", [1 << 12, 1 << 12 | 1 << 21, ALL])
@given(
    start=st.integers(0, 1 << 20),
    pages=st.integers(1, 3000),
    gap=st.integers(0, 1200),
    more=st.integers(1, 1500),
)
def test_tables_agree_with_a_walk_of_every_page(
    sizes: int, start: int, pages: int, gap: int, more: int
) -> None:
    first = AddrRange.from_size(start * 4096, pages * 4096)
    second = AddrRange.from_size(first.last + 1 + (gap + 1) * 4096, more * 4096)
    found = page_tables([first, second], sizes)
    leaves, table_bytes = _model([first, second], sizes)
    assert dict(found.leaves) == leaves
    assert found.table_bytes == table_bytes


def test_four_levels_are_counted_for_a_small_guest() -> None:
    assert page_tables([AddrRange(0, (1 << 30) - 1)], ALL).table_bytes == 2 * 4096


def test_fifth_level_is_counted_above_48_bits() -> None:
    below = page_tables([AddrRange.from_size(1 << 47, 1 << 30)], ALL).table_bytes
    above = page_tables([AddrRange.from_size(1 << 48, 1 << 30)], ALL).table_bytes
    assert above == below + 4096


def test_amd_guest_of_1_5_tib_costs_three_calls() -> None:
    layout = vi.plan(vi.Guest("own-x86", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout)
    assert (cost.entries, cost.entry_limit, cost.entry_limit_known) == (3, 65535, False)
    assert cost.locked_bytes == 3 << 39
    assert dict(cost.best.leaves)[1 << 30] == 1536


def test_intel_registers_say_which_pages_there_are() -> None:
    # cap c9008020660262 has no bit of SLLPS: 4 KiB pages alone.
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("intel-dmar-i7-2600").usable())
    cost = vi.budget(layout)
    assert cost.page_sizes_known
    assert cost.best == cost.worst


def test_chunks_are_counted_at_their_multiples() -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout, chunk="1GiB")
    assert (cost.entries, cost.chunk) == (4, 1 << 30)
    assert dict(cost.by_chunk) == {1 << 30: 4, 1 << 21: 2048, 1 << 12: 1 << 20}
    assert cost.fits


def test_bar_that_peers_reach_is_a_map_call_but_no_locked_memory() -> None:
    bars = [vi.Bar("gpu", "16G", required=True)]
    layout = vi.plan(vi.Guest("own-x86", "4G", bars=bars), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout)
    assert (cost.entries, cost.slots, cost.locked_bytes) == (3, 2, 4 << 30)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"chunk": "3M"}, "chunk 0x300000"),
        ({"chunk": 1024}, "less than a page"),
        ({"containers": 0}, "containers 0 is not positive"),
        ({"entry_limit": -1}, "entry_limit -1 is not positive"),
        ({"entry_limit": 0}, "entry_limit 0 is not positive"),
    ],
)
def test_nonsense_in_a_budget_is_refused(given: dict[str, object], said: str) -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("amd-epyc-1tb").usable())
    with pytest.raises(vi.RequestError, match=said):
        vi.budget(layout, **given)  # type: ignore[arg-type]


def test_limit_of_the_process_gives_the_exact_setting() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    tight = replace(usable, limits=Limits(dma_entries=2, memlock=1 << 30))
    layout = vi.plan(vi.Guest("own-x86", "4G", viommu=True, devices=3, nodes=["2G", "2G"]), tight)
    cost = vi.budget(layout, chunk="1GiB")
    assert not cost.fits
    assert cost.settings[0].startswith("dma_entry_limit=4 (")
    assert cost.settings[1].startswith(f"ulimit -l {3 * 4 << 20} (KiB)")


def test_host_that_lets_nothing_be_mapped_is_a_fact_and_no_mistake_of_the_caller() -> None:
    usable = replace(vi.load_host("amd-epyc-1tb").usable(), limits=Limits(dma_entries=0))
    cost = vi.budget(vi.plan(vi.Guest("own-x86", "4G"), usable))
    assert (cost.entry_limit, cost.entry_limit_known, cost.fits) == (0, True, False)


def test_policies_and_page_sizes_are_compared() -> None:
    guest = vi.Guest("own-x86", "1.5TiB")
    rows = vi.compare_costs(guest, vi.load_host("amd-epyc-1tb").usable())
    found = {(policy, align): cost and cost.slots for policy, align, cost in rows}
    assert found[("split", "granule")] == 3
    assert found[("move", "1GiB")] == 2
    assert found[("refuse", "granule")] is None
    assert len(rows) == 12


def test_pages_that_back_ram_bound_the_tables() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    cost = vi.budget(vi.plan(vi.Guest("own-x86", "64G", page_size="2MiB"), usable))
    # 64 tables of 2 MiB pages, one for each GiB, and the two above them.
    assert cost.worst.table_bytes == 66 * 4096
    assert dict(cost.worst.leaves) == {1 << 30: 0, 1 << 21: 32768, 1 << 12: 0}
    nodes = [vi.Node("30G", "1GiB"), vi.Node("34G")]
    cost = vi.budget(vi.plan(vi.Guest("own-x86", "64G", nodes=nodes), usable))
    assert dict(cost.worst.leaves) == {1 << 30: 30, 1 << 21: 0, 1 << 12: 34 << 18}


def test_ram_larger_than_a_memory_slot_takes_several() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    layout = vi.plan(vi.Guest("own-x86", "12TiB"), usable, "move")
    assert len(layout.ram) == 2
    assert vi.budget(layout).slots == 3


# -- limits, exactly -------------------------------------------------------------------------------


def test_numbers_of_a_budget_that_are_not_asked_for_are_those_of_the_layout() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    plain = vi.budget(vi.plan(vi.Guest("own-x86", "4G", devices=3), usable))
    assert (plain.containers, plain.entry_limit, plain.entry_limit_known) == (1, 65535, False)
    assert (plain.bars, plain.bar_bytes, plain.chunk) == ((0, 0), 0, None)
    assert plain.locked_bytes == 4 * GIB
    alike = vi.budget(vi.plan(vi.Guest("own-x86", "4G", devices=3, viommu=True), usable))
    assert (alike.containers, alike.locked_bytes) == (3, 12 * GIB)
    bars = [vi.Bar("a", "1G", required=True), vi.Bar("b", "2G"), vi.Bar("c", "4K", emulated=True)]
    reached = vi.budget(vi.plan(vi.Guest("own-x86", "4G", bars=bars), usable))
    assert (reached.bars, reached.bar_bytes) == ((2, 1), 3 * GIB)
    small = vi.budget(vi.plan(vi.Guest("own-x86", "4G"), usable), chunk=4096, entry_limit=1)
    assert (small.chunk, small.entries, small.entry_limit) == (4096, 1 << 20, 1)
    assert vi.budget(vi.plan(vi.Guest("own-x86", "4G"), usable), containers=1).containers == 1


@pytest.mark.parametrize(
    ("of", "fits", "settings"),
    [
        ({"entries": 9, "entry_limit": 9}, True, []),
        ({"entries": 10, "entry_limit": 9}, False, ["dma_entry_limit=10 ("]),
        ({"locked_bytes": 1025, "memlock": 1025}, True, []),
        ({"locked_bytes": 1025, "memlock": 1024}, False, ["ulimit -l 2 (KiB), LimitMEMLOCK=1025 "]),
        ({"locked_bytes": 1024, "memlock": 0}, False, ["ulimit -l 1 (KiB), LimitMEMLOCK=1024 "]),
        ({"locked_bytes": 1025, "memlock": -1}, True, []),
        ({"locked_bytes": 1025, "memlock": None}, True, []),
        ({"slots": 32764}, True, []),
        ({"slots": 32765}, False, [""]),
    ],
)
def test_budget_is_within_each_limit_exactly(
    of: dict[str, Any], fits: bool, settings: list[str]
) -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("amd-epyc-1tb").usable())
    cost = replace(vi.budget(layout), **of)
    assert cost.fits is fits
    found = list(_settings(cost))
    assert [text[: len(start)] for text, start in zip(found, settings, strict=True)] == settings


@pytest.mark.parametrize(
    ("spans", "chunk", "calls"),
    [
        ([(0, 0x1FFF)], 0x1000, 2),
        ([(0x1000, 0x1FFF)], 0x2000, 1),
        ([(0x1000, 0x2FFF)], 0x2000, 2),
        ([(0, 0xFFF), (0x1000, 0x1FFF)], 0x2000, 2),
    ],
)
def test_call_crosses_no_multiple_of_the_chunk(
    spans: list[tuple[int, int]], chunk: int, calls: int
) -> None:
    assert _chunks([vi.AddrRange(*span) for span in spans], chunk) == calls


@pytest.mark.parametrize(
    ("size", "slots"), [(SLOT_MAX - 4096, 1), (SLOT_MAX, 1), (SLOT_MAX + 4096, 2)]
)
def test_memory_slot_holds_one_page_less_than_8_tib(size: int, slots: int) -> None:
    layout = vi.plan(vi.Guest("own-arm", size), vi.Host("h").usable(aperture=48, granule=4096))
    assert vi.budget(layout).slots == slots


def test_pools_of_huge_pages_are_the_largest_first_and_of_all_nodes() -> None:
    nodes = [vi.Node("2M", "2M"), vi.Node("1G", "1G"), vi.Node("4M", "2M"), vi.Node("8K", "4K")]
    layout = vi.plan(vi.Guest("own-x86", nodes=nodes), vi.load_host("amd-epyc-1tb").usable())
    pools = vi.budget(layout).large_pages
    assert [(pool.page_size, pool.count) for pool in pools] == [(GIB, 1), (2 << 20, 3)]


# Pages of 2 MiB and 1 GiB, tables of 512 entries: counted by hand.
TABLES = [
    ([(0, 0xFFF)], None, (0, 0, 1), 4),
    ([(0, (2 << 20) - 1)], None, (0, 1, 0), 3),
    ([(0, (2 << 20) + 0xFFF)], None, (0, 1, 1), 4),
    ([(0x1000, (2 << 20) - 1)], None, (0, 0, 511), 4),
    ([(0, GIB - 1)], None, (1, 0, 0), 2),
    ([(0, GIB - 1)], [2 << 20], (0, 512, 0), 3),
    ([(0, GIB - 1)], [4096], (0, 0, 1 << 18), 3 + 512),
    ([(0, (512 << 30) - 1)], None, (512, 0, 0), 2),
    ([(0, 512 << 30 | 0xFFF)], None, (512, 0, 1), 5),
    ([(0, 0xFFF), ((1 << 48) - 0x1000, (1 << 48) - 1)], None, (0, 0, 2), 7),
    ([(1 << 48, (1 << 48) + 0xFFF)], None, (0, 0, 1), 5),
    ([(0, GIB - 1), (2 * GIB, 3 * GIB - 1)], [GIB, 2 << 20], (1, 512, 0), 3),
    ([], None, (0, 0, 0), 0),
]


@pytest.mark.parametrize(("spans", "backing", "leaves", "tables"), TABLES)
def test_tables_are_counted_as_by_hand(
    spans: list[tuple[int, int]], backing: list[int] | None, leaves: Any, tables: int
) -> None:
    ranges = [vi.AddrRange(*span) for span in spans]
    found = page_tables(ranges, ALL_LEAVES, backing)
    assert tuple(count for _, count in found.leaves) == leaves
    assert found.table_bytes == tables * 4096
    assert found.page_sizes == ALL_LEAVES


@pytest.mark.parametrize(
    ("sizes", "leaves"),
    [
        (0, {4096: 1 << 18}),
        (4096, {4096: 1 << 18}),
        (1 << 21, {1 << 21: 512, 4096: 0}),
        (GIB, {GIB: 1, 4096: 0}),
        (1 << 16 | 1 << 29, {4096: 1 << 18}),
    ],
)
def test_leaves_are_those_that_the_iommu_has(sizes: int, leaves: dict[int, int]) -> None:
    assert dict(page_tables([vi.AddrRange(0, GIB - 1)], sizes).leaves) == leaves
